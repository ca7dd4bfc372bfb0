"""Laws of rate limits: no window over the bound, whoever asks, borrows, returns, settles, and whatever the clock does.

Admissions are audited at the instant of their tokens, in exact integers. Not here: equality of the Lua script
(`tests/parity/test_limits.py`), whole fleets (`tests/sim/test_limit_fleet.py`).
"""

from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.core.authority import Check, Checked, Demand, Peek, Peeked, Settle, Settled
from penstock.core.limits import Quota
from penstock.policy.auditing import DeliveryAudit, WindowAudit, worst_excess
from penstock.policy.limit_book import LimitBook
from penstock.policy.limiting import (
    Bucket,
    advance,
    charge,
    expiry_us,
    fill,
    fits,
    remaining,
    start_bucket,
    wait_us,
)

START_US = 1_800_000_000_000_003
KEY = "key"


@st.composite
def quotas(draw: st.DrawFn) -> Quota:
    """Draw a quota whose bucket fills within a tenth of a second, so that short histories see all of it."""
    tick_us = draw(st.sampled_from([1, 1, 1, 7, 1_000]))
    weight = draw(st.integers(1, 2_000))
    burst = draw(st.integers(1, 60))
    drain = draw(st.integers(1, 40))
    return Quota(drain, weight, tick_us, burst, draw(st.integers(0, burst)))


# From nothing to longer than it takes to fill a bucket.
GAPS_US = st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 5_000), st.integers(0, 200_000))
ATTEMPTS = st.lists(st.tuples(GAPS_US, st.integers(0, 60)), max_size=40)


