"""The live gateway on virtual time: its own HTTP, batcher and links, on connections in memory, to virtual replicas.

A turn of this loop is asyncio's: what came in, then timers that are due, then what they asked for. The replicas speak
the real frames and share the real judgements of merging and lateness; they take as long as the simulator's devices.
Not here: the trace (`trace.py`), the comparison (`test_decisions.py`).
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from penstock.core.launch import HttpLimits
from penstock.core.limits import LimitSettings
from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics, ModelStatistics
from penstock.core.tensors import TensorSpec
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.callers import Callers
from penstock.gateway.http import Exchange, HttpConnection, Port
from penstock.gateway.identity import Identifier
from penstock.gateway.inference import Target
from penstock.gateway.limiter import Limiter
from penstock.gateway.link import ReplicaLink
from penstock.gateway.work import Work
from penstock.policy.balancing import Replica
from penstock.policy.merging import is_late, plan_merge
from penstock.policy.queueing import BATCH, Entry
from penstock.policy.scheduling import Dispatch, Drop, Refusal, Scheduler, SchedulerConfig, Wait
from penstock.replica.batch import Batch
from penstock.sim import Fault, Scenario, StreamFactory
from penstock.sim.device import Device
from penstock.sim.gateway import Decision
from penstock.testing.authority import BookAuthority
from penstock.testing.clock import ManualClock
from penstock.testing.loop import ManualLoop
from penstock.testing.transport import MemoryTransport
from penstock.wire.frame import (
    BATCH_FLAG_ALONE,
    BATCH_FLAG_CANARY,
    Failure,
    FrameDecoder,
    FrameKind,
    FrameTensor,
    ReplyMeta,
    decode_batch_meta,
    encode_frame,
    encode_meta,
)
from penstock.wire.oip import InferenceCodec, encode_error
from tests.parity.trace import Sending, plan_sendings

__all__ = ["Lived", "live"]

# The clock starts here, as near to the simulator's 0 as a manual clock may: what is reported counts from 0.
ORIGIN_US = 1
# The loop is advanced by so much at a time: what falls due within it is far below the loop's bound on calls.
STEP_US = 20_000
_FLOAT_BYTES = 4


@dataclass(slots=True)
class Lived:
    """What happened, in µs from the start.

    Attributes:
        decisions: One list for each gateway, in the form of the simulator's `DecisionLog`.
        joined: (when, replica) of every replica that joined after the start.
        answers: (when, status) by index of the request.
        executed: Indices of the requests that were executed, in the order in which replicas finished them.
    """

    decisions: list[list[Decision]] = field(default_factory=list)
    joined: list[tuple[int, str]] = field(default_factory=list)
    answers: dict[int, tuple[int, int]] = field(default_factory=dict)
    executed: list[int] = field(default_factory=list)


# -- the gateway's own code, and what it is connected to -------------------------------------------------------------


class RecordingScheduler(Scheduler):
    """The scheduler that serves, with a log of what it decides."""

    def __init__(
        self,
        config: SchedulerConfig,
        profile: CostProfile | None,
        chance: Callable[[], float],
        decisions: list[Decision],
        joined: list[tuple[int, str]],
    ) -> None:
        super().__init__(config, profile, chance)
        self._decisions = decisions
        self._joined = joined

    def add_replica(self, name: str, now_us: int) -> Replica:
        if now_us > ORIGIN_US:
            self._joined.append((now_us - ORIGIN_US, name.removeprefix("unix:")))
        return super().add_replica(name, now_us)

    def admit(self, entry: Entry, key: object, now_us: int) -> Refusal | None:
        refusal = super().admit(entry, key, now_us)
        if refusal is not None:
            self._decisions.append((now_us - ORIGIN_US, "refuse", _index(entry), refusal.reason.value))
        return refusal

    def decide(self, now_us: int) -> Dispatch | Drop | Wait:
        decision = super().decide(now_us)
        at_us = now_us - ORIGIN_US
        if isinstance(decision, Dispatch):
            name, reason = decision.replica.name.removeprefix("unix:"), decision.reason.value
            self._decisions.append((at_us, "dispatch", name, tuple(map(_index, decision.entries)), reason))
        elif isinstance(decision, Drop):
            self._decisions.append((at_us, "drop", tuple(map(_index, decision.entries)), decision.reason.value))
        return decision


def _index(entry: Entry) -> int:
    assert isinstance(entry, Work)
    return int(entry.request.id)


class RecordingBatcher(ModelBatcher):
    """The batcher that serves, around a recording scheduler."""

    def __init__(self, lived: Lived, spec: ModelSpec, profile: CostProfile, **arguments: Any) -> None:
        super().__init__(spec, profile, **arguments)
        decisions: list[Decision] = []
        lived.decisions.append(decisions)
        self.scheduler = RecordingScheduler(
            self.scheduler.config, profile, arguments["chance"], decisions, lived.joined
        )


class InferHandler:
    """Every request is for the one model, from a caller without a key."""

    def __init__(self, target: Target) -> None:
        self._target = target
        identifier = Identifier(requires_key=False)
        identifier.apply(0, ())
        self._callers = Callers(identifier)

    def handle(self, exchange: Exchange) -> None:
        self._target.start(exchange, self._target.bind(self._callers.read(exchange.headers), None))

    def encode_refusal(self, url: bytes, status: int, message: str) -> bytes:
        return encode_error(message)


class Caller(MemoryTransport):
    """One caller: sends one request, and notes what it is answered when."""

    def __init__(self, lived: Lived, index: int, sending: Sending, port: Port) -> None:
        super().__init__()
        self._lived = lived
        self._index = index
        self._rows = sending.source.rows[0]
        self._source = sending.source
        self._connection = HttpConnection(port)
        self._now_us = port.now_us

    def send(self) -> None:
        source, rows = self._source, self._rows
        tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": [self._index] * rows}
        body = json.dumps({"id": str(self._index), "inputs": [tensor]}).encode()
        headers = [b"POST /v2/models/echo/infer HTTP/1.1", b"host: penstock", b"content-length: %d" % len(body)]
        if source.tenant:
            headers.append(b"penstock-tenant: " + source.tenant.encode())
        if source.request_class == BATCH:
            headers.append(b"penstock-class: batch")
        if source.deadline_us:
            headers.append(b"penstock-timeout-ms: %.3f" % (source.deadline_us / 1_000))
        self._connection.connection_made(self)
        self._connection.data_received(b"\r\n".join(headers) + b"\r\n\r\n" + body)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == 200:
            answer = json.loads(body)
            assert answer["id"] == str(self._index)
            assert answer["outputs"][0]["data"] == [self._index] * self._rows, "another caller's rows"
        self._note(status)

    def hang_up(self) -> None:
        if self._index not in self._lived.answers:
            self._note(0)
            self._connection.connection_lost(None)

    def _note(self, status: int) -> None:
        assert self._index not in self._lived.answers, "answered twice"
        self._lived.answers[self._index] = (self._now_us() - ORIGIN_US, status)


# -- replicas --------------------------------------------------------------------------------------------------------


class Wire(MemoryTransport):
    """A connection between a gateway and a replica: bytes take `way_us` there and `back_us` back."""

    def __init__(
        self, loop: ManualLoop, protocol: asyncio.Protocol, replica: "VirtualReplica", way_us: int, back_us: int
    ) -> None:
        super().__init__()
        self.decoder = FrameDecoder()
        self._loop = loop
        self._protocol = protocol
        self._replica = replica
        self._way_us = way_us
        self._back_us = back_us

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._loop.call_later(self._way_us / 1e6, self._replica.receive, self, bytes(data))

    def reply(self, data: bytes) -> None:
        self._loop.call_later(self._back_us / 1e6, self._protocol.data_received, data)

    def lose(self) -> None:
        self._loop.call_later(self._back_us / 1e6, self._protocol.connection_lost, None)


class Received(NamedTuple):
    """A batch at a replica."""

    wire: Wire
    batch: Batch
    is_canary: bool


class VirtualReplica:
    """A replica that echoes its input, on virtual time. See `ReplicaLoop` for the one on sockets."""

    def __init__(self, loop: ManualLoop, device: Device, lived: Lived, *, row_count_max: int, own_us: int) -> None:
        self.device = device
        self.is_alive = True
        self.wires: list[Wire] = []
        self._loop = loop
        self._lived = lived
        self._row_count_max = row_count_max
        self._own_us = own_us
        self._waiting: list[Received] = []
        self._running: list[Received] | None = None
        self._is_due = False
        self._least_us = device.profile.time_us(1)

    def receive(self, wire: Wire, data: bytes) -> None:
        """Bytes arrive."""
        if wire not in self.wires:
            return  # sent to one that has died since
        for frame in wire.decoder.feed(data):
            is_canary = bool(frame.flags & BATCH_FLAG_CANARY)
            is_alone = is_canary or bool(frame.flags & BATCH_FLAG_ALONE)
            batch = Batch(frame.id, decode_batch_meta(frame), frame.payload, self._loop.clock(), is_alone=is_alone)
            self._waiting.append(Received(wire, batch, is_canary))
        self._ask_start()

    def _ask_start(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._is_due = False
        while self._waiting and self._running is None:
            chosen = plan_merge([r.batch for r in self._waiting], row_count_max=self._row_count_max)
            running = [self._waiting[k] for k in chosen]
            self._waiting = [r for k, r in enumerate(self._waiting) if k not in set(chosen)]
            now_us = self._loop.clock()
            late = [self._find_late(r.batch, now_us) for r in running]
            rows = sum(
                rows
                for r, ks in zip(running, late, strict=True)
                for k, rows in enumerate(r.batch.meta.rows)
                if k not in ks
            )
            if not rows:
                self._answer(running, late, 0, 0, now_us)
                continue
            # A canary is none of the trace's executions: its time is not drawn from their stream.
            service_us = self.device.profile.time_us(1) if running[0].is_canary else self.device.draw_us(rows)
            self._running = running
            self._loop.call_later(
                (service_us + self._own_us) / 1e6, self._finish, running, late, service_us, rows, now_us
            )

    def _find_late(self, batch: Batch, now_us: int) -> set[int]:
        waited_us = now_us - batch.received_at_us
        return {
            k
            for k, budget_us in enumerate(batch.meta.budgets_us)
            if is_late(budget_us=budget_us, waited_us=waited_us, least_us=self._least_us)
        }

    def _finish(self, running: list[Received], late: list[set[int]], service_us: int, rows: int, start_us: int) -> None:
        if self._running is not running:
            return  # it died meanwhile
        self._running = None
        self._least_us = min(self._least_us, service_us)
        self._answer(running, late, service_us, rows, start_us)
        self._ask_start()

    def _answer(
        self, answered: list[Received], late: list[set[int]], service_us: int, rows: int, start_us: int
    ) -> None:
        for (wire, batch, is_canary), late_ones in zip(answered, late, strict=True):
            payload: list[bytes | memoryview] = []
            at = 0
            for k, count in enumerate(batch.meta.rows):
                piece = batch.payload[at : at + count * _FLOAT_BYTES]
                at += count * _FLOAT_BYTES
                if k not in late_ones:
                    payload.append(piece)
                    if not is_canary:
                        self._lived.executed.append(int(memoryview(piece).cast("f")[0]))
            nbytes = sum(map(len, payload))
            meta = ReplyMeta(
                outputs=(FrameTensor("y", "FP32", (1,), nbytes),) if nbytes else (),
                failures=tuple(Failure(k, 504, "late") for k in sorted(late_ones)),
                wait_us=start_us - batch.received_at_us,
                input_us=0,
                execute_us=service_us,
                output_us=0,
                executed_rows=rows,
                backlog_us=self._predict_backlog_us(),
                gateways=len(self.wires),
            )
            wire.reply(encode_frame(FrameKind.REPLY, batch.frame_id, encode_meta(meta), payload))

    def _predict_backlog_us(self) -> int:
        full, rest = divmod(sum(r.batch.row_count for r in self._waiting), self._row_count_max)
        time_us = self.device.profile.time_us
        return full * time_us(self._row_count_max) + (time_us(rest) if rest else 0)

    def die(self) -> None:
        """All that waits and runs here is gone; gateways hear of it when the connection's end reaches them."""
        self.is_alive = False
        wires, self.wires = self.wires, []
        for wire in wires:
            wire.lose()
        self._waiting = []
        self._running = None

    def revive(self) -> None:
        """Listen again."""
        self.is_alive = True
        self._least_us = self.device.profile.time_us(1)


