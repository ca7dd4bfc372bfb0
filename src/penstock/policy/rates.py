"""How fast rows arrive and requests leave, counted over windows that a caller's clock closes. Pure."""

__all__ = ["ArrivalRate", "DrainRate"]

# Arrivals are counted over windows of this length, and the rate is their average over about ten of them: it follows a
# step in a tenth of a second, and at 1,000 rows per second is known to about a tenth.
WINDOW_US = 10_000
MEMORY_US = 100_000
# Departures are counted over this and the window before.
DRAIN_WINDOW_US = 1_000_000


class ArrivalRate:
    """Rows per µs.

    Args:
        now_us: When counting begins.

    Attributes:
        arrived: Rows since the last window; whoever sees them arrive adds them here.
        value: As of the last `fold`.
    """

    __slots__ = ("_from_us", "arrived", "value")

    def __init__(self, now_us: int) -> None:
        self.value = 0.0
        self.arrived = 0
        self._from_us = now_us

    def fold(self, now_us: int) -> float:
        """Return the rate, with the rows counted so far if a window has passed."""
        elapsed_us = now_us - self._from_us
        if elapsed_us >= WINDOW_US:
            weight = min(elapsed_us / MEMORY_US, 1.0)
            self.value += weight * (self.arrived / elapsed_us - self.value)
            self.arrived = 0
            self._from_us = now_us
        return self.value


class DrainRate:
    """Requests that left a queue in the last one to two seconds."""

    __slots__ = ("_before", "_count", "_from_us")

    def __init__(self) -> None:
        self._before = 0
        self._count = 0
        self._from_us = 0

    def count(self, requests: int, now_us: int) -> None:
        """Requests have left."""
        elapsed_us = now_us - self._from_us
        if elapsed_us >= DRAIN_WINDOW_US:
            self._before = self._count if elapsed_us < 2 * DRAIN_WINDOW_US else 0
            self._count = 0
            self._from_us = now_us
        self._count += requests

    def read(self, now_us: int) -> tuple[int, int]:
        """Return how many have left, and in how many µs (> 0)."""
        window_us = max(now_us - self._from_us, 1) + (DRAIN_WINDOW_US if self._before else 0)
        return self._count + self._before, window_us
