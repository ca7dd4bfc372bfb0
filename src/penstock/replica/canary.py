"""Warming a model up with the canary before anyone may see it, so that no caller pays for first-time work.

Not here: what a canary holds and what its answer means (`wire/canary.py`).
"""

from collections.abc import Callable

from penstock.core.errors import ConfigError
from penstock.core.models import ModelSpec
from penstock.replica.batch import Batch
from penstock.replica.executor import Executor
from penstock.wire.canary import canary_batch, canary_fault

__all__ = ["warm_up"]


def warm_up(executor: Executor, spec: ModelSpec, *, now_us: Callable[[], int]) -> None:
    """Run the canary once with one request and once with `size_max`, the sizes between which all batches lie.

    Raises:
        ConfigError: The model cannot answer it. The message is the model's own.
    """
    request_counts = {1, spec.batching.size_max} if spec.is_batched else {1}
    for request_count in sorted(request_counts):
        meta, payload = canary_batch(spec, request_count=request_count)
        batch = Batch(0, meta, b"".join(payload), now_us(), is_alone=True)
        (reply,) = executor.execute([batch])
        fault = canary_fault(reply.meta)
        if fault is not None:
            raise ConfigError(f"canary of {request_count} rows: {fault}")
