"""What the gateway's tests share: a client on an in-memory transport, a handler that answers when told, fake replicas.

Not here: manual time and transports (`penstock.testing`).
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.core.launch import HttpLimits
from penstock.core.models import Batching, ModelSpec, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics, ModelStatistics
from penstock.core.tensors import TensorSpec
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.http import Exchange, HttpConnection, Port
from penstock.gateway.work import BatchResult, Refusal, Work
from penstock.policy.balancing import CREDITS_PER_REPLICA, Dispatch, Replica
from penstock.policy.queueing import INTERACTIVE, RequestClass
from penstock.testing.clock import ManualClock
from penstock.testing.transport import MemoryTransport
from penstock.wire.frame import (
    BATCH_FLAG_CANARY,
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
from penstock.wire.oip import InferenceRequest

SPEC = ModelSpec(
    "sum",
    (TensorSpec("x", "FP32", (-1, 2)),),
    (TensorSpec("y", "FP32", (-1, 1)),),
    batching=Batching(policy="size_or_timeout", size_max=4, wait_us_max=1_000),
    queue=QueueBounds(requests_max=16, bytes_max=1_000),
)


@dataclass(frozen=True)
class Response:
    """One response as a client reads it."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_responses(data: bytes, *, heads: tuple[int, ...] = ()) -> list[Response]:
    """Read responses one after another, interim ones included; `heads` are the indices of answers to HEAD."""
    found: list[Response] = []
    while data:
        head, mark, data = data.partition(b"\r\n\r\n")
        assert mark, f"expected whole responses, got {head!r}"
        status_line, *lines = head.decode("latin-1").split("\r\n")
        assert status_line.startswith("HTTP/1.1 "), status_line
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        status = int(status_line.split(" ")[1])
        nbytes = 0 if status == 100 or len(found) in heads else int(headers["content-length"])
        assert len(data) >= nbytes, "truncated body"
        found.append(Response(status, headers, data[:nbytes]))
        data = data[nbytes:]
    return found


class FakeWork:
    """Work that counts how often it is abandoned."""

    def __init__(self) -> None:
        self.abandoned = 0

    def abandon(self) -> None:
        self.abandoned += 1


class FakeHandler:
    """Keeps every exchange; answers at once with what it saw, or waits to be told if `is_slow`."""

    def __init__(self, *, is_slow: bool = False) -> None:
        self.is_slow = is_slow
        self.exchanges: list[Exchange] = []
        self.seen: list[tuple[str, bytes, dict[bytes, bytes], bytes]] = []

    def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.seen.append((exchange.method, exchange.url, dict(exchange.headers), exchange.body))
        if self.is_slow:
            exchange.work = FakeWork()
        else:
            self.answer(exchange)

    def answer(self, exchange: Exchange) -> None:
        exchange.respond(200, b"%b %b %d" % (exchange.method.encode(), exchange.url, len(exchange.body)))

    def encode_refusal(self, url: bytes, status: int, message: str) -> bytes:
        return message.encode()


class Client:
    """One client of one gateway port, on manual time.

    Args:
        port: To connect to; a new one by default.
        is_slow: Whether answers wait for `handler.answer`.
        limits: Of the new port.
    """

    def __init__(
        self, port: Port | None = None, *, is_slow: bool = False, limits: HttpLimits | None = None, log: Any = None
    ) -> None:
        if port is None:
            clock = ManualClock()
            handler = FakeHandler(is_slow=is_slow)
            port = Port(handler, limits=limits or HttpLimits(), statistics=GatewayStatistics(), now_us=clock, log=log)
        assert isinstance(port.now_us, ManualClock)
        self.port = port
        self.clock = port.now_us
        self.transport = MemoryTransport()
        self.connection = HttpConnection(port)
        self.connection.connection_made(self.transport)

    @property
    def handler(self) -> FakeHandler:
        """The port's handler, if it is a fake."""
        assert isinstance(self.port.handler, FakeHandler)
        return self.port.handler

    def send(self, *pieces: bytes) -> None:
        """Deliver pieces one read at a time; what the gateway does not read is not delivered."""
        for piece in pieces:
            assert self.transport.is_reading()
            if not self.transport.is_closing():
                self.connection.data_received(piece)

    def read(self, *, heads: tuple[int, ...] = ()) -> list[Response]:
        """Return the responses written since the last call."""
        return read_responses(self.transport.take(), heads=heads)

    def wait(self, us: int) -> None:
        """Let time pass in steps of the gateway's sweep (250 ms), sweeping after each."""
        while us > 0:
            step = min(us, 250_000)
            self.clock.advance_us(step)
            self.port.sweep()
            us -= step

    @property
    def is_refused(self) -> bool:
        """True if the gateway closed the connection or only lingers for the client to close it."""
        return self.transport.is_closing() or self.transport.wrote_eof


