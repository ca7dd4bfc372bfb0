"""Whether a request may wait at all: bounds on the queue, and whether it can be done in time.

A model server knows what other services must guess: how long the work takes. So a request is refused on arrival when
even the best schedule from here on would finish it too late. Where execution times cannot be predicted, a limit on
requests in the system takes over; it is driven by queue delay, never by round-trip time, which batching raises by
design. Pure. Carried out by `scheduling.py`.

Source: the limit follows Breakwater (OSDI 2020): additive increase, decrease in proportion to the excess delay.
"""

from collections.abc import Callable, Sequence
from enum import Enum

from penstock.core.models import QueueBounds

__all__ = [
    "DelayLimit",
    "RefusalReason",
    "decide_refusal",
    "estimate_retry_after_us",
    "predict_completion_us",
]

# Retry-After is at least this: an immediate retry of a refused request only adds load.
RETRY_AFTER_US_MIN = 50_000
# And at most this when nothing drains at all: about how long a replica takes to be replaced.
RETRY_AFTER_US_MAX = 5_000_000


class RefusalReason(Enum):
    """Why a request was not executed; a metric label."""

    QUEUE_FULL = "queue_full"
    QUEUE_BYTES = "queue_bytes"
    TENANT_FULL = "tenant_full"  # its tenant already has its share of the queue waiting
    PREDICTED_LATE = "predicted_late"  # on arrival: it could not have been done in time
    DROPPED = "dropped"  # from the queue, before its deadline: it could no longer be done in time
    CONCURRENCY = "concurrency"  # the limit by queue delay
    EXPIRED = "expired"
    DISCONNECTED = "disconnected"
    REPLICA_LOST = "replica_lost"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"
    INVALID = "invalid"


def decide_refusal(
    bounds: QueueBounds,
    *,
    requests: int,
    nbytes: int,
    request_bytes: int,
    tenant_requests: int = 0,
    tenant_bytes: int = 0,
    share: float = 1.0,
) -> RefusalReason | None:
    """Decide whether one more request may wait.

    A tenant may have its share of a bound waiting even if others have filled it, so that nobody is kept out by
    somebody else's backlog; but never more than twice a bound waits.

    Args:
        bounds: The model's bounds.
        requests: Requests waiting now.
        nbytes: Bytes of their inputs.
        request_bytes: Bytes of the new one's inputs.
        tenant_requests, tenant_bytes: Those of them that are of the same tenant.
        share: The tenant's share among those that wait, itself included, 0-1.

    Returns:
        None to admit, else the reason to refuse. A refusal changes nothing.
    """
    if requests >= bounds.requests_max:
        if share >= 1.0 or requests >= 2 * bounds.requests_max:
            return RefusalReason.QUEUE_FULL
        if tenant_requests >= bounds.requests_max * share:
            return RefusalReason.TENANT_FULL
    if nbytes + request_bytes > bounds.bytes_max:
        if share >= 1.0 or nbytes + request_bytes > 2 * bounds.bytes_max:
            return RefusalReason.QUEUE_BYTES
        if tenant_bytes + request_bytes > bounds.bytes_max * share:
            return RefusalReason.TENANT_FULL
    return None


def predict_completion_us(
    *,
    free_us: Sequence[int],
    rows_ahead: int,
    rows: int,
    first_rows: int,
    batch_rows: int,
    last_rows_min: int,
    time_us: Callable[[int], int],
) -> int:
    """Predict when a request that arrives now would be done.

    It is in the next batch if there is room in it. Else full batches follow, each on the replica that is free first,
    and it is in the last of them.

    Args:
        free_us: When each replica can begin, ascending; at least one.
        rows_ahead: Rows that go before it.
        rows: Its own.
        first_rows: Rows that the next batch may have without making its first request late, >= 1.
        batch_rows: Rows of the batches after it, >= 1.
        last_rows_min: Rows its own batch will have at least if it is not the next one: others come after it.
        time_us: What a batch takes, by rows.
    """
    total = rows_ahead + rows
    if total <= first_rows or not rows_ahead:
        return free_us[0] + time_us(total)
    after = total - first_rows - 1
    batches, last_rows = after // batch_rows + 1, after % batch_rows + 1
    turns, replica = divmod(batches, len(free_us))
    start_us = free_us[replica]
    if turns:
        start_us += time_us(first_rows if replica == 0 else batch_rows) + (turns - 1) * time_us(batch_rows)
    return start_us + time_us(max(last_rows, rows, last_rows_min))


def estimate_retry_after_us(*, requests: int, drained: int, window_us: int) -> int:
    """Estimate when a queue will have room, from how fast it drains: waiting requests over recent departures per µs.

    Args:
        requests: Requests waiting now.
        drained: Requests that left the queue for execution in the last `window_us`.
        window_us: Length of that window, µs, > 0.
    """
    assert window_us > 0
    if drained <= 0:
        return RETRY_AFTER_US_MAX
    return min(max(requests * window_us // drained, RETRY_AFTER_US_MIN), RETRY_AFTER_US_MAX)


class DelayLimit:
    """A limit on requests in the system that keeps the delay in the queue near a target.

    Judged once in `INTERVAL_US` by the least delay of the interval: a queue that was short once in it does no harm.

    Args:
        target_us: Delay to keep below.
        limit_max: Never more than this.
    """

    __slots__ = ("_count", "_least_us", "_limit_max", "_started_us", "_target_us", "limit")

    # The interval of CoDel (RFC 8289) and its idea: the least delay of an interval tells a standing queue from a burst.
    INTERVAL_US = 100_000
    LIMIT_MIN = 4
    INCREASE_RATIO = 0.05
    DECREASE_RATIO_MIN = 0.5

    def __init__(self, target_us: int, limit_max: int) -> None:
        assert target_us > 0
        self.limit = limit_max
        self._limit_max = limit_max
        self._target_us = target_us
        self._least_us = 0
        self._count = 0
        self._started_us = 0

    def observe(self, delay_us: int, in_system: int, now_us: int) -> None:
        """Take note that a request left the queue after `delay_us`, with `in_system` requests queued or running."""
        if not self._count or delay_us < self._least_us:
            self._least_us = delay_us
        self._count += 1
        if now_us - self._started_us < self.INTERVAL_US:
            return
        excess = (self._least_us - self._target_us) / self._target_us
        if excess > 0:
            factor = max(1 - 0.5 * excess, self.DECREASE_RATIO_MIN)
            self.limit = max(int(min(self.limit, in_system) * factor), self.LIMIT_MIN)
        else:
            self.limit = min(self.limit + max(int(self.limit * self.INCREASE_RATIO), 1), self._limit_max)
        self._count = 0
        self._started_us = now_us