# -- all of it together ----------------------------------------------------------------------------------------------


class Network(ManualLoop):
    """A loop on manual time whose connections lead to virtual replicas."""

    def __init__(self, clock: ManualClock, batch_us: int) -> None:
        super().__init__(clock)
        self.replicas: dict[str, VirtualReplica] = {}
        self._way_us = batch_us // 2
        self._back_us = batch_us - batch_us // 2

    async def create_unix_connection(
        self, factory: Callable[[], asyncio.Protocol], path: str
    ) -> tuple[MemoryTransport, asyncio.Protocol]:
        replica = self.replicas[path]
        if not replica.is_alive:
            raise ConnectionRefusedError(path)
        protocol = factory()
        wire = Wire(self, protocol, replica, self._way_us, self._back_us)
        replica.wires.append(wire)
        protocol.connection_made(wire)
        return wire, protocol

    def call_behind(self, delay_us: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Arm a timer; return its cancel function. What came in at that instant is handled before it."""
        return self.call_later(delay_us / 1e6, self._postpone, callback).cancel

    def _postpone(self, callback: Callable[[], None]) -> None:
        self.call_soon(callback)


def _spec_of(scenario: Scenario) -> ModelSpec:
    return ModelSpec(
        "echo",
        (TensorSpec("x", "FP32", (-1, 1)),),
        (TensorSpec("y", "FP32", (-1, 1)),),
        batching=scenario.batching,
        queue=scenario.bounds,
        slo_us=scenario.slo_us,
        timeout_us=scenario.timeout_us,
        weights=scenario.weights,
    )


def _open_gateway(network: Network, lived: Lived, scenario: Scenario, chance: Callable[[], float]) -> Port:
    spec = _spec_of(scenario)
    batcher = RecordingBatcher(
        lived,
        spec,
        network.replicas["replica-0"].device.profile,
        statistics=ModelStatistics(),
        now_us=network.clock,
        call_later=network.call_behind,
        schedule_flush=lambda due: network.call_soon(due.flush),
        chance=chance,
        on_bug=_fail,
    )
    for name in network.replicas:
        ReplicaLink(f"unix:{name}", batcher, loop=network.as_asyncio, now_us=network.clock, on_fault=_fail)
    statistics = GatewayStatistics()
    limiter = Limiter(
        LimitSettings(),
        BookAuthority(network.clock, network.call_soon),
        holder="",
        statistics=statistics,
        now_us=network.clock,
        call_soon=network.call_soon,
    )
    target = Target(InferenceCodec(spec), batcher, limiter, network.clock)
    return Port(InferHandler(target), limits=HttpLimits(), statistics=statistics, now_us=network.clock, log=None)


def _fail(*what: object) -> None:
    raise AssertionError(f"expected no fault, got {what}")


def _begin(fault: Fault, network: Network) -> None:
    replica = network.replicas[f"replica-{fault.index}"]
    if fault.kind == "slow_device":
        replica.device.slowness *= fault.factor
    else:
        replica.die()
    network.call_later(fault.duration_us / 1e6, _end, fault, replica)


def _end(fault: Fault, replica: VirtualReplica) -> None:
    if fault.kind == "slow_device":
        replica.device.slowness /= fault.factor
    else:
        replica.revive()


def live(scenario: Scenario, stream: StreamFactory) -> Lived:
    """Play a scenario of `trace.py` to the live gateway's code; every request of it comes over a connection of its own.

    A replica that died listens again after the fault's duration, and joins when its canary is back.
    """
    lived = Lived()
    network = Network(ManualClock(ORIGIN_US), scenario.overheads.batch_us)
    for k in range(scenario.replicas):
        device = Device(scenario.device, (*scenario.device.speeds, 1.0)[k], stream(f"replica-{k} device"))
        network.replicas[f"replica-{k}"] = VirtualReplica(
            network,
            device,
            lived,
            row_count_max=scenario.batching.size_max,
            own_us=scenario.overheads.replica_us,
        )
    ports = [
        _open_gateway(network, lived, scenario, stream(f"gateway-{k} choices").random) for k in range(scenario.gateways)
    ]
    for index, sending in enumerate(plan_sendings(scenario, stream)):
        caller = Caller(lived, index, sending, ports[sending.gateway])
        # Behind what else comes in at the same instant, in the order of the trace.
        network.call_behind(sending.at_us, caller.send)
        if sending.source.patience_us:
            network.call_later((sending.at_us + sending.source.patience_us) / 1e6, caller.hang_up)
    for fault in scenario.faults:
        network.call_later(fault.at_us / 1e6, _begin, fault, network)
    while network.clock() < scenario.end_us + 2 * scenario.timeout_us:
        network.advance_us(STEP_US)
    return lived
