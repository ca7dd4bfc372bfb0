"""The head's book of gateway counters: the last report of each gateway process, dead ones included.

Law: as long as a head lives, no counter of `total()` ever falls, whichever gateways come and go.
Not here: adding up (`core/statistics.py`), showing (`metrics.py`, `status.py`).
"""

from penstock.core.statistics import GatewayStatistics, merge_statistics

__all__ = ["Ledger"]


class Ledger:
    """Counters by gateway process. A key names one process, never two."""

    def __init__(self) -> None:
        self._alive: dict[tuple[int, int], GatewayStatistics] = {}
        # All closed accounts as one: memory does not grow with the number of restarts.
        self._closed = GatewayStatistics()

    def record(self, process: tuple[int, int], statistics: GatewayStatistics) -> None:
        """Keep a process's newest report. Args: process: its pid and start time."""
        self._alive[process] = statistics

    def close(self, process: tuple[int, int]) -> None:
        """Note that no more reports come from a process: its counters stay, its gauges go. Twice is once."""
        statistics = self._alive.pop(process, None)
        if statistics is not None:
            self._closed = merge_statistics([], [self._closed, statistics])

    def total(self) -> GatewayStatistics:
        """Return the sum over all processes, as a new object."""
        return merge_statistics(list(self._alive.values()), [self._closed])
