"""What a batch will cost, kept fresh: the profile measured at load, corrected by the latest executions.

Two answers for each size: the typical time (median), by which it is predicted who can still make it, and the tail (the
slowest of the window, its p99), by which a batch that must not be late is sent. Pure. Not here: measuring at load
(`replica/profiling.py`), comparing replicas with each other (`balancing.py`).

Source: the sliding window per batch size of Clockwork (OSDI 2020), which takes the p99 of its last 10 measurements.
"""

from bisect import bisect_left
from collections import deque

from penstock.core.profiles import CostProfile, profiled_sizes

__all__ = ["ServiceEstimate"]

# Executions remembered for each batch size: enough for a median, few enough to follow a device that slows down.
WINDOW = 16
# A size is judged by its own executions from this many on; before, by the profile scaled as the other sizes suggest.
SAMPLES_MIN = 3
# Older measurements say nothing about the device as it is now.
AGE_US_MAX = 60_000_000
# The estimate is made anew after this many observations: the cost of it is spread over as many batches.
REFRESH_EVERY = 8
# Times whose slowest execution is this many times the median cannot be predicted: admission falls back to the
# delay limit.
SPREAD_MAX = 8.0
# Who could probably be done in time is not dropped for what one slow execution took: of the tail at most this counts.
SAFE_RATIO_MAX = 1.25


class ServiceEstimate:
    """ℓ(b) of one model on one kind of device, as of now.

    Args:
        profile: Measured at load; None if the model could not be measured.
        size_max: Largest batch.

    Attributes:
        typical: The profile by typical times; `alpha_us` and `beta_us` are its line.
        ample_us: Whoever has this long, and at most a batch in front of it, is done in time without a doubt.
        spread: The slowest over the typical execution, at the size where that is largest.
        is_usable: Enough is known, and it varies little enough, to predict by.
    """

    __slots__ = (
        "_count",
        "_is_learned",
        "_samples",
        "_seed",
        "_sizes",
        "_tail",
        "alpha_us",
        "ample_us",
        "beta_us",
        "is_usable",
        "spread",
        "typical",
    )

    typical: CostProfile
    ample_us: int
    alpha_us: float
    beta_us: float

    def __init__(self, profile: CostProfile | None, size_max: int) -> None:
        self._sizes = profile.rows if profile is not None else profiled_sizes(size_max)
        self._seed = profile
        self._is_learned = profile is None  # the seed, too, comes from executions
        self._samples: list[deque[tuple[int, int]]] = [deque(maxlen=WINDOW) for _ in self._sizes]
        self._count = 0
        self.is_usable = profile is not None
        self.spread = 1.0
        self._set(profile or CostProfile((1,), (1,)), None)

    def _set(self, typical: CostProfile, tail: CostProfile | None) -> None:
        self.typical = typical
        self._tail = tail or typical
        # Two batches that a replica holds, and the one after: times the slowest of each, with one to spare.
        self.ample_us = 4 * self._tail.time_us(self._sizes[-1])
        self.alpha_us = typical.alpha_us
        self.beta_us = typical.beta_us

    def time_us(self, rows: int) -> int:
        """Return what a batch of `rows` typically takes, µs."""
        return self.typical.time_us(rows)

    def tail_us(self, rows: int) -> int:
        """Return what the slowest recent batch of `rows` took, µs."""
        return self._tail.time_us(rows)

    def safe_us(self, rows: int) -> int:
        """Return what a batch of `rows` takes if it is a slow one, though not as slow as the odd mishap, µs."""
        typical_us = self.typical.time_us(rows)
        return min(self._tail.time_us(rows), round(typical_us * SAFE_RATIO_MAX))

    def observe(self, rows: int, service_us: int, now_us: int) -> None:
        """Take note of one execution of `rows` rows that took `service_us`."""
        sizes = self._sizes
        k = min(bisect_left(sizes, rows), len(sizes) - 1)
        if sizes[k] != rows and self._seed is not None:
            # Counted for the next measured size, as long as that one would have taken by the shape of the profile.
            service_us = service_us * self._seed.time_us(sizes[k]) // self._seed.time_us(rows)
        self._samples[k].append((now_us, max(service_us, 1)))
        self._count += 1
        if self._count % REFRESH_EVERY == 0 or self._count <= SAMPLES_MIN or self._seed is None:
            self._refresh(now_us)

    def _refresh(self, now_us: int) -> None:
        oldest_us = now_us - AGE_US_MAX
        measured: dict[int, tuple[int, int]] = {}
        for k, samples in enumerate(self._samples):
            while samples and samples[0][0] < oldest_us:
                samples.popleft()
            if len(samples) >= SAMPLES_MIN:
                times = sorted([time_us for _, time_us in samples])
                measured[k] = (times[len(times) // 2], times[-1])
        if not measured:
            return
        if self._seed is None or self._is_learned:
            known = [(self._sizes[k], typical) for k, (typical, _) in measured.items()]
            if known[0][0] != 1:
                known.insert(0, (1, known[0][1]))
            self._seed = CostProfile.from_measurements(*zip(*known, strict=True))
        seed = [self._seed.time_us(rows) for rows in self._sizes]
        # Sizes not seen lately are taken to have changed as those seen have.
        typical_ratio = sum(t / seed[k] for k, (t, _) in measured.items()) / len(measured)
        guess = [(round(s * typical_ratio), round(s * typical_ratio)) for s in seed]
        chosen = [measured.get(k, guess[k]) for k in range(len(seed))]
        self._set(
            CostProfile.from_measurements(self._sizes, [c[0] for c in chosen]),
            CostProfile.from_measurements(self._sizes, [c[1] for c in chosen]),
        )
        self.spread = max(tail / typical for typical, tail in measured.values())
        self.is_usable = self.spread <= SPREAD_MAX
