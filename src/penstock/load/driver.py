"""The open loop: send each request at its intended time, whatever the server does, and time it from that instant.

A request that finds no free connection waits in line with its clock running; nothing is ever skipped or rescheduled,
so a stall of s ms shows in every request intended during it (no coordinated omission). A refused one may be sent again,
its clock still running. One loop, one timer for the whole schedule, one outstanding request per connection, no object
per request. Clocks and sockets come in as arguments.

    opening --connected--> free --send--> busy --answer--> free      any --closed, timeout, malformed--> gone

Source: G. Tene, "How NOT to Measure Latency", on coordinated omission.
"""

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from penstock.load.network import BROKEN, READABLE, WRITABLE, Network, Socket
from penstock.load.parsing import Answer, AnswerParser, MalformedAnswer

__all__ = [
    "BACKOFF_US_MAX",
    "FAILURE_REASONS",
    "LIMITED",
    "PENDING",
    "RETRIES_MAX",
    "SHED",
    "Driver",
    "DriverConfig",
    "Recording",
]

# What stands in `Recording.latency_us` in place of a latency, when a request got no good answer.
PENDING = -1
SHED = -2  # 503 or 504: the server's refusal of work that is too much for it
STATUS = -3
MALFORMED = -4
CLOSED = -5
TIMEOUT = -6
REFUSED = -7
UNSENT = -8
LIMITED = -9  # 429: its refusal of what is more than this caller may ask for
FAILURE_REASONS: dict[int, str] = {
    STATUS: "another status than 2xx, 429, 503 or 504",
    MALFORMED: "not an inference answer",
    CLOSED: "connection closed before the answer",
    TIMEOUT: "no answer in time",
    REFUSED: "connection refused",
    UNSENT: "never sent: no connection in time",
}
_REFUSALS = {429: LIMITED, 503: SHED, 504: SHED}

BACKOFF_US_MAX = 100_000  # a client that waits longer than the SLOs of this project might as well give up
RETRIES_MAX = 100  # attempts are counted in one byte

# Sends between two looks at the sockets when the loop has fallen behind: about 1 ms of work.
_SENDS_PER_ROUND_MAX = 64
_RECV_BYTES = 65_536
# Requests on one connection when load is to be spread: at 5,000 per second 80 new ones, 2 % of the generator's time.
_SPREAD_REQUESTS = 64
_PROGRESS_EVERY_US = 250_000
_NEVER_US = 1 << 62


@dataclass(frozen=True, slots=True)
class DriverConfig:
    """How one process drives its share of the load.

    Args:
        connections_start: Opened before the run, >= 1.
        connections_max: Never more than this many; requests beyond it wait in line.
        timeout_us: A request not answered so long after its intended time has failed, µs. It ends the run, too.
        nap_us: Shortest sleep while requests are due closer together than this, µs. Sends and receipts are late by at
            most this (it is in the latencies); in return a wake-up serves several requests. At 10,000 requests per
            second 400 µs took 16 to 21 µs of CPU time per request; waking for each took 25 to 30 (measured).
        measured_from: Index of the first request after the warm-up.
        retries: How often a refused request is sent again, 0 to `RETRIES_MAX`.
        backoff_us: How long after its refusal, µs. -1: as long as the server says, at most `BACKOFF_US_MAX`, which is
            also what a server is taken to mean that says nothing.
        is_spread: Use all connections in turn and replace each after a few requests, as many callers would: the load
            reaches every process that shares the port, and those that come later. Otherwise the busiest few stay warm.
    """

    connections_start: int
    connections_max: int
    timeout_us: int
    nap_us: int = 400
    measured_from: int = 0
    retries: int = 0
    backoff_us: int = -1
    is_spread: bool = False


