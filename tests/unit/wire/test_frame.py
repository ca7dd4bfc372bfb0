"""The replica frame, byte by byte and case by case: its header, its limits, descriptions that lie."""

import struct

import msgspec
import pytest

from penstock.wire.frame import (
    BATCH_FLAG_CANARY,
    META_BYTES_MAX,
    BatchMeta,
    Failure,
    Frame,
    FrameDecoder,
    FrameError,
    FrameKind,
    FrameTensor,
    ReplyMeta,
    decode_batch_meta,
    decode_reply_meta,
    encode_frame,
    encode_meta,
)

META = BatchMeta((FrameTensor("x", "FP32", (2,), 8),), (1,), (0,), {})
REPLY = ReplyMeta((FrameTensor("y", "FP32", (), 4),), (), 1, 2, 3, 4, 5)


def header(
    magic: bytes = b"PSTK", version: int = 1, kind: int = 1, sizes: tuple[int, int] = (0, 0), reserved: int = 0
) -> bytes:
    """Write a header by hand: the layout is a contract between processes of different ages."""
    return struct.pack("<4sBBHQIQI", magic, version, kind, 0, 7, *sizes, reserved)


def frame(meta: bytes, payload: bytes) -> Frame:
    """Return a frame of these bytes."""
    return Frame(FrameKind.BATCH, 0, 7, memoryview(meta), memoryview(payload))


def test_the_layout_is_fixed() -> None:
    """Thirty-two bytes of header, then the description, then the payload."""
    wire = encode_frame(FrameKind.BATCH, 7, b"meta", [b"pay", memoryview(b"load")], flags=BATCH_FLAG_CANARY)
    assert wire == b"PSTK\x01\x01\x01\x00" + struct.pack("<QIQI", 7, 4, 7, 0) + b"metapayload"
    (decoded,) = FrameDecoder().feed(wire)
    assert (decoded.kind, decoded.flags, decoded.id) == (FrameKind.BATCH, BATCH_FLAG_CANARY, 7)
    assert (bytes(decoded.meta), bytes(decoded.payload)) == (b"meta", b"payload")


def test_descriptions_are_arrays() -> None:
    """Descriptions travel as msgpack arrays, fields in order: a new field may only be added at the end."""
    assert msgspec.msgpack.decode(encode_meta(META)) == [[["x", "FP32", [2], 8]], [1], [0], {}]
    failed = ReplyMeta((), (Failure(0, 400, "no"),), 1, 2, 3, 4, 5)
    assert msgspec.msgpack.decode(encode_meta(failed)) == [[], [[0, 400, "no"]], 1, 2, 3, 4, 5, 0, 1]


def test_a_reply_without_backlog_is_of_an_idle_replica_with_one_gateway() -> None:
    """What an older replica does not say has the value of the least surprise."""
    older = msgspec.msgpack.encode([[["y", "FP32", [], 4]], [], 1, 2, 3, 4, 5])
    assert decode_reply_meta(frame(older, bytes(4))) == REPLY
    assert (REPLY.backlog_us, REPLY.gateways) == (0, 1)


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (header(magic=b"HTTP"), r"expected a version 1 frame, got b'HTTP\\x01\\x01\\x00\\x00'"),
        (header(version=2), "expected a version 1 frame"),
        (header(reserved=1), "expected a version 1 frame"),
        (header(kind=3), "frame 7: expected kind 1 or 2, got 3"),
        (header(sizes=(META_BYTES_MAX + 1, 0)), r"frame 7: expected at most 4194304 \+ 64 bytes, got 4194305 \+ 0"),
        (header(sizes=(0, 65)), r"got 0 \+ 65"),
    ],
)
def test_other_headers_are_frame_errors(wire: bytes, message: str) -> None:
    """A header of another protocol, version or size is refused before anything behind it is read."""
    with pytest.raises(FrameError, match=message):
        FrameDecoder(payload_bytes_max=64).feed(wire)


def test_whole_frames_are_not_copied() -> None:
    """A payload that arrives whole is a view of the bytes that arrived."""
    wire = encode_frame(FrameKind.REPLY, 1, b"", [b"payload"])
    (decoded,) = FrameDecoder().feed(wire)
    assert decoded.payload.obj is wire


def test_a_trickling_frame_is_copied_once() -> None:
    """Pieces of one frame gather in one buffer, and its payload is a read-only view of that."""
    wire = encode_frame(FrameKind.REPLY, 1, b"", [b"payload"])
    decoder = FrameDecoder()
    assert decoder.feed(wire[:33]) == []
    gathered = decoder._buffer
    assert decoder.feed(wire[33:36]) == []
    assert decoder._buffer is gathered
    (decoded,) = decoder.feed(wire[36:] + wire[:1])
    assert decoded.payload.obj is gathered
    assert decoded.payload.readonly
    assert bytes(decoded.payload) == b"payload"


def batch(**changes: object) -> bytes:
    """Encode the description of a batch of 8 bytes, changed."""
    return encode_meta(msgspec.structs.replace(META, **changes))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b"", "frame 7: description: Input data was truncated"),
        (b"\xc0", "frame 7: description: Expected `array`, got `None`"),
        (encode_meta(META)[:-1] + b"\x81\xa1k" + b"\x91" * 100_000, "frame 7: description: maximum recursion depth"),
        (batch(inputs=(FrameTensor("x", "FP32", (2,), 9),)), "expected a payload of 9 bytes, got 8"),
        (batch(inputs=(FrameTensor("x", "FP32", (), -1), FrameTensor("z", "FP32", (), 9))), "expected a payload of"),
        (batch(rows=(), budgets_us=()), "got 0 row counts from 0 and 0 budgets"),
        (batch(rows=(1, 1)), "got 2 row counts from 1 and 1 budgets"),
        (batch(rows=(0,)), "got 1 row counts from 0 and 1 budgets"),
        (encode_meta(REPLY), "frame 7: description: "),
    ],
)
def test_batches_that_lie_are_frame_errors(meta: bytes, message: str) -> None:
    """A description that does not parse or disagrees with the payload is refused, saying what was expected."""
    with pytest.raises(FrameError, match=message):
        decode_batch_meta(frame(meta, bytes(8)))


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ((Failure(1, 400, ""), Failure(1, 400, "")), "expected each failed request once, got 2 failures"),
        ((Failure(-1, 400, ""),), "expected each failed request once, got 1 failures"),
        ((Failure(0, 400, ""), Failure(1, 200, "")), "expected failures of status 400-599, got 200"),
    ],
)
def test_replies_that_lie_are_frame_errors(failures: tuple[Failure, ...], message: str) -> None:
    """A reply fails each request at most once, with a status that is a failure's."""
    with pytest.raises(FrameError, match=message):
        decode_reply_meta(frame(encode_meta(msgspec.structs.replace(REPLY, failures=failures)), bytes(4)))


@pytest.mark.parametrize("changes", [{"backlog_us": -1}, {"gateways": 0}])
def test_a_backlog_that_cannot_be_is_a_frame_error(changes: dict[str, int]) -> None:
    """A gateway plans with these numbers, so they are checked where they enter."""
    with pytest.raises(FrameError, match="expected a backlog of >= 0 µs and at least one gateway"):
        decode_reply_meta(frame(encode_meta(msgspec.structs.replace(REPLY, **changes)), bytes(4)))