@st.composite
def buckets(draw: st.DrawFn) -> tuple[Quota, Bucket]:
    """Draw a bucket in any state that it can be in, lent tokens included."""
    quota = draw(quotas())
    level = draw(st.integers(0, 2 * quota.capacity))
    at_us = START_US + draw(st.integers(0, 5_000))
    bucket = start_bucket(quota, at_us, level=level)
    leased = draw(st.integers(0, min(level // quota.weight, quota.burst)))
    if leased:
        bucket = Bucket(
            level, at_us, at_us, quota.drain, quota.weight, quota.tick_us, leased, at_us + draw(st.integers(1, 90_000))
        )
    return quota, bucket


# -- one bucket ------------------------------------------------------------------------------------------------------


def admit(quota: Quota, attempts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return when how much was admitted of attempts made one gap after another."""
    now_us, bucket, admissions = START_US, start_bucket(quota, START_US), []
    for gap_us, cost in attempts:
        now_us += gap_us
        bucket = advance(bucket, quota, now_us)
        if fits(bucket, quota, cost):
            bucket = charge(bucket, quota, cost)
            admissions.append((now_us, cost))
    return admissions


@given(quotas(), ATTEMPTS)
def test_no_window_is_over_the_bound(quota: Quota, attempts: list[tuple[int, int]]) -> None:
    """admitted(t1, t2) <= burst + rate * (t2 - t1), and with ticks no more than one of them later."""
    assert worst_excess(admit(quota, attempts), quota) <= 0


@given(quotas(), ATTEMPTS)
def test_the_audit_is_the_worst_of_all_windows(quota: Quota, admissions: list[tuple[int, int]]) -> None:
    """One pass finds what trying every window finds, exactly."""
    now_us, events = START_US, []
    for gap_us, tokens in admissions:
        now_us += gap_us
        events.append((now_us, tokens))
    rate = Fraction(quota.drain, quota.weight * quota.tick_us)
    slack_us = quota.tick_us - 1
    windows = [
        sum(tokens for _, tokens in events[i : j + 1]) - rate * (events[j][0] - events[i][0])
        for i in range(len(events))
        for j in range(i, len(events))
    ]
    expected = max([Fraction(0), *windows]) - quota.burst - rate * slack_us
    assert worst_excess(events, quota) == expected
    audit = WindowAudit(quota)
    for at_us, tokens in events:
        audit.observe(at_us, tokens)
    assert audit.excess_tokens == max(-(-expected.numerator // expected.denominator), 0)


@given(quotas(), ATTEMPTS)
def test_an_ideal_bucket_delivers_itself_in_full(quota: Quota, attempts: list[tuple[int, int]]) -> None:
    """What one bucket that sees everything admits is what could have been admitted."""
    now_us, audit, admitted = START_US, DeliveryAudit(quota, START_US), dict.fromkeys(range(len(attempts)), False)
    bucket = start_bucket(quota, START_US)
    for k, (gap_us, cost) in enumerate(attempts):
        now_us += gap_us
        bucket = advance(bucket, quota, now_us)
        if fits(bucket, quota, cost):
            bucket = charge(bucket, quota, cost)
            admitted[k] = True
        audit.observe(now_us, cost, is_admitted=admitted[k])
    assert audit.under_delivery_ratio == 0
    assert audit.delivered_tokens == audit.ideal_tokens


@given(buckets(), st.integers(0, 60), st.integers(-5_000, 5_000))
def test_waiting_exactly_as_told_is_enough_and_less_is_not(drawn: tuple[Quota, Bucket], cost: int, gap_us: int) -> None:
    """Where nothing is lent, `retry_after` is the first µs at which the tokens are there, even if the clock is late."""
    quota, bucket = drawn
    cost = min(cost, quota.burst)
    bucket = start_bucket(quota, bucket.at_us, level=bucket.level)
    now_us = bucket.at_us + gap_us
    bucket = advance(bucket, quota, now_us)
    after_us = wait_us(bucket, quota, cost, now_us)
    assert (after_us == 0) == fits(bucket, quota, cost)
    assert fits(advance(bucket, quota, now_us + after_us), quota, cost)
    if after_us:
        assert not fits(advance(bucket, quota, now_us + after_us - 1), quota, cost)


@given(buckets(), st.integers(0, 60))
def test_waiting_less_than_told_is_useless_whatever_is_lent(drawn: tuple[Quota, Bucket], cost: int) -> None:
    """Lent tokens may make a caller wait for longer than told, never for less."""
    quota, bucket = drawn
    cost = min(cost, quota.burst)
    after_us = wait_us(bucket, quota, cost, bucket.at_us)
    if after_us:
        assert not fits(advance(bucket, quota, bucket.at_us + after_us - 1), quota, cost)


@given(buckets(), GAPS_US, GAPS_US)
def test_advancing_is_additive(drawn: tuple[Quota, Bucket], first_us: int, second_us: int) -> None:
    """However often somebody looks on the way, the bucket is the same in the end."""
    quota, bucket = drawn
    halfway = advance(bucket, quota, bucket.at_us + first_us)
    assert advance(halfway, quota, bucket.at_us + first_us + second_us) == advance(
        bucket, quota, bucket.at_us + first_us + second_us
    )


@given(buckets(), st.lists(st.integers(-100_000, 100_000), max_size=8))
def test_a_clock_that_steps_back_never_refills(drawn: tuple[Quota, Bucket], steps_us: list[int]) -> None:
    """After any steps of the clock the bucket is as if only the latest instant had been seen."""
    quota, bucket = drawn
    now_us = latest_us = bucket.at_us
    moved = bucket
    for step_us in steps_us:
        now_us += step_us
        before = moved
        moved = advance(moved, quota, now_us)
        assert moved.at_us >= before.at_us
        if now_us <= latest_us:
            assert moved.level == before.level
        latest_us = max(latest_us, now_us)
    assert moved == advance(bucket, quota, latest_us)


@given(buckets())
def test_a_key_expires_when_it_is_full_and_not_before(drawn: tuple[Quota, Bucket]) -> None:
    """At its expiry a bucket is as one that nobody has used; where nothing is lent, one µs before it is not."""
    quota, bucket = drawn
    expires_us = expiry_us(bucket, quota)
    then = advance(bucket, quota, max(expires_us, bucket.at_us))
    assert (then.level, then.leased) == (0, 0)
    if bucket.level and not bucket.leased:
        assert advance(bucket, quota, expires_us - 1).level > 0


@given(buckets(), quotas(), GAPS_US)
def test_a_change_of_quota_gives_nothing_away(drawn: tuple[Quota, Bucket], other: Quota, gap_us: int) -> None:
    """The backlog in tokens is no less under another quota, up to the deepest debt that one knows."""
    quota, bucket = drawn
    assume((quota.drain, quota.weight, quota.tick_us) != (other.drain, other.weight, other.tick_us))
    assume(bucket.leased <= other.burst)
    before = advance(bucket, quota, bucket.at_us + gap_us)
    after = advance(bucket, other, bucket.at_us + gap_us)
    backlog = Fraction(before.level, before.weight)
    assert Fraction(after.level, other.weight) >= min(backlog, Fraction(2 * other.burst))
    assert after.at_us == after.since_us >= bucket.at_us + gap_us


@given(buckets(), st.integers(0, 100))
def test_filling_stops_at_the_rim(drawn: tuple[Quota, Bucket], tokens: int) -> None:
    """What was admitted elsewhere fills a bucket at most to its rim and never empties it."""
    quota, bucket = drawn
    filled = fill(bucket, quota, tokens)
    assert bucket.level <= filled.level <= max(bucket.level, quota.capacity)
    assert remaining(filled, quota) == max(remaining(bucket, quota) - tokens, 0)


# -- settling --------------------------------------------------------------------------------------------------------


@given(quotas(), ATTEMPTS, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10), st.integers(0, 60)), max_size=6))
def test_a_refund_is_as_if_it_had_never_been_charged(
    quota: Quota, attempts: list[tuple[int, int]], settlements: list[tuple[int, int, int]]
) -> None:
    """Charged at first what it was settled at, every request would have been admitted all the same."""
    book = LimitBook("only", 1)
    now_us, costs = START_US, dict[int, int]()
    admitted: list[tuple[int, int]] = []  # when, and by which attempt
    for k, (gap_us, cost) in enumerate(attempts):
        now_us += gap_us
        reply = book.run(Check((Demand(KEY, quota, min(cost, quota.burst)),), (), "g", str(k), 10**9), now_us)
        assert isinstance(reply, Checked)
        if reply.denied < 0:
            costs[k] = min(cost, quota.burst)
            admitted.append((now_us, k))
        for held, lag, actual in settlements:
            if held + lag == k and held in costs:
                settled = book.run(Settle(KEY, quota, str(held), min(actual, costs[held])), now_us)
                assert isinstance(settled, Settled)
                assert 0 <= settled.given_back <= costs[held] - min(actual, costs[held])
                costs[held] -= settled.given_back
    bucket = start_bucket(quota, START_US)
    for at_us, k in admitted:
        bucket = advance(bucket, quota, at_us)
        assert fits(bucket, quota, costs[k])
        bucket = charge(bucket, quota, costs[k])
    assert worst_excess([(at_us, costs[k]) for at_us, k in admitted], quota) <= 0


@given(quotas(), st.integers(0, 60), st.integers(0, 200), GAPS_US)
def test_only_the_first_settling_counts(quota: Quota, cost: int, actual: int, gap_us: int) -> None:
    """The second changes nothing and says so."""
    book = LimitBook("only", 1)
    cost = min(cost, quota.burst)
    book.run(Check((Demand(KEY, quota, cost),), (), "g", "hold", 10**9), START_US)
    now_us = START_US + gap_us
    first = book.run(Settle(KEY, quota, "hold", actual), now_us)
    assert isinstance(first, Settled)
    assert first.given_back <= max(cost - actual, 0) if actual <= cost else first.given_back == cost - actual
    before = book.run(Peek(KEY, quota), now_us)
    again = book.run(Settle(KEY, quota, "hold", 0), now_us)
    assert isinstance(again, Settled)
    assert again.given_back == 0
    assert book.run(Peek(KEY, quota), now_us) == before


# -- checking --------------------------------------------------------------------------------------------------------


@given(quotas(), quotas(), st.lists(st.tuples(GAPS_US, st.integers(0, 60), st.integers(0, 60)), max_size=20))
def test_a_rejected_check_changes_nothing(first: Quota, second: Quota, attempts: list[tuple[int, int, int]]) -> None:
    """A book that never heard of the rejected requests answers every later one alike."""
    busy, calm = LimitBook("busy", 1), LimitBook("calm", 1)
    now_us = START_US
    for gap_us, one, other in attempts:
        now_us += gap_us
        check = Check((Demand("one", first, min(one, first.burst)), Demand("other", second, min(other, second.burst))))
        reply = busy.run(check, now_us)
        assert isinstance(reply, Checked)
        if reply.denied < 0:
            assert calm.run(check, now_us) == reply
    for key, quota in (("one", first), ("other", second)):
        peeked = busy.run(Peek(key, quota), now_us)
        assert isinstance(peeked, Peeked)
        assert calm.run(Peek(key, quota), now_us) == peeked
