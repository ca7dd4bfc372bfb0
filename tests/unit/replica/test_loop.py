"""Laws of the loop: one reply per batch, merging over connections, bad peers hurt only themselves, drains end."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from penstock.core.errors import ConfigError
from penstock.core.profiles import CostProfile
from penstock.replica.batch import Batch
from penstock.replica.loop import RECEIVE_BYTES, WAITING_PER_CONNECTION_MAX, ReplicaLoop
from penstock.replica.runtimes import Array
from penstock.wire.frame import (
    BATCH_FLAG_CANARY,
    Frame,
    FrameDecoder,
    FrameKind,
    decode_reply_meta,
    encode_frame,
    encode_meta,
)
from tests.unit.replica.fakes import WHOLE, batch_of, executor_of, sum_rows


class Bench:
    """A loop on a unix socket, with its clients, all in one thread: what clients send is there before a turn begins."""

    def __init__(self, directory: Path, *, profile: CostProfile | None = None) -> None:
        self.executor, self.runtime, self.clock, _ = executor_of()
        self.log: list[str] = []
        self.open = ExitStack()
        self.loop = ReplicaLoop(self.executor, now_us=self.clock, log=self.log.append, profile=profile)
        self.path = str(directory / "r.sock")
        self.open.callback(self.loop.close)
        assert self.loop.listen(f"unix:{self.path}") == f"unix:{self.path}"

    def another(self) -> ReplicaLoop:
        """Return a second loop on the same executor."""
        loop = ReplicaLoop(self.executor, now_us=self.clock, log=self.log.append)
        self.open.callback(loop.close)
        return loop

    def connect(self) -> socket.socket:
        """Connect one gateway and let the loop accept it."""
        client = self.open.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(5)
        client.connect(self.path)
        assert self.loop.turn()
        return client


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        bench = Bench(Path(directory))
        with bench.open:
            yield bench


# Of one row, of 64 (all that merge), and linear between.
PROFILE = CostProfile((1, 64), (1_000, 7_300))


@pytest.fixture
def profiled() -> Iterator[Bench]:
    """A bench whose loop knows what batches cost."""
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        bench = Bench(Path(directory), profile=PROFILE)
        with bench.open:
            yield bench


def _frame(batch: Batch, *, flags: int = 0) -> bytes:
    return encode_frame(FrameKind.BATCH, batch.frame_id, encode_meta(batch.meta), [batch.payload], flags=flags)


def _batch(frame_id: int, rows: int = 1, width: int = 2) -> bytes:
    return _frame(batch_of([[frame_id] * width] * rows, [1] * rows, frame_id=frame_id))


def _receive(client: socket.socket, count: int) -> list[Frame]:
    decoder = FrameDecoder()
    frames: list[Frame] = []
    while len(frames) < count:
        data = client.recv(1 << 20)
        assert data
        frames += decoder.feed(data)
    assert len(frames) == count
    return frames


def test_batches_of_several_gateways_run_together_and_return_to_each(bench: Bench) -> None:
    """What waits at the start of a turn is one execution; every gateway gets its own replies."""
    a, b = bench.connect(), bench.connect()
    a.sendall(_batch(1) + _batch(2))
    b.sendall(_batch(3, rows=2))
    bench.loop.turn()
    assert bench.runtime.calls == [4]
    replies = [*_receive(a, 2), *_receive(b, 1)]
    assert [(f.id, np.frombuffer(f.payload, "<f4").tolist()) for f in replies] == [(1, [2]), (2, [4]), (3, [6, 6])]
    assert [decode_reply_meta(f).executed_rows for f in replies] == [4, 4, 4]


def test_batches_that_cannot_merge_run_in_turn(bench: Bench) -> None:
    """Another width, a canary, and what exceeds size_max wait for turns of their own."""
    client = bench.connect()
    canary = _frame(batch_of([[4, 4]], [1], frame_id=4), flags=BATCH_FLAG_CANARY)
    client.sendall(_batch(1, rows=40) + _batch(2, width=3) + _batch(3, rows=40) + canary + _batch(5))
    for _ in range(4):
        bench.loop.turn()
    assert bench.runtime.calls == [40, 41, 1]
    assert [f.id for f in _receive(client, 5)] == [1, 2, 3, 5, 4]


def _backlog(client: socket.socket, count: int) -> list[tuple[int, int]]:
    """Return the backlog and the gateways that the next replies tell of."""
    metas = [decode_reply_meta(frame) for frame in _receive(client, count)]
    return [(meta.backlog_us, meta.gateways) for meta in metas]


def test_replies_tell_what_still_waits(profiled: Bench) -> None:
    """The backlog is the time of all that waits, merged as far as it goes; the last reply tells of none."""
    client = profiled.connect()
    client.sendall(_batch(1, rows=60) + _batch(2, rows=60) + _batch(3, rows=5))
    told = []
    for _ in range(3):
        profiled.loop.turn()
        told += _backlog(client, 1)
    assert told == [(PROFILE.time_us(64) + PROFILE.time_us(1), 1), (PROFILE.time_us(5), 1), (0, 1)]


def test_replies_tell_what_came_while_the_model_ran(profiled: Bench) -> None:
    """With several gateways a reply knows of what the others sent meanwhile, though the loop was deaf."""
    a, b = profiled.connect(), profiled.connect()

    def overtaken(x: Array) -> dict[str, Array]:
        if len(profiled.runtime.calls) == 1:
            b.sendall(_batch(2, rows=3))
        return sum_rows(x)

    profiled.runtime._function = overtaken
    a.sendall(_batch(1))
    profiled.loop.turn()
    assert _backlog(a, 1) == [(PROFILE.time_us(3), 2)]
    profiled.loop.turn()
    assert _backlog(b, 1) == [(0, 2)]


def test_work_of_a_gone_gateway_is_no_backlog(profiled: Bench) -> None:
    """What will be dropped unexecuted takes no time, and who is gone is not counted."""
    gone, good = profiled.connect(), profiled.connect()

    def deserted(x: Array) -> dict[str, Array]:
        if len(profiled.runtime.calls) == 1:
            gone.sendall(_batch(3, rows=64))
            gone.close()
        return sum_rows(x)

    profiled.runtime._function = deserted
    good.sendall(_batch(1, rows=64) + _batch(2, rows=2))
    for _ in range(3):
        profiled.loop.turn()
    assert _backlog(good, 2) == [(PROFILE.time_us(64) + PROFILE.time_us(2), 2), (0, 1)]
    assert profiled.runtime.calls == [64, 2]


def test_without_a_profile_no_backlog_is_told(bench: Bench) -> None:
    """Nothing is predicted from nothing; the number of gateways is known all the same."""
    a, _ = bench.connect(), bench.connect()
    a.sendall(_batch(1, rows=60) + _batch(2, rows=60))
    bench.loop.turn()
    assert _backlog(a, 1) == [(0, 2)]


def test_requests_of_a_model_without_batching_wait_one_by_one() -> None:
    """Without batching each waiting request costs as much as one alone."""
    executor, _, clock, log = executor_of(lambda x: {"y": x[0]}, spec=WHOLE)
    with tempfile.TemporaryDirectory(prefix="ps-") as directory, ExitStack() as stack:
        loop = ReplicaLoop(executor, now_us=clock, log=log.append, profile=CostProfile((1,), (400,)))
        stack.callback(loop.close)
        loop.listen(f"unix:{directory}/r.sock")
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(5)
        client.connect(f"{directory}/r.sock")
        loop.turn()
        whole = [[[1, 2, 3], [4, 5, 6]]]
        client.sendall(_frame(batch_of(whole, [1])) + _frame(batch_of(whole * 3, [1, 1, 1])))
        loop.turn()
        assert _backlog(client, 1) == [(1_200, 1)]


@pytest.mark.parametrize("cut", [1, 31, 32, 40])
def test_frame_in_pieces_is_one_frame(bench: Bench, cut: int) -> None:
    """Where the kernel cuts the bytes does not matter."""
    client = bench.connect()
    frame = _batch(1)
    client.sendall(frame[:cut])
    bench.loop.turn()
    client.sendall(frame[cut:])
    bench.loop.turn()
    assert [f.id for f in _receive(client, 1)] == [1]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\nHost: replica\r\n\r\n",
        encode_frame(FrameKind.REPLY, 1, encode_meta(batch_of([[1, 2]], [1]).meta), [bytes(8)]),
        encode_frame(FrameKind.BATCH, 1, b"\xc1", []),
        encode_frame(FrameKind.BATCH, 1, b"\x94\x90\x90\x90\x80", []),
    ],
)
def test_nonsense_closes_that_connection_only(bench: Bench, nonsense: bytes) -> None:
    """A peer that talks nonsense is hung up on; its neighbour is answered in the same turn."""
    bad, good = bench.connect(), bench.connect()
    bad.sendall(nonsense)
    good.sendall(_batch(1))
    bench.loop.turn()
    assert bad.recv(1) == b""
    assert [f.id for f in _receive(good, 1)] == [1]
    assert len(bench.log) == 1


def test_batches_of_a_gone_gateway_are_not_run(bench: Bench) -> None:
    """Nobody would read the replies."""
    client = bench.connect()
    client.sendall(_batch(1, rows=40) + _batch(2, rows=40))
    client.close()
    bench.loop.turn()
    bench.loop.turn()
    assert bench.runtime.calls == [40]


def test_gateway_that_does_not_read_is_closed_and_blocks_nobody(bench: Bench) -> None:
    """Unread replies are kept up to the bound, then the connection is closed; others are served throughout."""
    bench.loop.unsent_bytes_max = 2_000
    deaf, good = bench.connect(), bench.connect()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    turns = 0
    while not bench.log and turns < 20_000:
        turns += 1
        deaf.sendall(_batch(turns))
        good.sendall(_batch(turns))
        bench.loop.turn()
        assert [f.id for f in _receive(good, 1)] == [turns]
    assert "expected the gateway to read" in bench.log[0]


def _large(frame_id: int, row_count: int) -> bytes:
    """Make a batch of one request, too large to be merged."""
    return _frame(batch_of([[frame_id, k] for k in range(row_count)], [row_count], frame_id=frame_id))


def _push(client: socket.socket, data: memoryview) -> memoryview:
    """Send what the socket takes without waiting; return the rest."""
    try:
        while data:
            data = data[client.send(data) :]
    except BlockingIOError:
        pass
    return data


def test_slow_reader_gets_every_byte(bench: Bench) -> None:
    """Replies larger than a socket's buffer arrive whole and in order when the gateway reads at last."""
    client = bench.connect()
    client.setblocking(False)
    count, row_count = 3, 300_000
    unsent = memoryview(b"".join(_large(k, row_count) for k in range(count)))
    while unsent or len(bench.runtime.calls) < count:
        unsent = _push(client, unsent)
        bench.loop.turn()
    decoder = FrameDecoder()
    frames: list[Frame] = []
    while len(frames) < count:
        try:
            frames += decoder.feed(client.recv(50_000))
        except BlockingIOError:
            bench.loop.turn()
    assert [f.id for f in frames] == list(range(count))
    for k, frame in enumerate(frames):
        expected = np.arange(row_count, dtype=np.float32) + k
        np.testing.assert_array_equal(np.frombuffer(frame.payload, "<f4"), expected)


