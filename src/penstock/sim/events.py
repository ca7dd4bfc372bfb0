"""The event heap: what happens next in virtual time.

Events are plain tuples (when, order of adding, action, argument); those of one instant happen in the order in which
they were added, so that a run depends on nothing but its inputs. Not here: who adds them (`fleet.py`, `workload.py`).
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

__all__ = ["NEVER_US", "Action", "Agenda"]

# Later than any event: 292,000 years.
NEVER_US = 2**63 - 1

# Called with the instant, µs, and the argument it was added with.
Action = Callable[[int, Any], None]


class Agenda:
    """What will happen, in order."""

    __slots__ = ("_added", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Action, Any]] = []
        self._added = 0

    @property
    def next_us(self) -> int:
        """When the next event happens; NEVER_US if nothing will."""
        return self._heap[0][0] if self._heap else NEVER_US

    def add(self, at_us: int, action: Action, argument: Any = None) -> None:
        """Let `action(at_us, argument)` happen at `at_us`. O(log n)."""
        self._added += 1
        heappush(self._heap, (at_us, self._added, action, argument))

    def run_instant(self, now_us: int) -> None:
        """Let everything happen that was added for `now_us`, including what that adds for the same instant."""
        heap = self._heap
        while heap and heap[0][0] == now_us:
            _, _, action, argument = heappop(heap)
            action(now_us, argument)