@dataclass(slots=True)
class Recording:
    """What happened, by index into the schedule.

    Args:
        latency_us: From the intended time to the end of a good answer, µs, or one of the negative outcome codes.
        lateness_us: How late the generator itself came to the request, µs. Waiting for a connection is the server's
            doing and is not in here.
        attempts: How often each was sent; empty when nothing may be sent again (then at most once).
        delay_us: How long after its intended time its last attempt was due, µs; empty likewise.
        refusals: Four numbers for each refusal, final or not: index, when it came (µs from the start), how long after
            the request was sent, µs, and its status.
        status_counts: Answers by HTTP status, measured requests only, every attempt.
        cpu_us: CPU time of this process from the first measured request to the end.
        connections_opened: All that were opened successfully.
        held_count: Requests that found no free connection, measured or not.
    """

    latency_us: "array[int]"
    lateness_us: "array[int]"
    attempts: "array[int]" = field(default_factory=lambda: array("B"))
    delay_us: "array[int]" = field(default_factory=lambda: array("q"))
    refusals: "array[int]" = field(default_factory=lambda: array("q"))
    status_counts: dict[int, int] = field(default_factory=dict)
    cpu_us: int = 0
    connections_opened: int = 0
    held_count: int = 0


class _Connection:
    __slots__ = ("index", "is_open", "parser", "sent_count", "sent_us", "socket", "unsent")

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.index = -1  # of the request in flight, -1 if none
        self.sent_us = 0
        self.sent_count = 0
        self.is_open = False
        self.parser = AnswerParser()
        self.unsent: memoryview | None = None


def _ignore_progress(sent: int, answered: int) -> None:
    """Nobody watches."""