def test_flood_is_left_in_the_socket(bench: Bench) -> None:
    """A connection with many waiting batches is not read further, and is read again as they are done."""
    client = bench.connect()
    client.setblocking(False)
    frames = [_large(k, 2_000) for k in range(400)]
    unsent = memoryview(b"".join(frames))
    most = 0
    ids: list[int] = []
    decoder = FrameDecoder()
    while len(ids) < len(frames):
        unsent = _push(client, unsent)
        bench.loop.turn()
        most = max(most, len(bench.loop._waiting))
        try:
            ids += [f.id for f in decoder.feed(client.recv(1 << 20))]
        except BlockingIOError:
            pass
    assert ids == list(range(400))
    # What one read can bring past the bound.
    assert WAITING_PER_CONNECTION_MAX / 2 < most <= WAITING_PER_CONNECTION_MAX + RECEIVE_BYTES // len(frames[0]) + 1


def test_drain_finishes_what_is_queued_and_accepts_no_more(bench: Bench) -> None:
    """A drain answers what was sent before it, removes the address and ends."""
    client = bench.connect()
    client.sendall(_batch(1) + _batch(2, width=3))
    bench.loop.start_drain(1_000_000)
    bench.loop.run()
    assert [f.id for f in _receive(client, 2)] == [1, 2]
    assert client.recv(1) == b""
    assert not Path(bench.path).exists()


