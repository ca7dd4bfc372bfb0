"""Stand-ins for the replica's tests: a clock moved by hand, runtimes made of one function, batches made of numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from penstock.core.models import Batching, ModelSpec
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.replica.batch import Batch, Reply
from penstock.replica.executor import Executor
from penstock.replica.runtimes import Array
from penstock.wire.frame import BatchMeta, FrameTensor

SUM = ModelSpec(
    name="sum",
    inputs=(TensorSpec("x", "FP32", (-1, 2), finite=True),),
    outputs=(TensorSpec("y", "FP32", (-1, 1)),),
    batching=Batching(size_max=64),
)
WHOLE = ModelSpec(name="whole", inputs=(TensorSpec("x", "FP32", (2, -1)),), outputs=(TensorSpec("y", "FP32", (-1,)),))


class HandClock:
    """A clock that moves only when told."""

    def __init__(self, now_us: int = 1_000_000) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


class FunctionRuntime:
    """A runtime that runs one function and remembers the rows of each call."""

    def __init__(self, spec: ModelSpec, function: Callable[..., Mapping[str, Array]]) -> None:
        self.spec = spec
        self.calls: list[int] = []
        self._function = function

    def run(self, inputs: dict[str, Array], parameters: dict[str, Any]) -> Mapping[str, Array]:
        self.calls.append(len(next(iter(inputs.values()))))
        return self._function(**inputs)


def sum_rows(x: Array) -> dict[str, Array]:
    """Sum each row, and spoil the input as a careless model would."""
    y = x.sum(axis=1, keepdims=True)
    x[:] = -1
    return {"y": y}


def executor_of(
    function: Callable[..., Mapping[str, Array]] = sum_rows, *, spec: ModelSpec = SUM
) -> tuple[Executor, FunctionRuntime, HandClock, list[str]]:
    """Return an executor on a function, with its runtime, clock and log."""
    runtime, clock, log = FunctionRuntime(spec, function), HandClock(), list[str]()
    return Executor(runtime, now_us=clock, log=log.append), runtime, clock, log


def batch_of(
    values: Any,
    rows: Sequence[int],
    *,
    datatype: str = "FP32",
    name: str = "x",
    budgets_us: Sequence[int] | None = None,
    parameters: dict[str, Any] | None = None,
    received_at_us: int = 1_000_000,
    frame_id: int = 1,
    is_alone: bool = False,
) -> Batch:
    """Make a batch with one fixed-width input of shape (rows, *inner)."""
    array = np.asarray(values, dtype=DATATYPES[datatype].numpy)
    data = array.tobytes()
    meta = BatchMeta(
        (FrameTensor(name, datatype, array.shape[1:], len(data)),),
        tuple(rows),
        tuple(budgets_us or (0,) * len(rows)),
        parameters or {},
    )
    return Batch(frame_id, meta, data, received_at_us, is_alone=is_alone)


def bytes_batch(payload: bytes, rows: Sequence[int], *, inner: tuple[int, ...] = (1,)) -> Batch:
    """Make a batch with one BYTES input `text` of this raw payload."""
    meta = BatchMeta((FrameTensor("text", "BYTES", inner, len(payload)),), tuple(rows), (0,) * len(rows), {})
    return Batch(1, meta, payload, 1_000_000)


def output(reply: Reply, k: int = 0) -> Array:
    """Return output `k` of a reply as an array of shape (rows, *inner)."""
    tensor = reply.meta.outputs[k]
    return np.frombuffer(reply.payload[k], DATATYPES[tensor.datatype].numpy).reshape(-1, *tensor.shape)


def failures(reply: Reply) -> dict[int, int]:
    """Return the status of each failed request."""
    return {f.index: f.status for f in reply.meta.failures}


def messages(reply: Reply) -> dict[int, str]:
    """Return the message of each failed request."""
    return {f.index: f.message for f in reply.meta.failures}
