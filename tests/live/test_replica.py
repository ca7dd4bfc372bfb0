"""Laws of a real replica process: it says what it is, survives its peers, drains when told, and dies visibly."""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from penstock.core.launch import ReplicaLaunch
from penstock.core.models import ModelSource
from penstock.wire.canary import canary_batch, canary_fault
from penstock.wire.control import ControlDecoder, Drain, Drained, LoadFailed, Message, ReplicaHello, encode_message
from penstock.wire.frame import (
    BATCH_FLAG_CANARY,
    BatchMeta,
    Frame,
    FrameDecoder,
    FrameKind,
    FrameTensor,
    decode_reply_meta,
    encode_frame,
    encode_meta,
)

pytestmark = pytest.mark.live

MODEL = """
import sys
import numpy as np
import penstock

@penstock.model(
    inputs=[penstock.Tensor("x", "FP32", (-1, 2), finite=True)],
    outputs=[penstock.Tensor("y", "FP32", (-1, 1))],
)
class Sum:
    def __init__(self, *, refuse_to_load: bool = False):
        if refuse_to_load:
            raise OSError("no such device")

    def __call__(self, x):
        if (x == 13).any():
            sys.exit("thirteen")
        print("running", len(x))
        return x.sum(axis=1, keepdims=True)
"""
WAIT_S = 20.0


class Replica:
    """One replica process with the control socket of a head it can talk to."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.directory = directory
        path = directory / "model.py"
        path.write_text(MODEL)
        self.address = f"unix:{directory}/r.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "c.sock"))
        self._listener.listen()
        self._listener.settimeout(WAIT_S)
        launch = ReplicaLaunch(
            "sum:1#0", self.address, str(directory / "c.sock"), ModelSource("sum", str(path), options=dict(options))
        )
        self._links: list[socket.socket] = []
        self._stderr = (directory / "stderr").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli.run_replica", msgspec.json.encode(launch).decode()],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )

    def accept_head(self) -> tuple[socket.socket, Message]:
        """Be the head: take the replica's connection and the first thing it says."""
        link, _ = self._listener.accept()
        link.settimeout(WAIT_S)
        self._links.append(link)
        return link, _read_message(link)

    def connect(self) -> socket.socket:
        """Be a gateway. The replica has said Hello, so it listens."""
        link = socket.socket(socket.AF_UNIX)
        self._links.append(link)
        link.settimeout(WAIT_S)
        link.connect(self.address.removeprefix("unix:"))
        return link

    def stderr(self) -> str:
        """Return what it has logged so far."""
        return (self.directory / "stderr").read_text()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        assert self.process.stdout is not None
        for link in (*self._links, self._listener):
            link.close()
        self._stderr.close()
        self.process.stdout.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        yield Path(directory)


@pytest.fixture
def replica(directory: Path) -> Iterator[Replica]:
    replica = Replica(directory)
    yield replica
    replica.close()


def _read_message(link: socket.socket) -> Message:
    decoder = ControlDecoder()
    messages: list[Message] = []
    while not messages:
        data = link.recv(65_536)
        assert data, "expected a message, got the end of the connection"
        messages = decoder.feed(data)
    return messages[0]


def _frame(values: Sequence[float], frame_id: int = 1, **kind: int) -> bytes:
    array = np.array([[v, 1] for v in values], dtype=np.float32)
    meta = BatchMeta((FrameTensor("x", "FP32", (2,), array.nbytes),), (1,) * len(values), (0,) * len(values), {})
    return encode_frame(FrameKind.BATCH, frame_id, encode_meta(meta), [array.tobytes()], **kind)


def _receive(link: socket.socket) -> Frame:
    decoder = FrameDecoder()
    frames: list[Frame] = []
    while not frames:
        data = link.recv(65_536)
        assert data, "expected a frame, got the end of the connection"
        frames = decoder.feed(data)
    return frames[0]


def _ask(link: socket.socket, *values: float) -> tuple[list[float], dict[int, int]]:
    link.sendall(_frame(values))
    reply = _receive(link)
    meta = decode_reply_meta(reply)
    return np.frombuffer(reply.payload, "<f4").tolist(), {f.index: f.status for f in meta.failures}


def test_serves_after_hello_and_survives_its_model(replica: Replica) -> None:
    """Hello has the spec and the address; requests are answered; a model's exit fails one request only."""
    _, hello = replica.accept_head()
    assert isinstance(hello, ReplicaHello)
    assert (hello.pid, hello.replica, hello.address) == (replica.process.pid, "sum:1#0", replica.address)
    assert hello.load_us > 0
    link = replica.connect()
    assert _ask(link, 1, 2) == ([2, 3], {})
    assert _ask(link, 1, 13, float("nan"), 2) == ([2, 3], {1: 500, 2: 400})
    meta, payload = canary_batch(hello.spec)
    link.sendall(encode_frame(FrameKind.BATCH, 2, encode_meta(meta), list(payload), flags=BATCH_FLAG_CANARY))
    assert canary_fault(decode_reply_meta(_receive(link))) is None
    assert "SystemExit: thirteen" in replica.stderr()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n" * 4, os.urandom(64), b"PSTK" + bytes(28) + b"x"])