class Driver:
    """Drive one schedule against one server. Use once: `wait_connected`, then `run`.

    Args:
        config: Bounds.
        schedule_us: Intended send times, µs from the start, sorted.
        request: Returns the bytes of request i (an index into `schedule_us`).
        network: Where connections come from.
        now_us: Monotonic clock, µs.
        cpu_us: CPU time of this process, µs.
        on_progress: Called about four times a second with the counts of requests begun and ended.
    """

    def __init__(
        self,
        config: DriverConfig,
        schedule_us: "array[int]",
        request: Callable[[int], bytes],
        network: Network,
        *,
        now_us: Callable[[], int],
        cpu_us: Callable[[], int],
        on_progress: Callable[[int, int], None] = _ignore_progress,
    ) -> None:
        assert 1 <= config.connections_start <= config.connections_max
        assert 0 <= config.retries <= RETRIES_MAX
        self._config = config
        self._schedule = schedule_us
        self._request = request
        self._network = network
        self._clock = now_us
        self._cpu_us = cpu_us
        self._on_progress = on_progress
        self._start_us = 0
        self._next = 0  # index of the next request to begin
        self._ended = 0
        self._connections: dict[int, _Connection] = {}
        self._opening = 0
        self._free: deque[_Connection] = deque()
        # Last in, first out keeps the busiest few warm.
        self._take_free = self._free.popleft if config.is_spread else self._free.pop
        self._line: deque[int] = deque()  # begun, waiting for a connection; oldest first
        self._again: list[tuple[int, int]] = []  # a heap: when to send which refused request again
        self._refused: dict[int, int] = {}  # how each request that was to be sent again was refused last
        count = len(schedule_us)
        self._recording = Recording(array("q", [PENDING]) * count, array("q", [0]) * count)
        if config.retries:
            self._recording.attempts = array("B", [0]) * count
            self._recording.delay_us = array("q", [0]) * count

    def wait_connected(self, timeout_us: int) -> int:
        """Open the first connections; return how many are open after at most `timeout_us`. Blocks."""
        until = self._clock() + timeout_us
        for _ in range(self._config.connections_start):
            if not self._open_connection():
                break
        while self._opening and (left := until - self._clock()) > 0:
            for descriptor, mask in self._network.wait_events(left, is_nap=False):
                self._on_event(descriptor, mask)
        return len(self._free)

    def run(self, start_at_us: int) -> Recording:
        """Send the whole schedule from `start_at_us` on and wait for the answers. Blocks; closes every connection.

        Cost: at most the schedule's length and `timeout_us`. The recording has no PENDING left.
        """
        clock, config = self._clock, self._config
        self._start_us = start_at_us
        count = len(self._schedule)
        sweep_every_us = max(1_000, min(100_000, config.timeout_us // 10))
        sweep_at = progress_at = 0
        cpu_from = -1
        while self._ended < count:
            now = clock() - start_at_us
            if self._next_due_us() <= now:
                self._send_due(now)
                self._send_again(clock() - start_at_us)
                if cpu_from < 0 and self._next > config.measured_from:
                    cpu_from = self._cpu_us()
                now = clock() - start_at_us
            if now >= sweep_at:
                self._sweep(now)
                sweep_at = now + sweep_every_us
                if now >= progress_at:
                    self._on_progress(self._next, self._ended)
                    progress_at = now + _PROGRESS_EVERY_US
            timeout_us = sweep_at - now
            is_nap = False
            if (due_us := self._next_due_us() - now) < timeout_us:
                is_nap = 0 < due_us < config.nap_us
                timeout_us = config.nap_us if is_nap else max(due_us, 0)
            for descriptor, mask in self._network.wait_events(timeout_us, is_nap=is_nap):
                self._on_event(descriptor, mask)
        self._recording.cpu_us = self._cpu_us() - cpu_from if cpu_from >= 0 else 0
        self._on_progress(self._next, self._ended)
        for connection in list(self._connections.values()):
            self._drop(connection)
        return self._recording

    def _next_due_us(self) -> int:
        """Return when the next request, new or refused before, is to be sent, µs from the start."""
        due_us = self._schedule[self._next] if self._next < len(self._schedule) else _NEVER_US
        return min(due_us, self._again[0][0]) if self._again else due_us

    def _send_due(self, now: int) -> None:
        schedule, lateness, clock, start_us = self._schedule, self._recording.lateness_us, self._clock, self._start_us
        index = self._next
        stop = min(len(schedule), index + _SENDS_PER_ROUND_MAX)
        while index < stop and schedule[index] <= now:
            lateness[index] = now - schedule[index]
            if self._free:
                self._send(self._take_free(), index, now)
            else:
                self._hold(index)
            index += 1
            now = clock() - start_us
        self._next = index

    def _send_again(self, now: int) -> None:
        """Send the refused requests whose time has come, as many in one go as new ones."""
        again = self._again
        for _ in range(_SENDS_PER_ROUND_MAX):
            if not again or again[0][0] > now:
                return
            due_us, index = heappop(again)
            self._recording.delay_us[index] = due_us - self._schedule[index]
            if self._free:
                self._send(self._take_free(), index, now)
            else:
                self._hold(index)

    def _hold(self, index: int) -> None:
        """Put a request into the line for a connection."""
        self._recording.held_count += 1
        self._line.append(index)
        self._open_for_line()

    def _send(self, connection: _Connection, index: int, now: int) -> None:
        data = self._request(index)
        connection.index = index
        connection.sent_us = now
        connection.sent_count += 1
        if self._config.retries:
            self._recording.attempts[index] += 1
        try:
            sent = connection.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose(connection, CLOSED)
            return
        if sent < len(data):
            connection.unsent = memoryview(data)[sent:]
            self._network.watch(connection.socket, READABLE | WRITABLE)

    def _on_event(self, descriptor: int, mask: int) -> None:
        connection = self._connections.get(descriptor)
        if connection is None:
            return  # closed earlier in this very batch of events
        if not connection.is_open:
            self._on_connected(connection)
            return
        if mask & WRITABLE and connection.unsent is not None:
            self._send_rest(connection)
        if mask & (READABLE | BROKEN) and connection.is_open:
            self._receive(connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_RECV_BYTES)
            answer = connection.parser.feed(data) if data else connection.parser.feed_eof()
        except BlockingIOError:
            return
        except OSError:
            self._lose(connection, CLOSED)
            return
        except MalformedAnswer:
            self._lose(connection, MALFORMED)
            return
        if answer is None:
            if not data:
                self._lose(connection, CLOSED)
            return
        if connection.index < 0 or connection.unsent is not None:  # an answer to nothing, or to half a request
            self._lose(connection, MALFORMED)
            return
        now = self._take_answer(connection, answer)
        if not answer[2] or not data:
            self._drop(connection)
            self._open_for_line()
        elif self._config.is_spread and connection.sent_count >= _SPREAD_REQUESTS:
            self._drop(connection)
            self._open_connection()
        elif self._line:
            self._send(connection, self._line.popleft(), now)
        else:
            self._free.append(connection)

    def _take_answer(self, connection: _Connection, answer: Answer) -> int:
        """Record the answer to the request in flight; return when it came."""
        index = connection.index
        status, body, _, retry_after_us = answer
        now = self._clock() - self._start_us
        if index >= self._config.measured_from:
            counts = self._recording.status_counts
            counts[status] = counts.get(status, 0) + 1
        if 200 <= status < 300:
            self._end(index, now - self._schedule[index] if is_inference_answer(body) else MALFORMED)
        elif status in _REFUSALS:
            self._recording.refusals.extend((index, now, now - connection.sent_us, status))
            self._take_refusal(index, now, _REFUSALS[status], retry_after_us)
        else:
            self._end(index, STATUS)
        connection.index = -1
        return now

    def _take_refusal(self, index: int, now: int, outcome: int, retry_after_us: int) -> None:
        """Plan to send a refused request again, or end it with `outcome`: out of attempts, or no time for another."""
        config = self._config
        if config.retries and self._recording.attempts[index] <= config.retries:
            backoff_us = config.backoff_us
            if backoff_us < 0:
                backoff_us = min(retry_after_us, BACKOFF_US_MAX) if retry_after_us >= 0 else BACKOFF_US_MAX
            if now + backoff_us - self._schedule[index] < config.timeout_us:
                heappush(self._again, (now + backoff_us, index))
                self._refused[index] = outcome
                return
        self._end(index, outcome)

    def _send_rest(self, connection: _Connection) -> None:
        assert connection.unsent is not None
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._lose(connection, CLOSED)
            return
        connection.unsent = connection.unsent[sent:] if sent < len(connection.unsent) else None
        if connection.unsent is None:
            self._network.watch(connection.socket, READABLE)

    def _open_connection(self) -> bool:
        try:
            connection = _Connection(self._network.connect_nowait())
        except OSError:
            return False
        self._connections[connection.socket.fileno()] = connection
        self._opening += 1
        return True

    def _open_for_line(self) -> None:
        """Open one more connection if someone in line has none coming; if it is refused, the eldest in line fails."""
        is_wanted = len(self._line) > self._opening and len(self._connections) < self._config.connections_max
        if is_wanted and not self._open_connection():
            self._end(self._line.popleft(), REFUSED)

    def _on_connected(self, connection: _Connection) -> None:
        self._opening -= 1
        if self._network.connect_error(connection.socket):
            self._drop(connection)
            if self._line:
                self._end(self._line.popleft(), REFUSED)
                self._open_for_line()
            return
        connection.is_open = True
        self._recording.connections_opened += 1
        self._network.watch(connection.socket, READABLE)
        if self._line:
            self._send(connection, self._line.popleft(), self._clock() - self._start_us)
        else:
            self._free.append(connection)

    def _lose(self, connection: _Connection, outcome: int) -> None:
        """Close a connection that broke; the request in flight on it, if any, ends with `outcome`."""
        if connection.index >= 0:
            self._end(connection.index, outcome)
        elif connection in self._free:
            self._free.remove(connection)
        self._drop(connection)
        if self._config.is_spread:
            self._open_connection()
        self._open_for_line()

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.socket.fileno()]
        connection.is_open = False
        self._network.close(connection.socket)

    def _end(self, index: int, outcome: int) -> None:
        assert self._recording.latency_us[index] == PENDING
        self._recording.latency_us[index] = outcome
        self._ended += 1

    def _sweep(self, now: int) -> None:
        """End every request whose time is up. Scans the connections: cheap, as it runs a few times per second."""
        schedule = self._schedule
        expired_before = now - self._config.timeout_us
        while self._line and schedule[self._line[0]] < expired_before:
            index = self._line.popleft()
            self._end(index, self._refused.get(index, UNSENT))
        for connection in list(self._connections.values()):
            if connection.index >= 0 and schedule[connection.index] < expired_before:
                self._lose(connection, TIMEOUT)


def is_inference_answer(body: bytes) -> bool:
    """Return whether a 2xx body has the form of an OIP answer: a JSON object with `outputs`. Looks, does not parse."""
    return body[:1] == b"{" and body.rstrip()[-1:] == b"}" and b'"outputs"' in body
