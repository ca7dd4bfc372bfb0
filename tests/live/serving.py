"""`penstock serve` in a process group of its own, for tests that start it, look at it, hurt it and end it for sure.

Not here: open-loop load (`loading.py`), what is sent and expected (the tests themselves).
"""

import http.client
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

__all__ = [
    "EXAMPLES",
    "Answer",
    "Caller",
    "Metrics",
    "Server",
    "count_open_files",
    "infer_body",
    "is_alive",
    "open_server",
    "wait_until",
]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PENSTOCK = Path(sys.executable).with_name("penstock")
POLL_S = 0.02
# Loading every example takes about 2 s here; a machine twenty times slower still passes.
READY_LIMIT_S = 40.0
STOP_LIMIT_S = 40.0
ANSWER_LIMIT_S = 40.0

Labels = frozenset[tuple[str, str]]


def wait_until(condition: Callable[[], object], what: str, *, limit_s: float = 20.0) -> None:
    """Poll until `condition` holds; fail the test if that takes longer than `limit_s`."""
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            pytest.fail(f"after {limit_s} s still not {what}")
        time.sleep(POLL_S)


def is_alive(pid: int) -> bool:
    """Return True if a process runs, zombies excluded."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def count_open_files(pid: int) -> int:
    """Return how many file descriptors a process has open: sockets and all."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names are all that is needed of thousands


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)

    def data(self, output: str) -> list[Any]:
        """Return an output tensor's flat data; fail if the answer is not an inference response."""
        assert self.status == 200, self.body
        return next(list(o["data"]) for o in self.json()["outputs"] if o["name"] == output)


class Caller:
    """One keep-alive connection of a well-behaved client."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER_LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.connection.close()

    def send(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Send a request without waiting for its answer."""
        self.connection.request(method, path, body, dict(headers or {}))

    def wait_answer(self) -> Answer:
        """Wait for the answer to what was sent."""
        response = self.connection.getresponse()
        body = response.read()
        return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, body)

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and return its answer."""
        self.send(method, path, body, headers)
        return self.wait_answer()

    def infer(self, model: str, body: bytes, *, version: str = "") -> Answer:
        """Send an inference request and return its answer."""
        return self.call("POST", f"/v2/models/{model}{version and f'/versions/{version}'}/infer", body)


def infer_body(name: str, datatype: str, rows: list[list[Any]], **members: Any) -> bytes:
    """Write an inference request of one tensor, one list per row; `members` are further members of the document."""
    data = [value for row in rows for value in row]
    tensor = {"name": name, "shape": [len(rows), len(rows[0])], "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor], **members}).encode()


class Metrics:
    """A scrape of `/metrics`."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, Labels], float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                written, _, value = line.rpartition(" ")
                name, _, labels = written.partition("{")
                pairs = (pair.partition("=") for pair in labels.rstrip("}").split(",") if pair)
                self.samples[name, frozenset((key, text.strip('"')) for key, _, text in pairs)] = float(value)

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have at least these labels; 0 if there are none."""
        wanted = set(labels.items())
        return sum(value for (n, found), value in self.samples.items() if n == name and wanted <= found)


class Server:
    """One `penstock serve`. A second `start` on the same object is a second head on the same state directory."""

    def __init__(self, target: Path, options: tuple[str, ...], home: Path) -> None:
        self.http = ""
        self.admin = ""
        self.home = home
        self.head: subprocess.Popen[str] | None = None
        self._command = [str(PENSTOCK), "serve", str(target), "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        self._command += ["--state", str(home / "state"), *options]
        self._groups: list[int] = []
        self._stderr = (home / "stderr").open("a+")

    def start(self) -> "Server":
        """Start the head, without waiting for anything."""
        # A group of its own: whatever happens to the test, everything in it can be ended by one signal.
        self.head = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._stderr, text=True, process_group=0
        )
        self._groups.append(self.head.pid)
        return self

    def wait_ready(self) -> "Server":
        """Wait for the ready line."""
        assert self.head is not None
        assert self.head.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.head.stdout, selectors.EVENT_READ)
            line = self.head.stdout.readline() if selector.select(READY_LIMIT_S) else ""
        assert line.startswith("ready "), f"expected the ready line, got {line!r} and on stderr:\n{self.log()}"
        said = dict(part.split("=", 1) for part in line.split()[1:])
        self.http, self.admin = said["http"], said["admin"]
        return self

    def wait_exit(self) -> int:
        """Wait until the head has ended; return its exit status."""
        assert self.head is not None
        return self.head.wait(STOP_LIMIT_S)

    def log(self) -> str:
        """Return what all processes wrote to stderr."""
        return (self.home / "stderr").read_text()

    def terminate(self) -> None:
        """Ask the head to stop, as a service manager does."""
        assert self.head is not None
        self.head.terminate()

    def kill_head(self) -> None:
        """Kill -9 the head alone."""
        assert self.head is not None
        self.head.kill()
        self.head.wait()
        assert self.head.stdout is not None
        self.head.stdout.close()

    def get_admin(self, path: str) -> bytes:
        """Read a page of the admin port."""
        with Caller(self.admin) as caller:
            answer = caller.call("GET", path)
        assert answer.status == 200, answer.body
        return answer.body

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        document: dict[str, Any] = json.loads(self.get_admin("/api/status"))
        return document

    def metrics(self) -> Metrics:
        """Scrape the metrics."""
        return Metrics(self.get_admin("/metrics").decode())

    def model(self, name: str) -> dict[str, Any]:
        """Return a model's part of the status."""
        return next(dict(m) for m in self.status()["models"] if m["name"] == name)

    def replica_pids(self, name: str | None = None) -> list[int]:
        """Return the pids of a model's replicas, or of all."""
        models = (m for m in self.status()["models"] if name in (None, m["name"]))
        return [r["pid"] for m in models for r in m["replicas"]]

    def gateway_pids(self) -> list[int]:
        """Return the gateways' pids."""
        return [g["pid"] for g in self.status()["gateways"]]

    def restarts(self, name: str) -> int:
        """Return how often a model's replicas were started again."""
        return sum(r["restarts"] for r in self.model(name)["replicas"])

    def caller(self) -> Caller:
        """Open a connection of a well-behaved client."""
        return Caller(self.http)

    def end(self) -> None:
        """End every process of every head that was started, at once and in whatever state it is."""
        for group in self._groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                pass  # nothing of it is left, as it should be
        if self.head is not None:
            self.head.wait()
            if self.head.stdout is not None:
                self.head.stdout.close()
        self._stderr.close()
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def open_server(target: Path, *options: str) -> Iterator[Server]:
    """Start `penstock serve target` on free ports and wait until it is ready; end it in any case."""
    server = make_server(target, *options)
    try:
        yield server.start().wait_ready()
    finally:
        server.end()


def make_server(target: Path, *options: str) -> Server:
    """Return a server that was not started, in a directory whose path is short enough for sockets."""
    return Server(target, options, Path(tempfile.mkdtemp(prefix="ps-")))
