"""Laws of tensors: every datatype agrees with itself, and a declaration that means nothing is refused."""

import struct
from typing import Any

import numpy as np
import pytest

from penstock.core.tensors import DATATYPES, Datatype, TensorSpec, format_shape


@pytest.mark.parametrize("datatype", [d for d in DATATYPES.values() if d.itemsize], ids=lambda d: d.name)
def test_widths_agree(datatype: Datatype) -> None:
    """A datatype's width is that of its struct code and of its numpy type."""
    assert struct.calcsize(f"<{datatype.code}") == datatype.itemsize
    assert np.dtype(datatype.numpy).itemsize == datatype.itemsize


def test_bytes_have_no_width() -> None:
    """BYTES elements carry their own length."""
    assert (DATATYPES["BYTES"].itemsize, DATATYPES["BYTES"].code) == (0, "")


@pytest.mark.parametrize(
    ("shape", "is_batched", "inner_count"),
    [((-1, 64), True, 64), ((-1,), True, 1), ((-1, 2, -1), True, -1), ((3, 4), False, 4), ((), False, 1)],
)
def test_shapes_are_understood(shape: tuple[int, ...], inner_count: int, *, is_batched: bool) -> None:
    """A leading -1 is the batch dimension; the rest is one row, whose elements are counted if none is open."""
    spec = TensorSpec("x", "FP32", shape)
    assert (spec.is_batched, spec.inner_count) == (is_batched, inner_count)


def test_a_shape_may_be_any_sequence() -> None:
    """A list is taken for a shape and becomes a tuple, so that specs can be compared and hashed."""
    listed: Any = [-1, 2]  # as publishers write it whose code is not type-checked
    assert TensorSpec("x", "FP32", listed) == TensorSpec("x", "FP32", (-1, 2))
    assert hash(TensorSpec("x", "FP32", listed)) == hash(TensorSpec("x", "FP32", (-1, 2)))


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "message"),
    [
        ("", "FP32", (1,), "non-empty"),
        ("x", "FLOAT", (1,), "got 'FLOAT'"),
        ("x", "fp32", (1,), "got 'fp32'"),
        ("x", "FP32", (0,), r"got \[0\]"),
        ("x", "FP32", (-2, 3), r"got \[-2, 3\]"),
    ],
)
def test_senseless_declarations_are_refused(name: str, datatype: str, shape: tuple[int, ...], message: str) -> None:
    """A tensor without a name, of no known type or with an impossible dimension is refused, saying what was got."""
    with pytest.raises(ValueError, match=message):
        TensorSpec(name, datatype, shape)


@pytest.mark.parametrize(("shape", "text"), [((), "[]"), ((-1,), "[-1]"), ([-1, 64], "[-1,64]")])
def test_shapes_are_written_as_in_the_protocol(shape: tuple[int, ...], text: str) -> None:
    """A shape is written as OIP metadata writes it."""
    assert format_shape(shape) == text
