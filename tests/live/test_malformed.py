"""Ten thousand malformed requests against a live gateway, beside a well-behaved client who must not notice.

A failure prints the kind of request, its seed and its bytes; the same seed gives the same requests.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import numpy as np
import onnxruntime as ort
import pytest

from penstock.core.tensors import TensorSpec
from penstock.testing.malformed import Ending, Malformed, Target, malformed_requests, valid_request
from tests.live.serving import EXAMPLES, Server, count_open_files, infer_body, open_server, wait_until

pytestmark = pytest.mark.live

SEED = 20_250
COUNT = 10_000
WARM_UP = 1_500
CONNECTIONS = 16
ANSWER_LIMIT_S = 20.0
MISTAKES_MAX = 20
# What allocators and bounded caches may add after a warm-up of 1,500: a leak of 2 KiB a request would be 20 MiB.
RSS_GROWTH_BYTES_MAX = 16 * 1024 * 1024
BODY_BYTES_MAX = 1024 * 1024
TIMEOUT_MS = 500

TARGETS = [
    Target("digits", (TensorSpec("pixels", "FP32", (-1, 64), finite=True),), 64),
    Target("sum", (TensorSpec("x", "FP32", (-1, 8)),), 256),
    Target("minilm", (TensorSpec("text", "BYTES", (-1, 1), optional=True),), 32),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The example models behind a gateway of little patience."""
    config = tmp_path_factory.mktemp("malformed") / "penstock.toml"
    config.write_text(
        f"[server.limits]\nbody_bytes_max = {BODY_BYTES_MAX}\n"
        f"header_timeout_ms = {TIMEOUT_MS}\nbody_timeout_ms = {TIMEOUT_MS}\n"
        f'[models.digits]\npath = "{EXAMPLES / "digits"}"\n'
        f'[models.minilm]\npath = "{EXAMPLES / "minilm/model.py"}"\n'
        f'[models.sum]\npath = "{EXAMPLES / "sum.py"}"\n'
    )
    with open_server(config) as opened:
        yield opened


@dataclass(slots=True)
class Findings:
    """What came back, by kind and status, and what should not have."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)

    def blame(self, request: Malformed, text: str) -> None:
        """Note a mistake of the server's."""
        self.mistakes.append(f"{request.kind} ({request.ending.value}): {text}; sent {request.data[:300]!r}")

    def note(self, request: Malformed, status: int, body: bytes) -> None:
        """Count an answer; whatever is sent, a 5xx is a mistake."""
        self.statuses[request.kind, status] += 1
        if status >= 500:
            self.blame(request, f"got {status} {body[:200]!r}")


