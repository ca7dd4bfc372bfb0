"""A replica in virtual time: takes batches in order, merges what may run together, returns late work unexecuted.

It follows the live one (`replica/loop.py`, `replica/executor.py`) and shares its judgement of what to merge. Not here:
how long an execution takes (`device.py`), who sends batches (`gateway.py`).
"""

from typing import Protocol

from penstock.policy.merging import is_late, plan_merge
from penstock.policy.queueing import Entry
from penstock.policy.scheduling import Dispatch, Served
from penstock.sim.device import Device
from penstock.sim.events import Agenda
from penstock.sim.recording import Recorder

__all__ = ["Flight", "ReplyTo", "SimulatedReplica"]


class ReplyTo(Protocol):
    """Where a replica sends its answer: a gateway."""

    def receive(self, now_us: int, flight: "Flight") -> None:
        """A replica has answered a batch."""


class Flight:
    """One batch on its way to a replica and back.

    Attributes:
        row_count, signature: As merging asks for them.
        life: Of the replica that its gateway knew when sending it: it cannot arrive at a successor.
        late: Requests of it that were returned unexecuted.
        served: What the reply says.
    """

    __slots__ = ("dispatch", "gateway", "late", "life", "received_us", "row_count", "served", "signature")

    received_us: int
    served: Served

    def __init__(
        self,
        dispatch: Dispatch,
        gateway: ReplyTo,
        life: int,
        signature: tuple[object, object, bool],
    ) -> None:
        self.dispatch = dispatch
        self.gateway = gateway
        self.life = life
        self.row_count = dispatch.rows
        self.signature = signature
        self.late: list[Entry] = []


class _Execution:
    __slots__ = ("flights", "life", "rows", "service_us", "started_us")

    def __init__(self, flights: list[Flight], life: int, rows: int, service_us: int, started_us: int) -> None:
        self.flights = flights
        self.life = life
        self.rows = rows
        self.service_us = service_us
        self.started_us = started_us


class SimulatedReplica:
    """One replica.

    Args:
        index: Its place in the scenario.
        device: What it executes on.
        row_count_max: Most rows it merges.
        agenda: The run's.
        recorder: The run's.
        back_us: How long a reply takes to a gateway.
        own_us: What it is busy for in each execution beyond device time.
        gateways: How many gateways feed it.
        touched: Where it puts itself when it may have something to start at the end of the instant.

    Attributes:
        life: How often it has died: events of a former life are void.
        is_alive: False between a death and the restart.
    """

    __slots__ = (
        "_agenda",
        "_back_us",
        "_gateways",
        "_is_touched",
        "_least_us",
        "_own_us",
        "_recorder",
        "_row_count_max",
        "_running",
        "_touched",
        "_waiting",
        "_waiting_rows",
        "device",
        "index",
        "is_alive",
        "life",
        "name",
    )

    def __init__(
        self,
        index: int,
        device: Device,
        *,
        row_count_max: int,
        agenda: Agenda,
        recorder: Recorder,
        back_us: int,
        own_us: int,
        gateways: int,
        touched: list["SimulatedReplica"],
    ) -> None:
        self.index = index
        self.name = f"replica-{index}"
        self.device = device
        self.life = 0
        self.is_alive = True
        self._agenda = agenda
        self._recorder = recorder
        self._row_count_max = row_count_max
        self._back_us = back_us
        self._own_us = own_us
        self._gateways = gateways
        self._touched = touched
        self._is_touched = False
        self._waiting: list[Flight] = []
        self._waiting_rows = 0
        self._running: _Execution | None = None
        self._least_us = device.profile.time_us(1)

    def receive(self, now_us: int, flight: Flight) -> None:
        """A batch arrives."""
        if flight.life != self.life or not self.is_alive:
            return  # sent to one that has died since; its gateway hears of that by itself
        flight.received_us = now_us
        self._waiting.append(flight)
        self._waiting_rows += flight.row_count
        self._touch()

    def start(self, now_us: int) -> None:
        """Start what comes next, if idle. To be called when all of an instant has happened."""
        self._is_touched = False
        while self._waiting and self._running is None:
            flights = self._take_next()
            rows = sum([flight.row_count for flight in flights]) - self._return_late(flights, now_us)
            if not rows:
                self._answer(flights, 0, 0, now_us, now_us)
                continue
            service_us = self.device.draw_us(rows)
            self._running = _Execution(flights, self.life, rows, service_us, now_us)
            self._agenda.add(now_us + service_us + self._own_us, self._finish, self._running)

    def die(self, now_us: int) -> None:
        """End this life; what waits and runs here is gone. The gateways must be told."""
        self.life += 1
        self.is_alive = False
        if self._running is not None:
            self._recorder.lost_us += now_us - self._running.started_us
        self._running = None
        self._waiting.clear()
        self._waiting_rows = 0

    def revive(self) -> None:
        """Begin another life, idle."""
        self.is_alive = True
        self._least_us = self.device.profile.time_us(1)

    def _touch(self) -> None:
        if not self._is_touched:
            self._is_touched = True
            self._touched.append(self)

    def _take_next(self) -> list[Flight]:
        waiting = self._waiting
        if len(waiting) == 1:
            flights = [waiting.pop()]
        else:
            chosen = plan_merge(waiting, row_count_max=self._row_count_max)
            flights = [waiting[k] for k in chosen]
            for k in reversed(chosen):
                del waiting[k]
        self._waiting_rows -= sum([flight.row_count for flight in flights])
        return flights

    def _return_late(self, flights: list[Flight], now_us: int) -> int:
        """Sort out requests that could not make it even alone; return their rows."""
        late_rows = 0
        for flight in flights:
            # What it took to get here is not known here: a budget shrinks only by waiting, as it does in the frame.
            waited_us, sent_us = now_us - flight.received_us, flight.dispatch.sent_us
            for entry in flight.dispatch.entries:
                # As in the frame, where 0 would say that there is no deadline.
                budget_us = entry.budget_us(sent_us)
                if is_late(budget_us=budget_us, waited_us=waited_us, least_us=self._least_us):
                    flight.late.append(entry)
                    late_rows += entry.rows
        return late_rows

    def _finish(self, now_us: int, execution: _Execution) -> None:
        if execution.life != self.life:
            return
        self._running = None
        service_us, rows = execution.service_us, execution.rows
        self._least_us = min(self._least_us, service_us)
        self._recorder.executions.append((execution.started_us, self.index, service_us, rows))
        self._answer(execution.flights, service_us, rows, execution.started_us, now_us)
        if self._waiting:
            self._touch()

    def _answer(self, flights: list[Flight], service_us: int, rows: int, started_us: int, now_us: int) -> None:
        backlog_us = self._predict_backlog_us()
        for flight in flights:
            wait_us = started_us - flight.received_us
            flight.served = Served(service_us, wait_us, rows, backlog_us, self._gateways)
            self._agenda.add(now_us + self._back_us, flight.gateway.receive, flight)

    def _predict_backlog_us(self) -> int:
        """Return the device time that what waits will take, µs, if it merges as well as it can."""
        if not self._waiting_rows:
            return 0
        full, rest = divmod(self._waiting_rows, self._row_count_max)
        profile = self.device.profile
        return full * profile.time_us(self._row_count_max) + (profile.time_us(rest) if rest else 0)