def test_drain_ends_at_its_time(bench: Bench) -> None:
    """A gateway that goes on sending cannot keep a draining replica alive."""
    client = bench.connect()

    def endless(x: object) -> dict[str, object]:
        client.sendall(_batch(1))
        bench.clock.now_us += 100
        raise RuntimeError

    bench.runtime._function = endless  # type: ignore[assignment]  # it raises, so it owes no arrays
    client.sendall(_batch(1))
    bench.loop.start_drain(1_000)
    bench.loop.run()
    assert len(bench.runtime.calls) == 10


def test_bug_in_the_executor_is_answered(bench: Bench) -> None:
    """Even a bug of ours answers its requests with 500 and leaves the loop running."""
    client = bench.connect()

    class Broken:
        row_count_max = 64

        def execute(self, batches: list[Batch]) -> None:
            raise ZeroDivisionError

    bench.loop._executor = Broken()  # type: ignore[assignment]  # no Executor has this bug
    client.sendall(_batch(1, rows=2))
    bench.loop.turn()
    meta = decode_reply_meta(_receive(client, 1)[0])
    assert [(f.index, f.status) for f in meta.failures] == [(0, 500), (1, 500)]
    assert "ZeroDivisionError" in bench.log[0]


def test_tcp_address_with_port_zero_is_told(bench: Bench) -> None:
    """Listening on TCP works the same; the address returned has the port that was bound."""
    loop = bench.another()
    _, host, port = loop.listen("tcp:127.0.0.1:0").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        loop.turn()
        client.sendall(_batch(1))
        loop.turn()
        assert [f.id for f in _receive(client, 1)] == [1]
    loop.start_drain(0)
    loop.run()


@pytest.mark.parametrize(
    "address", ["", "unix:", "tcp:1", "tcp::80", "http://x", "unix:/nowhere/at/all.sock", "tcp:256.0.0.1:1"]
)
def test_wrong_address_is_named(bench: Bench, address: str) -> None:
    """An address that cannot be listened on is a ConfigError with the address in it."""
    loop = bench.another()
    with pytest.raises(ConfigError, match="address"):
        loop.listen(address)


def test_stale_socket_is_replaced(bench: Bench) -> None:
    """What a killed replica left behind does not stop its successor."""
    loop = bench.another()
    Path(bench.path).touch()
    assert loop.listen(f"unix:{bench.path}") == f"unix:{bench.path}"
