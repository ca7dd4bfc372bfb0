"""Laws of the replica frame: what goes in comes out, however the stream is cut; anything else is a FrameError."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.testing.strategies import batches, damaged, hostile_bytes, replies, splits
from penstock.wire.frame import (
    BatchMeta,
    Frame,
    FrameDecoder,
    FrameError,
    FrameKind,
    ReplyMeta,
    decode_batch_meta,
    decode_reply_meta,
    encode_frame,
    encode_meta,
)

Described = tuple[BatchMeta | ReplyMeta, bytes]
FRAMES = st.lists(st.one_of(batches(), replies()), min_size=1, max_size=4)


def encode(frame_id: int, described: Described) -> bytes:
    """Encode a batch or a reply as one frame."""
    meta, payload = described
    kind = FrameKind.BATCH if isinstance(meta, BatchMeta) else FrameKind.REPLY
    middle = len(payload) // 2
    pieces: list[bytes | memoryview] = [payload[:middle], memoryview(payload)[middle:]]
    return encode_frame(kind, frame_id, encode_meta(meta), pieces, flags=frame_id & 1)


def decode(frame: Frame) -> BatchMeta | ReplyMeta:
    """Decode a frame's description by its kind."""
    return decode_batch_meta(frame) if frame.kind is FrameKind.BATCH else decode_reply_meta(frame)


@given(FRAMES, st.data())
def test_frames_survive_any_cut_of_the_stream(described: list[Described], data: st.DataObject) -> None:
    """Any split of the stream gives the frames that went in, in order, bit for bit."""
    stream = b"".join(encode(i, d) for i, d in enumerate(described))
    decoder = FrameDecoder()
    frames = [frame for piece in data.draw(splits(stream)) for frame in decoder.feed(piece)]
    assert [(f.id, f.flags, decode(f), bytes(f.payload)) for f in frames] == [
        (i, i & 1, meta, payload) for i, (meta, payload) in enumerate(described)
    ]


@given(FRAMES, st.data())
def test_frames_handed_out_do_not_change(described: list[Described], data: st.DataObject) -> None:
    """A frame's views keep their bytes while the decoder is fed on."""
    stream = b"".join(encode(i, d) for i, d in enumerate(described))
    decoder = FrameDecoder()
    frames: list[Frame] = []
    copies: list[bytes] = []
    for piece in data.draw(splits(stream)):
        found = decoder.feed(piece)
        frames += found
        copies += [bytes(f.payload) for f in found]
    assert [bytes(f.payload) for f in frames] == copies


def read_all(stream: bytes) -> None:
    """Decode whatever a stream holds; only FrameError, with a short message, is let pass."""
    message = ""
    try:
        for frame in FrameDecoder(payload_bytes_max=2**20).feed(stream):
            decode(frame)
    except FrameError as error:
        message = error.message
    assert len(message) < 2_000


@given(st.one_of(batches(), replies()), st.data())
def test_a_damaged_frame_is_a_frame_error_at_worst(described: Described, data: st.DataObject) -> None:
    """No injury to a frame, its header or its description raises anything but FrameError."""
    read_all(data.draw(damaged(encode(7, described))))
    meta = data.draw(damaged(encode_meta(described[0])))
    for kind in FrameKind:
        read_all(encode_frame(kind, 7, meta, [described[1]]))


@given(hostile_bytes())
def test_any_bytes_are_a_frame_error_at_worst(noise: bytes) -> None:
    """Bytes that are no frame, alone or as a description, raise nothing but FrameError."""
    read_all(noise)
    for kind in FrameKind:
        read_all(encode_frame(kind, 7, noise, []))
