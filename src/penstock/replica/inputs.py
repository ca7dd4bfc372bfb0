"""Payload bytes to a model's input arrays, and which requests' inputs are unfit.

The gateway has checked each request against the spec; here only what would corrupt or crash is checked again, because a
replica must survive any frame. Not here: outputs (`replica/outputs.py`), order and blame (`replica/executor.py`).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, TensorSpec, format_shape
from penstock.replica.batch import Batch, Signature
from penstock.replica.runtimes import Array

__all__ = ["InputPlan", "InputTensor", "gather_inputs", "plan_inputs", "read_inputs", "rows_not_finite"]

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class InputTensor:
    """How to read one tensor of a signature. `row_bytes` is 0 for BYTES, whose elements carry their own lengths."""

    name: str
    datatype: str
    dtype: np.dtype[np.generic]
    inner: tuple[int, ...]
    inner_count: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class InputPlan:
    """How to read every batch of one signature.

    Args:
        tensors: In payload order.
        finite: Names of those that must not hold NaN or infinities.
        refusal: Why the model cannot take batches of this signature; '' if it can.
    """

    tensors: tuple[InputTensor, ...]
    finite: tuple[str, ...]
    refusal: str


def plan_inputs(spec: ModelSpec, signature: Signature) -> InputPlan:
    """Plan how to read batches of one signature for one model. Pure; worth caching by signature."""
    declared = {t.name: t for t in spec.inputs}
    tensors = []
    refusal = ""
    for name, datatype, inner in signature[0]:
        refusal = refusal or _find_mismatch(spec, declared.pop(name, None), name, datatype, inner)
        if datatype in DATATYPES:
            known = DATATYPES[datatype]
            count = prod(inner)
            tensors.append(InputTensor(name, datatype, np.dtype(known.numpy), inner, count, known.itemsize * count))
    missing = [t.name for t in declared.values() if not t.optional]
    if missing and not refusal:
        refusal = f"inputs: expected {', '.join(t.name for t in spec.inputs)}, got none for {', '.join(missing)}"
    finite = {t.name for t in spec.inputs if t.finite and t.datatype.startswith("FP")}
    return InputPlan(tuple(tensors), tuple(t.name for t in tensors if t.name in finite), refusal)


def _find_mismatch(spec: ModelSpec, tensor: TensorSpec | None, name: str, datatype: str, inner: tuple[int, ...]) -> str:
    if tensor is None:
        return f"inputs: expected each of {', '.join(t.name for t in spec.inputs)} at most once, got {name!r}"
    expected = tensor.shape[1:] if spec.is_batched else tensor.shape
    fits = len(expected) == len(inner) and all(g >= 1 and e in (-1, g) for e, g in zip(expected, inner, strict=True))
    if datatype == tensor.datatype and fits:
        return ""
    batch = (-1,) if spec.is_batched else ()
    return (
        f"input {name!r}: expected {tensor.datatype} {format_shape(tensor.shape)},"
        f" got {datatype} {format_shape(batch + tuple(inner))}"
    )


def read_inputs(plan: InputPlan, batch: Batch) -> list[Array]:
    """Read one batch's tensors, in payload order, shape (rows, *inner).

    Returns:
        Views of the payload: read-only, perhaps unaligned. `gather_inputs` makes arrays fit for a model of them.

    Raises:
        InvalidInput: The bytes are not that many rows of this datatype and shape. All requests of the batch must fail:
            where one row is malformed, nothing tells where the next begins.
    """
    arrays = []
    at = 0
    for tensor, described in zip(plan.tensors, batch.meta.inputs, strict=True):
        nbytes = described.nbytes
        shape = (batch.row_count, *tensor.inner)
        if tensor.datatype == "BYTES":
            arrays.append(_read_elements(tensor.name, batch.payload[at : at + nbytes], shape))
        else:
            expected = tensor.row_bytes * batch.row_count
            if nbytes != expected:
                raise InvalidInput(
                    f"input {tensor.name!r}: expected {expected} bytes for {format_shape(shape)}, got {nbytes}"
                )
            array = np.frombuffer(batch.payload, tensor.dtype, tensor.inner_count * batch.row_count, at).reshape(shape)
            # Any byte may arrive; to numpy a bool that is neither 0 nor 1 is neither True nor False.
            arrays.append(array.view(np.uint8) != 0 if tensor.datatype == "BOOL" else array)
        at += nbytes
    return arrays


def _read_elements(name: str, payload: bytes | memoryview, shape: tuple[int, ...]) -> Array:
    data = bytes(payload)
    count = prod(shape)
    end = len(data)
    # Each element takes at least its length prefix: a description that claims more is refused before it costs memory.
    if end < count * _LENGTH.size:
        raise InvalidInput(f"input {name!r}: expected {count} BYTES elements, got {end} bytes")
    elements = np.empty(count, dtype=object)
    at = 0
    for k in range(count):
        if end - at < _LENGTH.size:
            raise InvalidInput(f"input {name!r}: expected {count} BYTES elements, got {k} and {end - at} bytes")
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(data, at)[0]
        if at > end:
            raise InvalidInput(f"input {name!r}: expected element {k} of {at - begin} bytes, got {end - begin}")
        elements[k] = data[begin:at]
    if at != end:
        raise InvalidInput(f"input {name!r}: expected {count} BYTES elements, got {end - at} bytes more")
    return elements.reshape(shape)


def gather_inputs(plan: InputPlan, parts: Sequence[list[Array]], keep: Array | None) -> dict[str, Array]:
    """Put the rows of several batches together.

    Args:
        plan: Of their common signature.
        parts: For each batch what `read_inputs` returned, at least one.
        keep: Rows to keep, bool of shape (rows,); None keeps all.

    Returns:
        Arrays of shape (rows kept, *inner): copies, so aligned, writable and the model's to change. Calling again with
        the same parts gives the original values again.
    """
    inputs: dict[str, Array] = {}
    for k, tensor in enumerate(plan.tensors):
        if len(parts) > 1:
            array = np.concatenate([part[k] for part in parts])
            inputs[tensor.name] = array if keep is None else array[keep]
        else:
            array = parts[0][k]
            inputs[tensor.name] = array.copy() if keep is None else array[keep]
    return inputs


def rows_not_finite(array: Array) -> list[int]:
    """Return the rows that hold NaN or an infinity, ascending. Cost: one pass when there are none."""
    finite = np.isfinite(array)
    if finite.all():
        return []
    rows: list[int] = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1)).tolist()
    return rows
