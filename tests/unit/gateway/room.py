"""A whole catalogue on manual time with replicas in memory, for tests of it and of what is built on it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from penstock.core.keys import KeyRecord
from penstock.core.launch import HttpLimits
from penstock.core.limits import LimitSettings
from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics
from penstock.core.tensors import TensorSpec
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.catalogue import Catalogue, Model
from penstock.gateway.http import Port
from penstock.gateway.identity import Identifier
from penstock.gateway.limiter import Limiter
from penstock.gateway.routes import Routes
from penstock.testing.authority import BookAuthority
from penstock.testing.clock import ManualClock
from penstock.testing.loop import ManualLoop
from penstock.wire.control import ModelEntry, ModelState, Snapshot
from tests.unit.gateway.fakes import SPEC, Client, FakeReplica, FakeRequest, Response, make_request

EMBEDDER = replace(
    SPEC,
    task="embedding",
    inputs=(TensorSpec("text", "BYTES", (-1, 1)),),
    outputs=(TensorSpec("embedding", "FP32", (-1, 2)),),
)
INFER = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
AGE_US_MAX = 10_000_000
TEND_US = 250_000


def entry(
    *replicas: str,
    name: str = "sum",
    version: str = "1",
    spec: ModelSpec | None = SPEC,
    state: ModelState = "READY",
    profile: CostProfile | None = None,
) -> ModelEntry:
    """Return an entry for `SPEC` with replicas at `unix:NAME`."""
    if spec is not None:
        spec = replace(spec, name=name, version=version)
    return ModelEntry(name, version, state, "because", spec, tuple(f"unix:{r}" for r in replicas), profile=profile)


class Room:
    """A catalogue on manual time whose replicas answer what they are sent unless they are told not to."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        self.statistics = GatewayStatistics()
        self.faults: list[tuple[str, str]] = []
        self.bugs: list[Exception] = []
        self.changes = 0
        self.silent: set[str] = set()
        self.canaries: list[str] = []
        self.due: list[ModelBatcher] = []
        self.catalogue = Catalogue(
            loop=self.loop.as_asyncio,
            now_us=self.clock,
            statistics=self.statistics,
            canary_age_us_max=AGE_US_MAX,
            call_later=lambda us, callback: self.loop.call_later(us / 1e6, callback).cancel,
            schedule_flush=self.due.append,
            on_fault=lambda where, why: self.faults.append((where, why)),
            on_change=self._count_change,
            chance=lambda: 0.5,
            on_bug=self.bugs.append,
        )
        self._sequence = 0
        self._replicas: dict[int, FakeReplica] = {}

    def _count_change(self) -> None:
        self.changes += 1

    def apply(self, *entries: ModelEntry) -> None:
        """Apply a snapshot of these entries."""
        self._sequence += 1
        self.catalogue.apply_snapshot(Snapshot(self._sequence, entries))

    def answer(self) -> None:
        """Let every replica that is not silent answer what it was sent."""
        for index, (address, protocol, transport) in enumerate(self.loop.connections):
            if address not in self.silent and not transport.is_closing():
                replica = self._replicas.setdefault(index, FakeReplica(protocol, transport))
                if transport.written:
                    self.canaries.append(address)
                replica.reply_all()

    def tend(self, us: int = TEND_US) -> None:
        """Let time pass, tending every quarter of a second, the replicas answering at once."""
        for _ in range(us // TEND_US):
            self.loop.advance_us(TEND_US)
            self.catalogue.tend()
            self.answer()

    def model(self, name: str = "sum", version: str | None = None) -> Model:
        """Return a model that must be there."""
        found = self.catalogue.find(name, version)
        assert found is not None
        return found

    def submit(self, model: Model) -> FakeRequest:
        """Submit a request to a model and end the turn."""
        assert model.batcher is not None
        now_us = self.clock()
        work = FakeRequest(0, make_request(), now_us, now_us + 60_000_000)
        model.batcher.submit(work, now_us)
        self.turn()
        return work

    def turn(self) -> None:
        """End this turn of the event loop."""
        while self.due:
            self.due.pop().flush()


class House(Room):
    """A whole gateway in memory, but for the process: client, port, routes, catalogue, replicas."""

    def __init__(
        self,
        *,
        limits: HttpLimits | None = None,
        settings: LimitSettings | None = None,
        keys: tuple[KeyRecord, ...] = (),
        requires_key: bool = False,
    ) -> None:
        super().__init__()
        self.soon: list[Callable[[], None]] = []
        self.authority = BookAuthority(self.clock, self.soon.append)
        self.identifier = Identifier(requires_key=requires_key)
        self.identifier.apply(int(bool(keys)), keys)
        self.limiter = Limiter(
            settings or LimitSettings(),
            self.authority,
            holder="house",
            statistics=self.statistics,
            now_us=self.clock,
            call_soon=self.soon.append,
        )
        self.head_statistics: GatewayStatistics | None = GatewayStatistics()
        self.waiting_for_head: list[Any] = []
        self.routes = Routes(
            self.catalogue,
            self.identifier,
            self.limiter,
            requires_key=requires_key,
            now_us=self.clock,
            version="1.2.3",
            started_s=77,
            query_statistics=self._query,
            on_bug=self.bugs.append,
        )
        self.port = Port(
            self.routes, limits=limits or HttpLimits(), statistics=self.statistics, now_us=self.clock, log=None
        )
        self.client = Client(self.port)

    def turn(self) -> None:
        """End this turn of the event loop, and those that follow from it."""
        while self.soon:
            self.soon.pop(0)()
        super().turn()

    def _count_change(self) -> None:
        super()._count_change()
        if hasattr(self, "routes"):
            self.routes.forget()

    def _query(self, answer: Any) -> None:
        if self.head_statistics is None:
            self.waiting_for_head.append(answer)
        else:
            answer(self.head_statistics)

    def ask(self, method: str, url: str, body: bytes = b"", *lines: str) -> Response:
        """Send one request, let the replicas answer, and return the response."""
        head = "".join(f"{line}\r\n" for line in (f"{method} {url} HTTP/1.1", "Host: a", *lines))
        self.client.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.turn()
        self.answer()
        (response,) = self.client.read(heads=(0,) if method == "HEAD" else ())
        return response