class Rogue:
    """One connection at a time, used again for as long as the server says that it may be."""

    def __init__(self, url: str, findings: Findings) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname, address.port
        self._findings = findings
        self._writer: asyncio.StreamWriter | None = None

    async def commit(self, request: Malformed) -> None:
        """Send one request and behave as it says."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await self._commit(request)
        except TimeoutError:
            self._findings.blame(request, f"no answer and no end within {ANSWER_LIMIT_S} s")
            self.leave()
        except (OSError, asyncio.IncompleteReadError) as error:
            if request.ending in {Ending.WAIT, Ending.LOOK}:
                self._findings.blame(request, f"no answer: {error!r}")
            self.leave()

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.transport.abort() if reset else self._writer.close()
            self._writer = None

    async def _commit(self, request: Malformed) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(request.data)
        match request.ending:
            case Ending.LEAVE | Ending.RESET:
                await asyncio.sleep(0)
                self.leave(reset=request.ending is Ending.RESET)
            case Ending.SHUT:
                self._writer.write_eof()
                await self._read_to_end(request)
            case Ending.WAIT | Ending.LOOK | Ending.HOLD:
                await self._wait_answer(request)

    async def _wait_answer(self, request: Malformed) -> None:
        status, keeps_open = await self._read_answer(request)
        expected = {Ending.WAIT: range(400, 500), Ending.HOLD: range(408, 409), Ending.LOOK: range(200, 500)}
        if status not in expected[request.ending]:
            self._findings.blame(request, f"expected a status in {expected[request.ending]}, got {status}")
        if keeps_open and request.is_framing:
            self._findings.blame(request, f"{status} without connection: close, where reuse is unsafe")
            self.leave()
        elif not keeps_open:
            rest = await self._reader.read()
            if rest:
                self._findings.blame(request, f"more than one answer: {rest[:200]!r}")
            self.leave()

    async def _read_answer(self, request: Malformed) -> tuple[int, bool]:
        while True:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ")[1])
            if status != 100:
                break
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        self._findings.note(request, status, body)
        if b"error" not in body and status >= 400:
            self._findings.blame(request, f"expected the protocol's error form, got {body[:200]!r}")
        return status, b"connection: close" not in head

    async def _read_to_end(self, request: Malformed) -> None:
        try:
            while True:
                await self._read_answer(request)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self._findings.blame(request, f"part of an answer: {error.partial[:200]!r}")
        self.leave()


async def misbehave(url: str, requests: Iterator[Malformed], findings: Findings) -> None:
    """Send the requests over several connections at once."""

    async def work() -> None:
        rogue = Rogue(url, findings)
        for request in requests:
            await rogue.commit(request)
            if len(findings.mistakes) >= MISTAKES_MAX:
                break
        rogue.leave()

    await asyncio.gather(*[work() for _ in range(CONNECTIONS)])


class Witness(threading.Thread):
    """A well-behaved client: asks all the time, on connections of its own, and compares every answer."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.asked = 0
        self.complaints: list[str] = []
        self._server = server
        self._done = threading.Event()
        session = ort.InferenceSession(str(EXAMPLES / "digits/model.onnx"), providers=["CPUExecutionProvider"])
        pixels = np.random.default_rng(SEED).integers(0, 17, (64, 64)).astype(np.float32)
        labels = session.run(["label"], {"pixels": pixels})[0].tolist()
        self._questions = [
            (infer_body("pixels", "FP32", [row.tolist()]), [label]) for row, label in zip(pixels, labels, strict=True)
        ]

    def run(self) -> None:
        """Ask until told to stop."""
        with self._server.caller() as caller:
            while not self._done.wait(0.005):
                body, label = self._questions[self.asked % len(self._questions)]
                try:
                    answer = caller.infer("digits", body)
                    right = answer.status == 200 and answer.data("label") == label
                except (OSError, AssertionError) as error:
                    right = False
                    self.complaints.append(repr(error))
                self.asked += 1
                if not right:
                    self.complaints.append(f"question {self.asked}: not {label}")
                    return

    def stop(self) -> None:
        """Stop asking."""
        self._done.set()
        self.join(ANSWER_LIMIT_S)


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_ten_thousand_malformed_requests(server: Server) -> None:
    """No 5xx, nothing hung, nothing leaked, no replica lost; and right answers throughout for who behaves."""
    stream = malformed_requests(Random(SEED), TARGETS)
    findings = Findings()
    asyncio.run(misbehave(server.http, islice(stream, WARM_UP), findings))
    wait_until(lambda: server.metrics().value("penstock_connections") == 0, "all connections closed")
    pids = [*server.gateway_pids(), *server.replica_pids()]
    files_before = [count_open_files(pid) for pid in pids]
    bytes_before = [resident_bytes(pid) for pid in pids]
    witness = Witness(server)
    witness.start()
    asyncio.run(misbehave(server.http, islice(stream, COUNT), findings))
    witness.stop()
    assert findings.mistakes == [], f"seed {SEED}"
    assert witness.complaints == []
    assert witness.asked > 100
    assert [*server.gateway_pids(), *server.replica_pids()] == pids
    wait_until(lambda: server.metrics().value("penstock_connections") == 0, "all connections closed")
    wait_until(lambda: [count_open_files(pid) for pid in pids] <= files_before, "back to the files open before")
    grown = [after - before for after, before in zip(map(resident_bytes, pids), bytes_before, strict=True)]
    assert max(grown) <= RSS_GROWTH_BYTES_MAX, dict(zip(pids, grown, strict=True))
    kinds = Counter(kind for kind, _ in findings.statuses.elements())
    assert len(kinds) >= 14, kinds


def test_what_the_generator_damages_was_right(server: Server) -> None:
    """The requests that malformed ones are made from are answered 200: without the damage nothing would be wrong."""
    rng = Random(SEED)
    findings = Findings()
    for target in TARGETS:
        for _ in range(10):
            request = Malformed("valid", valid_request(rng, target), Ending.LOOK)
            asyncio.run(misbehave(server.http, iter([request]), findings))
    assert findings.statuses == {("valid", 200): 30}


def test_the_same_seed_gives_the_same_requests() -> None:
    """A failure can be replayed from its seed."""
    first, second = (list(islice(malformed_requests(Random(5), TARGETS), 500)) for _ in range(2))
    assert first == second
