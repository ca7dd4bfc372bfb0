"""The driver in virtual time: a fake network moves the clock, so every law here is exact."""

import heapq
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from penstock.load.driver import (
    BACKOFF_US_MAX,
    CLOSED,
    LIMITED,
    MALFORMED,
    REFUSED,
    SHED,
    STATUS,
    TIMEOUT,
    UNSENT,
    Driver,
    DriverConfig,
    Recording,
)
from penstock.load.network import READABLE, WRITABLE, Socket

GOOD = b'{"outputs":[]}'
NAP_US = 250


def answer(status: int = 200, body: bytes = GOOD, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), extra, body)


class Clock:
    def __init__(self) -> None:
        self.now_us = 1_000_000

    def read(self) -> int:
        return self.now_us


class FakeSocket:
    """One connection; `take_max` bytes fit into a send."""

    def __init__(self, network: "FakeNetwork", descriptor: int) -> None:
        self.network = network
        self.descriptor = descriptor
        self.inbox: list[bytes] = []
        self.received = b""

    def fileno(self) -> int:
        return self.descriptor

    def send(self, data: bytes | memoryview, /) -> int:
        taken = bytes(data[: self.network.take_max])
        if not taken:
            raise BlockingIOError
        self.received += taken
        head, found, body = self.received.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.rpartition(b"Content-Length: ")[2]):
            self.network.serve(self, body)
            self.received = b""
        return len(taken)

    def recv(self, size: int, /) -> bytes:
        if not self.inbox:
            raise BlockingIOError
        data = self.inbox.pop(0)
        if data == b"reset":
            raise ConnectionResetError
        return data


class FakeNetwork:
    """A server in virtual time. `handle(now_us, body)` says when it answers (None: never) and with what."""

    def __init__(
        self, clock: Clock, handle: Callable[[int, bytes], tuple[int | None, bytes]], connect_us: int = 100
    ) -> None:
        self.clock = clock
        self.handle = handle
        self.connect_us = connect_us
        self.take_max = 1 << 20
        self.oversleep_us = 0
        self.is_refusing = False
        self.split_us = 0  # how long after the first half of an answer the second comes, 0: together
        self.bodies: list[bytes] = []
        self.sent_at_us: list[int] = []
        self.sent_by: Counter[int] = Counter()  # requests by connection
        self.open_count = self.open_max = 0
        self._events: list[tuple[int, int, FakeSocket, bytes]] = []
        self._sequence = 0
        self._gone: set[int] = set()
        self._wants_write: dict[int, FakeSocket] = {}

    def _post(self, at_us: int, socket: FakeSocket, data: bytes) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at_us, self._sequence, socket, data))

    def serve(self, socket: FakeSocket, body: bytes) -> None:
        self.bodies.append(body)
        self.sent_by[socket.descriptor] += 1
        self.sent_at_us.append(self.clock.now_us)
        at_us, data = self.handle(self.clock.now_us, body)
        if at_us is None:
            return
        middle = len(data) // 2 if self.split_us else len(data)
        self._post(at_us, socket, data[:middle])
        if self.split_us:
            self._post(at_us + self.split_us, socket, data[middle:])

    def connect_nowait(self) -> FakeSocket:
        if self.is_refusing:
            raise ConnectionRefusedError
        self._sequence += 1
        socket = FakeSocket(self, self._sequence)
        self.open_count += 1
        self.open_max = max(self.open_max, self.open_count)
        self._post(self.clock.now_us + self.connect_us, socket, b"connected")
        return socket

    def connect_error(self, connection: Socket) -> int:
        return 0

    def watch(self, connection: Socket, events: int) -> None:
        assert isinstance(connection, FakeSocket)
        self._wants_write.pop(connection.descriptor, None)
        if events & WRITABLE:
            self._wants_write[connection.descriptor] = connection

    def close(self, connection: Socket) -> None:
        self.open_count -= 1
        self._gone.add(connection.fileno())

    def wait_events(self, timeout_us: int, *, is_nap: bool) -> Sequence[tuple[int, int]]:
        until_us = self.clock.now_us + timeout_us + (self.oversleep_us if timeout_us else 0)
        ready = [(descriptor, WRITABLE) for descriptor in self._wants_write]
        if not ready and not is_nap and self._events:
            until_us = min(until_us, max(self._events[0][0], self.clock.now_us))
        if not ready or is_nap:
            self.clock.now_us = until_us
        while self._events and self._events[0][0] <= self.clock.now_us:
            _, _, socket, data = heapq.heappop(self._events)
            if socket.descriptor in self._gone:
                continue
            if data == b"connected":
                ready.append((socket.descriptor, WRITABLE))
            else:
                socket.inbox.append(data)
                ready.append((socket.descriptor, READABLE))
        return ready


