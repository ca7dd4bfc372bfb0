"""What waits in a gateway: one request and its states, the queue of those that may share a batch, the batch.

Not here: when a batch is closed and who gets it (`batcher.py`).
"""

from abc import ABC, abstractmethod
from collections import deque
from enum import IntEnum
from typing import Any, Protocol

from penstock.policy.admission import RefusalReason
from penstock.policy.batching import CloseReason
from penstock.wire.oip import InferenceRequest
from penstock.wire.oip_outputs import OutputTensor

__all__ = [
    "DONE",
    "QUEUED",
    "RUNNING",
    "Batch",
    "BatchResult",
    "Link",
    "Refusal",
    "Work",
    "WorkQueue",
    "WorkState",
]

# Priority 0 means "not given" and ranks here: 1 goes before it, 2 beside it, 3 and up after it.
PRIORITY_DEFAULT = 2
# Abandoned entries a queue may carry before it is swept, beyond as many as it has live ones: amortised O(1).
STALE_MAX = 64
# Lanes a queue keeps though they are empty; callers choose among 255 priorities.
LANES_KEPT = 4


class WorkState(IntEnum):
    """Where a request is."""

    QUEUED = 0
    RUNNING = 1
    DONE = 2


# The states by their own names: the hot path tests them several times a request, and an enum's attribute costs more.
QUEUED, RUNNING, DONE = WorkState.QUEUED, WorkState.RUNNING, WorkState.DONE


class Refusal:
    """Why a request has no result, for the caller's protocol to put into words.

    Attributes:
        status: HTTP status.
        message: What happened and what to do.
        reason: Metric label; None if the model itself failed the request.
        retry_after_us: When to come back, 0 if unknown or useless.
    """

    __slots__ = ("message", "reason", "retry_after_us", "status")

    def __init__(self, status: int, message: str, reason: RefusalReason | None = None, retry_after_us: int = 0) -> None:
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after_us = retry_after_us


class BatchResult:
    """Outputs of one executed batch, shared by its requests.

    Attributes:
        outputs: Tensors of all successful requests.
        values: Cache of decoded elements for JSON, one per output (see `InferenceCodec.encode`).
        timing: The part of `Server-Timing` that is the same for all requests of the batch.
    """

    __slots__ = ("outputs", "timing", "values")

    def __init__(self, outputs: list[OutputTensor], timing: bytes) -> None:
        self.outputs = outputs
        self.values: list[list[Any] | None] = [None] * len(outputs)
        self.timing = timing


class Work(ABC):
    """One request (or one chunk of one) from submission to its end.

    Whoever submits one derives from this. Exactly one of `finish` and `refuse` is called, once, unless the work is
    abandoned first.

    Args:
        request: What to run.
        arrived_us: When the first byte of it was handled.
        deadline_us: When the answer is of no use any more.
    """

    __slots__ = (
        "arrived_us",
        "attempts",
        "deadline_us",
        "nbytes",
        "priority",
        "queue",
        "queued_us",
        "request",
        "rows",
        "sent_us",
        "state",
    )

    queue: "WorkQueue"
    queued_us: int
    sent_us: int

    def __init__(self, request: InferenceRequest, arrived_us: int, deadline_us: int) -> None:
        self.request = request
        self.rows = request.rows
        self.nbytes = request.nbytes
        self.priority = request.priority or PRIORITY_DEFAULT
        self.arrived_us = arrived_us
        self.deadline_us = deadline_us
        self.attempts = 0
        self.state = QUEUED

    @abstractmethod
    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        """Take the result: rows `row .. row + rows`. Return False if it could not be encoded for the client."""

    @abstractmethod
    def refuse(self, refusal: Refusal, now_us: int) -> None:
        """There is no result."""


class Batch:
    """What was sent to a replica in one frame."""

    __slots__ = ("id", "reason", "rows", "sent_us", "works")

    def __init__(self, batch_id: int, works: list[Work], rows: int, reason: CloseReason, sent_us: int) -> None:
        self.id = batch_id
        self.works = works
        self.rows = rows
        self.reason = reason
        self.sent_us = sent_us


class Link(Protocol):
    """A live connection to one replica, as the batcher sees it."""

    in_flight: dict[int, Batch]

    def send(self, batch: Batch, frame: bytes) -> None:
        """Send a batch; it is in flight until the reply or the loss of the link."""
        ...


class WorkQueue:
    """Requests that may share a batch, by priority, each lane in order of arrival."""

    __slots__ = ("alone", "lanes", "requests", "rows", "stale")

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.lanes: list[tuple[int, deque[Work]]] = []
        self.rows = 0
        self.requests = 0
        self.stale = 0  # entries in lanes that left the queue by another way than the head

    def push(self, work: Work, *, first: bool = False) -> None:
        """Put a request at the end of its lane, or at the head if it was there before."""
        lanes = self.lanes
        lane = lanes[0][1] if lanes and lanes[0][0] == work.priority else self._lane(work.priority)
        (lane.appendleft if first else lane.append)(work)
        self.rows += work.rows
        self.requests += 1

    def _lane(self, priority: int) -> deque[Work]:
        for ranked, lane in self.lanes:
            if ranked == priority:
                return lane
        added: deque[Work] = deque()
        lanes = self.lanes if len(self.lanes) < LANES_KEPT else [entry for entry in self.lanes if entry[1]]
        self.lanes = sorted([*lanes, (priority, added)], key=lambda entry: entry[0])
        return added

    def oldest_us(self) -> int:
        """When the longest-waiting request was queued. Abandoned ones at the head of a lane are thrown away."""
        oldest = 0
        for _, lane in self.lanes:
            while lane and lane[0].state is not QUEUED:
                lane.popleft()
                self.stale -= 1
            if lane and (not oldest or lane[0].queued_us < oldest):
                oldest = lane[0].queued_us
        return oldest

    def forget(self, work: Work) -> None:
        """A request that is still in its lane leaves the queue; the lanes are swept when half of them is such."""
        work.request.payload = ()
        self.stale += 1
        if self.stale > self.requests + STALE_MAX:
            # In place: whoever is taking from a lane may have caused this, through a caller that gave up other work.
            for _, lane in self.lanes:
                waiting = [w for w in lane if w.state is QUEUED]
                lane.clear()
                lane.extend(waiting)
            self.stale = 0
