"""When to close a batch: `size_or_timeout` with dispatch at once to an idle replica.

Waiting for company only pays while every replica is busy: an idle replica costs nothing to start, and what arrives
while it runs forms the next batch. Credits bound what a replica holds, so work stays where it can still be reordered.
Pure. Carried out by `gateway/batcher.py`.

Source: dynamic batching with a size and a delay limit is the classic of Clipper (NSDI 2017) and Triton; the eager rule
for an idle server is the batch-service queue of Inoue, "Queueing analysis of GPU-based inference servers" (2019).
"""

from dataclasses import dataclass
from enum import Enum

from penstock.core.models import Batching

__all__ = ["CREDITS_PER_REPLICA", "CloseReason", "Dispatch", "QueueView", "Wait", "decide_dispatch"]

# One batch running and one staged behind it: the replica never idles between batches, and no third batch is
# committed to it while it could still go elsewhere.
CREDITS_PER_REPLICA = 2


class CloseReason(Enum):
    """Why a batch was closed when it was; a metric label."""

    FULL = "full"  # it reached size_max, or the next request would not have fitted
    TIMEOUT = "timeout"  # its oldest request had waited wait_us_max
    IDLE = "idle"  # a replica had nothing to do
    ALONE = "alone"  # its request may not share a batch: it is being retried, or the model has no batch dimension


@dataclass(frozen=True, slots=True)
class QueueView:
    """What the decider may know of one queue and of the replicas that serve it.

    Args:
        rows: Rows the next batch would have, 0 if the queue is empty.
        is_full: No further waiting request could join that batch.
        is_alone: Its first request must travel alone.
        oldest_us: When the longest-waiting request was queued.
        replicas_idle: Replicas with nothing outstanding from this gateway.
        replicas_stageable: Replicas with one batch running and a credit left.
    """

    rows: int
    is_full: bool
    is_alone: bool
    oldest_us: int
    replicas_idle: int
    replicas_stageable: int


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Close the batch now and send it."""

    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again when something changes, or at `until_us` if that is not None."""

    until_us: int | None


_WAIT_FOR_CHANGE = Wait(None)
_DISPATCH = {reason: Dispatch(reason) for reason in CloseReason}


def decide_dispatch(config: Batching, view: QueueView, *, now_us: int) -> Dispatch | Wait:
    """Decide whether the next batch of one queue leaves now.

    Args:
        config: The model's batching.
        view: The queue and its replicas.
        now_us: Monotonic, µs.

    Returns:
        Dispatch with the reason, or Wait. Never Dispatch when no replica has a credit left.
    """
    if not view.rows or not (view.replicas_idle or view.replicas_stageable):
        return _WAIT_FOR_CHANGE
    if view.is_alone:
        return _DISPATCH[CloseReason.ALONE]
    if view.is_full:
        return _DISPATCH[CloseReason.FULL]
    if view.replicas_idle:
        return _DISPATCH[CloseReason.IDLE]
    due_us = view.oldest_us + config.wait_us_max
    if now_us >= due_us:
        return _DISPATCH[CloseReason.TIMEOUT]
    return Wait(due_us)