def request(index: int) -> bytes:
    body = b"%d" % index
    return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def drive(
    schedule_us: list[int],
    handle: Callable[[int, bytes], tuple[int | None, bytes]],
    *,
    adjust: Callable[[FakeNetwork], None] = lambda _network: None,
    start: int = 4,
    most: int = 1_000,
    timeout_us: int = 1_000_000,
    measured_from: int = 0,
    retries: int = 0,
    backoff_us: int = -1,
    is_spread: bool = False,
) -> tuple[Recording, FakeNetwork, int]:
    """Run a schedule; return the recording, the network, and when the run began."""
    clock = Clock()
    network = FakeNetwork(clock, handle)
    config = DriverConfig(
        connections_start=start,
        connections_max=most,
        timeout_us=timeout_us,
        nap_us=NAP_US,
        measured_from=measured_from,
        retries=retries,
        backoff_us=backoff_us,
        is_spread=is_spread,
    )
    driver = Driver(config, array("q", schedule_us), request, network, now_us=clock.read, cpu_us=clock.read)
    assert driver.wait_connected(1_000_000) == start
    adjust(network)
    start_us = clock.now_us + 1_000
    return driver.run(start_us), network, start_us


def test_every_request_is_sent_once_and_timed_from_its_intention() -> None:
    """Each request is sent exactly once, in order, never early; its latency is the wait for it plus the service."""
    schedule = [137 * i for i in range(2_000)]
    recording, network, start_us = drive(schedule, lambda now, _body: (now + 3_000, answer()))
    assert network.bodies == [b"%d" % i for i in range(2_000)]
    for intended, sent_at, latency in zip(schedule, network.sent_at_us, recording.latency_us, strict=True):
        assert intended <= sent_at - start_us
        assert 3_000 <= latency <= 3_000 + 2 * NAP_US
    assert max(recording.lateness_us) <= NAP_US
    assert recording.status_counts == {200: 2_000}
    assert network.open_count == 0


@pytest.mark.parametrize("most", [4, 1_000])
def test_a_stall_shows_in_every_request_intended_during_it(most: int) -> None:
    """No coordinated omission: who was due during the stall waited until its end at least, however few connections."""
    schedule = [1_000 * i for i in range(1_000)]
    clock_zero = 1_000_000 + 100 + 1_000  # the clock's start, connecting, and the delay before the run
    stall = range(clock_zero + 400_000, clock_zero + 700_000)

    def handle(now: int, body: bytes) -> tuple[int, bytes]:
        return (stall.stop if now in stall else now) + 500, answer()

    recording, _, start_us = drive(schedule, handle, most=most)
    assert start_us == clock_zero
    for intended, latency in zip(schedule, recording.latency_us, strict=True):
        if start_us + intended in stall:
            assert latency >= stall.stop - (start_us + intended)
    p99 = sorted(recording.latency_us)[989]
    assert p99 > 280_000
    assert sorted(recording.lateness_us)[989] <= NAP_US, "the server's stall is not the generator's lateness"


