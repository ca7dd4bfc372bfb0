"""Limits in integers: exact or refused, divided never upwards, and which hold for whom."""

from fractions import Fraction

import msgspec
import pytest

from penstock.core.limits import (
    EXACT_MAX,
    ConcurrencyLimit,
    Cost,
    Failover,
    Level,
    LimitSettings,
    Quota,
    RateLimit,
)

DAY_US = 86_400_000_000


def limit(tokens: int = 100, per_us: int = 1_000_000, burst: int = 200, **others: object) -> RateLimit:
    """Return a limit per user."""
    return msgspec.structs.replace(RateLimit("x", Level.USER, tokens, per_us, burst), **others)


@pytest.mark.parametrize(
    ("tokens", "per_us", "burst", "expected"),
    [
        (100, 1_000_000, 200, Quota(1, 10_000, 1, 200, 100)),
        (1_000, 60_000_000, 5_000, Quota(1, 60_000, 1, 5_000, 2_500)),
        (3, 7, 10, Quota(3, 7, 1, 10, 0)),  # too little to lend of
        (3, 7, 16, Quota(3, 7, 1, 16, 8)),
        (999_983, DAY_US, 5_000_000, Quota(999_983, 86_400_000, 1_000, 5_000_000, 2_500_000)),
        (999_983, DAY_US, 5_000_000_000, Quota(999_983, 86_400, 1_000_000, 5_000_000_000, 2_500_000_000)),
    ],
)
def test_quotas(tokens: int, per_us: int, burst: int, expected: Quota) -> None:
    """A limit is counted in lowest terms, in the finest tick in which its numbers are exact."""
    assert limit(tokens, per_us, burst).quota() == expected


@pytest.mark.parametrize(
    ("tokens", "per_us", "burst"), [(1, 1, 1), (999_983, DAY_US, 10**9), (10**9, 1_000_000, 10**9), (1, DAY_US, 20_000)]
)
def test_quotas_are_exact_and_small(tokens: int, per_us: int, burst: int) -> None:
    """The rate is the limit's to the last digit, and every number that a bucket forms is exact in a double."""
    quota = limit(tokens, per_us, burst).quota()
    assert Fraction(quota.drain, quota.weight * quota.tick_us) == Fraction(tokens, per_us)
    assert 2 * quota.capacity + quota.drain < EXACT_MAX
    assert 2 * quota.capacity // quota.drain * quota.tick_us < EXACT_MAX // 2


@pytest.mark.parametrize(
    ("tokens", "per_us", "burst"),
    [
        (999_983, 86_399_999_999, 10**9),  # no coarser tick divides the period
        (1, DAY_US, 10**6),  # 2,700 years to fill: no instant that far is exact
        (2**60, 1_000_000, 10),
    ],
)
def test_what_cannot_be_counted_exactly_is_refused(tokens: int, per_us: int, burst: int) -> None:
    """The message says what would help."""
    with pytest.raises(ValueError, match=r"exactly below 2\^53; use a shorter per"):
        limit(tokens, per_us, burst)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens: expected at least 1, got 0"),
        ({"tokens": -5}, "tokens: expected at least 1, got -5"),
        ({"per_us": 0}, "per_us: expected at least 1, got 0"),
        ({"burst": 0}, "burst: expected at least 1, got 0"),
        ({"split": 0}, "split: expected at least 1, got 0"),
        ({"split": 201}, r"split: expected at most burst \(200\), got 201"),
        ({"split": 2, "cost": Cost.TOKENS}, "split: expected 1 with cost tokens"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    """The message names the field, what was expected and what was got."""
    with pytest.raises(ValueError, match=message):
        msgspec.structs.replace(limit(), **change)


@pytest.mark.parametrize("share", [1, 2, 3, 7, 200])
@pytest.mark.parametrize("split", [1, 2, 5])
def test_shares_together_are_no_more_than_the_whole(share: int, split: int) -> None:
    """Rate and burst of all shares of all sub-buckets add up to the limit's at most, the rate to exactly it."""
    whole = limit(split=split)
    parts = share * split
    if parts > whole.burst:
        return
    quota = whole.quota(share)
    assert parts * quota.burst <= whole.burst
    assert parts * Fraction(quota.drain, quota.weight * quota.tick_us) == Fraction(whole.tokens, whole.per_us)


def test_what_is_settled_afterwards_is_not_lent() -> None:
    """A charge that is to be settled must be known to the authority by itself."""
    assert limit(cost=Cost.TOKENS).quota().lease_max == 0


def test_hard_limits_say_so() -> None:
    """The quota tells the authority what to do after a failover."""
    assert limit(failover=Failover.HARD).quota().is_hard


def test_concurrency_needs_a_slot() -> None:
    """A limit of none is a mistake."""
    with pytest.raises(ValueError, match="concurrent: expected at least 1, got 0"):
        ConcurrencyLimit("x", Level.USER, 0)


def test_tiers_add_limits_to_those_for_all() -> None:
    """Limits in no tier hold for everybody, a tier's for its members, and either only for its models."""
    everybody, digits, pro = limit(name="all"), limit(name="digits", models=("digits",)), limit(name="pro")
    settings = LimitSettings((everybody, digits, pro), (("pro", ("pro",)), ("none", ())))
    assert settings.of("", "digits") == (everybody, digits)
    assert settings.of("", "other") == (everybody,)
    assert settings.of("pro", "other") == (everybody, pro)
    assert settings.of("none", "other") == (everybody,)
