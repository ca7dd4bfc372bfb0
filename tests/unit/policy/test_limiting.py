"""The bucket by numbers: levels, drains, floors, waits and expiries of a token per ms and a hundred at once."""

import pytest

from penstock.core.limits import Quota
from penstock.policy.limiting import (
    Bucket,
    advance,
    charge,
    credit,
    expiry_us,
    fill,
    fits,
    remaining,
    start_bucket,
    wait_us,
)

QUOTA = Quota(drain=1, weight=1_000, tick_us=1, burst=100, lease_max=50)
MS = 1_000


def bucket(tokens: int, at_us: int = 0, leased: int = 0, leased_until_us: int = 0) -> Bucket:
    """Return a bucket with so many tokens used up."""
    return Bucket(tokens * 1_000, at_us, 0, 1, 1_000, 1, leased, leased_until_us)


@pytest.mark.parametrize(
    ("used", "leased", "until_ms", "now_ms", "expected"),
    [
        (100, 0, 0, 0, 0),
        (100, 0, 0, 1, 1),
        (100, 0, 0, 40, 40),
        (100, 0, 0, 100, 100),
        (100, 0, 0, 10**9, 100),
        (100, 30, 500, 60, 60),
        (100, 30, 500, 90, 70),  # no lower than what is lent
        (100, 30, 500, 499, 70),
        (100, 30, 500, 510, 80),  # from where it stood when the leases ran out
        (100, 30, 500, 530, 100),
        (200, 0, 0, 100, 0),  # a debt
        (200, 0, 0, 101, 1),
    ],
)
def test_draining(used: int, leased: int, until_ms: int, now_ms: int, expected: int) -> None:
    """A token comes back per ms, none that is lent before its lease is over, none of a debt before it is paid."""
    then = advance(bucket(used, 0, leased, until_ms * MS), QUOTA, now_ms * MS)
    assert remaining(then, QUOTA) == expected


@pytest.mark.parametrize(
    ("used", "cost", "expected_us"),
    [(0, 100, 0), (100, 1, MS), (100, 100, 100 * MS), (50, 60, 10 * MS), (200, 0, 100 * MS), (200, 1, 101 * MS)],
)
def test_waits(used: int, cost: int, expected_us: int) -> None:
    """The wait is what the excess takes to drain."""
    assert wait_us(bucket(used), QUOTA, cost, 0) == expected_us
    assert fits(bucket(used), QUOTA, cost) == (expected_us == 0)


def test_a_late_clock_waits_until_it_has_caught_up() -> None:
    """Where the bucket's time is ahead, the caller waits for the difference, too."""
    assert wait_us(bucket(100, 500 * MS), QUOTA, 1, 0) == 501 * MS


def test_coarse_ticks_end_where_the_clock_says() -> None:
    """A tick is a stretch of the clock, not of the bucket's life: the first may be short."""
    quota = Quota(drain=5, weight=1, tick_us=10_000, burst=20)
    used = charge(start_bucket(quota, 19_999), quota, 20)
    assert remaining(advance(used, quota, 19_999), quota) == 0
    assert remaining(advance(used, quota, 20_000), quota) == 5
    assert remaining(advance(used, quota, 29_999), quota) == 5
    assert wait_us(used, quota, 6, 19_999) == 10_001


def test_charges_are_owed_up_to_twice_the_rim() -> None:
    """What was used beyond its estimate is remembered to the depth of one burst."""
    assert charge(bucket(90), QUOTA, 30).level == 120 * 1_000
    assert charge(bucket(90), QUOTA, 500).level == 200 * 1_000


def test_filling_never_empties() -> None:
    """Tokens admitted elsewhere fill to the rim; a debt stays a debt."""
    assert fill(bucket(90), QUOTA, 500).level == 100 * 1_000
    assert fill(bucket(150), QUOTA, 1).level == 150 * 1_000


@pytest.mark.parametrize(
    ("tokens", "after_us", "expected"),
    [(50, 0, 50), (50, 1, 49), (50, 20 * MS, 30), (50, 50 * MS, 0), (50, 10**9, 0), (0, 0, 0)],
)
def test_credits(tokens: int, after_us: int, expected: int) -> None:
    """Of what was charged too much comes back what has not drained since, in whole tokens."""
    now = advance(bucket(100), QUOTA, after_us)
    emptier, back = credit(now, QUOTA, tokens, 0)
    assert back == expected
    assert now.level - emptier.level == expected * 1_000


def test_lent_tokens_are_not_given_back_as_a_refund() -> None:
    """A credit goes no lower than what is lent."""
    assert credit(bucket(50, 0, 40, MS), QUOTA, 30, 0)[1] == 10


@pytest.mark.parametrize(
    ("used", "leased", "until_ms", "expected_ms"),
    [(0, 0, 0, 0), (40, 0, 0, 40), (40, 40, 500, 540), (100, 10, 20, 120)],
)
def test_expiries(used: int, leased: int, until_ms: int, expected_ms: int) -> None:
    """A key is kept until its bucket is full of tokens, counted from the end of the last lease."""
    assert expiry_us(bucket(used, 0, leased, until_ms * MS), QUOTA) == expected_ms * MS


def test_another_quota_keeps_the_backlog_in_tokens() -> None:
    """Half used up stays so when tokens come ten times as fast; of a debt two new bursts at most."""
    quick = Quota(drain=1, weight=100, tick_us=1, burst=100)
    assert remaining(advance(bucket(50), quick, 0), quick) == 50
    small = Quota(drain=1, weight=100, tick_us=1, burst=10)
    assert advance(bucket(100), small, 0).level == 2 * small.capacity


def test_a_smaller_burst_keeps_the_backlog() -> None:
    """At the same rate nothing is forgotten."""
    small = Quota(drain=1, weight=1_000, tick_us=1, burst=10)
    assert remaining(advance(bucket(100), small, 95 * MS), small) == 5