def test_an_oversleeping_generator_admits_its_lateness() -> None:
    """If waking up takes 5 ms too long, lateness says so, and the latencies contain it."""

    def oversleep(network: FakeNetwork) -> None:
        network.oversleep_us = 5_000

    recording, _, _ = drive(
        [10_000 * i for i in range(1, 100)], lambda now, _body: (now + 100, answer()), adjust=oversleep
    )
    assert sorted(recording.lateness_us)[50] >= 4_000
    assert all(latency >= late for latency, late in zip(recording.latency_us, recording.lateness_us, strict=True))


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (answer(503), SHED),
        (answer(429), LIMITED),
        (answer(504), SHED),
        (answer(500), STATUS),
        (answer(400), STATUS),
        (answer(302), STATUS),
        (answer(200, b"oops"), MALFORMED),
        (answer(200, b'{"error":"x"}'), MALFORMED),
        (b"nonsense\r\n\r\n", MALFORMED),
        (answer() + answer(), MALFORMED),
        (b"", CLOSED),
        (b"reset", CLOSED),
    ],
)
def test_what_each_answer_counts_as(data: bytes, outcome: int) -> None:
    """Refusals are shed, or limited; other statuses, bodies and broken connections are failures; the others go on."""

    def handle(now: int, body: bytes) -> tuple[int, bytes]:
        return now + 100, data if body == b"5" else answer()

    recording, network, _ = drive([1_000 * i for i in range(20)], handle)
    assert recording.latency_us[5] == outcome
    assert sum(latency < 0 for latency in recording.latency_us) == 1
    assert network.open_count == 0


def test_silence_ends_in_a_timeout() -> None:
    """A request that is never answered fails after the timeout and frees its place; the run ends."""
    recording, _, _ = drive(
        [1_000 * i for i in range(20)],
        lambda now, body: (None if body == b"3" else now + 100, answer()),
        most=4,
        timeout_us=50_000,
    )
    assert recording.latency_us[3] == TIMEOUT
    assert sum(latency < 0 for latency in recording.latency_us) == 1


def test_connections_are_bounded_and_the_line_is_honest() -> None:
    """Never more than the limit of connections; who waited in line too long was never sent, and is counted so."""
    recording, network, _ = drive(
        [1_000 * i for i in range(100)],
        lambda now, _body: (now + 500_000, answer()),
        start=2,
        most=10,
        timeout_us=300_000,
    )
    outcomes = Counter(latency for latency in recording.latency_us if latency < 0)
    assert network.open_max <= 10
    assert outcomes[UNSENT] > 0
    assert outcomes[UNSENT] + outcomes[TIMEOUT] == 100
    assert len(network.bodies) == 100 - outcomes[UNSENT]
    assert recording.held_count >= 90


def test_more_connections_open_on_demand() -> None:
    """With room to grow, a slow server meets as many requests at once as were due: the loop stays open."""
    recording, network, _ = drive([1_000 * i for i in range(200)], lambda now, _body: (now + 100_000, answer()))
    assert all(100_000 <= latency < 102_000 for latency in recording.latency_us)
    assert 100 <= network.open_max <= 110
    assert recording.connections_opened == network.open_max


def test_a_server_that_goes_away_fails_fast() -> None:
    """When connecting is refused, each request fails at once as refused, and none is lost."""

    def refuse(network: FakeNetwork) -> None:
        network.is_refusing = True

    recording, _, _ = drive([1_000 * i for i in range(50)], lambda now, _body: (now + 100, b""), adjust=refuse)
    outcomes = Counter(recording.latency_us)
    assert outcomes[CLOSED] == 4
    assert outcomes[REFUSED] == 46


def test_a_closing_server_gets_a_new_connection() -> None:
    """`Connection: close` after each answer costs a connection each, and no request."""
    recording, _, _ = drive(
        [1_000 * i for i in range(50)], lambda now, _body: (now + 100, answer(extra=b"Connection: close\r\n"))
    )
    assert all(latency >= 100 for latency in recording.latency_us)
    assert recording.connections_opened == 50


