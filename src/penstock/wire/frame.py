"""The replica frame: one batch of requests to a replica, one reply back.

    header (32 bytes, little-endian)      meta (msgpack)          payload
    magic version kind flags id lengths | one description a batch | each tensor's rows, contiguous

Pure: feed bytes, take frames. A peer that sends anything else gets `FrameError`, after which its connection is
useless: close it and fail only what was in flight on it. Not here: what a replica does with a batch (`replica/`).
"""

import struct
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from penstock.core.errors import PenstockError

__all__ = [
    "BATCH_FLAG_ALONE",
    "BATCH_FLAG_CANARY",
    "META_BYTES_MAX",
    "PAYLOAD_BYTES_MAX",
    "BatchMeta",
    "Failure",
    "Frame",
    "FrameDecoder",
    "FrameError",
    "FrameKind",
    "FrameTensor",
    "ReplyMeta",
    "decode_batch_meta",
    "decode_reply_meta",
    "encode_frame",
    "encode_meta",
]

MAGIC = b"PSTK"
VERSION = 1
# magic, version, kind, flags, id, meta bytes, payload bytes, reserved (zero)
_HEADER = struct.Struct("<4sBBHQIQI")
HEADER_BYTES = _HEADER.size
# One batch's description: 64 bytes a request would be generous, so 4 MiB describes 65,536 of them.
META_BYTES_MAX = 4 * 1024 * 1024
# Four times the default of the gateway's body limit (64 MiB), since one batch holds several requests.
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024

# Sent to find out whether the model works; like all that is ALONE it is never merged with another batch.
BATCH_FLAG_CANARY = 1
# Tried again after its replica died: if it kills the next one too, nothing else may die with it.
BATCH_FLAG_ALONE = 2


class FrameError(PenstockError):
    """The bytes are not a frame. Close the connection; nothing after this point on it can be trusted."""

    status = 502


class FrameKind(IntEnum):
    """What a frame carries. Gateways send BATCH, replicas send REPLY; one REPLY for each BATCH, same id."""

    BATCH = 1
    REPLY = 2


class Frame(NamedTuple):
    """One whole frame. `meta` and `payload` are views: copy what must outlive the next `feed`."""

    kind: FrameKind
    flags: int
    id: int
    meta: memoryview
    payload: memoryview


