"""Limits as nouns: what is limited, per whom, how much of it, and what to do when nobody can be asked.

A `RateLimit` is what people write. A `Quota` is the same in the integers that the bucket counts in.
Not here: the arithmetic (`policy/limiting.py`), what is asked of the authority that counts (`authority.py`).
"""

from dataclasses import dataclass
from enum import StrEnum
from math import gcd

import msgspec

__all__ = [
    "ANONYMOUS",
    "EXACT_MAX",
    "ConcurrencyLimit",
    "Cost",
    "Failover",
    "Level",
    "Limit",
    "LimitSettings",
    "Principal",
    "Quota",
    "RateLimit",
    "Unreachable",
]

# The first integer that a double cannot tell from its neighbour: Lua in Redis counts in doubles (IEEE 754).
EXACT_MAX = 2**53
# From exact to coarse: the finest tick in which a limit's numbers stay below EXACT_MAX is chosen.
_TICKS_US = (1, 1_000, 10_000, 1_000_000)
# Below this burst a block of tokens is so small that lending it saves nothing: such keys are always asked for.
LEASED_BURST_MIN = 16


class Level(StrEnum):
    """Whose consumption is counted together."""

    USER = "user"
    TENANT = "tenant"
    MODEL = "model"
    GLOBAL = "global"


class Cost(StrEnum):
    """What a request takes from a bucket: 1, its rows, or the tokens of a model, which are settled afterwards."""

    REQUESTS = "requests"
    ROWS = "rows"
    TOKENS = "tokens"


class Unreachable(StrEnum):
    """What to do with requests while the authority does not answer.

    `closed` refuses them, `open` lets them in uncounted, `local_share` lets each gateway admit its share of the limit
    by the last known number of gateways, so that the fleet stays within it.
    """

    CLOSED = "closed"
    OPEN = "open"
    LOCAL_SHARE = "local_share"


class Failover(StrEnum):
    """What a bucket starts at after the authority may have lost writes.

    `soft` goes on with what is left and publishes how much may be admitted twice; `hard` starts every bucket empty of
    tokens, so that what was lost becomes refusals, never free quota.
    """

    SOFT = "soft"
    HARD = "hard"


class Quota(msgspec.Struct, frozen=True, array_like=True):
    """A rate limit in the integers of a level bucket: a token adds `weight` units, `drain` units leave per tick.

    Attributes:
        drain: Units that leave per tick, >= 1.
        weight: Units of one token, >= 1; `drain / weight` is tokens per tick, in lowest terms.
        tick_us: Length of a tick, µs.
        burst: Tokens that fit into an idle bucket.
        lease_max: Tokens that may be lent to all gateways together at any time; 0 if none may.
        is_hard: See `Failover`.
    """

    drain: int
    weight: int
    tick_us: int
    burst: int
    lease_max: int = 0
    is_hard: bool = False

    @property
    def capacity(self) -> int:
        """Return the units of a full bucket."""
        return self.burst * self.weight