def test_a_request_that_does_not_fit_the_socket_is_finished_later() -> None:
    """Partial sends continue when the socket has room; the bytes arrive whole."""

    def trickle(network: FakeNetwork) -> None:
        network.take_max = 7

    recording, network, _ = drive(
        [1_000 * i for i in range(20)], lambda now, _body: (now + 100, answer()), adjust=trickle
    )
    assert network.bodies == [b"%d" % i for i in range(20)]
    assert all(latency >= 100 for latency in recording.latency_us)


def test_split_answers_are_put_together() -> None:
    """An answer in two pieces counts when the second has come."""

    def split(network: FakeNetwork) -> None:
        network.split_us = 2_000

    recording, _, _ = drive([2_000 * i for i in range(10)], lambda now, _body: (now + 400, answer()), adjust=split)
    assert all(2_400 <= latency <= 2_400 + 2 * NAP_US for latency in recording.latency_us)


def test_only_measured_requests_count_towards_statuses_and_cpu() -> None:
    """The warm-up is sent and recorded, but status counts and CPU time begin with the first measured request."""
    recording, _, _ = drive([10_000 * i for i in range(20)], lambda now, _body: (now + 100, answer()), measured_from=15)
    assert recording.status_counts == {200: 5}
    assert len(recording.latency_us) == 20
    assert 40_000 <= recording.cpu_us <= 41_000


def test_an_empty_schedule_ends_at_once() -> None:
    """Nothing to send, nothing recorded, everything closed."""
    recording, network, _ = drive([], lambda now, _body: (now, answer()))
    assert len(recording.latency_us) == 0
    assert network.open_count == 0


def refuse_first(times: int, status: int = 503, extra: bytes = b"") -> Callable[[int, bytes], tuple[int, bytes]]:
    """Return a server that refuses each request so many times after 200 µs, then answers after 1,000."""
    seen: Counter[bytes] = Counter()

    def handle(now: int, body: bytes) -> tuple[int, bytes]:
        seen[body] += 1
        return (now + 200, answer(status, extra=extra)) if seen[body] <= times else (now + 1_000, answer())

    return handle


@pytest.mark.parametrize("status", [429, 503, 504])
def test_a_refused_request_is_sent_again_with_its_clock_running(status: int) -> None:
    """It is sent again after the backoff, and its latency counts from the first intended time."""
    recording, network, start_us = drive(
        [10_000 * i for i in range(10)], refuse_first(2, status), retries=3, backoff_us=7_000
    )
    assert len(network.bodies) == 30
    assert list(recording.attempts) == [3] * 10
    for latency, delay in zip(recording.latency_us, recording.delay_us, strict=True):
        assert 2 * (7_000 + 200) <= delay <= 2 * (7_000 + 200) + 4 * NAP_US
        assert delay + 1_000 <= latency <= delay + 1_000 + 2 * NAP_US
    sends = [at for at, body in zip(network.sent_at_us, network.bodies, strict=True) if body == b"4"]
    assert all(later - earlier >= 7_200 for earlier, later in itertools.pairwise(sends))
    assert recording.status_counts == {status: 20, 200: 10}
    assert sends[0] - start_us >= 40_000


@pytest.mark.parametrize(("status", "outcome"), [(503, SHED), (429, LIMITED)])
def test_retries_are_bounded(status: int, outcome: int) -> None:
    """A request refused every time is sent once and then as often again as allowed, and ends as it was refused."""
    recording, network, _ = drive([1_000 * i for i in range(20)], refuse_first(99, status), retries=3, backoff_us=0)
    assert len(network.bodies) == 80
    assert set(recording.latency_us) == {outcome}
    assert len(recording.refusals) == 4 * 80


def test_without_retries_a_refusal_is_final() -> None:
    """Nothing is sent twice unless asked, and nothing is kept for it."""
    recording, network, _ = drive([1_000 * i for i in range(20)], refuse_first(1))
    assert len(network.bodies) == 20
    assert (len(recording.attempts), len(recording.delay_us)) == (0, 0)
    assert set(recording.latency_us) == {SHED}


