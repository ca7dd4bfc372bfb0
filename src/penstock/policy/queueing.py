"""What waits for a model: entries in lanes of one tenant and one class, lanes in queues of what may share a batch.

Each lane is in order of deadline. Most callers of a model allow themselves the same time, so most entries arrive in
that order and cost an append; the others go through a heap. Pure. Not here: when a batch is closed (`batching.py`),
whose turn it is (`fairness.py`), the answer to the caller (`gateway/work.py`).
"""

from collections import deque
from enum import IntEnum
from heapq import heapify, heappop, heappush

from penstock.policy.fairness import Account
from penstock.policy.profiling import ServiceEstimate
from penstock.policy.rates import ArrivalRate

__all__ = [
    "BATCH",
    "DONE",
    "INTERACTIVE",
    "QUEUED",
    "RUNNING",
    "Entry",
    "EntryState",
    "Lane",
    "RequestClass",
    "SignatureQueue",
]

# Abandoned entries a lane may carry before it is swept, beyond as many as it has live ones: amortised O(1).
STALE_MAX = 64


class RequestClass(IntEnum):
    """What a caller asks for: an answer soon, or much work done eventually."""

    INTERACTIVE = 0
    BATCH = 1


class EntryState(IntEnum):
    """Where an entry is."""

    QUEUED = 0
    RUNNING = 1
    DONE = 2


# By their own names: the hot path tests them several times a request, and an enum's attribute costs more.
INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH
QUEUED, RUNNING, DONE = EntryState.QUEUED, EntryState.RUNNING, EntryState.DONE


class Entry:
    """One request as the scheduler sees it. Whoever submits requests derives from this.

    Args:
        rows: Rows it adds to a batch, >= 1.
        nbytes: Bytes of its inputs.
        arrived_us: When it was first heard of.
        deadline_us: When its answer is of no use any more.
        request_class: `INTERACTIVE` or `BATCH`.
        tenant: On whose account it runs.
        weight: What the tenant's share of a contended device is by, if the model does not say; 0 if nobody says.
    """

    __slots__ = (
        "arrived_us",
        "attempts",
        "deadline_us",
        "is_tolerated",
        "lane",
        "nbytes",
        "queued_us",
        "request_class",
        "rows",
        "sent_us",
        "state",
        "tenant",
        "weight",
    )

    lane: "Lane"
    queued_us: int
    sent_us: int

    def __init__(
        self,
        rows: int,
        nbytes: int,
        arrived_us: int,
        deadline_us: int,
        *,
        request_class: RequestClass = INTERACTIVE,
        tenant: str = "",
        weight: float = 0.0,
    ) -> None:
        self.rows = rows
        self.nbytes = nbytes
        self.arrived_us = arrived_us
        self.deadline_us = deadline_us
        self.request_class = request_class
        self.tenant = tenant
        self.weight = weight
        self.attempts = 0
        self.is_tolerated = False  # it is late and executed all the same
        self.state = QUEUED

    def budget_us(self, now_us: int) -> int:
        """Return how long from now it may take, µs, for the replica to go by: 0 if it has no limit, else not 0."""
        return 0 if self.is_tolerated else self.deadline_us - now_us or -1