class FakeLink:
    """A replica that answers when told. Checks what no replica may ever get."""

    def __init__(self, address: str = "unix:/fake") -> None:
        self.address = address
        self.replica: Replica | None = None
        self.in_flight: dict[int, Dispatch] = {}
        self.sent: list[Dispatch] = []
        self.frames: list[bytes] = []

    def send(self, batch: Dispatch, frame: bytes) -> None:
        assert self.replica is batch.replica
        assert batch.id not in self.in_flight
        self.in_flight[batch.id] = batch
        self.sent.append(batch)
        self.frames.append(frame)
        assert len(self.in_flight) <= CREDITS_PER_REPLICA


class FakeRequest(Work):
    """A caller that keeps its ending and when that was. `on_end` is called at the end, as a caller's own code is."""

    __slots__ = ("ended_us", "endings", "name", "on_end")

    def __init__(
        self,
        name: int,
        request: InferenceRequest,
        arrived_us: int,
        deadline_us: int,
        *,
        request_class: RequestClass = INTERACTIVE,
        tenant: str = "",
    ) -> None:
        super().__init__(request, arrived_us, deadline_us, request_class=request_class, tenant=tenant)
        self.name = name
        self.endings: list[BatchResult | Refusal] = []
        self.ended_us = 0
        self.on_end: Callable[[], None] | None = None

    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        self._end(result, now_us)
        return True

    def refuse(self, refusal: Refusal, now_us: int) -> None:
        self._end(refusal, now_us)

    def _end(self, ending: BatchResult | Refusal, now_us: int) -> None:
        self.ended_us = now_us
        self.endings.append(ending)
        if self.on_end is not None:
            self.on_end()

    @property
    def refusal(self) -> Refusal:
        """The one refusal it got."""
        (ending,) = self.endings
        assert isinstance(ending, Refusal)
        return ending


def make_request(*, rows: int = 1, signature: object = "a", nbytes: int | None = None) -> InferenceRequest:
    """Return a decoded request for `SPEC` of zeros. Width and name of the tensor follow the signature."""
    request = InferenceRequest()
    request.id = ""
    request.rows = rows
    request.tensors = (("x", "FP32", (2,)),)
    request.signature = signature
    payload = bytes(rows * 8 if nbytes is None else nbytes)
    request.payload = (payload,)
    request.nbytes = len(payload)
    request.parameters = {"signature": str(signature)}
    request.priority = 0
    request.timeout_us = 0
    request.outputs = ()
    request.binary_output = False
    return request


class ObservedBatcher(ModelBatcher):
    """A batcher that counts how often its scheduler is asked."""

    flushes = 0

    def flush(self) -> None:
        """See `ModelBatcher`."""
        self.flushes += 1
        super().flush()


