"""The replica's loop: one thread, one selector; reads whatever is there, runs one execution, answers, reads again.

    select --> read, decode, queue --> merge what may run together --> execute --> send      (then select again)

While the model runs nothing is read: what arrives meanwhile waits in the sockets and is merged next. No threads and no
event loop, so that a loaded process can be forked. Not here: the execution (`executor.py`), the head (`control.py`).
"""

import selectors
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.core.errors import ConfigError
from penstock.core.profiles import CostProfile
from penstock.policy.merging import plan_merge
from penstock.replica.batch import Batch, Reply
from penstock.replica.control import ControlLink
from penstock.replica.executor import Executor
from penstock.wire.frame import (
    BATCH_FLAG_ALONE,
    BATCH_FLAG_CANARY,
    Failure,
    Frame,
    FrameDecoder,
    FrameError,
    FrameKind,
    ReplyMeta,
    decode_batch_meta,
    encode_frame,
    encode_meta,
)

__all__ = ["ReplicaLoop"]

RECEIVE_BYTES = 256 * 1024
# A gateway that has this much unread is not reading; one reply may be larger, since it is let in while below.
UNSENT_BYTES_MAX = 64 * 1024 * 1024
# Credits allow two batches per gateway; past this many from one connection its socket is left unread.
WAITING_PER_CONNECTION_MAX = 64
# Gateways of one machine number about its cores.
CONNECTIONS_MAX = 256
ACCEPT_BACKLOG = 128

_READ = selectors.EVENT_READ
_WRITE = selectors.EVENT_WRITE


class _Connection:
    """One gateway: a decoder for what comes in, and what it has not yet taken of what goes out."""

    __slots__ = (
        "_loop",
        "_mask",
        "_socket",
        "_unsent",
        "decoder",
        "is_open",
        "unsent_bytes",
        "waiting_count",
        "waiting_rows",
    )

    def __init__(self, loop: "ReplicaLoop", accepted: socket.socket) -> None:
        self._loop = loop
        self._socket = accepted
        self._mask = _READ
        self._unsent: deque[memoryview] = deque()
        self.decoder = FrameDecoder()
        self.is_open = True
        self.unsent_bytes = 0
        self.waiting_count = 0
        self.waiting_rows = 0
        loop.selector.register(accepted, _READ, self.on_ready)

    def on_ready(self, mask: int) -> None:
        """Do what the selector says is possible, if an earlier event has not closed this connection."""
        if mask & _WRITE and self.is_open:
            self._flush()
        if mask & _READ and self.is_open:
            self._read()

    def send(self, data: bytes) -> None:
        """Send now what the socket takes; keep the rest, unless too much is kept already."""
        if self._unsent:
            if self.unsent_bytes > self._loop.unsent_bytes_max:
                self.close(f"expected the gateway to read its replies, got {self.unsent_bytes} bytes unread")
                return
            self._unsent.append(memoryview(data))
            self.unsent_bytes += len(data)
            return
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:  # the gateway is gone; it answers its own callers
            self.close()
            return
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])
            self.unsent_bytes = len(data) - sent
            self.update_mask()

    def update_mask(self) -> None:
        """Tell the selector what to wait for: reading unless too much waits already, writing if something is unsent."""
        mask = (_READ if self.waiting_count < WAITING_PER_CONNECTION_MAX else 0) | (_WRITE if self._unsent else 0)
        if mask == self._mask:
            return
        if not self._mask:
            self._loop.selector.register(self._socket, mask, self.on_ready)
        elif not mask:
            self._loop.selector.unregister(self._socket)
        else:
            self._loop.selector.modify(self._socket, mask, self.on_ready)
        self._mask = mask

    def close(self, reason: str = "") -> None:
        """Close; its waiting batches are dropped when their turn comes, since nobody would read the replies."""
        if not self.is_open:
            return
        self.is_open = False
        if self._mask:
            self._loop.selector.unregister(self._socket)
        self._socket.close()
        self._unsent.clear()
        self.unsent_bytes = 0
        self._loop.forget(self, reason)

    def _read(self) -> None:
        try:
            nbytes = self._socket.recv_into(self._loop.buffer)
            if not nbytes:
                self.close()
                return
            # Copied, since frames keep views of it while they wait. Still cheaper than recv, which allocates for the
            # most that might come: 11 µs against 1 µs for 2 KB here, in which malloc maps and unmaps 256 KiB.
            frames = self.decoder.feed(bytes(self._loop.buffer[:nbytes]))
            for frame in frames:
                if frame.kind is not FrameKind.BATCH:
                    raise FrameError(f"frame {frame.id}: expected a BATCH, got a REPLY")
                self._loop.enqueue(self, frame)
        except (BlockingIOError, InterruptedError):
            return
        except FrameError as error:
            self.close(error.message)
            return
        except OSError:
            self.close()
            return
        if self.waiting_count >= WAITING_PER_CONNECTION_MAX:
            self.update_mask()

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent[0])
                self.unsent_bytes -= sent
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                    return
                self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self.update_mask()