class Lane:
    """Entries of one tenant and one class in one queue, the earliest deadline first.

    Attributes:
        requests, rows: Waiting now.
        account: Of its tenant, if that has been looked up.
    """

    __slots__ = (
        "_late",
        "_ordered",
        "_sequence",
        "_stale",
        "account",
        "queue",
        "request_class",
        "requests",
        "rows",
        "tenant",
    )

    def __init__(self, queue: "SignatureQueue", request_class: RequestClass, tenant: str) -> None:
        self.queue = queue
        self.request_class = request_class
        self.tenant = tenant
        self.account: Account | None = None
        self.requests = 0
        self.rows = 0
        self._ordered: deque[Entry] = deque()
        self._late: list[tuple[int, int, Entry]] = []  # what came after an entry with a later deadline
        self._sequence = 0
        self._stale = 0

    def push(self, entry: Entry) -> None:
        """Queue an entry."""
        entry.lane = self
        entry.state = QUEUED
        ordered = self._ordered
        if not ordered or entry.deadline_us >= ordered[-1].deadline_us:
            ordered.append(entry)
        else:
            self._sequence += 1
            heappush(self._late, (entry.deadline_us, self._sequence, entry))
        self.requests += 1
        self.rows += entry.rows
        self.queue.requests += 1
        self.queue.rows += entry.rows

    def head(self) -> Entry | None:
        """Return the entry with the earliest deadline, or None. Abandoned ones in front of it are thrown away."""
        ordered, late = self._ordered, self._late
        while ordered and ordered[0].state is not QUEUED:
            ordered.popleft()
            self._stale -= 1
        if not late:
            return ordered[0] if ordered else None
        while late and late[0][2].state is not QUEUED:
            heappop(late)
            self._stale -= 1
        if late and (not ordered or late[0][0] < ordered[0].deadline_us):
            return late[0][2]
        return ordered[0] if ordered else None

    def pop(self) -> Entry:
        """Take the entry that `head` returned just now."""
        ordered, late = self._ordered, self._late
        is_late = late and (not ordered or late[0][0] < ordered[0].deadline_us)
        entry = heappop(late)[2] if is_late else ordered.popleft()
        self._leave(entry)
        return entry

    def draw(self, rows_max: int, entries: list[Entry]) -> int:
        """Move entries into a batch until one does not fit; return how many rows.

        An entry that is the first of its batch travels even if it alone is larger.
        """
        rows = count = 0
        ordered = self._ordered
        if self._late:
            while rows < rows_max and (head := self.head()) is not None:
                if rows + head.rows > rows_max and (rows or entries):
                    break
                entries.append(self.pop())
                rows += head.rows
            return rows
        while ordered and rows < rows_max:
            entry = ordered[0]
            if entry.state is not QUEUED:
                self._stale -= 1
            elif rows + entry.rows > rows_max and (rows or entries):
                break
            else:
                entries.append(entry)
                rows += entry.rows
                count += 1
            ordered.popleft()
        self.requests -= count
        self.rows -= rows
        self.queue.requests -= count
        self.queue.rows -= rows
        return rows

    def forget(self, entry: Entry) -> None:
        """An entry that waits here leaves by another way than the head. Set its state first."""
        self._leave(entry)
        self._stale += 1
        if self._stale > self.requests + STALE_MAX:
            # In place: whoever is taking from this lane may have caused this, through a caller that gave up.
            waiting = [e for e in self._ordered if e.state is QUEUED]
            self._ordered.clear()
            self._ordered.extend(waiting)
            self._late[:] = [item for item in self._late if item[2].state is QUEUED]
            heapify(self._late)
            self._stale = 0

    def _leave(self, entry: Entry) -> None:
        self.requests -= 1
        self.rows -= entry.rows
        self.queue.requests -= 1
        self.queue.rows -= entry.rows

    def entries(self) -> list[Entry]:
        """Return what waits, in no particular order."""
        return [e for e in (*self._ordered, *(item[2] for item in self._late)) if e.state is QUEUED]


class SignatureQueue:
    """What may share a batch: same tensors, inner shapes and parameters.

    Args:
        key: What its entries have in common.
        estimate: What batches of it cost.
        now_us: When it is made.
        alone: Each entry travels by itself.

    Attributes:
        lanes: By (class, tenant). Empty ones stay until `sweep`.
        rate: At which rows arrive.
        requests, rows: Waiting now, all lanes together.
    """

    __slots__ = ("_lane", "alone", "estimate", "key", "lanes", "rate", "requests", "rows")

    def __init__(self, key: object, estimate: ServiceEstimate, now_us: int, *, alone: bool) -> None:
        self.key = key
        self.estimate = estimate
        self.rate = ArrivalRate(now_us)
        self.alone = alone
        self.lanes: dict[tuple[RequestClass, str], Lane] = {}
        self._lane: Lane | None = None
        self.requests = 0
        self.rows = 0

    def lane(self, request_class: RequestClass, tenant: str) -> Lane:
        """Return the lane of this class and tenant, made if need be."""
        lane = self._lane  # most requests are for the lane of the one before, and an enum is slow to hash
        if lane is not None and lane.request_class is request_class and lane.tenant == tenant:
            return lane
        key = (request_class, tenant)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(self, request_class, tenant)
        self._lane = lane
        return lane

    def sweep(self) -> None:
        """Forget lanes that are empty."""
        self.lanes = {key: lane for key, lane in self.lanes.items() if lane.requests}
        self._lane = None

    def heads(self) -> list[Entry]:
        """Return the head of every lane that holds something."""
        return [head for lane in self.lanes.values() if lane.requests and (head := lane.head()) is not None]
