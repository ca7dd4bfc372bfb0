"""Audits of limits by numbers: the worst window, what was given back, what an ideal bucket would have let in."""

from fractions import Fraction

import pytest

from penstock.core.limits import Quota
from penstock.policy.auditing import DeliveryAudit, WindowAudit, worst_excess

# A token per 10 µs, three at once.
QUOTA = Quota(drain=1, weight=10, tick_us=1, burst=3)
# The same in ticks of 10 µs.
COARSE = Quota(drain=1, weight=1, tick_us=10, burst=3)


@pytest.mark.parametrize(
    ("admissions", "expected"),
    [
        ([], Fraction(-3)),
        ([(0, 1)], Fraction(-2)),
        ([(0, 3)], Fraction(0)),
        ([(0, 4)], Fraction(1)),
        ([(0, 3), (10, 1)], Fraction(0)),
        ([(0, 3), (9, 1)], Fraction(1, 10)),
        ([(0, 3), (5, 1)], Fraction(1, 2)),
        ([(0, 1), (1_000, 3), (1_005, 1), (9_000, 2)], Fraction(1, 2)),  # neither the first nor the last window
        ([(0, 3), (0, -2), (0, 2)], Fraction(0)),  # given back, and taken again
        ([(0, 3), (100, -2), (100, 3)], Fraction(0)),  # given back to somebody else's window helps nobody
    ],
)
def test_worst_windows(admissions: list[tuple[int, int]], expected: Fraction) -> None:
    """The excess is that of the worst of all windows, to the fraction of a token."""
    assert worst_excess(admissions, QUOTA) == expected


def test_ticks_allow_for_one_that_has_just_ended() -> None:
    """What a tick drains is there at its end: a window of 1 µs may see all of it, and no more."""
    assert worst_excess([(9, 3), (10, 1)], COARSE) == 0
    assert worst_excess([(9, 3), (10, 2)], COARSE) == 1


def test_excess_in_tokens_is_rounded_up() -> None:
    """A tenth of a token over is one too many."""
    audit = WindowAudit(QUOTA)
    audit.observe(0, 3)
    assert (audit.excess_tokens, audit.filled_ratio, audit.windows) == (0, 1.0, 1)
    audit.observe(9, 1)
    assert audit.excess_tokens == 1
    audit.observe(10_000, 1)
    assert audit.excess_tokens == 1
    assert audit.windows == 3


def test_slack_widens_every_window() -> None:
    """Instants that are off by up to 10 µs may make one more token look too early."""
    audit = WindowAudit(QUOTA, slack_us=10)
    audit.observe(0, 4)
    assert audit.excess == 0
    audit.observe(0, 1)
    assert audit.excess == 1


def test_delivery_is_measured_against_one_bucket() -> None:
    """Of three attempts that fit two were let in; the one that does not fit is nobody's loss."""
    audit = DeliveryAudit(QUOTA, 0)
    assert audit.under_delivery_ratio == 0
    for at_us, is_admitted in ((0, True), (0, False), (0, True), (0, False)):
        audit.observe(at_us, 1, is_admitted=is_admitted)
    assert (audit.ideal_tokens, audit.delivered_tokens) == (3, 2)
    assert audit.under_delivery_ratio == pytest.approx(1 / 3)


def test_more_than_ideal_is_no_under_delivery() -> None:
    """A large request that the ideal bucket had no room for may pass in fact."""
    audit = DeliveryAudit(QUOTA, 0)
    audit.observe(0, 1, is_admitted=False)
    audit.observe(0, 3, is_admitted=True)
    assert audit.under_delivery_ratio == 0
