"""A token bucket as a text book has it, in exact fractions: what the integers of the book and of Redis must come to.

Tokens used is a fraction; it falls by rate x time, down to what is lent, and time counts in whole ticks. Written apart
from `policy/limiting.py`: no units, no weight, no drain, nothing clamped for the sake of doubles.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

from penstock.core.limits import Failover, RateLimit

__all__ = ["LEASE_US_MAX", "Entry", "Oracle"]

LEASE_US_MAX = 2_000_000


@dataclass
class Entry:
    """One bucket: so many tokens used at `at_us`, counted under `limit` since `since_us`."""

    limit: RateLimit
    used: Fraction
    at_us: int
    since_us: int
    stamp_us: int = 0
    leases: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    leased_until_us: int = 0
    leased: int = 0
    holds: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)

    @property
    def rate(self) -> Fraction:
        """Return tokens per tick."""
        return Fraction(self.limit.tokens * self.tick_us, self.limit.per_us)

    @property
    def tick_us(self) -> int:
        """Return the length of a tick, µs."""
        return self.limit.quota().tick_us

    def drain(self, until_us: int, burst: int) -> None:
        """Let tokens come back until then."""
        if until_us > self.at_us:
            ticks = until_us // self.tick_us - self.at_us // self.tick_us
            least = min(Fraction(min(self.leased, burst)), self.used)
            self.used = max(self.used - self.rate * ticks, least)
            self.at_us = until_us

    def room(self) -> int:
        """Return whole tokens that can be taken."""
        return max(floor(self.limit.burst - self.used), 0)

    def wait_us(self, cost: int, now_us: int) -> int:
        """Return how long until so many can be."""
        missing = self.used + cost - self.limit.burst
        return 0 if missing <= 0 else self.after_us(missing) - now_us

    def after_us(self, tokens: Fraction) -> int:
        """Return when so many will have come back."""
        return (self.at_us // self.tick_us + ceil(tokens / self.rate)) * self.tick_us

    def full_us(self) -> int:
        """Return when all will have."""
        full_us = self.after_us(self.used)
        if self.leased:
            full_us = max(full_us, self.leased_until_us + ceil(self.used / self.rate) * self.tick_us)
        return full_us

    def add(self, tokens: int) -> None:
        """Use tokens, or owe them: at most a burst of debt."""
        self.used = min(self.used + tokens, Fraction(2 * self.limit.burst))


class Oracle:
    """Buckets by key. Each method is one operation, and returns what its reply says."""

    def __init__(self, since_us: int) -> None:
        self.since_us = since_us
        self.entries: dict[str, Entry] = {}

    def open(self, key: str, limit: RateLimit, now_us: int) -> tuple[Entry, bool]:
        """Return a key's entry, moved to now and under `limit`, and whether anything was known; it is not yet kept."""
        is_hard = limit.failover is Failover.HARD
        stamp_us = self.since_us if is_hard else 0
        known = self.entries.get(key)
        if known is not None and is_hard and known.stamp_us not in (0, self.since_us):
            known = None
        if known is not None:
            entry = Entry(
                known.limit, known.used, known.at_us, known.since_us, stamp_us, dict(known.leases),
                known.leased_until_us, known.leased, dict(known.holds),
            )  # fmt: skip
        elif is_hard:
            start_us = self.since_us + LEASE_US_MAX
            entry = Entry(limit, Fraction(limit.burst), start_us, start_us, stamp_us)
        else:
            entry = Entry(limit, Fraction(0), now_us, now_us)
        now_us = max(now_us, entry.at_us)
        if entry.leased and entry.leased_until_us <= now_us:
            entry.drain(entry.leased_until_us, limit.burst)
            entry.leased = 0
        entry.drain(now_us, limit.burst)
        before = entry.limit
        entry.limit = limit
        if (before.tokens * limit.per_us, before.quota().tick_us) != (limit.tokens * before.per_us, entry.tick_us):
            entry.used = min(Fraction(ceil(entry.used)), Fraction(2 * limit.burst))
            entry.at_us = entry.since_us = ceil(Fraction(entry.at_us, entry.tick_us)) * entry.tick_us
        return entry, known is not None

    def check(
        self, demands: list[tuple[str, RateLimit, int]], hold: str, hold_us: int, now_us: int
    ) -> tuple[int, int, list[int]]:
        """Return which demand is denied, the wait, and what is left of each bucket."""
        opened = [self.open(key, limit, now_us)[0] for key, limit, _ in demands]
        waits = [entry.wait_us(cost, now_us) for entry, (_, _, cost) in zip(opened, demands, strict=True)]
        longest = max(waits, default=0)
        if longest > 0:
            return waits.index(longest), longest, [entry.room() for entry in opened]
        for entry, (key, _, cost) in zip(opened, demands, strict=True):
            entry.add(cost)
            if hold:
                entry.holds = {i: h for i, h in entry.holds.items() if h[2] > entry.at_us}
                entry.holds[hold] = (cost, entry.at_us, entry.at_us + hold_us, entry.since_us)
            self.entries[key] = entry
        return -1, 0, [entry.room() for entry in opened]

    def ask(
        self, key: str, limit: RateLimit, holder: str, lease: str, want: int, ttl_us: int,
        closes: list[tuple[str, int]], now_us: int,
    ) -> tuple[int, int, int, int]:  # fmt: skip
        """Return what is lent, what is left, what is lent to all, and the wait for one token."""
        entry, is_known = self.open(key, limit, now_us)
        entry.leases = {i: x for i, x in entry.leases.items() if x[2] > entry.at_us}
        for closed, unused in closes:
            if closed in entry.leases:
                entry.used = max(entry.used - min(unused, entry.leases.pop(closed)[1]), Fraction(0))
        out = sum(tokens for _, tokens, _ in entry.leases.values())
        tokens = 0
        if lease in entry.leases:
            granted = entry.leases[lease][1]
        else:
            free = min(entry.room(), limit.quota().lease_max - out)
            part = free // len({h for h, _, _ in entry.leases.values()} | {holder})
            granted = tokens = max(min(want, max(part, min(free, 1))), 0)
        if tokens:
            entry.add(tokens)
            entry.leases[lease] = (holder, tokens, entry.at_us + min(ttl_us, LEASE_US_MAX))
        entry.leased = out + tokens
        entry.leased_until_us = max((until_us for _, _, until_us in entry.leases.values()), default=0)
        if is_known or tokens:
            self.entries[key] = entry
        return granted, entry.room(), entry.leased, 0 if granted else entry.wait_us(1, now_us)

    def settle(self, key: str, limit: RateLimit, hold: str, actual: int, now_us: int) -> tuple[int, int]:
        """Return what came back and what is left."""
        entry, is_known = self.open(key, limit, now_us)
        held = entry.holds.pop(hold, None)
        if not is_known or held is None or held[2] <= entry.at_us:
            return 0, entry.room()
        tokens, charged_at_us, _, since_us = held
        back = tokens - actual
        if back < 0:
            entry.add(-back)
        elif since_us != entry.since_us:
            back = 0
        else:
            ticks = max(entry.at_us // entry.tick_us - charged_at_us // entry.tick_us, 0)
            least = min(Fraction(min(entry.leased, limit.burst)), entry.used)
            back = max(floor(min(back - entry.rate * ticks, entry.used - least)), 0)
            entry.used -= back
        self.entries[key] = entry
        return back, entry.room()

    def debit(self, key: str, limit: RateLimit, tokens: int, now_us: int) -> tuple[int, int]:
        """Return by how much the room has changed and what is left."""
        entry, _ = self.open(key, limit, now_us)
        room = entry.room()
        entry.used = max(min(entry.used + tokens, Fraction(limit.burst)), entry.used)
        self.entries[key] = entry
        return entry.room() - room, entry.room()

    def peek(self, key: str, limit: RateLimit, now_us: int) -> tuple[int, int, int, int]:
        """Return what is left, what is lent, in how many leases, and when all will be there."""
        entry, _ = self.open(key, limit, now_us)
        out = [tokens for _, tokens, until_us in entry.leases.values() if until_us > entry.at_us]
        return entry.room(), sum(out), len(out), max(entry.full_us() - now_us, 0)
