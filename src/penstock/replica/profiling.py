"""Measuring what a batch costs on this replica's device, with canaries, after the warm-up and before anyone calls.

Not here: the profile itself (`core/profiles.py`), what a canary holds (`wire/canary.py`), keeping profiles fresh from
live batches (`policy/profiling.py`).
"""

from collections.abc import Callable

from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile, profiled_sizes
from penstock.replica.batch import Batch
from penstock.replica.executor import Executor
from penstock.wire.canary import canary_batch

__all__ = ["measure_profile"]

# A start is somebody's waiting time: past this, what was not measured lies on the line between what was.
MEASURE_US_MAX = 1_000_000
# The least number of which a median forgives one outlier.
REPEATS_MIN = 3
# Short batches are repeated for this long, because a clock tick or an interrupt is a large part of one.
REPEAT_US = 5_000
REPEATS_MAX = 25


def measure_profile(executor: Executor, spec: ModelSpec, *, now_us: Callable[[], int]) -> CostProfile | None:
    """Measure the device time of canary batches by rows: the median of a few of each of `profiled_sizes`.

    Size 1 and `size_max` are always measured, the sizes between in order while there is time. Takes about a second at
    most, or three batches each of those two where they alone take longer; well below 0.1 s for a fast model.

    Args:
        executor: Of the loaded model, warmed up.
        spec: The model's.
        now_us: Monotonic clock, µs.

    Returns:
        The profile; None if the model does not run the canary (it may honestly refuse zeros), so nothing is known.
    """
    until_us = now_us() + MEASURE_US_MAX
    smallest, *middle = profiled_sizes(spec.batching.size_max if spec.is_batched else 1)
    times_us: dict[int, int] = {}
    for size in (smallest, *middle[-1:], *middle[:-1]):
        if len(times_us) >= 2 and now_us() >= until_us:
            break
        time_us = _measure_size(executor, spec, size, now_us=now_us)
        if time_us is None:
            return None
        times_us[size] = time_us
    sizes = sorted(times_us)
    return CostProfile.from_measurements(sizes, [times_us[size] for size in sizes])


def _measure_size(executor: Executor, spec: ModelSpec, size: int, *, now_us: Callable[[], int]) -> int | None:
    """Return the median device time of a batch of `size` rows, µs; None if the model does not run it."""
    meta, pieces = canary_batch(spec, request_count=size)
    payload = b"".join(pieces)
    times_us: list[int] = []
    while len(times_us) < REPEATS_MIN or (len(times_us) < REPEATS_MAX and sum(times_us) < REPEAT_US):
        (reply,) = executor.execute([Batch(0, meta, payload, now_us(), is_alone=True)])
        if reply.meta.failures or not reply.meta.executed_rows:
            return None
        times_us.append(reply.meta.input_us + reply.meta.execute_us + reply.meta.output_us)
    return sorted(times_us)[len(times_us) // 2]
