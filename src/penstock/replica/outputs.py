"""What a model returned, checked against what it declared, and packed for the reply.

Nothing is cast: a model that declares FP32 and returns float64 has a mistake its owner must see, not a silent loss.
Not here: inputs (`replica/inputs.py`), who fails for a mistake (`replica/executor.py`).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.core.errors import PenstockError
from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, format_shape
from penstock.replica.runtimes import Array
from penstock.wire.frame import PAYLOAD_BYTES_MAX, FrameTensor

__all__ = ["OutputMistake", "OutputTensor", "check_outputs", "pack_outputs", "plan_outputs"]

_LENGTH = struct.Struct("<I")


class OutputMistake(PenstockError):
    """The model did not return what it declared. The model's owner must change the model or its declaration."""

    status = 500


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One declared output. `inner` is the shape of one row; -1 is open."""

    name: str
    datatype: str
    dtype: np.dtype[np.generic]
    inner: tuple[int, ...]
    is_open: bool


def plan_outputs(spec: ModelSpec) -> tuple[OutputTensor, ...]:
    """Plan the check of a model's outputs, in declared order."""
    plan = []
    for tensor in spec.outputs:
        inner = tensor.shape[1:] if spec.is_batched else tensor.shape
        dtype = np.dtype(DATATYPES[tensor.datatype].numpy)
        plan.append(OutputTensor(tensor.name, tensor.datatype, dtype, inner, -1 in inner))
    return tuple(plan)


def check_outputs(plan: Sequence[OutputTensor], outputs: Mapping[str, Array], lead: tuple[int, ...]) -> list[Array]:
    """Check what a model returned.

    Args:
        plan: From `plan_outputs`.
        outputs: By name.
        lead: Leading dimensions: (rows,), or () for a model without batching.

    Returns:
        The arrays in declared order, shape (*lead, *inner).

    Raises:
        OutputMistake: Names the tensor, expected and got.
    """
    if not isinstance(outputs, Mapping) or len(outputs) != len(plan):
        got = ", ".join(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise OutputMistake(f"outputs: expected a dict of {', '.join(t.name for t in plan)}, got {got or 'none'}")
    arrays = []
    for tensor in plan:
        array = outputs.get(tensor.name)
        if not isinstance(array, np.ndarray):
            got = "none" if array is None else type(array).__name__
            raise OutputMistake(f"output {tensor.name!r}: expected a numpy array, got {got}")
        if array.dtype != tensor.dtype:
            raise OutputMistake(
                f"output {tensor.name!r}: expected {tensor.datatype} ({tensor.dtype}), got {array.dtype}"
            )
        shape = array.shape
        expected = lead + tensor.inner
        if shape != expected and not (tensor.is_open and _fits(expected, shape)):
            message = f"expected shape {format_shape(expected)}, got {format_shape(shape)}"
            raise OutputMistake(f"output {tensor.name!r}: {message}")
        if tensor.datatype == "BYTES":
            _check_elements(tensor, array)
        arrays.append(array)
    return arrays


def _fits(expected: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(e in (-1, g) for e, g in zip(expected, shape, strict=True))


def _check_elements(tensor: OutputTensor, array: Array) -> None:
    wrong = next((type(e).__name__ for e in array.flat if not isinstance(e, bytes)), "")
    if wrong:
        raise OutputMistake(f"output {tensor.name!r}: expected elements of type bytes, got {wrong}")


def pack_outputs(
    plan: Sequence[OutputTensor], arrays: Sequence[Array], begin: int, end: int
) -> tuple[tuple[FrameTensor, ...], list[bytes | memoryview]]:
    """Pack rows `begin` .. `end - 1` of checked outputs for a reply.

    Raises:
        OutputMistake: They are larger than a frame may be.
    """
    tensors = []
    payload: list[bytes | memoryview] = []
    total = 0
    for tensor, array in zip(plan, arrays, strict=True):
        rows = array if end - begin == len(array) else array[begin:end]
        data = _pack_elements(rows) if tensor.datatype == "BYTES" else rows.tobytes()
        total += len(data)
        tensors.append(FrameTensor(tensor.name, tensor.datatype, array.shape[1:], len(data)))
        payload.append(data)
    if total > PAYLOAD_BYTES_MAX:
        raise OutputMistake(f"outputs: expected at most {PAYLOAD_BYTES_MAX} bytes for one batch, got {total}")
    return tuple(tensors), payload


def _pack_elements(rows: Array) -> bytes:
    pieces: list[bytes] = []
    for element in rows.flat:
        pieces += (_LENGTH.pack(len(element)), element)
    return b"".join(pieces)
