"""Ten thousand malformed requests against a live gateway, beside a well-behaved client who must not notice.

A failure prints the kind of request, its seed and its bytes; the same seed gives the same requests.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime as ort
import pytest

from penstock.core.tensors import TensorSpec
from penstock.testing.malformed import Ending, Malformed, Target, malformed_requests, valid_request
from penstock.testing.rogue import Findings, misbehave
from tests.live.serving import EXAMPLES, Server, count_open_files, infer_body, open_server, wait_until

pytestmark = pytest.mark.live

SEED = 20_250
COUNT = 10_000
WARM_UP = 1_500
ANSWER_LIMIT_S = 20.0
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
