"""The replica's end of the control channel: says Hello, obeys Drain, looks for a head that is gone.

    lost --connect, Hello--> linked --EOF, nonsense--> lost       lost for orphan_us: drain and exit

Works on the loop's selector and never waits. The head is never needed to serve: everything here may fail and only the
retry timer notices. Not here: gateways (`replica/loop.py`).
"""

import selectors
import socket
from collections.abc import Callable

from penstock.wire.control import ControlDecoder, ControlError, Drain, Message, encode_message

__all__ = ["ControlLink", "report_once"]

RETRY_US_MIN = 100_000
RETRY_US_MAX = 2_000_000
RECEIVE_BYTES = 64 * 1024
# The last word to a head before exiting: it either reads at once or is not there.
REPORT_TIMEOUT_S = 1.0


class ControlLink:
    """Keeps a connection to the head.

    Args:
        path: The head's control socket.
        hello: Said after each connection.
        selector: The loop's. Registered with a callback as data.
        on_drain: Called with the drain time, µs, when the head says Drain or has been gone for `orphan_us`.
        drain_us: Drain time of an orphan.
        orphan_us: How long to do without a head.
        now_us: Monotonic clock, µs.
    """

    def __init__(
        self,
        path: str,
        hello: Message,
        *,
        selector: selectors.BaseSelector,
        on_drain: Callable[[int], None],
        drain_us: int,
        orphan_us: int,
        now_us: Callable[[], int],
    ) -> None:
        self._path = path
        self._hello = encode_message(hello)
        self._selector = selector
        self._on_drain = on_drain
        self._drain_us = drain_us
        self._now_us = now_us
        self._orphan_us = orphan_us
        self._socket: socket.socket | None = None
        self._decoder = ControlDecoder()
        self._backoff_us = RETRY_US_MIN
        self._retry_at_us = 0
        self._linked_at_us = 0
        self._orphan_at_us = now_us() + orphan_us

    @property
    def is_linked(self) -> bool:
        """True while a head is connected, as far as the kernel knows."""
        return self._socket is not None

    def tick(self, now_us: int) -> int | None:
        """Do what is due; return when to be called again, µs, or None while nothing is scheduled."""
        if self._socket is not None:
            return None
        if now_us >= self._orphan_at_us:
            self._orphan_at_us = now_us + self._orphan_us
            self._on_drain(self._drain_us)
        if now_us >= self._retry_at_us:
            self._connect(now_us)
        return None if self._socket is not None else min(self._retry_at_us, self._orphan_at_us)

    def close(self, last_word: Message | None = None) -> None:
        """Close the connection, after saying `last_word` if a head is listening."""
        link, self._socket = self._socket, None
        if link is None:
            return
        self._selector.unregister(link)
        if last_word is not None:
            try:
                link.settimeout(REPORT_TIMEOUT_S)
                link.sendall(encode_message(last_word))
            except OSError:  # the head is gone; it will see that we are, too
                pass
        link.close()

    def _connect(self, now_us: int) -> None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.setblocking(False)
        try:
            link.connect(self._path)
            # Into the empty buffer of a new connection a Hello goes whole, or the head is not worth having yet.
            if link.send(self._hello) != len(self._hello):
                raise BlockingIOError
        except OSError:  # no head: try again later; serving goes on
            link.close()
            self._retry_at_us = now_us + self._backoff_us
            self._backoff_us = min(self._backoff_us * 2, RETRY_US_MAX)
            return
        self._socket = link
        self._linked_at_us = now_us
        self._decoder = ControlDecoder()
        self._selector.register(link, selectors.EVENT_READ, self._on_ready)

    def _on_ready(self, _mask: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(RECEIVE_BYTES)
            messages = self._decoder.feed(data)
        except BlockingIOError:
            return
        except (OSError, ControlError):  # the same cure as for a head that is gone
            self._lose()
            return
        if not data:
            self._lose()
            return
        for message in messages:
            if isinstance(message, Drain):
                self._on_drain(message.drain_us)

    def _lose(self) -> None:
        self.close()
        now_us = self._now_us()
        self._orphan_at_us = now_us + self._orphan_us
        # Only a connection that lasted resets the backoff: a head that accepts and closes must not be called in a loop.
        if now_us - self._linked_at_us >= RETRY_US_MAX:
            self._backoff_us = RETRY_US_MIN
        self._retry_at_us = now_us + self._backoff_us
        self._backoff_us = min(self._backoff_us * 2, RETRY_US_MAX)


def report_once(path: str, message: Message) -> None:
    """Say one thing to the head on a connection of its own; give up silently if it is gone. Waits at most 1 s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(REPORT_TIMEOUT_S)
        try:
            link.connect(path)
            link.sendall(encode_message(message))
        except OSError:  # nobody to tell; the reason is on stderr as well
            pass
