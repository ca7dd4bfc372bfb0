"""Whether a request may wait at all: a queue bounded in requests and in bytes.

Pure. Carried out by `gateway/batcher.py`.
"""

from enum import Enum

from penstock.core.models import QueueBounds

__all__ = ["RefusalReason", "decide_refusal", "estimate_retry_after_us"]

# Retry-After is at least this: an immediate retry of a refused request only adds load.
RETRY_AFTER_US_MIN = 50_000
# And at most this when nothing drains at all: about how long a replica takes to be replaced.
RETRY_AFTER_US_MAX = 5_000_000


class RefusalReason(Enum):
    """Why a request was not executed; a metric label."""

    QUEUE_FULL = "queue_full"
    QUEUE_BYTES = "queue_bytes"
    EXPIRED = "expired"
    DISCONNECTED = "disconnected"
    REPLICA_LOST = "replica_lost"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"
    INVALID = "invalid"


def decide_refusal(bounds: QueueBounds, *, requests: int, nbytes: int, request_bytes: int) -> RefusalReason | None:
    """Decide whether one more request may wait.

    Args:
        bounds: The model's bounds.
        requests: Requests waiting now.
        nbytes: Bytes of their inputs.
        request_bytes: Bytes of the new one's inputs.

    Returns:
        None to admit, else the reason to refuse. A refusal changes nothing.
    """
    if requests >= bounds.requests_max:
        return RefusalReason.QUEUE_FULL
    if nbytes + request_bytes > bounds.bytes_max:
        return RefusalReason.QUEUE_BYTES
    return None


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
