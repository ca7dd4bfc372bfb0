"""Rate limiting by token bucket, counted as a level: integers only, no clock, no store.

A charge of `cost` tokens adds `cost * weight` units; `drain` units leave per tick; what would rise over the rim is
rejected and changes nothing. So admitted(t1, t2) <= burst + rate * (t2 - t1) in every window. Tokens that are lent
(`leasing.py`) stay in the bucket: it drains no lower than they reach. Redis runs the same arithmetic
(`adapters/redis/bucket.lua`); `tests/parity/test_limits.py` holds the two equal, and both to exact fractions.

Source: the leaky bucket as a meter, ITU-T I.371 annex A; the floor under lent tokens and its proof are ours
(docs/rate-limiting.md).
"""

import msgspec
from msgspec.structs import replace

from penstock.core.limits import Quota

__all__ = ["Bucket", "advance", "charge", "credit", "expiry_us", "fill", "fits", "remaining", "start_bucket", "wait_us"]


class Bucket(msgspec.Struct, frozen=True, gc=False):
    """What is kept of one key: a struct because a head makes two anew for each check, and each of numbers alone.

    Attributes:
        level: Units in it, 0 .. twice the capacity: what was used beyond its estimate is a debt above the rim.
        at_us: When that was so. Never falls: a clock that steps back drains nothing twice.
        since_us: When this count began: the bucket was new, or its quota another before. Of what was charged earlier
            nothing is known to be in it, so nothing of that is ever given back.
        drain, weight, tick_us: Of the quota it is counted under.
        leased: Tokens lent out, until `leased_until_us`, both by the bucket's own time.
        epoch_us: Under a `hard` quota, the instant that tells the authority that counts it from any before; else 0.
    """

    level: int
    at_us: int
    since_us: int
    drain: int
    weight: int
    tick_us: int
    leased: int = 0
    leased_until_us: int = 0
    epoch_us: int = 0


def start_bucket(quota: Quota, now_us: int, *, level: int = 0) -> Bucket:
    """Return the bucket of a key nobody has used: full of tokens, unless `level` units are in it already."""
    return Bucket(level, now_us, now_us, quota.drain, quota.weight, quota.tick_us)


def advance(bucket: Bucket, quota: Quota, now_us: int) -> Bucket:
    """Return the bucket as it is at `now_us`, or at its own time if that is later, counted under `quota`.

    Under another quota than before, its backlog in tokens is kept, rounded up, and it drains from the next tick on: a
    change of limits gives nothing away, however often it is made.
    """
    now_us = max(now_us, bucket.at_us)
    if bucket.leased and bucket.leased_until_us <= now_us:
        bucket = _drain(bucket, bucket.leased_until_us, quota.burst)
        bucket = replace(bucket, leased=0)
    bucket = _drain(bucket, now_us, quota.burst)
    if (bucket.drain, bucket.weight, bucket.tick_us) == (quota.drain, quota.weight, quota.tick_us):
        return bucket
    level = min(-(-bucket.level // bucket.weight) * quota.weight, 2 * quota.capacity)
    at_us = -(-bucket.at_us // quota.tick_us) * quota.tick_us
    return replace(
        bucket,
        level=level,
        at_us=at_us,
        since_us=at_us,
        drain=quota.drain,
        weight=quota.weight,
        tick_us=quota.tick_us,
    )


def _drain(bucket: Bucket, until_us: int, burst: int) -> Bucket:
    if until_us <= bucket.at_us:
        return bucket
    ticks = until_us // bucket.tick_us - bucket.at_us // bucket.tick_us
    # The smaller of the two factors: the product stays below 2^53, as Lua's doubles need.
    drained = bucket.drain * min(ticks, -(-bucket.level // bucket.drain))
    floor = min(min(bucket.leased, burst) * bucket.weight, bucket.level)
    return replace(bucket, level=max(bucket.level - drained, floor), at_us=until_us)


def fits(bucket: Bucket, quota: Quota, cost: int) -> bool:
    """Return whether so many tokens can be taken from an advanced bucket."""
    return bucket.level + cost * quota.weight <= quota.capacity


def charge(bucket: Bucket, quota: Quota, cost: int) -> Bucket:
    """Return an advanced bucket after taking `cost` tokens, which must fit or be owed: at most to twice the rim."""
    return replace(bucket, level=min(bucket.level + cost * quota.weight, 2 * quota.capacity))


def fill(bucket: Bucket, quota: Quota, tokens: int) -> Bucket:
    """Return an advanced bucket after `tokens` were admitted elsewhere: fuller by them, at most to its rim."""
    level = bucket.level + min(tokens, quota.burst) * quota.weight
    return replace(bucket, level=max(min(level, quota.capacity), bucket.level))


def credit(bucket: Bucket, quota: Quota, tokens: int, charged_at_us: int) -> tuple[Bucket, int]:
    """Undo a part of a charge, as far as the bucket has not drained since: more would let it be used twice.

    Without the charge the bucket would now be lower by at most what the charge added, and by at least that less all
    that has drained since. The latter is given back; nothing of a charge from before the bucket's count began.

    Returns:
        The bucket, and the tokens by which it is emptier.
    """
    ticks = bucket.at_us // quota.tick_us - charged_at_us // quota.tick_us
    units = tokens * quota.weight
    units -= quota.drain * min(max(ticks, 0), -(-units // quota.drain))
    floor = min(min(bucket.leased, quota.burst) * quota.weight, bucket.level)
    back = max(min(units, bucket.level - floor), 0) // quota.weight
    return replace(bucket, level=bucket.level - back * quota.weight), back


def remaining(bucket: Bucket, quota: Quota) -> int:
    """Return the tokens that can be taken from an advanced bucket."""
    return max(quota.capacity - bucket.level, 0) // quota.weight


def wait_us(bucket: Bucket, quota: Quota, cost: int, now_us: int) -> int:
    """Return how long until `cost` tokens fit if nobody else takes or holds any; less is useless. 0 if they fit.

    Args:
        bucket: Advanced to `now_us`; its own time is later if the clock stepped back, and then that is waited for too.
        quota: Its quota.
        cost: At most the burst.
        now_us: The clock.
    """
    excess = bucket.level + cost * quota.weight - quota.capacity
    if excess <= 0:
        return 0
    ticks = -(-excess // quota.drain)
    return (bucket.at_us // quota.tick_us + ticks) * quota.tick_us - now_us


def expiry_us(bucket: Bucket, quota: Quota) -> int:
    """Return when a bucket that nobody touches may be forgotten: not before it is full of tokens again."""
    ticks = -(-bucket.level // quota.drain)
    full_us = (bucket.at_us // quota.tick_us + ticks) * quota.tick_us
    if not bucket.leased:
        return full_us
    return max(full_us, bucket.leased_until_us + ticks * quota.tick_us)