@pytest.mark.parametrize(
    ("extra", "wait_us"),
    [
        (b"retry-after-ms: 12\r\n", 12_000),
        (b"Retry-After: 1\r\n", BACKOFF_US_MAX),
        (b"retry-after-ms: 999999\r\n", BACKOFF_US_MAX),
        (b"", BACKOFF_US_MAX),
    ],
)
def test_the_server_says_when_to_come_back(extra: bytes, wait_us: int) -> None:
    """Without a backoff of its own a client does as the server says, but waits no longer than the limit."""
    recording, network, _ = drive([0], refuse_first(1, extra=extra), retries=1)
    assert wait_us <= network.sent_at_us[1] - network.sent_at_us[0] - 200 <= wait_us + 2 * NAP_US
    assert recording.latency_us[0] > wait_us


def test_a_retry_that_would_come_too_late_is_not_waited_for() -> None:
    """When the timeout passes before the next attempt, the refusal is final at once."""
    recording, network, _ = drive([0, 1_000], refuse_first(9), retries=9, backoff_us=30_000, timeout_us=100_000)
    assert list(recording.latency_us) == [SHED, SHED]
    assert len(network.bodies) == 2 * 4
    assert list(recording.attempts) == [4, 4]


def test_refusals_are_timed_from_sending() -> None:
    """Each refusal is kept: whose, when, how long after its request was sent, and its status."""
    recording, _, _ = drive([5_000 * i for i in range(1, 5)], refuse_first(1, 429), retries=1, backoff_us=1_000)
    rows = [tuple(recording.refusals[i : i + 4]) for i in range(0, len(recording.refusals), 4)]
    assert sorted(index for index, *_ in rows) == [0, 1, 2, 3]
    for index, came_us, took_us, status in rows:
        assert 200 <= took_us <= 200 + NAP_US
        assert came_us >= 5_000 * (index + 1) + 200
        assert status == 429


@pytest.mark.parametrize(("status", "outcome"), [(503, SHED), (429, LIMITED)])
def test_a_retry_without_a_connection_in_time_was_refused_and_not_unsent(status: int, outcome: int) -> None:
    """A request that was sent before and then found no connection ends as what the server said."""

    def handle(now: int, body: bytes) -> tuple[int | None, bytes]:
        return (now + 200, answer(status)) if body == b"0" else (None, answer())

    recording, _, _ = drive([0, 400], handle, start=1, most=1, retries=3, backoff_us=5_000, timeout_us=50_000)
    assert list(recording.latency_us) == [outcome, TIMEOUT]


def test_a_spread_load_uses_all_connections_in_turn() -> None:
    """Each connection gets its part although one would do; otherwise the same few serve all."""
    schedule = [1_000 * i for i in range(200)]
    spread = drive(schedule, lambda now, _body: (now + 100, answer()), start=8, is_spread=True)[1]
    assert list(spread.sent_by.values()) == [25] * 8
    warm = drive(schedule, lambda now, _body: (now + 100, answer()), start=8)[1]
    assert len(warm.sent_by) == 1


def test_a_spread_load_replaces_its_connections() -> None:
    """After 64 requests, or when it is lost, another takes a connection's place, so that newcomers get their part."""

    def handle(now: int, body: bytes) -> tuple[int, bytes]:
        return now + 100, b"reset" if body == b"900" else answer()

    recording, network, _ = drive([1_000 * i for i in range(1_000)], handle, start=4, is_spread=True)
    assert max(network.sent_by.values()) == 64
    assert (network.open_max, network.open_count) == (4, 0)
    assert recording.connections_opened == 4 + 4 * (1_000 // (4 * 64)) + 1
    assert Counter(latency for latency in recording.latency_us if latency < 0) == {CLOSED: 1}