def test_garbage_closes_only_its_own_connection(replica: Replica, garbage: bytes) -> None:
    """A gateway that talks nonsense is hung up on; another one, connected before, never notices."""
    replica.accept_head()
    good, bad = replica.connect(), replica.connect()
    assert _ask(good, 1) == ([2], {})
    bad.sendall(garbage)
    try:
        assert bad.recv(1) == b""
    except ConnectionResetError:
        pass  # closed with bytes unread: closed all the same
    assert _ask(good, 2) == ([3], {})


def test_sigterm_drains(replica: Replica) -> None:
    """What was sent before SIGTERM is answered, Drained is said, exit status is 0, nothing was printed on stdout."""
    head, _ = replica.accept_head()
    link = replica.connect()
    link.sendall(b"".join(_frame([k], k) for k in range(50)))
    replica.process.send_signal(signal.SIGTERM)
    decoder = FrameDecoder()
    ids: list[int] = []
    while data := link.recv(65_536):
        ids += [f.id for f in decoder.feed(data)]
    assert ids == list(range(50))
    assert _read_message(head) == Drained(replica.process.pid)
    assert replica.process.wait(WAIT_S) == 0
    assert replica.process.stdout is not None
    assert replica.process.stdout.read() == b""
    assert not (replica.directory / "r.sock").exists()


def test_sigterm_ends_an_idle_replica(replica: Replica) -> None:
    """With nothing to do it waits in select; the signal must end that, too."""
    head, _ = replica.accept_head()
    replica.connect()
    replica.process.send_signal(signal.SIGTERM)
    assert _read_message(head) == Drained(replica.process.pid)
    assert replica.process.wait(WAIT_S) == 0


def test_head_drains_it_and_ctrl_c_does_not(replica: Replica) -> None:
    """SIGINT is the head's business; Drain ends the replica with status 0."""
    head, _ = replica.accept_head()
    link = replica.connect()
    replica.process.send_signal(signal.SIGINT)
    assert _ask(link, 1) == ([2], {})
    head.sendall(encode_message(Drain(drain_us=5_000_000)))
    assert _read_message(head) == Drained(replica.process.pid)
    assert replica.process.wait(WAIT_S) == 0


def test_serves_without_a_head_and_greets_the_next(replica: Replica) -> None:
    """With the head gone it goes on serving, and says Hello again to whoever listens next."""
    head, hello = replica.accept_head()
    head.close()
    link = replica.connect()
    assert _ask(link, 1) == ([2], {})
    _, again = replica.accept_head()
    assert again == hello


def test_kill_is_seen_as_the_end_of_the_connection(replica: Replica) -> None:
    """A kill -9 leaves every gateway an end of file, at once."""
    replica.accept_head()
    links = [replica.connect() for _ in range(3)]
    assert [_ask(link, 1) for link in links] == [([2], {})] * 3
    replica.process.kill()
    for link in links:
        assert select.select([link], [], [], WAIT_S)[0]
        assert link.recv(1) == b""


def test_load_failure_is_told(directory: Path) -> None:
    """A model that cannot load tells the head why, logs its traceback and exits with 1."""
    replica = Replica(directory, refuse_to_load=True)
    try:
        _, said = replica.accept_head()
        assert isinstance(said, LoadFailed)
        assert said.reason == "OSError: no such device"
        assert replica.process.wait(WAIT_S) == 1
        assert "Traceback" in replica.stderr()
    finally:
        replica.close()


def test_wrong_option_is_told_without_a_traceback(directory: Path) -> None:
    """An operator's mistake is one line that names the option."""
    replica = Replica(directory, refuse_to_lode=True)
    try:
        _, said = replica.accept_head()
        assert isinstance(said, LoadFailed)
        assert "'refuse_to_lode'" in said.reason
        assert replica.process.wait(WAIT_S) == 1
        assert "Traceback" not in replica.stderr()
    finally:
        replica.close()


def test_bad_usage_exits_with_two() -> None:
    """An argument that is no ReplicaLaunch is bad usage."""
    command = [sys.executable, "-m", "penstock.cli.run_replica", "{}"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=WAIT_S)
    assert done.returncode == 2
    assert b"expected one argument" in done.stderr
