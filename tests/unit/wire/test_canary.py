"""Laws of the canary: it fits the spec it was made for, and only a server's fault makes a model unfit."""

import pytest

from penstock.core.models import ModelSpec
from penstock.core.tensors import TensorSpec
from penstock.wire.canary import canary_batch, canary_fault
from penstock.wire.frame import (
    BatchMeta,
    Failure,
    FrameDecoder,
    FrameKind,
    FrameTensor,
    ReplyMeta,
    decode_batch_meta,
    encode_frame,
    encode_meta,
)

OUTPUTS = (TensorSpec("y", "FP32", (-1, 1)),)


def _spec(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = OUTPUTS) -> ModelSpec:
    return ModelSpec("m", inputs, outputs)


@pytest.mark.parametrize("request_count", [1, 5])
def test_zeros_and_canaries_with_open_dimensions_closed(request_count: int) -> None:
    """Fixed-width inputs are zeros, BYTES says canary, -1 becomes 1, one row per request."""
    spec = _spec(TensorSpec("x", "FP16", (-1, 3, -1)), TensorSpec("t", "BYTES", (-1, 2)))
    meta, payload = canary_batch(spec, request_count=request_count, budget_us=9)
    assert meta == BatchMeta(
        (
            FrameTensor("x", "FP16", (3, 1), 6 * request_count),
            FrameTensor("t", "BYTES", (2,), 20 * request_count),
        ),
        (1,) * request_count,
        (9,) * request_count,
        {},
    )
    assert payload == [bytes(6 * request_count), b"\x06\0\0\0canary" * 2 * request_count]


def test_canary_makes_a_frame() -> None:
    """Description and payload agree, so the frame's own checks pass."""
    meta, payload = canary_batch(_spec(TensorSpec("x", "INT64", (-1, 2))))
    (frame,) = FrameDecoder().feed(encode_frame(FrameKind.BATCH, 1, encode_meta(meta), list(payload)))
    assert decode_batch_meta(frame) == meta


def test_optional_inputs_are_left_out_unless_all_are() -> None:
    """Only what a request must have is sent; of nothing but optional inputs, the first."""
    a, b = TensorSpec("a", "INT8", (-1,), optional=True), TensorSpec("b", "INT8", (-1,), optional=True)
    must = TensorSpec("m", "INT8", (-1,))
    assert [t.name for t in canary_batch(_spec(a, must, b))[0].inputs] == ["m"]
    assert [t.name for t in canary_batch(_spec(a, b))[0].inputs] == ["a"]


def test_model_without_batching_gets_the_whole_shape() -> None:
    """Without a batch dimension the first dimension is like any other."""
    meta, payload = canary_batch(_spec(TensorSpec("x", "INT8", (2, -1)), outputs=(TensorSpec("y", "INT8", (1,)),)))
    assert meta.inputs == (FrameTensor("x", "INT8", (2, 1), 2),)
    assert payload == [bytes(2)]


@pytest.mark.parametrize(("statuses", "fault"), [([], None), ([400], None), ([500], "why"), ([400, 504], "why")])
def test_only_a_fault_of_the_server_makes_a_model_unfit(statuses: list[int], fault: str | None) -> None:
    """A 4xx is an answer: zeros may honestly be invalid input."""
    failures = tuple(Failure(k, status, "why") for k, status in enumerate(statuses))
    assert canary_fault(ReplyMeta((), failures, 0, 0, 0, 0, 0)) == fault
