"""The authority over limits as one pure object: buckets, leases, holds and slots by key, and every operation on them.

The head keeps one for a fleet without Redis; the simulator runs it; the Lua scripts are held equal to it. A reply
that says no leaves the book as it was. Not here: the arithmetic of one bucket (`limiting.py`), what a gateway does
with what it was lent (`leasing.py`), transport.
"""

from dataclasses import dataclass, field

from msgspec.structs import replace

from penstock.core.authority import (
    Announce,
    Announced,
    Ask,
    Check,
    Checked,
    Debit,
    Granted,
    Occupied,
    Occupy,
    Operation,
    Peek,
    Peeked,
    Reply,
    Settle,
    Settled,
    SlotDemand,
)
from penstock.core.limits import Quota
from penstock.policy.leasing import LEASE_US_MAX, share_of_room
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

__all__ = ["LimitBook"]


@dataclass(frozen=True, slots=True)
class _Lease:
    holder: str
    tokens: int
    until_us: int


@dataclass(frozen=True, slots=True)
class _Hold:
    tokens: int
    at_us: int
    since_us: int  # of the bucket then: the count that the charge is in
    until_us: int


@dataclass(slots=True)
class _Entry:
    """What is kept under one bucket's key."""

    bucket: Bucket
    quota: Quota
    leases: dict[str, _Lease] = field(default_factory=dict)
    holds: dict[str, _Hold] = field(default_factory=dict)


