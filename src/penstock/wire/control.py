"""The control channel between the head and its gateways and replicas: length-prefixed msgpack messages, both ways.

    gateway -> head   GatewayHello, GatewayReport, ReplicaFault, StatisticsQuery, LimitCall, KeysApplied, Drained
    replica -> head   ReplicaHello, LoadFailed, Drained
    head -> both      Drain;  head -> gateway   Snapshot, Keys, StatisticsReply, LimitReplies
    command -> head   KeysChanged;  head -> command   KeysPending, KeysConfirmed, KeysFailed

Messages carry whole states, not changes: a peer that missed some is right again after the next. Pure, like the frame.
"""

import struct
from typing import Any, Literal

import msgspec

from penstock.core.authority import Operation, Reply
from penstock.core.errors import PenstockError
from penstock.core.keys import KeySnapshot
from penstock.core.limits import Quota
from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics

__all__ = [
    "AuditBins",
    "ControlDecoder",
    "ControlError",
    "Drain",
    "Drained",
    "GatewayHello",
    "GatewayReport",
    "Keys",
    "KeysApplied",
    "KeysChanged",
    "KeysConfirmed",
    "KeysFailed",
    "KeysPending",
    "LimitCall",
    "LimitReplies",
    "LoadFailed",
    "Message",
    "ModelEntry",
    "ReplicaFault",
    "ReplicaHello",
    "Snapshot",
    "StatisticsQuery",
    "StatisticsReply",
    "encode_message",
]

_LENGTH = struct.Struct("<I")
# A snapshot of 1,000 models with 100 tensors each is under 10 MB.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

ModelState = Literal["LOADING", "READY", "UNAVAILABLE"]


class ControlError(PenstockError):
    """The bytes are not a control message. Close the channel and connect again."""


class GatewayHello(msgspec.Struct, frozen=True, tag=True):
    """A gateway introduces itself, after each (re)connection. `http` is the `host:port` it listens on."""

    pid: int
    index: int
    http: str


class ReplicaHello(msgspec.Struct, frozen=True, tag=True):
    """A replica has loaded its model, answered its own warm-up, and listens on `address` (`unix:PATH` or `tcp:H:P`).

    `profile` is what its batches cost as measured at load; None if the model has no valid canary to measure with.
    """

    pid: int
    replica: str  # the name the head gave it: unique, e.g. `digits:1#0`
    address: str
    spec: ModelSpec
    load_us: int
    profile: CostProfile | None = None


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """A replica could not load its model and is about to exit. `reason` is for people."""

    pid: int
    replica: str
    reason: str


class AuditBins(msgspec.Struct, frozen=True, array_like=True):
    """What one gateway decided about one bucket since its last report, for the audit.

    Attributes:
        key: The bucket. A limit that is split counts as one, named without its part.
        limit: Under what name its limit is counted.
        quota: Of the whole limit.
        bins: In order of time: ms of the machine's monotonic clock; tokens that were asked for; tokens that were
            admitted, less those given back; how many ms before, at most, the first of them may have been taken.
    """

    key: str
    limit: str
    quota: Quota
    bins: list[tuple[int, int, int, int]]


class GatewayReport(msgspec.Struct, frozen=True, tag=True):
    """A gateway's counters and what it finds ready, sent every half second and at once when readiness changes.

    `ready` has a key `name:version` for each model it knows: True if a canary (or a real inference) passed recently.
    `profiles` says, by the same key, what batches of each length bucket cost now on a typical replica; the key of the
    main one (of a model without buckets, the only one) is ''. `audit` is no state but news: if a report is lost, the
    audit does not hear of it.
    """

    statistics: GatewayStatistics
    ready: dict[str, bool]
    draining: bool
    profiles: dict[str, dict[str, CostProfile]] = msgspec.field(default_factory=dict)
    audit: tuple[AuditBins, ...] = ()


class ReplicaFault(msgspec.Struct, frozen=True, tag=True):
    """A replica hangs or talks nonsense; the gateway has closed its link. The head should replace it."""

    address: str
    reason: str


class Drained(msgspec.Struct, frozen=True, tag=True):
    """Nothing is in flight any more; the sender exits now."""

    pid: int


