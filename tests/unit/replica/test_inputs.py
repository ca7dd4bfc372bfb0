"""Laws of reading inputs: round trips, fresh arrays, and refusal of whatever does not fit."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.replica.batch import Batch
from penstock.replica.inputs import gather_inputs, plan_inputs, read_inputs, rows_not_finite
from penstock.replica.runtimes import Array
from penstock.wire.frame import BatchMeta, FrameTensor
from tests.unit.replica.fakes import SUM, batch_of, bytes_batch

TEXT = ModelSpec("text", (TensorSpec("text", "BYTES", (-1, 1)),), (TensorSpec("n", "INT64", (-1, 1)),))


def _elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(v)) + v for v in values)


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BYTES"])
def test_read_returns_what_was_sent(datatype: str) -> None:
    """Every fixed-width datatype reads back as sent, whatever the alignment of the payload."""
    spec = ModelSpec("m", (TensorSpec("x", datatype, (-1, 3)),), (TensorSpec("y", datatype, (-1, 1)),))
    sent = np.array([[0, 1, 1], [1, 0, 1]], dtype=DATATYPES[datatype].numpy)
    batch = batch_of(sent, [1, 1], datatype=datatype)
    batch.payload = memoryview(b"." + bytes(batch.payload))[1:]
    plan = plan_inputs(spec, batch.signature)
    inputs = gather_inputs(plan, [read_inputs(plan, batch)], None)
    assert plan.refusal == ""
    assert inputs["x"].dtype == sent.dtype
    np.testing.assert_array_equal(inputs["x"], sent)


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=6))
def test_bytes_elements_round_trip(values: list[bytes]) -> None:
    """BYTES elements of any content come back as sent."""
    batch = bytes_batch(_elements(*values), [1] * len(values))
    (array,) = read_inputs(plan_inputs(TEXT, batch.signature), batch)
    assert array.shape == (len(values), 1)
    assert array.ravel().tolist() == values


@given(st.binary(max_size=40), st.integers(1, 5))
def test_bytes_garbage_is_invalid_input_or_exact(payload: bytes, rows: int) -> None:
    """Any payload either encodes back to itself or raises InvalidInput naming the tensor; nothing else escapes."""
    batch = bytes_batch(payload, [rows])
    try:
        (array,) = read_inputs(plan_inputs(TEXT, batch.signature), batch)
    except InvalidInput as error:
        refusal = error.message
    else:
        refusal = ""
        assert _elements(*array.ravel().tolist()) == payload
    assert refusal == "" or refusal.startswith("input 'text': expected")


@pytest.mark.parametrize("payload", [b"\x01\0\0\0ab", b"\x01\0\0\0a\0\0\0\0", b"\x02\0\0\0a", b"\x01\0\0"])
def test_bytes_too_many_or_too_few_are_refused(payload: bytes) -> None:
    """One element means one length and that many bytes, and nothing after."""
    batch = bytes_batch(payload, [1])
    with pytest.raises(InvalidInput, match="input 'text': expected"):
        read_inputs(plan_inputs(TEXT, batch.signature), batch)


def test_huge_claim_is_refused_before_it_costs_memory() -> None:
    """A description that claims more elements than bytes is refused from its length alone."""
    spec = ModelSpec("m", (TensorSpec("text", "BYTES", (-1, -1)),), TEXT.outputs)
    batch = bytes_batch(b"", [1], inner=(2**40,))
    with pytest.raises(InvalidInput, match="BYTES elements"):
        read_inputs(plan_inputs(spec, batch.signature), batch)


def test_wrong_byte_count_is_refused() -> None:
    """Bytes that are not a whole number of the described rows are refused with both counts."""
    batch = batch_of([[1, 2]], [1])
    lying = Batch(1, BatchMeta(batch.meta.inputs, (2,), (0,), {}), batch.payload, 0)
    with pytest.raises(InvalidInput, match=r"'x': expected 16 bytes for \[2,2\], got 8"):
        read_inputs(plan_inputs(SUM, lying.signature), lying)


@pytest.mark.parametrize(
    ("tensors", "refusal"),
    [
        ([("x", "FP32", (3,))], r"input 'x': expected FP32 \[-1,2\], got FP32 \[-1,3\]"),
        ([("x", "FP64", (2,))], r"input 'x': expected FP32 \[-1,2\], got FP64 \[-1,2\]"),
        ([("x", "NONE", (2,))], r"got NONE"),
        ([("x", "FP32", (-2,))], r"got FP32 \[-1,-2\]"),
        ([("z", "FP32", (2,))], r"expected each of x at most once, got 'z'"),
        ([("x", "FP32", (2,)), ("x", "FP32", (2,))], r"at most once, got 'x'"),
        ([], r"expected x, got none for x"),
    ],
)
def test_signature_the_model_cannot_take_is_refused(
    tensors: list[tuple[str, str, tuple[int, ...]]], refusal: str
) -> None:
    """The refusal names the tensor, what was expected and what was got."""
    meta = BatchMeta(tuple(FrameTensor(*t, 0) for t in tensors), (1,), (0,), {})
    plan = plan_inputs(SUM, Batch(1, meta, b"", 0).signature)
    with pytest.raises(AssertionError, match=refusal):
        raise AssertionError(plan.refusal)


def test_gather_is_fresh_aligned_and_writable() -> None:
    """Spoiling gathered arrays spoils neither the payload nor the next gathering."""
    batches = [batch_of([[1, 2]], [1]), batch_of([[3, 4], [5, 6]], [2])]
    plan = plan_inputs(SUM, batches[0].signature)
    for parts in ([read_inputs(plan, b) for b in batches], [read_inputs(plan, batches[1])]):
        for keep in (None, np.ones(sum(len(p[0]) for p in parts), dtype=bool)):
            first = gather_inputs(plan, parts, keep)["x"]
            expected = first.copy()
            assert first.flags.aligned
            first[:] = -1
            np.testing.assert_array_equal(gather_inputs(plan, parts, keep)["x"], expected)


def test_bool_bytes_become_true_or_false() -> None:
    """Any non-zero byte reads as True, so that no model meets a bool that is neither."""
    spec = ModelSpec("m", (TensorSpec("x", "BOOL", (-1, 3)),), SUM.outputs)
    batch = batch_of([[0, 1, 1]], [1], datatype="BOOL")
    batch.payload = b"\x00\x01\xfe"
    (array,) = read_inputs(plan_inputs(spec, batch.signature), batch)
    assert array.view(np.uint8).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        (np.zeros((3, 2)), []),
        (np.array([[0, np.nan], [1, 1], [np.inf, 0]]), [0, 2]),
        (np.array([0, -np.inf]), [1]),
    ],
)
def test_rows_not_finite(array: Array, rows: list[int]) -> None:
    """Exactly the rows with NaN or an infinity are found."""
    assert rows_not_finite(array) == rows
