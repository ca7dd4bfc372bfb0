"""The gateway's own Python cost per request, without system calls: connections, routes and queues on fake transports.

64 connections send one small JSON request each; a fake replica answers the batch at once. The best of several rounds
of CPU time is printed, so a busy machine disturbs it little. Run: `python -m bench.in_process`.
"""

import gc
import struct
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from penstock.adapters.clock import now_us
from penstock.core.launch import HttpLimits
from penstock.core.limits import Level, LimitSettings, RateLimit
from penstock.core.models import Batching, ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics, ModelStatistics
from penstock.core.tensors import TensorSpec
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.http import HttpConnection, Port
from penstock.gateway.identity import Identifier
from penstock.gateway.limiter import Limiter
from penstock.gateway.routes import Routes
from penstock.policy.balancing import Dispatch, Replica
from penstock.testing.authority import BookAuthority
from penstock.testing.transport import MemoryTransport
from penstock.wire.frame import (
    FrameDecoder,
    FrameKind,
    FrameTensor,
    ReplyMeta,
    decode_reply_meta,
    encode_frame,
    encode_meta,
)
from penstock.wire.oip import InferenceCodec

CONNECTIONS = 64
TURNS = 200
ROUNDS = 9
BODY = b'{"inputs":[{"name":"x","shape":[1,8],"datatype":"FP32","data":[0.1,1.2,2.3,3.4,4.5,5.6,6.7,7.8]}]}'
REQUEST = (
    b"POST /v2/models/sum/infer HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
SPEC = ModelSpec(
    "sum",
    (TensorSpec("x", "FP32", (-1, 8)),),
    (TensorSpec("y", "FP32", (-1, 1)),),
    batching=Batching(size_max=256),
)


class InstantReplica:
    """A link whose batches are answered by `answer`, when asked."""

    def __init__(self, batcher: ModelBatcher) -> None:
        self.address = "unix:/instant"
        self.replica: Replica | None = None
        self.in_flight: dict[int, Dispatch] = {}
        self._batcher = batcher
        self._decoder = FrameDecoder()

    def send(self, batch: Dispatch, frame: bytes) -> None:
        """Take a batch."""
        self.in_flight[batch.id] = batch

    def answer(self) -> None:
        """Answer everything in flight."""
        batches, self.in_flight = self.in_flight, {}
        for batch in batches.values():
            output = FrameTensor("y", "FP32", (1,), 4 * batch.rows)
            meta = encode_meta(ReplyMeta((output,), (), 1, 2, 3, 4, batch.rows))
            payload: list[bytes | memoryview] = [struct.pack(f"<{batch.rows}f", *range(batch.rows))]
            for frame in self._decoder.feed(encode_frame(FrameKind.REPLY, batch.id, meta, payload)):
                reply = decode_reply_meta(frame)
                self._batcher.finish_batch(batch, reply, self._batcher.read_reply(batch, reply, frame.payload))


def make_batcher(due: list[ModelBatcher]) -> ModelBatcher:
    """Return the batcher of `SPEC`; what it wants flushed goes to `due`."""

    def never(delay_us: int, callback: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG001 - a timer's signature
        return lambda: None

    return ModelBatcher(
        SPEC,
        CostProfile.from_line(beta_us=40, alpha_us=1, size_max=256),
        statistics=ModelStatistics(),
        now_us=now_us,
        call_later=never,
        schedule_flush=due.append,
        chance=lambda: 0.0,
        on_bug=_raise,
    )


def measure(settings: LimitSettings) -> float:
    """Return µs of CPU per request under these limits, the best round of `ROUNDS`."""
    due: list[ModelBatcher] = []

    batcher = make_batcher(due)
    replica = InstantReplica(batcher)
    batcher.join_link(replica)
    model = SimpleNamespace(
        entry=SimpleNamespace(name=SPEC.name), codec=InferenceCodec(SPEC), batcher=batcher, spec=SPEC
    )
    catalogue: Any = SimpleNamespace(find=lambda _name, _version: model, is_known=True)
    statistics = GatewayStatistics()
    identifier = Identifier(requires_key=False)
    identifier.apply(0, ())
    soon: list[Callable[[], None]] = []
    limiter = Limiter(
        settings,
        BookAuthority(now_us, soon.append),
        holder="bench",
        statistics=statistics,
        now_us=now_us,
        call_soon=soon.append,
    )
    routes = Routes(
        catalogue,
        identifier,
        limiter,
        requires_key=False,
        now_us=now_us,
        version="0",
        started_s=0,
        query_statistics=lambda _answer: None,
        on_bug=_raise,
    )
    port = Port(routes, limits=HttpLimits(), statistics=statistics, now_us=now_us, log=None)
    port.date = b"date: Mon, 23 Nov 2026 10:00:00 GMT\r\n"
    connections = [HttpConnection(port) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.connection_made(MemoryTransport())

    def turn() -> None:
        for connection in connections:
            connection.data_received(REQUEST)
        while soon:
            soon.pop(0)()
        for waiting in due:
            waiting.flush()
        due.clear()
        replica.answer()
        due.clear()

    gc.collect()
    gc.freeze()
    costs = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(TURNS):
            turn()
        costs.append((time.process_time() - began) * 1e6 / TURNS / CONNECTIONS)
    assert statistics.responses == {200: ROUNDS * TURNS * CONNECTIONS}, statistics.responses
    return min(costs)


# Far above what this does, so that every request is let in.
LIMITED = LimitSettings(limits=(RateLimit("bench", Level.USER, 1_000_000, 1_000_000, 100_000),))


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    print(f"{measure(LimitSettings()):.2f} µs of Python per request, {measure(LIMITED):.2f} under a rate limit")