class StatisticsQuery(msgspec.Struct, frozen=True, tag=True):
    """A gateway asks for the sum over all gateways, to answer `/v2/models/stats`."""

    id: int


class ModelEntry(msgspec.Struct, frozen=True):
    """One model version as the head knows it. `spec` is None until a first replica has loaded it.

    `profile` is the cost of its batches as a replica measured it at load; None until one has, or if none could.
    """

    name: str
    version: str
    state: ModelState
    reason: str
    spec: ModelSpec | None
    replicas: tuple[str, ...]  # addresses
    profile: CostProfile | None = None


class Snapshot(msgspec.Struct, frozen=True, tag=True):
    """The whole catalogue. A gateway acts on the newest and keeps it when the head is gone."""

    sequence: int
    models: tuple[ModelEntry, ...]


class StatisticsReply(msgspec.Struct, frozen=True, tag=True):
    """Answer to a StatisticsQuery of the same id."""

    id: int
    statistics: GatewayStatistics


class LimitCall(msgspec.Struct, frozen=True, tag=True):
    """A gateway asks the head, as the authority over limits, for what one turn of its event loop needs."""

    id: int
    operations: tuple[Operation, ...]


class LimitReplies(msgspec.Struct, frozen=True, tag=True):
    """Answers to a LimitCall of the same id, in its order."""

    id: int
    replies: tuple[Reply, ...]


class Keys(msgspec.Struct, frozen=True, tag=True):
    """All API keys that are good. A gateway goes by the newest, also when the head is gone, and says KeysApplied.

    `sequence` grows with each that differs from the one before, over the lives of heads too; the store's own revision
    would fall if an older copy of it were put back.
    """

    sequence: int
    snapshot: KeySnapshot


class KeysApplied(msgspec.Struct, frozen=True, tag=True):
    """From here on a gateway accepts no key but those of the Keys of this sequence."""

    sequence: int


class KeysChanged(msgspec.Struct, frozen=True, tag=True):
    """A command has changed the store of keys, which is at `revision` now. Answered by KeysPending until confirmed."""

    revision: int


class KeysPending(msgspec.Struct, frozen=True, tag=True):
    """Which living gateways may still go by older keys; for people. Said at once, and again when it changes."""

    gateways: tuple[str, ...]


class KeysConfirmed(msgspec.Struct, frozen=True, tag=True):
    """Every living gateway goes by the keys of `revision`, which is at least the one asked for."""

    revision: int


class KeysFailed(msgspec.Struct, frozen=True, tag=True):
    """The head cannot read the store; gateways go on with the keys they have. `reason` is for people."""

    reason: str


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Stop being ready, finish what is in flight within `drain_us`, say Drained, exit 0."""

    drain_us: int


Message = (
    GatewayHello
    | ReplicaHello
    | LoadFailed
    | GatewayReport
    | ReplicaFault
    | Drained
    | StatisticsQuery
    | Snapshot
    | StatisticsReply
    | LimitCall
    | LimitReplies
    | Keys
    | KeysApplied
    | KeysChanged
    | KeysPending
    | KeysConfirmed
    | KeysFailed
    | Drain
)

_encoder = msgspec.msgpack.Encoder()
_decoder: Any = msgspec.msgpack.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """Encode one message, length first, ready to write."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class ControlDecoder:
    """Turns a byte stream into messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes as they arrived; return the messages they complete.

        Raises:
            ControlError: Not a message. Close the channel; the decoder must not be used again.
        """
        self._buffer += data
        messages: list[Message] = []
        at = 0
        while len(self._buffer) - at >= _LENGTH.size:
            (nbytes,) = _LENGTH.unpack_from(self._buffer, at)
            if nbytes > MESSAGE_BYTES_MAX:
                raise ControlError(f"control message: expected at most {MESSAGE_BYTES_MAX} bytes, got {nbytes}")
            end = at + _LENGTH.size + nbytes
            if end > len(self._buffer):
                break
            try:
                messages.append(_decoder.decode(bytes(self._buffer[at + _LENGTH.size : end])))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ControlError(f"control message: {error}") from error
            at = end
        del self._buffer[:at]
        return messages
