"""A gateway in virtual time: a real scheduler, and what brings it events and carries out its decisions.

It follows the live one (`gateway/batcher.py`): observe all of an instant, then decide until the scheduler says wait.
Not here: what a caller does with an answer (`workload.py`), replicas (`replica.py`), the scheduler (`policy/`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from penstock.policy.admission import RefusalReason
from penstock.policy.balancing import Replica
from penstock.policy.queueing import Entry
from penstock.policy.scheduling import Dispatch, Drop, Scheduler
from penstock.sim.events import NEVER_US, Action, Agenda
from penstock.sim.recording import Outcome, Recorder
from penstock.sim.replica import Flight, SimulatedReplica
from penstock.sim.scenario import Overheads

__all__ = ["Decision", "Desk", "Request", "SimulatedGateway"]

# Telling a caller of a request lost with its replicas when to come back, µs: about how long one takes to restart.
LOST_RETRY_AFTER_US = 1_000_000

# Shared by all: requests of a simulated model can always share a batch.
_KEY = ""
_TOGETHER: tuple[object, object, bool] = ((), b"", False)
_ALONE: tuple[object, object, bool] = ((), b"", True)

# (when, what, more): ("dispatch", replica, ids, reason), ("drop", ids, reason), ("refuse", id, reason). Ids are
# indices of requests in the order of their first arrival; `ids` are tuples of them.
Decision = tuple[Any, ...]


class Request(Entry):
    """One try of one request.

    Attributes:
        index: Of the request, in the order of arrival.
        source: Index of its source.
        client: Who waits for the answer, in a closed loop; -1 in an open one.
        gateway: Index of the gateway it goes to.
        tries: Which try this is, from 1.
        is_settled: Its caller has its answer, or is gone.
    """

    __slots__ = ("client", "gateway", "index", "is_settled", "source", "tries")

    index: int
    source: int
    client: int
    gateway: int
    tries: int
    is_settled: bool


class Desk(Protocol):
    """Where a gateway leaves answers."""

    def answer(self, request: Request, now_us: int) -> None:
        """Give a request its answer."""

    def refuse(self, request: Request, outcome: Outcome, reason: str, retry_after_us: int, now_us: int) -> None:
        """Tell a request's caller no."""


