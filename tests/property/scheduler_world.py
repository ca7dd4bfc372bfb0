"""A world around one scheduler: callers, replicas and a clock made of integers, and the laws of each decision.

Whoever drives it says what comes and lets time pass; the world answers batches when their device is done, asks the
scheduler whenever it must be asked, and holds every decision to what is promised. Not here: who comes (the tests).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core.profiles import CostProfile
from penstock.policy.admission import RETRY_AFTER_US_MAX, RETRY_AFTER_US_MIN, RefusalReason
from penstock.policy.balancing import CREDITS_PER_REPLICA, Replica
from penstock.policy.batching import GUARD_US, SPACING_RATIO
from penstock.policy.queueing import DONE, QUEUED, RUNNING, Entry, RequestClass
from penstock.policy.scheduling import (
    EXPIRY_INTERVAL_US,
    Dispatch,
    Drop,
    Refusal,
    Scheduler,
    SchedulerConfig,
    Served,
    Wait,
)

__all__ = ["Caller", "Device", "World"]

# A decision that is asked for this often in one instant would never have ended.
DECISIONS_MAX = 10_000


class Caller(Entry):
    """An entry that knows its key and what became of it."""

    __slots__ = ("fates", "key", "number")

    key: str
    number: int
    fates: list[str]


@dataclass
class Device:
    """A replica's device: one batch at a time, in the order they came.

    Attributes:
        slowness: How many times as long as the profile says a batch takes.
        held: What it has, the running one first, with when it was sent.
        done_us: When the running one is done.
    """

    replica: Replica
    slowness: float = 1.0
    held: list[Dispatch] = field(default_factory=list)
    begun_us: int = 0
    done_us: int = 0


class World:
    """See the module.

    Args:
        config: The model's.
        profile: What the scheduler is told.
        time_us: What batches really take, by rows; times a device's slowness.
        chance: The scheduler's stream.
        gateways: How many gateways replicas report.

    Attributes:
        callers: Those admitted.
        open: Those of them that have no answer yet, and perhaps some that have had one since time last passed.
        log: Every decision, as numbers.
        device_us: Device time by tenant.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        profile: CostProfile | None,
        time_us: Callable[[int], int],
        *,
        chance: Callable[[], float] = lambda: 0.5,
        gateways: int = 1,
    ) -> None:
        self.scheduler = Scheduler(config, profile, chance)
        self.config = config
        self.size_max = config.batching.size_max if config.is_batched else 1
        self.now_us = 0
        self.callers: list[Caller] = []
        self.open: list[Caller] = []
        self.devices: list[Device] = []
        self.refusals: list[tuple[Caller, Refusal]] = []
        self.log: list[tuple[object, ...]] = []
        self.device_us: Counter[str] = Counter()
        self.answered_rows: Counter[tuple[int, str]] = Counter()
        self._time_us = time_us
        self._gateways = gateways
        self._sent_us = 0
        self._keys: dict[tuple[str, bool], object] = {}
        self._until_us: int | None = None

    # -- what may happen -----------------------------------------------------------------------------------------

    def add_replica(self, slowness: float = 1.0) -> Device:
        """A replica joins."""
        device = Device(self.scheduler.add_replica(f"r{len(self.log)}", self.now_us), slowness)
        self.devices.append(device)
        self.settle()
        return device

    def lose_replica(self, device: Device) -> None:
        """A replica is gone with what it held."""
        self.devices.remove(device)
        held = [e for d in device.held for e in d.entries]
        lost = self.scheduler.lose_replica(device.replica, self.now_us)
        for entries, fate in ((lost.expired, "expired"), (lost.refused, "lost")):
            for entry in entries:
                assert entry.state is DONE
                assert entry in held
                assert entry.deadline_us <= self.now_us or fate == "lost"
                assert entry.attempts == 2 or fate == "expired"
                self._end(entry, fate)
        self.log.append(("lost", len(lost.expired), len(lost.refused)))
        self.settle()

    def arrive(
        self, key: str, rows: int, allowed_us: int, *, request_class: int = 0, tenant: str = "", nbytes: int = 1
    ) -> Caller:
        """A request comes. It is decided about when the instant is over: call `settle` then."""
        caller = Caller(
            rows,
            nbytes,
            self.now_us,
            self.now_us + allowed_us,
            request_class=RequestClass(request_class),
            tenant=tenant,
        )
        caller.key, caller.number, caller.fates = key, len(self.callers), []
        before = (self.scheduler.requests, self.scheduler.rows, self.scheduler.nbytes)
        refusal = self.scheduler.admit(caller, key, self.now_us)
        if refusal is None:
            assert caller.state is QUEUED
            self.callers.append(caller)
            self.open.append(caller)
        else:
            assert before == (self.scheduler.requests, self.scheduler.rows, self.scheduler.nbytes)
            self._check_refusal(caller, refusal)
            self.refusals.append((caller, refusal))
        self.log.append(("arrive", caller.number, refusal and refusal.reason, refusal and refusal.retry_after_us))
        return caller

    def abandon(self, caller: Caller) -> None:
        """A caller goes away, whether its request waits or runs."""
        if not caller.fates:
            self.scheduler.abandon(caller)
            assert caller.state is DONE
            self._end(caller, "abandoned")
            self.settle()

    def advance(self, elapsed_us: int) -> None:
        """Let time pass; answer what is done and ask the scheduler whenever it wanted to be asked."""
        end_us = self.now_us + elapsed_us
        while True:
            moments = [device.done_us for device in self.devices if device.held]
            if self._until_us is not None:
                moments.append(self._until_us)
            next_us = min(moments, default=end_us + 1)
            if next_us > end_us:
                break
            self.now_us = max(self.now_us, next_us)
            for device in self.devices:
                if device.held and device.done_us <= self.now_us:
                    self._answer(device)
            self.settle()
        self.now_us = end_us

    def settle(self) -> None:
        """Ask the scheduler until it says Wait."""
        free_us: dict[int, int] = {}
        for _ in range(DECISIONS_MAX):
            # A batch may have been decided together with the Drop that went before it.
            free_us = free_us or {id(r): max(r.free_us, self.now_us) for r in self.scheduler.replicas}
            decision = self.scheduler.decide(self.now_us)
            if isinstance(decision, Wait):
                self._check_wait(decision)
                self._until_us = decision.until_us
                return
            if isinstance(decision, Drop):
                self._apply_drop(decision)
            else:
                self._apply_dispatch(decision, free_us[id(decision.replica)])
                free_us = {}
        raise AssertionError("the scheduler never says Wait")

    def drain(self) -> None:
        """Let time pass until nothing waits or runs any more."""
        for _ in range(10_000):
            if not self.scheduler.requests and not any(device.held for device in self.devices):
                return
            self.advance(1_000_000)
        raise AssertionError("something waits for ever")

    # -- what then happens ---------------------------------------------------------------------------------------

    def _end(self, entry: Entry, fate: str) -> None:
        assert isinstance(entry, Caller)
        entry.fates.append(fate)

    def _apply_drop(self, drop: Drop) -> None:
        assert drop.entries
        for entry in drop.entries:
            assert entry.state is DONE
            if drop.reason is RefusalReason.EXPIRED:
                assert entry.deadline_us <= self.now_us
            else:
                assert drop.reason is RefusalReason.DROPPED
                assert self.config.batching.policy == "deadline"
            self._end(entry, drop.reason.value)
        self.log.append(("drop", drop.reason, *(e.number for e in drop.entries if isinstance(e, Caller))))

    def _apply_dispatch(self, dispatch: Dispatch, free_us: int) -> None:
        self._sent_us = self.now_us
        device = next(d for d in self.devices if d.replica is dispatch.replica)
        self._check_dispatch(dispatch, device, free_us)
        numbers = [e.number for e in dispatch.entries if isinstance(e, Caller)]
        self.log.append(("dispatch", dispatch.id, self.devices.index(device), dispatch.reason, *numbers))
        device.held.append(dispatch)
        if len(device.held) == 1:
            self._begin(device)

    def _begin(self, device: Device) -> None:
        device.begun_us = self.now_us
        device.done_us = self.now_us + round(self._time_us(device.held[0].rows) * device.slowness)

    def _answer(self, device: Device) -> None:
        dispatch = device.held.pop(0)
        service_us = device.done_us - device.begun_us
        for entry in dispatch.entries:
            self.device_us[entry.tenant] += service_us * entry.rows // dispatch.rows
            if entry.state is RUNNING:
                entry.state = DONE
                self._end(entry, "answered")
                self.answered_rows[entry.request_class, entry.tenant] += entry.rows
        backlog_us = sum(round(self._time_us(d.rows) * device.slowness) for d in device.held)
        self.scheduler.observe_reply(
            dispatch,
            Served(service_us, device.begun_us - dispatch.sent_us, dispatch.rows, backlog_us, self._gateways),
            self.now_us,
        )
        if device.held:
            self._begin(device)

    # -- laws ----------------------------------------------------------------------------------------------------

    def is_soft(self, entry: Entry) -> bool:
        """Return True if this entry's deadline is the model's own, which may be missed a little."""
        slo_us = self.config.slo_us
        return (
            self.config.batching.policy == "deadline" and slo_us > 0 and entry.deadline_us - entry.arrived_us == slo_us
        )

    def _check_refusal(self, caller: Caller, refusal: Refusal) -> None:
        bounds = self.config.bounds
        assert RETRY_AFTER_US_MIN <= refusal.retry_after_us <= RETRY_AFTER_US_MAX
        is_full = self.scheduler.requests >= bounds.requests_max
        if refusal.reason is RefusalReason.QUEUE_FULL:
            assert is_full
        elif refusal.reason is RefusalReason.TENANT_FULL:
            assert is_full or self.scheduler.nbytes + caller.nbytes > bounds.bytes_max
        elif refusal.reason is RefusalReason.QUEUE_BYTES:
            assert self.scheduler.nbytes + caller.nbytes > bounds.bytes_max
        elif refusal.reason is RefusalReason.PREDICTED_LATE:
            assert refusal.predicted_us > caller.deadline_us - caller.arrived_us
        else:
            assert refusal.reason is RefusalReason.CONCURRENCY
            assert self.scheduler.limit

    def _check_dispatch(self, dispatch: Dispatch, device: Device, free_us: int) -> None:
        replica, entries = dispatch.replica, dispatch.entries
        assert entries
        assert dispatch.sent_us == self.now_us
        assert dispatch.rows == sum(e.rows for e in entries)
        assert dispatch.rows <= self.size_max or len(entries) == 1
        assert len({id(e) for e in entries}) == len(entries)
        assert not dispatch.alone or len(entries) == 1
        assert replica in self.scheduler.replicas
        assert replica.in_flight == [*device.held, dispatch]
        assert len(replica.in_flight) <= CREDITS_PER_REPLICA
        assert not replica.ejected_until_us
        assert dispatch.is_staged == bool(device.held)
        assert not (replica.is_probing and device.held)
        estimate = dispatch.estimate
        assert estimate is not None
        for entry in entries:
            assert isinstance(entry, Caller)
            assert entry.state is RUNNING
            assert not entry.fates
            # Tried again, and only then, it waits in another queue: the same one however often.
            again = self._keys.setdefault((entry.key, entry.attempts > 0), dispatch.key)
            assert dispatch.key == again
            assert (dispatch.key == entry.key) == (not entry.attempts)
            assert dispatch.alone == (entry.attempts > 0 or not self.config.is_batched)
            assert self.is_soft(entry) or not entry.is_tolerated
            if not entry.is_tolerated:
                assert entry.deadline_us > self.now_us, "sent after its deadline"
                if self.config.batching.policy == "deadline":
                    done_us = free_us + estimate.time_us(dispatch.rows) * replica.slowness
                    assert done_us <= entry.deadline_us, "sent although it was known to come too late"

    def _check_wait(self, wait: Wait) -> None:
        self.open = [c for c in self.open if c.state is not DONE]
        waiting = [c for c in self.open if c.state is QUEUED]
        if not waiting:
            return
        earliest_us = min(c.deadline_us for c in waiting)
        assert wait.until_us is not None
        assert self.now_us < wait.until_us <= max(earliest_us, self.now_us + EXPIRY_INTERVAL_US)
        if not any(not d.held and not d.replica.ejected_until_us for d in self.devices):
            return
        batching = self.config.batching
        assert batching.policy != "adaptive", "a replica stands idle"
        if batching.policy == "size_or_timeout":
            assert not batching.eager, "a replica stands idle"
            assert wait.until_us <= min(c.queued_us for c in waiting) + batching.wait_us_max
        else:
            # Held for company, a batch leaves while it is in time; held for spacing, a part of a batch after the last.
            slowest_us = max(e.tail_us(self.size_max) for e in self.scheduler.estimates.values())
            spaced_us = self._sent_us + SPACING_RATIO * slowest_us
            assert wait.until_us <= max(earliest_us - GUARD_US, spaced_us)

    def check_sums(self) -> None:
        """Every request is in one place, and all counters are what they count."""
        scheduler = self.scheduler
        waiting = [c for c in self.callers if c.state is QUEUED]
        running = [e for d in self.devices for b in d.held for e in b.entries]
        assert scheduler.requests == len(waiting)
        assert scheduler.rows == sum(c.rows for c in waiting)
        assert scheduler.nbytes == sum(c.nbytes for c in waiting)
        assert scheduler.in_flight == len(running)
        assert {id(c) for c in self.callers if c.state is RUNNING} <= {id(e) for e in running}
        assert Counter(c.tenant for c in waiting) == {t: a.waiting for t, a in scheduler.ledger.backlogged.items()}
        assert scheduler.nbytes == sum(a.nbytes for a in scheduler.ledger.backlogged.values())
        for caller in self.callers:
            assert len(caller.fates) == (caller.state is DONE)
        assert all(a.virtual_us > -1 for a in scheduler.ledger.accounts.values())
        assert sum(bool(r.ejected_until_us) for r in scheduler.replicas) * 2 <= len(scheduler.replicas)
