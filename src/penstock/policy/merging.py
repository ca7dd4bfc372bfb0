"""Which of the batches that wait at a replica run together next, and which of their requests come too late.

Several gateways feed a replica, and one batch may be staged while another runs, so batches meet there. Pure. Carried
out by `replica/loop.py` and `replica/executor.py` live, by `sim/device.py` simulated.
"""

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Mergeable", "is_late", "plan_merge"]


class Mergeable(Protocol):
    """A batch as the replica sees it."""

    @property
    def row_count(self) -> int:
        """Its rows."""
        ...

    @property
    def signature(self) -> tuple[object, object, bool]:
        """What batches that run together have in common; the last item is True if it runs by itself."""
        ...


def plan_merge(waiting: Sequence[Mergeable], *, row_count_max: int) -> list[int]:
    """Plan which waiting batches run together next.

    Args:
        waiting: At least one batch, oldest first.
        row_count_max: Most rows to run together. A first batch that is larger runs alone.

    Returns:
        Indices, ascending, always beginning with 0: the oldest never waits for a later one. Then those of its
        signature, in order, up to the first that does not fit: a small late one never passes a large early one.
    """
    first = waiting[0]
    chosen = [0]
    row_count = first.row_count
    if first.signature[2]:
        return chosen
    for k in range(1, len(waiting)):
        if waiting[k].signature == first.signature:
            row_count += waiting[k].row_count
            if row_count > row_count_max:
                break
            chosen.append(k)
    return chosen


def is_late(*, budget_us: int, waited_us: int, least_us: int) -> bool:
    """Return True if a request can no longer be done in time, so that executing it would be wasted.

    Args:
        budget_us: From sending to its deadline, µs; 0 means it has none.
        waited_us: Since it was received.
        least_us: What the smallest batch takes; 0 if that is not known.
    """
    return bool(budget_us) and budget_us - waited_us < max(least_us, 1)
