"""The control channel, byte by byte and case by case: its framing, its tags, what it refuses."""

import struct

import msgspec
import pytest

from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics
from penstock.core.tensors import TensorSpec
from penstock.wire.control import (
    MESSAGE_BYTES_MAX,
    ControlDecoder,
    ControlError,
    Drain,
    Drained,
    GatewayReport,
    ModelEntry,
    ReplicaHello,
    Snapshot,
    encode_message,
)


def framed(body: bytes) -> bytes:
    """Put a length before a body."""
    return struct.pack("<I", len(body)) + body


def test_messages_are_maps_with_their_name() -> None:
    """A message travels as its length and a msgpack map with its class as `type`: fields may be added with defaults."""
    wire = encode_message(Drain(drain_us=5))
    assert wire[:4] == struct.pack("<I", len(wire) - 4)
    assert msgspec.msgpack.decode(wire[4:]) == {"type": "Drain", "drain_us": 5}
    newer = framed(msgspec.msgpack.encode({"type": "Drained", "pid": 3, "added_later": [1]}))
    assert ControlDecoder().feed(newer) == [Drained(pid=3)]


def test_a_snapshot_carries_whole_specs() -> None:
    """A gateway gets a model's whole declaration back, equal to what the replica said."""
    spec = ModelSpec("m", (TensorSpec("x", "FP32", (-1, 2), finite=True),), (TensorSpec("y", "BYTES", (-1,)),))
    profile = CostProfile((1, 8), (100, 450))
    snapshot = Snapshot(3, (ModelEntry("m", "1", "READY", "", spec, ("unix:a", "tcp:h:1"), profile),))
    assert ControlDecoder().feed(encode_message(snapshot)) == [snapshot]


def test_costs_travel_as_rows_and_times() -> None:
    """A hello and a report bring profiles back whole, and without one there is none."""
    spec = ModelSpec("m", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1,)),))
    profile = CostProfile((1, 8), (100, 450))
    hello = ReplicaHello(1, "m#0", "unix:a", spec, 5, profile)
    report = GatewayReport(GatewayStatistics(), {"m:1": True}, draining=False, profiles={"m:1": {"": profile}})
    assert ControlDecoder().feed(encode_message(hello) + encode_message(report)) == [hello, report]
    assert ReplicaHello(1, "m#0", "unix:a", spec, 5).profile is None
    assert GatewayReport(GatewayStatistics(), {}, draining=False).profiles == {}


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (struct.pack("<I", MESSAGE_BYTES_MAX + 1), "expected at most 67108864 bytes, got 67108865"),
        (framed(b""), "control message: Input data was truncated"),
        (framed(b"\xc1"), "control message: "),
        (framed(msgspec.msgpack.encode({"type": "Nonsense"})), "Invalid value 'Nonsense' - at `\\$.type`"),
        (framed(msgspec.msgpack.encode({"pid": 1})), "missing required field `type`"),
        (framed(msgspec.msgpack.encode({"type": "Drain", "drain_us": "5"})), "Expected `int`, got `str`"),
        (framed(encode_message(Drain(5))[4:] + b"\x00"), "trailing characters"),
        (framed(b"\x82\xa1x" + b"\x91" * 100_000), "control message: "),
    ],
)
def test_other_bytes_are_control_errors(wire: bytes, message: str) -> None:
    """What is not a message, or too long to be one, is refused."""
    with pytest.raises(ControlError, match=message):
        ControlDecoder().feed(wire)


def test_a_spec_that_cannot_be_is_refused() -> None:
    """Declarations are checked on arrival as they are when made: a shape of zero is no shape."""
    entry = {"name": "m", "version": "1", "state": "READY", "reason": "", "replicas": []}
    tensor = {"name": "x", "datatype": "FP32", "shape": [0]}
    spec = {"name": "m", "inputs": [tensor], "outputs": []}
    wire = {"type": "Snapshot", "sequence": 1, "models": [entry | {"spec": spec}]}
    with pytest.raises(ControlError, match="expected dimensions >= 1 or -1, got \\[0\\]"):
        ControlDecoder().feed(framed(msgspec.msgpack.encode(wire)))