class Bench:
    """One ModelBatcher on manual time, with fake replicas; `turn` plays the end of a turn of the event loop.

    Args:
        spec: The model.
        profile: What its batches cost, if that was measured.
        links: How many replicas it has.

    Attributes:
        due: Batchers that asked for a flush at the end of this turn.
        timers: Armed: when each fires, and what it calls.
        armed: How many timers were ever armed.
        bugs: What callers raised.
        chances: What `chance` returns next; 0 when there is nothing left.
    """

    def __init__(self, spec: ModelSpec = SPEC, *, profile: CostProfile | None = None, links: int = 1) -> None:
        self.clock = ManualClock()
        self.statistics = ModelStatistics()
        self.due: list[ModelBatcher] = []
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.armed = 0
        self.bugs: list[Exception] = []
        self.chances: list[float] = []
        self.batcher = ObservedBatcher(
            spec,
            profile,
            statistics=self.statistics,
            now_us=self.clock,
            call_later=self._call_later,
            schedule_flush=self.due.append,
            chance=lambda: self.chances.pop(0) if self.chances else 0.0,
            on_bug=self.bugs.append,
        )
        self.links: list[FakeLink] = []
        self.works: list[FakeRequest] = []
        for _ in range(links):
            self.join()

    def join(self, link: FakeLink | None = None) -> FakeLink:
        """Let a replica join, a new one by default."""
        link = link or FakeLink(f"unix:/fake{len(self.links)}")
        self.links.append(link)
        self.batcher.join_link(link)
        return link

    def lose(self, link: FakeLink, reason: str = "killed") -> None:
        """Lose the connection to a replica, as `ReplicaLink` does."""
        self.links.remove(link)
        self.batcher.lose_link(link, reason)
        link.in_flight.clear()

    def _call_later(self, delay_us: int, callback: Callable[[], None]) -> Callable[[], None]:
        assert delay_us >= 0
        self.armed += 1
        timer = (self.clock() + delay_us, callback)
        self.timers.append(timer)
        return lambda: self.timers.remove(timer)

    def submit(
        self,
        *,
        timeout_us: int = 1_000_000,
        request_class: RequestClass = INTERACTIVE,
        tenant: str = "",
        **request: Any,
    ) -> FakeRequest:
        """Submit one request; further keyword arguments as `make_request`."""
        now_us = self.clock()
        work = FakeRequest(
            len(self.works),
            make_request(**request),
            now_us,
            now_us + timeout_us,
            request_class=request_class,
            tenant=tenant,
        )
        self.works.append(work)
        self.batcher.submit(work, now_us)
        return work

    def turn(self) -> None:
        """End this turn of the event loop: what was scheduled is flushed."""
        while self.due:
            self.due.pop(0).flush()

    def advance_us(self, us: int) -> None:
        """Let time pass, firing timers on the way."""
        end_us = self.clock() + us
        for _ in range(10_000):
            self.turn()
            timer = min(self.timers, key=lambda entry: entry[0], default=None)
            if timer is None or timer[0] > end_us:
                self.clock.advance_us(end_us - self.clock())
                return
            self.timers.remove(timer)
            self.clock.advance_us(max(timer[0] - self.clock(), 0))
            timer[1]()
        raise AssertionError("timers keep firing without time passing")


def encode_reply(
    frame_id: int,
    rows: int,
    *,
    failures: tuple[Failure, ...] = (),
    values: tuple[float, ...] = (),
    executed: int | None = None,
    execute_us: int = 3,
) -> bytes:
    """Return a reply of `SPEC`'s model with `rows` rows of output `y`, zeros by default; at least one was executed."""
    payload = struct.pack(f"<{rows}f", *(values or [0.0] * rows))
    outputs = (FrameTensor("y", "FP32", (1,), len(payload)),) if rows else ()
    meta = ReplyMeta(outputs, failures, 1, 2, execute_us, 4, (rows or 1) if executed is None else executed)
    return encode_frame(FrameKind.REPLY, frame_id, encode_meta(meta), [payload])


class FakeReplica:
    """The far end of a link on a `ManualLoop`: reads the batches it was sent, answers when told."""

    def __init__(self, protocol: asyncio.Protocol, transport: MemoryTransport) -> None:
        self.protocol = protocol
        self.transport = transport
        self._decoder = FrameDecoder()

    def take(self) -> list[tuple[int, int, BatchMeta]]:
        """Return what came since the last call: each batch's id, flags and description."""
        return [
            (frame.id, frame.flags, decode_batch_meta(frame)) for frame in self._decoder.feed(self.transport.take())
        ]

    def say(self, data: bytes) -> None:
        """Send bytes to the gateway, unless it has cut the connection."""
        if not self.transport.is_closing():
            self.protocol.data_received(data)

    def reply_all(self) -> int:
        """Answer every batch that came since the last call, canaries too; return how many were no canaries."""
        taken = self.take()
        for frame_id, _, meta in taken:
            self.say(encode_reply(frame_id, sum(meta.rows)))
        return sum(not flags & BATCH_FLAG_CANARY for _, flags, _ in taken)

    def die(self) -> None:
        """Close the connection, as a process that is killed does."""
        self.protocol.connection_lost(None)
