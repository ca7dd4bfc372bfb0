"""What happened in a run, as columns: one row for each request, for each dispatch, for each execution.

Not here: what it amounts to (`summary.py`).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from penstock.sim.scenario import Scenario

__all__ = ["Outcome", "Recorder", "Recording"]

Integers = NDArray[np.int64]


class Outcome(IntEnum):
    """How a request ended for its caller. All but `SERVED` and `HIT` are failures."""

    UNANSWERED = 0  # the run ended first
    SERVED = 1  # by a replica, in time or late
    HIT = 2  # by the response cache
    REFUSED = 3  # at the door
    DROPPED = 4  # out of the queue
    EXPIRED = 5  # by the replica, which found it too late to execute
    LOST = 6  # with its replicas
    ABANDONED = 7  # the caller had gone


@dataclass(frozen=True, slots=True)
class Recording:
    """One run. Columns of one group have one length; times are µs from the start of the run.

    Attributes:
        scenario: What was simulated.
        source: Request: index into the scenario's sources. Requests stand in the order of their first arrival.
        rows: Request: its rows.
        arrived_us: Request: when its caller first meant to send it.
        settled_us: Request: when its caller had the final answer; -1 if never.
        outcome: Request: an `Outcome`.
        tries: Request: how often it was sent.
        wait_us: Request: queued at the gateway, last try.
        execution_us: Request: device time of the execution it was part of, 0 if of none.
        share_us: Request: device time charged to it by rows, over all tries (float).
        dispatched_us, dispatch_gateway, dispatch_replica, dispatch_rows, dispatch_requests: Dispatch: when, from where,
            where to, and how large.
        dispatch_reason: Dispatch: why it was closed.
        started_us, execution_replica, service_us, execution_rows: Execution: when, where, device time, and how large.
        wasted_us: Device time of requests that were late for their try's deadline, or whose caller had gone (float).
        lost_us: Device time of executions whose replica died under them.
        refusals: Tries that were refused, by reason.
        number_us: Integral of the number of requests in the gateways' care over time.
        sojourn_us: Sum of the times they spent there, counted one by one: equal to `number_us` (Little's law).
    """

    scenario: Scenario
    source: Integers
    rows: Integers
    arrived_us: Integers
    settled_us: Integers
    outcome: NDArray[np.uint8]
    tries: Integers
    wait_us: Integers
    execution_us: Integers
    share_us: NDArray[np.float64]
    dispatched_us: Integers
    dispatch_gateway: Integers
    dispatch_replica: Integers
    dispatch_rows: Integers
    dispatch_requests: Integers
    dispatch_reason: tuple[str, ...]
    started_us: Integers
    execution_replica: Integers
    service_us: Integers
    execution_rows: Integers
    wasted_us: float
    lost_us: int
    refusals: dict[str, int]
    number_us: int
    sojourn_us: int

    @property
    def latency_us(self) -> Integers:
        """Time from the first sending to the final answer, µs; -1 for requests without one."""
        latency: Integers = np.where(self.settled_us < 0, -1, self.settled_us - self.arrived_us)
        return latency

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """Which requests got the answer they asked for, in time or late."""
        answered: NDArray[np.bool_] = np.isin(self.outcome, (Outcome.SERVED, Outcome.HIT))
        return answered

    @property
    def is_measured(self) -> NDArray[np.bool_]:
        """Which requests arrived after the warm-up."""
        return self.arrived_us >= self.scenario.warmup_us

    @property
    def allowed_us(self) -> Integers:
        """How long each request may take, µs, by its source."""
        allowed: Integers = np.array(
            [self.scenario.allowed_us(source) for source in self.scenario.sources], dtype=np.int64
        )[self.source]
        return allowed

    @property
    def is_good(self) -> NDArray[np.bool_]:
        """Which requests were answered within what their callers allow, counted from the first sending."""
        return self.is_answered & (self.latency_us <= self.allowed_us)


class Recorder:
    """Takes notes during a run. Columns are lists: setting an element costs 30 ns, one of numpy three times that."""

    __slots__ = (
        "_noted_us",
        "_number",
        "_number_us",
        "_sojourn_us",
        "arrived_us",
        "dispatches",
        "execution_us",
        "executions",
        "lost_us",
        "outcome",
        "refusals",
        "rows",
        "settled_us",
        "share_us",
        "source",
        "tries",
        "wait_us",
        "wasted_us",
    )

    def __init__(self) -> None:
        self.source: list[int] = []
        self.rows: list[int] = []
        self.arrived_us: list[int] = []
        self.settled_us: list[int] = []
        self.outcome: list[int] = []
        self.tries: list[int] = []
        self.wait_us: list[int] = []
        self.execution_us: list[int] = []
        self.share_us: list[float] = []
        self.dispatches: list[tuple[int, int, int, int, int, str]] = []
        self.executions: list[tuple[int, int, int, int]] = []
        self.refusals: dict[str, int] = {}
        self.wasted_us = 0.0
        self.lost_us = 0
        self._number = self._number_us = self._noted_us = self._sojourn_us = 0

    def open(self, source: int, rows: int, now_us: int) -> int:
        """Note a request that its caller means to send now; return its index."""
        self.source.append(source)
        self.rows.append(rows)
        self.arrived_us.append(now_us)
        self.settled_us.append(-1)
        self.outcome.append(0)
        self.tries.append(1)
        self.wait_us.append(0)
        self.execution_us.append(0)
        self.share_us.append(0.0)
        return len(self.outcome) - 1

    def enter(self, now_us: int) -> None:
        """Note that one more request is in the gateways' care."""
        self._number_us += self._number * (now_us - self._noted_us)
        self._noted_us = now_us
        self._number += 1

    def leave(self, entered_us: int, now_us: int) -> None:
        """Note that a request that entered at `entered_us` left it."""
        self._number_us += self._number * (now_us - self._noted_us)
        self._noted_us = now_us
        self._number -= 1
        self._sojourn_us += now_us - entered_us

    def count_refusal(self, reason: str) -> None:
        """Count a try that was refused."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def close(self, scenario: Scenario) -> Recording:
        """Return all that was noted."""
        dispatches = np.array([row[:5] for row in self.dispatches], dtype=np.int64).reshape(-1, 5).T
        executions = np.array(self.executions, dtype=np.int64).reshape(-1, 4).T
        return Recording(
            scenario=scenario,
            source=np.array(self.source, dtype=np.int64),
            rows=np.array(self.rows, dtype=np.int64),
            arrived_us=np.array(self.arrived_us, dtype=np.int64),
            settled_us=np.array(self.settled_us, dtype=np.int64),
            outcome=np.array(self.outcome, dtype=np.uint8),
            tries=np.array(self.tries, dtype=np.int64),
            wait_us=np.array(self.wait_us, dtype=np.int64),
            execution_us=np.array(self.execution_us, dtype=np.int64),
            share_us=np.array(self.share_us, dtype=np.float64),
            dispatched_us=dispatches[0],
            dispatch_gateway=dispatches[1],
            dispatch_replica=dispatches[2],
            dispatch_rows=dispatches[3],
            dispatch_requests=dispatches[4],
            dispatch_reason=tuple(row[5] for row in self.dispatches),
            started_us=executions[0],
            execution_replica=executions[1],
            service_us=executions[2],
            execution_rows=executions[3],
            wasted_us=self.wasted_us,
            lost_us=self.lost_us,
            refusals=dict(self.refusals),
            number_us=self._number_us,
            sojourn_us=self._sojourn_us,
        )