class RateLimit(msgspec.Struct, frozen=True, tag="rate"):
    """At most `burst + tokens * t / per` tokens in any window of length t.

    Args:
        name: Unique among limits, for answers and metrics.
        level: Whose consumption is counted together.
        tokens: Tokens per `per_us`, >= 1.
        per_us: µs, >= 1.
        burst: Tokens that may be taken at once, >= 1. A request that costs more can never pass.
        cost: What a request takes.
        models: Only requests for these are counted; empty for all.
        unreachable, failover: See there.
        split: Sub-buckets the key is spread over, >= 1, each with its part of rate and burst.

    Raises:
        ValueError: A number is out of range, or the limit cannot be counted exactly; the message names it.
    """

    name: str
    level: Level
    tokens: int
    per_us: int
    burst: int
    cost: Cost = Cost.REQUESTS
    models: tuple[str, ...] = ()
    unreachable: Unreachable = Unreachable.LOCAL_SHARE
    failover: Failover = Failover.SOFT
    split: int = 1

    def __post_init__(self) -> None:
        for field, least in (("tokens", 1), ("per_us", 1), ("burst", 1), ("split", 1)):
            got = getattr(self, field)
            if got < least:
                raise ValueError(f"{field}: expected at least {least}, got {got}")
        if self.split > 1 and self.cost is Cost.TOKENS:
            raise ValueError("split: expected 1 with cost tokens, which are settled where they were charged, got more")
        if self.split > self.burst:
            raise ValueError(f"split: expected at most burst ({self.burst}), got {self.split}")
        self.quota()

    def quota(self, share: int = 1) -> Quota:
        """Return the limit as the bucket counts it, divided by `share` (and by `split`), never rounded up.

        Args:
            share: 1 .. `burst // split`: a share holds at least one token.

        Raises:
            ValueError: Its numbers do not fit below 2^53 in any tick. Use a shorter `per`, a smaller `burst`, or
                `tokens` that divide the period.
        """
        parts = self.split * share
        assert 1 <= parts <= self.burst
        burst = self.burst // parts
        for tick_us in _TICKS_US:
            if self.per_us % tick_us:
                continue
            period = self.per_us // tick_us * parts
            common = gcd(self.tokens, period)
            drain, weight = self.tokens // common, period // common
            # Level, one more charge, and one tick's drain are the largest sums that the bucket forms; the instant at
            # which the deepest debt is drained is the latest. Half of EXACT_MAX is left for the clock: until 2112.
            full_us = 2 * burst * weight // drain * tick_us
            if 2 * burst * weight + drain < EXACT_MAX and full_us < EXACT_MAX // 2:
                # What is settled afterwards needs a charge of its own at the authority.
                is_lent = burst >= LEASED_BURST_MIN and self.cost is not Cost.TOKENS
                leased = burst // 2 if is_lent else 0
                return Quota(drain, weight, tick_us, burst, leased, self.failover is Failover.HARD)
        raise ValueError(
            f"{self.tokens} tokens per {self.per_us} µs with burst {self.burst}: expected numbers that can be counted"
            " exactly below 2^53; use a shorter per, a smaller burst, or tokens that divide the period"
        )


class ConcurrencyLimit(msgspec.Struct, frozen=True, tag="concurrency"):
    """At most `slots` requests in progress at once.

    Args:
        name, level, models, unreachable: As for `RateLimit`.
        slots: Requests, >= 1.
        ttl_us: How long the slots of a gateway that died stay taken, µs.
    """

    name: str
    level: Level
    slots: int
    models: tuple[str, ...] = ()
    unreachable: Unreachable = Unreachable.LOCAL_SHARE
    ttl_us: int = 10_000_000

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"concurrent: expected at least 1, got {self.slots}")


Limit = RateLimit | ConcurrencyLimit


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, as their key says.

    Args:
        key_id: Public part of the key; '' for a caller without one.
        tenant, user: On whose account it runs.
        is_batch: True if all this caller's requests are of class batch.
        models: The models it may use; None for all.
        tier: Name of the set of limits it is under; '' for the limits that name no tier.
        weight: Its tenant's share of a contended device, relative to others'; 0 for what the model says.
        limits: Further limits of this key alone.
    """

    key_id: str = ""
    tenant: str = ""
    user: str = ""
    is_batch: bool = False
    models: tuple[str, ...] | None = None
    tier: str = ""
    weight: float = 0.0
    limits: tuple[RateLimit, ...] = ()


ANONYMOUS = Principal(user="anonymous")


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Every limit in force, and how the authority is asked.

    Args:
        limits: Those under no tier hold for every request they match.
        tiers: Names of further limits, by tier.
        deadline_us: How long a gateway waits for the authority, µs.
        lease_us: How long lent tokens are good for, µs.
        redis: URL of the authority; '' for the head.
        prefix: Of all keys in Redis, so that several fleets can share one.
        eviction: What to do if Redis may evict limiter keys: refuse to start, or warn.
        lag_us_max: Longest replication lag assumed when the possible loss of a failover is published, µs.
        decision_log: File to which gateways append one JSON line per decision; '' for none.
    """

    limits: tuple[Limit, ...] = ()
    tiers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    deadline_us: int = 20_000
    lease_us: int = 1_000_000
    redis: str = ""
    prefix: str = "penstock"
    eviction: str = "refuse"
    lag_us_max: int = 1_000_000
    decision_log: str = ""

    def of(self, tier: str, model: str) -> tuple[Limit, ...]:
        """Return the limits that requests of a tier for a model are under."""
        tiers = dict(self.tiers)
        tiered = {name for names in tiers.values() for name in names}
        wanted = tiers.get(tier, ())
        return tuple(
            limit
            for limit in self.limits
            if (limit.name in wanted or limit.name not in tiered) and (not limit.models or model in limit.models)
        )