class FrameTensor(msgspec.Struct, frozen=True, array_like=True):
    """One tensor's part of the payload: `nbytes` of it, rows contiguous.

    `shape` is the shape of one row, without the batch dimension; for a model without batching it is the whole shape.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    nbytes: int


class BatchMeta(msgspec.Struct, frozen=True, array_like=True):
    """One batch: its tensors in payload order, and its requests in row order.

    Args:
        inputs: Tensors, in the order their bytes lie in the payload.
        rows: Rows of each request; their sum is the batch's row count.
        budgets_us: For each request, microseconds from sending until its deadline; 0 means none. A request whose
            budget, when execution would start, is less than even one row takes is returned unexecuted (status 504).
        parameters: Request parameters, the same for all requests of the batch.
    """

    inputs: tuple[FrameTensor, ...]
    rows: tuple[int, ...]
    budgets_us: tuple[int, ...]
    parameters: dict[str, Any]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """One request of a batch that has no outputs: its index in `rows`, the HTTP status and why."""

    index: int
    status: int
    message: str


class ReplyMeta(msgspec.Struct, frozen=True, array_like=True):
    """What became of a batch. Outputs hold the rows of the requests that are not in `failures`, in order.

    Args:
        outputs: Tensors, in payload order. Empty if every request failed.
        failures: Requests without outputs, by index.
        wait_us: From receipt by the replica to start of execution, µs.
        input_us: Assembling the model's inputs, µs.
        execute_us: The model's own time, µs.
        output_us: Checking and packing outputs, µs.
        executed_rows: Rows the model ran together (more than this batch's if the replica merged several).
        backlog_us: Device time that the batches still waiting at the replica will take, as its cost profile predicts,
            µs, of all gateways together; 0 if none wait or it has no profile.
        gateways: Gateways connected to the replica, the reader of this reply included.
    """

    outputs: tuple[FrameTensor, ...]
    failures: tuple[Failure, ...]
    wait_us: int
    input_us: int
    execute_us: int
    output_us: int
    executed_rows: int
    backlog_us: int = 0
    gateways: int = 1


_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(BatchMeta)
_reply_decoder = msgspec.msgpack.Decoder(ReplyMeta)


def encode_meta(meta: BatchMeta | ReplyMeta) -> bytes:
    """Encode a description for `encode_frame`."""
    return _encoder.encode(meta)


def encode_frame(
    kind: FrameKind, frame_id: int, meta: bytes, payload: list[bytes | memoryview], *, flags: int = 0
) -> bytes:
    """Encode one frame as one bytes object, ready for a single write.

    Args:
        kind: What it carries.
        frame_id: Chosen by the gateway, unique among what is in flight on the connection, 64 bits.
        meta: From `encode_meta`.
        payload: Pieces whose concatenation is the tensors in the order of the description.
        flags: `BATCH_FLAG_*`.
    """
    nbytes = sum(map(len, payload))
    return b"".join([_HEADER.pack(MAGIC, VERSION, kind, flags, frame_id, len(meta), nbytes, 0), meta, *payload])


def _decode_meta(decoder: Any, frame: Frame) -> Any:
    try:
        meta = decoder.decode(frame.meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"frame {frame.id}: description: {error}") from error
    return meta


def _check_tensors(frame: Frame, tensors: tuple[FrameTensor, ...]) -> None:
    if any(t.nbytes < 0 for t in tensors) or sum(t.nbytes for t in tensors) != len(frame.payload):
        described = sum(t.nbytes for t in tensors)
        raise FrameError(f"frame {frame.id}: expected a payload of {described} bytes, got {len(frame.payload)}")


def decode_batch_meta(frame: Frame) -> BatchMeta:
    """Decode and check a BATCH frame's description against its payload.

    Raises:
        FrameError: The description does not parse or disagrees with the payload. Close the connection.
    """
    meta: BatchMeta = _decode_meta(_batch_decoder, frame)
    _check_tensors(frame, meta.inputs)
    if not meta.rows or len(meta.rows) != len(meta.budgets_us) or min(meta.rows) < 1:
        raise FrameError(
            f"frame {frame.id}: expected a row count >= 1 and a budget for each of at least one request,"
            f" got {len(meta.rows)} row counts from {min(meta.rows, default=0)} and {len(meta.budgets_us)} budgets"
        )
    return meta


def decode_reply_meta(frame: Frame) -> ReplyMeta:
    """Decode and check a REPLY frame's description against its payload.

    Raises:
        FrameError: The description does not parse or disagrees with the payload. Close the connection.
    """
    meta: ReplyMeta = _decode_meta(_reply_decoder, frame)
    _check_tensors(frame, meta.outputs)
    indices = {f.index for f in meta.failures}
    if len(indices) != len(meta.failures) or min(indices, default=0) < 0:
        raise FrameError(f"frame {frame.id}: expected each failed request once, got {len(meta.failures)} failures")
    odd = next((f.status for f in meta.failures if not 400 <= f.status <= 599), None)
    if odd is not None:
        raise FrameError(f"frame {frame.id}: expected failures of status 400-599, got {odd}")
    if meta.backlog_us < 0 or meta.gateways < 1:
        raise FrameError(
            f"frame {frame.id}: expected a backlog of >= 0 µs and at least one gateway,"
            f" got {meta.backlog_us} µs and {meta.gateways}"
        )
    return meta


class FrameDecoder:
    """Turns a byte stream into frames. Holds at most one partial frame."""

    __slots__ = ("_buffer", "_need", "_payload_bytes_max")

    def __init__(self, *, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._buffer: bytearray | None = None
        self._need = HEADER_BYTES
        self._payload_bytes_max = payload_bytes_max

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Take bytes as they arrived; return the frames they complete.

        Cost: no copy when whole frames arrive in one piece; one copy otherwise.

        Raises:
            FrameError: Not a frame, or larger than the limits. The decoder must not be used again.
        """
        if self._buffer is not None:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            # Frames hand out views of these bytes, so the buffer is given away whole and a new one begun.
            data = memoryview(self._buffer).toreadonly()
            self._buffer = None
        view = memoryview(data)
        end = len(view)
        at = 0
        frames: list[Frame] = []
        while end - at >= HEADER_BYTES:
            kind, flags, frame_id, meta_bytes, payload_bytes = self._parse_header(view, at)
            meta_at = at + HEADER_BYTES
            payload_at = meta_at + meta_bytes
            frame_end = payload_at + payload_bytes
            if frame_end > end:
                self._need = frame_end - at
                break
            frames.append(Frame(kind, flags, frame_id, view[meta_at:payload_at], view[payload_at:frame_end]))
            at = frame_end
        else:
            self._need = HEADER_BYTES
        if at < end:
            self._buffer = bytearray(view[at:])
        return frames

    def _parse_header(self, view: memoryview, at: int) -> tuple[FrameKind, int, int, int, int]:
        magic, version, kind, flags, frame_id, meta_bytes, payload_bytes, reserved = _HEADER.unpack_from(view, at)
        if magic != MAGIC or version != VERSION or reserved:
            raise FrameError(f"expected a version {VERSION} frame, got {bytes(view[at : at + 8])!r}")
        if kind not in (1, 2):
            raise FrameError(f"frame {frame_id}: expected kind 1 or 2, got {kind}")
        if meta_bytes > META_BYTES_MAX or payload_bytes > self._payload_bytes_max:
            raise FrameError(
                f"frame {frame_id}: expected at most {META_BYTES_MAX} + {self._payload_bytes_max} bytes,"
                f" got {meta_bytes} + {payload_bytes}"
            )
        return FrameKind(kind), flags, frame_id, meta_bytes, payload_bytes
