"""The nouns of a replica: a batch as received, the reply to it."""

from typing import NamedTuple

import msgspec

from penstock.wire.frame import BatchMeta, ReplyMeta

__all__ = ["Batch", "Reply", "Signature"]

_encode = msgspec.msgpack.Encoder().encode

# Batches of one signature may share an execution: (name, datatype, inner shape) per input, encoded parameters, whether
# it must run alone. Parameters are compared encoded: {"k": 1} and {"k": True} are equal to Python but not to a model.
Signature = tuple[tuple[tuple[str, str, tuple[int, ...]], ...], bytes, bool]


class Batch:
    """One BATCH frame as received.

    Args:
        frame_id: To answer with.
        meta: Its description, checked against the payload's length by `decode_batch_meta`.
        payload: All tensors; must stay unchanged until the batch is executed.
        received_at_us: When its last byte was read. A batch that lay in the socket while the model ran is younger here
            than it is: deadlines err towards executing.
        is_alone: It never shares an execution: a canary, which would spoil it for the others, or a batch under
            suspicion of having killed a replica.
    """

    __slots__ = ("frame_id", "meta", "payload", "received_at_us", "row_count", "signature")

    def __init__(
        self,
        frame_id: int,
        meta: BatchMeta,
        payload: bytes | memoryview,
        received_at_us: int,
        *,
        is_alone: bool = False,
    ) -> None:
        self.frame_id = frame_id
        self.meta = meta
        self.payload = payload
        self.received_at_us = received_at_us
        self.row_count = sum(meta.rows)
        parameters = _encode(meta.parameters) if meta.parameters else b""
        self.signature: Signature = (tuple([(t.name, t.datatype, t.shape) for t in meta.inputs]), parameters, is_alone)


class Reply(NamedTuple):
    """The answer to one batch: a description and the pieces of the payload, as `encode_frame` takes them."""

    meta: ReplyMeta
    payload: list[bytes | memoryview]