class SimulatedGateway:
    """One gateway.

    Args:
        index: Its place in the scenario.
        scheduler: Its own.
        agenda, recorder, desk: The run's.
        overheads: The scenario's.
        jitter: Uniform in [0, 1): how late the next timer is.
        touched: Where it puts itself when its scheduler must decide at the end of the instant.
        decisions: Where its decisions are logged; None: nowhere.
    """

    __slots__ = (
        "_agenda",
        "_decisions",
        "_desk",
        "_due_us",
        "_free_us",
        "_is_touched",
        "_jitter",
        "_overheads",
        "_recorder",
        "_timer_us",
        "_touched",
        "_way_us",
        "index",
        "replicas",
        "scheduler",
    )

    def __init__(
        self,
        index: int,
        scheduler: Scheduler,
        *,
        agenda: Agenda,
        recorder: Recorder,
        desk: Desk,
        overheads: Overheads,
        jitter: Callable[[], float],
        touched: list["SimulatedGateway"],
        decisions: list[Decision] | None,
    ) -> None:
        self.index = index
        self.scheduler = scheduler
        self.replicas: dict[int, Replica] = {}
        self._agenda = agenda
        self._recorder = recorder
        self._desk = desk
        self._overheads = overheads
        self._way_us = overheads.batch_us // 2
        self._jitter = jitter
        self._touched = touched
        self._decisions = decisions
        self._is_touched = False
        self._free_us = 0  # when its one thread has done all that it has begun to read, or the stall is over
        self._due_us = NEVER_US  # when the scheduler wants to be asked again
        self._timer_us = NEVER_US  # when the earliest timer on the agenda fires

    # -- what comes in ----------------------------------------------------------------------------------------------

    def submit(self, now_us: int, request: Request) -> None:
        """A request has been read off the wire."""
        if self._overheads.gateway_us or now_us < self._free_us:
            self._free_us = max(now_us, self._free_us) + self._overheads.gateway_us
            self._agenda.add(self._free_us, self._admit, request)
        else:
            self._admit(now_us, request)

    def receive(self, now_us: int, flight: Flight) -> None:
        """A replica has answered a batch."""
        self._hear(now_us, self._settle, flight)

    def hang_up(self, now_us: int, request: Request) -> None:
        """The caller has waited long enough; nothing happens if it has had its answer."""
        self._hear(now_us, self._abandon, request)

    def _abandon(self, now_us: int, request: Request) -> None:
        if not request.is_settled:
            self.scheduler.abandon(request)
            self._refuse(request, Outcome.ABANDONED, RefusalReason.DISCONNECTED.value, 0, now_us)

    def stall(self, until_us: int) -> None:
        """Let everything that comes in from now on wait until `until_us`."""
        self._free_us = max(self._free_us, until_us)

    def join(self, now_us: int, replica: SimulatedReplica) -> None:
        """A replica is there."""
        self._hear(now_us, self._join, (replica, replica.life))

    def _join(self, now_us: int, joining: tuple[SimulatedReplica, int]) -> None:
        replica, _ = joining
        handle = self.scheduler.add_replica(replica.name, now_us)
        handle.handle = joining
        self.replicas[replica.index] = handle
        self._touch()

    def lose(self, now_us: int, replica: SimulatedReplica) -> None:
        """A replica is gone: what it may have been running is tried once more, each request alone."""
        self._hear(now_us, self._lose, replica)

    def _lose(self, now_us: int, replica: SimulatedReplica) -> None:
        lost = self.scheduler.lose_replica(self.replicas.pop(replica.index), now_us)
        for entry in lost.expired:
            self._refuse(entry, Outcome.DROPPED, RefusalReason.EXPIRED.value, 0, now_us)
        for entry in lost.refused:
            self._refuse(entry, Outcome.LOST, RefusalReason.REPLICA_LOST.value, LOST_RETRY_AFTER_US, now_us)
        self._touch()

    # -- what is decided --------------------------------------------------------------------------------------------

    def decide(self, now_us: int) -> None:
        """Carry out what the scheduler decides until it says wait. To be called when all of an instant has happened."""
        self._is_touched = False
        decide = self.scheduler.decide
        while True:
            decision = decide(now_us)
            if isinstance(decision, Dispatch):
                self._send(decision, now_us)
            elif isinstance(decision, Drop):
                self._drop(decision, now_us)
            else:
                self._arm(decision.until_us, now_us)
                return

    def _admit(self, now_us: int, request: Request) -> None:
        request.arrived_us = now_us
        request.deadline_us += now_us
        self._recorder.enter(now_us)
        refusal = self.scheduler.admit(request, _KEY, now_us)
        if refusal is not None:
            if self._decisions is not None:
                self._decisions.append((now_us, "refuse", request.index, refusal.reason.value))
            self._refuse(request, Outcome.REFUSED, refusal.reason.value, refusal.retry_after_us, now_us)
        else:
            self._touch()

    def _send(self, dispatch: Dispatch, now_us: int) -> None:
        replica, life = cast("tuple[SimulatedReplica, int]", dispatch.replica.handle)
        reason = dispatch.reason
        self._recorder.dispatches.append(
            (now_us, self.index, replica.index, dispatch.rows, len(dispatch.entries), reason.value)
        )
        if self._decisions is not None:
            self._decisions.append((now_us, "dispatch", replica.name, _indices(dispatch.entries), reason.value))
        flight = Flight(dispatch, self, life, _ALONE if dispatch.alone else _TOGETHER)
        self._agenda.add(now_us + self._way_us, replica.receive, flight)

    def _drop(self, drop: Drop, now_us: int) -> None:
        reason = drop.reason.value
        if self._decisions is not None:
            self._decisions.append((now_us, "drop", _indices(drop.entries), reason))
        for entry in drop.entries:
            self._refuse(entry, Outcome.DROPPED, reason, drop.retry_after_us, now_us)

    def _settle(self, now_us: int, flight: Flight) -> None:
        dispatch, served = flight.dispatch, flight.served
        self.scheduler.observe_reply(dispatch, served, now_us)
        if self.scheduler.requests:
            self._touch()
        recorder, answer = self._recorder, self._desk.answer
        late = flight.late
        service_us, rows, sent_us = served.service_us, served.rows, dispatch.sent_us
        for entry in dispatch.entries:
            assert isinstance(entry, Request)
            if late and entry in late:
                if not entry.is_settled:
                    self._refuse(entry, Outcome.EXPIRED, RefusalReason.EXPIRED.value, 0, now_us)
                continue
            index = entry.index
            share_us = service_us * entry.rows / rows
            recorder.share_us[index] += share_us
            if entry.is_settled or now_us > entry.deadline_us:
                recorder.wasted_us += share_us
            if not entry.is_settled:
                recorder.wait_us[index] = sent_us - entry.arrived_us
                recorder.execution_us[index] = service_us
                recorder.leave(entry.arrived_us, now_us)
                entry.is_settled = True
                answer(entry, now_us)

    def _refuse(self, request: Entry, outcome: Outcome, reason: str, retry_after_us: int, now_us: int) -> None:
        assert isinstance(request, Request)
        request.is_settled = True
        self._recorder.leave(request.arrived_us, now_us)
        self._desk.refuse(request, outcome, reason, retry_after_us, now_us)

    def _hear(self, now_us: int, action: Action, argument: Any) -> None:
        """Let a thing happen when the thread gets to it, behind all that it has begun to read."""
        if now_us < self._free_us:
            self._agenda.add(self._free_us, action, argument)
        else:
            action(now_us, argument)

    # -- time -------------------------------------------------------------------------------------------------------

    def _touch(self) -> None:
        if not self._is_touched:
            self._is_touched = True
            self._touched.append(self)

    def _arm(self, until_us: int | None, now_us: int) -> None:
        """Have one timer on the agenda no later than needed: one that fires early arms itself again."""
        self._due_us = NEVER_US if until_us is None else max(until_us, now_us + 1)
        if self._due_us < self._timer_us:
            self._timer_us = self._due_us
            self._agenda.add(self._due_us + self._draw_jitter_us(), self._ring, self._timer_us)

    def _ring(self, now_us: int, timer_us: int) -> None:
        if timer_us != self._timer_us:
            return  # an earlier one was armed after this one
        self._timer_us = NEVER_US
        if self._due_us == NEVER_US:
            return
        if self._due_us <= now_us:
            self._fire(now_us)
        else:
            self._timer_us = self._due_us
            self._agenda.add(self._due_us + self._draw_jitter_us(), self._ring, self._timer_us)

    def _fire(self, now_us: int, argument: None = None) -> None:
        if now_us < self._free_us:
            self._agenda.add(self._free_us, self._fire)
        else:
            self._touch()

    def _draw_jitter_us(self) -> int:
        jitter_us = self._overheads.jitter_us
        return int(self._jitter() * (jitter_us + 1)) if jitter_us else 0


def _indices(entries: Sequence[Entry]) -> tuple[int, ...]:
    return tuple([entry.index for entry in entries if isinstance(entry, Request)])