class ReplicaLoop:
    """Serves one executor to any number of gateways until it is drained.

    Args:
        executor: What runs the batches.
        now_us: Monotonic clock, µs.
        log: Takes lines for people.
        profile: What batches cost here, to tell gateways how much work waits; None if that is not known.
        unsent_bytes_max: A connection that leaves more than this unread is closed.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        now_us: Callable[[], int],
        log: Callable[[str], None],
        profile: CostProfile | None = None,
        unsent_bytes_max: int = UNSENT_BYTES_MAX,
    ) -> None:
        self.selector = selectors.DefaultSelector()
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self.unsent_bytes_max = unsent_bytes_max
        self._executor = executor
        self._now_us = now_us
        self._log = log
        self._profile = profile
        self._listener: socket.socket | None = None
        self._unix_path: str | None = None
        self._connections: set[_Connection] = set()
        self._waiting: deque[tuple[_Connection, Batch]] = deque()
        self._waiting_rows = 0  # of open connections
        self._control: ControlLink | None = None
        self._drain_at_us: int | None = None
        self._terminated = False
        self._terminate_drain_us = 0

    def listen(self, address: str) -> str:
        """Listen on `unix:PATH` (a stale socket there is replaced) or `tcp:HOST:PORT`; return the address bound.

        Raises:
            ConfigError: Not such an address, or it cannot be bound.
        """
        kind, _, rest = address.partition(":")
        host, _, port = rest.rpartition(":")
        try:
            if kind == "unix" and rest:
                self._listener = _listen_unix(rest)
                self._unix_path = rest
            elif kind == "tcp" and host and port.isdigit():
                self._listener = socket.create_server((host, int(port)), backlog=ACCEPT_BACKLOG)
                address = f"tcp:{host}:{self._listener.getsockname()[1]}"
            else:
                raise ConfigError(f"address: expected unix:PATH or tcp:HOST:PORT, got {address!r}")
        except OSError as error:
            raise ConfigError(f"address {address!r}: cannot listen: {error}") from error
        self._listener.setblocking(False)
        self.selector.register(self._listener, _READ, self._accept)
        return address

    def attach(self, control: ControlLink) -> None:
        """Look after this control link too. It must have been made with this loop's selector."""
        self._control = control

    def drain_on_sigterm(self, drain_us: int) -> None:
        """Make SIGTERM drain within `drain_us`. Call from the main thread, once."""
        # The handler only raises a flag; a byte on a socket pair ends the select it interrupted.
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._terminate_drain_us = drain_us
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.set_wakeup_fd(wake_write.detach(), warn_on_full_buffer=False)
        self.selector.register(wake_read, _READ, lambda _mask: wake_read.recv(4096))

    def start_drain(self, drain_us: int) -> None:
        """Accept no more gateways and make `run` return when nothing is in flight, at the latest after `drain_us`."""
        drain_at_us = self._now_us() + drain_us
        self._drain_at_us = drain_at_us if self._drain_at_us is None else min(drain_at_us, self._drain_at_us)
        self._close_listener()

    def run(self) -> None:
        """Serve until drained, then close every connection. The control link is left open for a last word."""
        while self.turn():
            pass
        self._close_connections()

    def close(self) -> None:
        """Close everything but the control link, which must be closed before. A closed loop is not used again."""
        self._close_connections()
        self._close_listener()
        self.selector.close()

    def turn(self) -> bool:
        """Wait until something can be done, read all that is there, execute once; return False when drained."""
        timeout_s = self._tick()
        events = self.selector.select(0 if self._waiting else timeout_s)
        for key, mask in events:
            key.data(mask)
        if self._waiting:
            self._execute_next()
        return self._drain_at_us is None or not self._is_drained(is_quiet=not events)

    def enqueue(self, connection: _Connection, frame: Frame) -> None:
        """Queue a BATCH frame that this connection sent.

        Raises:
            FrameError: Its description does not parse. Close the connection.
        """
        is_alone = bool(frame.flags & (BATCH_FLAG_ALONE | BATCH_FLAG_CANARY))
        batch = Batch(frame.id, decode_batch_meta(frame), frame.payload, self._now_us(), is_alone=is_alone)
        connection.waiting_count += 1
        connection.waiting_rows += batch.row_count
        self._waiting_rows += batch.row_count
        self._waiting.append((connection, batch))

    def forget(self, connection: _Connection, reason: str) -> None:
        """Drop a closed connection."""
        self._connections.discard(connection)
        self._waiting_rows -= connection.waiting_rows
        connection.waiting_rows = 0
        if reason:
            self._log(f"closed a gateway's connection: {reason}")

    def _tick(self) -> float | None:
        """Do what time demands; return how long to select, s. None means until something happens."""
        if self._terminated:
            self._terminated = False
            self.start_drain(self._terminate_drain_us)
        now_us = self._now_us()
        due_us = self._control.tick(now_us) if self._control is not None else None
        if self._drain_at_us is not None:
            if not any(c.unsent_bytes for c in self._connections):
                return 0
            due_us = self._drain_at_us if due_us is None else min(due_us, self._drain_at_us)
        return None if due_us is None else max(0, due_us - now_us) / 1_000_000

    def _is_drained(self, *, is_quiet: bool) -> bool:
        assert self._drain_at_us is not None
        if self._now_us() >= self._drain_at_us:
            return True
        return is_quiet and not self._waiting and not any(c.unsent_bytes for c in self._connections)

    def _execute_next(self) -> None:
        """Run the oldest waiting batch with what may join it; send the replies."""
        chosen = self._take_next()
        if not chosen:
            return
        batches = [batch for _, batch in chosen]
        try:
            replies = self._executor.execute(batches)
        except Exception:  # noqa: BLE001 - a bug of ours: its batches are answered, the next may be spared
            self._log(traceback.format_exc())
            replies = [_refuse_as_bug(batch) for batch in batches]
        if len(self._connections) > 1 and self._profile is not None and self._drain_at_us is None:
            # What other gateways sent while the model ran lies in the sockets, and these replies shall tell of it.
            for key, mask in self.selector.select(0):
                key.data(mask)
        backlog_us, gateways = self._predict_backlog_us(), len(self._connections)
        for (connection, batch), reply in zip(chosen, replies, strict=True):
            if connection.is_open:
                meta = msgspec.structs.replace(reply.meta, backlog_us=backlog_us, gateways=gateways)
                connection.send(encode_frame(FrameKind.REPLY, batch.frame_id, encode_meta(meta), reply.payload))

    def _predict_backlog_us(self) -> int:
        """Return the device time that what waits will take, µs, if it merges as well as it can."""
        rows = self._waiting_rows
        if not rows or self._profile is None:
            return 0
        # Without batching each request is a row and runs alone.
        row_count_max = self._executor.row_count_max or 1
        full, rest = divmod(rows, row_count_max)
        return full * self._profile.time_us(row_count_max) + (self._profile.time_us(rest) if rest else 0)

    def _take_next(self) -> list[tuple[_Connection, Batch]]:
        waiting = self._waiting
        row_count_max = self._executor.row_count_max
        if len(waiting) == 1 or not row_count_max:
            chosen = [waiting.popleft()]
        else:
            indices = plan_merge([batch for _, batch in waiting], row_count_max=row_count_max)
            chosen = [waiting[k] for k in indices]
            taken = set(indices)
            self._waiting = deque(item for k, item in enumerate(waiting) if k not in taken)
        for connection, batch in chosen:
            connection.waiting_count -= 1
            if connection.is_open:
                connection.waiting_rows -= batch.row_count
                self._waiting_rows -= batch.row_count
            if connection.waiting_count == WAITING_PER_CONNECTION_MAX - 1 and connection.is_open:
                connection.update_mask()
        return [item for item in chosen if item[0].is_open]

    def _accept(self, _mask: int) -> None:
        if self._listener is None:  # a Drain came in the same round
            return
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # it gave up before we came to it
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            self._log(f"refused a connection: expected at most {CONNECTIONS_MAX}")
            accepted.close()
            return
        accepted.setblocking(False)
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(_Connection(self, accepted))

    def _close_connections(self) -> None:
        for connection in list(self._connections):
            connection.close()

    def _close_listener(self) -> None:
        if self._listener is None:
            return
        self.selector.unregister(self._listener)
        self._listener.close()
        self._listener = None
        if self._unix_path is not None:
            Path(self._unix_path).unlink(missing_ok=True)

    def _on_sigterm(self, _signal: int, _frame: object) -> None:
        self._terminated = True


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
        # Whoever may connect may run the model and fill its queue: the same user only.
        Path(path).chmod(0o600)
        listener.listen(ACCEPT_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _refuse_as_bug(batch: Batch) -> Reply:
    message = "bug in the replica; its log has the traceback"
    failures = tuple(Failure(k, 500, message) for k in range(len(batch.meta.rows)))
    return Reply(ReplyMeta((), failures, 0, 0, 0, 0, 0), [])