class LimitBook:
    """See the module.

    Args:
        epoch: Differs from that of any book before it.
        since_us: When this book began to count, by the clock that `run` is given, >= 1; no other book's is the same.
            Under a `hard` quota, what happened before is taken to have filled every bucket.
    """

    def __init__(self, epoch: str, since_us: int) -> None:
        assert since_us >= 1
        self.epoch = epoch
        self._since_us = since_us
        self._entries: dict[str, _Entry] = {}
        self._unswept: list[str] = []
        self._slots: dict[str, dict[str, tuple[int, int]]] = {}
        self._present: dict[str, dict[str, int]] = {}

    def __len__(self) -> int:
        """Return how many keys are kept."""
        return len(self._entries)

    def run(self, operation: Operation, now_us: int) -> Reply:
        """Do one operation, whole or not at all."""
        match operation:
            case Check():
                return self._check(operation, now_us)
            case Ask():
                return self._ask(operation, now_us)
            case Settle():
                return self._settle(operation, now_us)
            case Debit():
                return self._debit(operation, now_us)
            case Occupy():
                return self._occupy(operation, now_us)
            case Announce():
                return self._announce(operation, now_us)
            case Peek():
                return self._peek(operation, now_us)

    def begin_epoch(self, epoch: str, since_us: int) -> None:
        """Go on as another authority, one that what was done last may not have reached; see the class for both."""
        self.epoch = epoch
        self._since_us = since_us

    def forget_idle(self, now_us: int, keys_max: int = 1_000_000) -> None:
        """Drop what is as good as new among the next `keys_max` keys: full of tokens, nothing lent, held or in use."""
        if not self._unswept:
            self._unswept = [*self._entries, *self._slots]
        for key in self._unswept[-keys_max:]:
            if key in self._slots and not self._taken(key, now_us):
                del self._slots[key]
            entry = self._entries.get(key)
            if entry is None or expiry_us(entry.bucket, entry.quota) > now_us:
                continue
            if all(hold.until_us <= now_us for hold in entry.holds.values()):
                del self._entries[key]
        del self._unswept[-keys_max:]

    # -- buckets -------------------------------------------------------------------------------------------------

    def _known(self, key: str, quota: Quota) -> _Entry | None:
        """Return what is kept under a key; None if an earlier authority left it, which a `hard` quota does not trust.

        No clock tells: that of a successor may be behind. What a `soft` quota has counted is taken over.
        """
        entry = self._entries.get(key)
        if entry is not None and quota.is_hard and entry.bucket.epoch_us not in (0, self._since_us):
            return None
        return entry

    def _bucket(self, key: str, quota: Quota, now_us: int) -> Bucket:
        """Return the bucket of a key, advanced to now."""
        entry = self._known(key, quota)
        if entry is not None:
            bucket = entry.bucket
        elif quota.is_hard:
            # Full, and draining only once no lease of an earlier book can still be in use.
            bucket = start_bucket(quota, self._since_us + LEASE_US_MAX, level=quota.capacity)
        else:
            bucket = start_bucket(quota, now_us)
        epoch_us = self._since_us if quota.is_hard else 0
        if bucket.epoch_us != epoch_us:
            bucket = replace(bucket, epoch_us=epoch_us)
        return advance(bucket, quota, now_us)

    def _keep(self, key: str, quota: Quota, bucket: Bucket) -> _Entry:
        entry = self._known(key, quota)
        if entry is None:
            entry = self._entries[key] = _Entry(bucket, quota)
        else:
            entry.bucket, entry.quota = bucket, quota
        return entry

    def _check(self, check: Check, now_us: int) -> Checked:
        buckets = [self._bucket(d.key, d.quota, now_us) for d in check.demands]
        denied, retry_after_us = -1, -1
        for index, (demand, bucket) in enumerate(zip(check.demands, buckets, strict=True)):
            assert 0 <= demand.cost <= demand.quota.burst
            if not fits(bucket, demand.quota, demand.cost):
                after_us = wait_us(bucket, demand.quota, demand.cost, now_us)
                if after_us > retry_after_us:
                    denied, retry_after_us = index, after_us
        taken = [self._taken(s.key, now_us) for s in check.slots]
        if denied < 0:
            for index, (slot, count) in enumerate(zip(check.slots, taken, strict=True)):
                if count >= slot.slots:
                    denied = len(check.demands) + index
                    break
        if denied < 0:
            buckets = [charge(b, d.quota, d.cost) for d, b in zip(check.demands, buckets, strict=True)]
            for demand, bucket in zip(check.demands, buckets, strict=True):
                entry = self._keep(demand.key, demand.quota, bucket)
                if check.hold and demand.is_held:
                    _drop_expired(entry.holds, bucket.at_us)
                    until_us = bucket.at_us + check.hold_us
                    entry.holds[check.hold] = _Hold(demand.cost, bucket.at_us, bucket.since_us, until_us)
            taken = [self._take(s, check.holder, now_us) for s in check.slots]
        left = tuple(remaining(b, d.quota) for d, b in zip(check.demands, buckets, strict=True))
        return Checked(denied, max(retry_after_us, 0), left, tuple(taken), now_us)

    def _settle(self, settle: Settle, now_us: int) -> Settled:
        bucket = self._bucket(settle.key, settle.quota, now_us)
        entry = self._known(settle.key, settle.quota)
        hold = None if entry is None else entry.holds.get(settle.hold)
        given_back = 0
        if entry is not None and hold is not None and hold.until_us > bucket.at_us:
            if settle.actual > hold.tokens:
                given_back = hold.tokens - settle.actual
                bucket = charge(bucket, settle.quota, -given_back)
            elif hold.since_us == bucket.since_us:
                bucket, given_back = credit(bucket, settle.quota, hold.tokens - settle.actual, hold.at_us)
            del entry.holds[settle.hold]
            self._keep(settle.key, settle.quota, bucket)
        return Settled(given_back, remaining(bucket, settle.quota), now_us)

    def _debit(self, debit: Debit, now_us: int) -> Settled:
        bucket = self._bucket(debit.key, debit.quota, now_us)
        room = remaining(bucket, debit.quota)
        bucket = fill(bucket, debit.quota, debit.tokens)
        self._keep(debit.key, debit.quota, bucket)
        left = remaining(bucket, debit.quota)
        return Settled(left - room, left, now_us)

    def _peek(self, peek: Peek, now_us: int) -> Peeked:
        bucket = self._bucket(peek.key, peek.quota, now_us)
        entry = self._known(peek.key, peek.quota)
        leases = [] if entry is None else [x for x in entry.leases.values() if x.until_us > bucket.at_us]
        full_after_us = max(expiry_us(bucket, peek.quota) - now_us, 0)
        leased = sum(lease.tokens for lease in leases)
        return Peeked(remaining(bucket, peek.quota), leased, len(leases), full_after_us, now_us)

    # -- leases --------------------------------------------------------------------------------------------------

    def _ask(self, ask: Ask, now_us: int) -> Granted:
        quota = ask.quota
        bucket = self._bucket(ask.key, quota, now_us)
        entry = self._known(ask.key, quota)
        # By the bucket's own time, as the floor: of a clock that stepped back both know nothing.
        at_us = bucket.at_us
        leases = {} if entry is None else {i: x for i, x in entry.leases.items() if x.until_us > at_us}
        for close in ask.closes:
            lease = leases.pop(close.id, None)
            if lease is not None:
                level = bucket.level - min(close.unused, lease.tokens) * quota.weight
                bucket = replace(bucket, level=max(level, 0))
        known = leases.get(ask.id)
        leased = sum(lease.tokens for lease in leases.values())
        tokens = 0
        if known is None:
            holders = len({lease.holder for lease in leases.values()} | {ask.holder})
            room = min(remaining(bucket, quota), quota.lease_max - leased)
            tokens = max(min(ask.want, share_of_room(room, holders)), 0)
        if tokens:
            bucket = charge(bucket, quota, tokens)
            leases[ask.id] = _Lease(ask.holder, tokens, at_us + min(ask.ttl_us, LEASE_US_MAX))
            leased += tokens
        until_us = max((lease.until_us for lease in leases.values()), default=0)
        bucket = replace(bucket, leased=leased, leased_until_us=until_us)
        if entry is not None or tokens:
            self._keep(ask.key, quota, bucket).leases = leases
        granted = tokens if known is None else known.tokens
        after_us = 0 if granted else wait_us(bucket, quota, 1, now_us)
        return Granted(granted, remaining(bucket, quota), leased, after_us, now_us)

    # -- slots and gateways --------------------------------------------------------------------------------------

    def _taken(self, key: str, now_us: int) -> int:
        return sum(count for count, until_us in self._slots.get(key, {}).values() if until_us > now_us)

    def _holders(self, key: str, now_us: int) -> dict[str, tuple[int, int]]:
        """Return who has slots under a key, to be changed; whose time is over leaves."""
        holders = self._slots[key] = {h: x for h, x in self._slots.get(key, {}).items() if x[1] > now_us}
        return holders

    def _take(self, slot: SlotDemand, holder: str, now_us: int) -> int:
        holders = self._holders(slot.key, now_us)
        count, _ = holders.get(holder, (0, 0))
        holders[holder] = (count + 1, now_us + slot.ttl_us)
        return self._taken(slot.key, now_us)

    def _occupy(self, occupy: Occupy, now_us: int) -> Occupied:
        holders = self._holders(occupy.key, now_us)
        if occupy.count:
            holders[occupy.holder] = (occupy.count, now_us + occupy.ttl_us)
        else:
            holders.pop(occupy.holder, None)
        return Occupied(self._taken(occupy.key, now_us), now_us)

    def _announce(self, announce: Announce, now_us: int) -> Announced:
        present = {h: t for h, t in self._present.get(announce.key, {}).items() if t > now_us}
        present[announce.holder] = now_us + announce.ttl_us
        self._present[announce.key] = present
        return Announced(len(present), self.epoch, now_us)


def _drop_expired(holds: dict[str, _Hold], now_us: int) -> None:
    """Drop the oldest holds whose time is over: a few for each new one, however many there are."""
    while holds:
        oldest = next(iter(holds))
        if holds[oldest].until_us > now_us:
            return
        del holds[oldest]
