"""What a batch costs on a device: its time by rows, as measured, never falling.

Immutable. Not here: measuring it (`replica/profiling.py`), keeping it fresh from live batches (`policy/profiling.py`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.errors import ConfigError

__all__ = ["CostProfile", "profiled_sizes"]


@dataclass(frozen=True, slots=True)
class CostProfile:
    """Device time of one batch of one model version on one device, by rows: ℓ(b), about β + α·b.

    Args:
        rows: Batch sizes measured, ascending, the first 1.
        times_us: Device time at each, µs, >= 1, never falling.
    """

    rows: tuple[int, ...]
    times_us: tuple[int, ...]

    def time_us(self, rows: int) -> int:
        """Return ℓ(rows), µs: linear between measured sizes, along the last slope beyond them."""
        sizes, times = self.rows, self.times_us
        if len(sizes) == 1:
            return times[0]
        k = min(bisect_left(sizes, rows), len(sizes) - 1)
        if sizes[k] == rows:
            return times[k]
        k = max(k, 1)
        return times[k - 1] + (times[k] - times[k - 1]) * (rows - sizes[k - 1]) // (sizes[k] - sizes[k - 1])

    @property
    def alpha_us(self) -> float:
        """What a row adds, µs: the slope from the smallest to the largest size; 0 if only one was measured."""
        span = self.rows[-1] - self.rows[0]
        return (self.times_us[-1] - self.times_us[0]) / span if span else 0.0

    @property
    def beta_us(self) -> float:
        """What any batch costs however small, µs, >= 0: where that line meets zero rows."""
        return max(self.times_us[0] - self.alpha_us * self.rows[0], 0.0)

    @classmethod
    def from_line(cls, *, beta_us: float, alpha_us: float, size_max: int) -> "CostProfile":
        """Return the profile of a device whose time is exactly β + α·b, up to `size_max` rows."""
        sizes = profiled_sizes(size_max)
        return cls(sizes, tuple(max(round(beta_us + alpha_us * b), 1) for b in sizes))

    @classmethod
    def from_measurements(cls, rows: Sequence[int], times_us: Sequence[int]) -> "CostProfile":
        """Return the least profile that never falls and is nowhere below what was measured."""
        monotone: list[int] = []
        for time_us in times_us:
            monotone.append(max(time_us, monotone[-1] if monotone else 1))
        return cls(tuple(rows), tuple(monotone))

    def check(self, where: str) -> None:
        """Check a profile that somebody wrote.

        Raises:
            ConfigError: It is empty, not ascending from 1, or falls somewhere; the message begins with `where`.
        """
        if not self.rows or len(self.rows) != len(self.times_us):
            raise ConfigError(
                f"{where}: expected as many times as batch sizes and at least one,"
                f" got {len(self.rows)} sizes and {len(self.times_us)} times"
            )
        if self.rows[0] != 1 or any(a >= b for a, b in zip(self.rows, self.rows[1:], strict=False)):
            raise ConfigError(f"{where}.rows: expected ascending batch sizes from 1, got {list(self.rows)}")
        if self.times_us[0] < 1:
            raise ConfigError(f"{where}.times_us: expected times of at least 1 µs, got {self.times_us[0]}")
        for k in range(1, len(self.rows)):
            if self.times_us[k] < self.times_us[k - 1]:
                raise ConfigError(
                    f"{where}.times_us: expected times that never fall (a larger batch is never faster), got"
                    f" {self.times_us[k - 1]} µs at {self.rows[k - 1]} rows and {self.times_us[k]} at {self.rows[k]}"
                )


def profiled_sizes(size_max: int) -> tuple[int, ...]:
    """Return the batch sizes worth measuring up to `size_max`: powers of two, and `size_max` itself."""
    sizes = [1]
    while sizes[-1] * 2 < size_max:
        sizes.append(sizes[-1] * 2)
    if size_max > 1:
        sizes.append(size_max)
    return tuple(sizes)
