"""Sockets for the driver: non-blocking TCP connections and one epoll to wait on. Linux.

Not here: what is sent (`inputs.py`) and when (`driver.py`). An event loop of this size exists because the generator
shares its machine with the server: each request costs one `send`, one `recv` and a fraction of a wake-up.
"""

import contextlib
import errno
import select
import socket
from collections.abc import Sequence
from typing import Protocol

__all__ = ["EpollNetwork", "Network", "Socket"]

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP


class Socket(Protocol):
    """The part of `socket.socket` that the driver uses."""

    def fileno(self) -> int:
        """Return the descriptor that `Network.wait_events` reports."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Take as many bytes as fit; BlockingIOError when none do, another OSError when the connection is gone."""

    def recv(self, size: int, /) -> bytes:
        """Return what has arrived, b"" at the end; BlockingIOError when there is nothing."""


class Network(Protocol):
    """Connections to one server, and waiting for them. The port the driver is tested through."""

    def connect_nowait(self) -> Socket:
        """Begin to connect; the socket is watched for WRITABLE, which comes when that is done. OSError: refused."""

    def connect_error(self, connection: Socket) -> int:
        """Return the errno with which connecting ended, 0 if it succeeded."""

    def watch(self, connection: Socket, events: int) -> None:
        """Report these events for the connection from now on."""

    def close(self, connection: Socket) -> None:
        """Forget and close the connection."""

    def wait_events(self, timeout_us: int, *, is_nap: bool) -> Sequence[tuple[int, int]]:
        """Wait up to `timeout_us` for events, (descriptor, mask) each; with `is_nap` for all of that time."""


class EpollNetwork:
    """The real network. `select` does the waiting because it alone takes microseconds; epoll then names the sockets."""

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily = socket.AF_INET) -> None:
        self._address = address
        self._family = family
        self._epoll = select.epoll()
        self._epoll_only = [self._epoll.fileno()]

    def connect_nowait(self) -> socket.socket:
        """Begin to connect. Raises OSError when it is refused at once or no descriptor is left."""
        made = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            made.settimeout(0.0)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = made.connect_ex(self._address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, errno.errorcode.get(code, "connect failed"))
            self._epoll.register(made.fileno(), WRITABLE)
        except OSError:
            made.close()
            raise
        return made

    def connect_error(self, connection: Socket) -> int:
        """Return the errno with which connecting ended, 0 if it succeeded."""
        assert isinstance(connection, socket.socket)
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def watch(self, connection: Socket, events: int) -> None:
        """Report these events for the connection from now on."""
        self._epoll.modify(connection.fileno(), events)

    def close(self, connection: Socket) -> None:
        """Forget and close the connection."""
        assert isinstance(connection, socket.socket)
        with contextlib.suppress(OSError):  # it may never have been registered, and is closed below either way
            self._epoll.unregister(connection.fileno())
        connection.close()

    def wait_events(self, timeout_us: int, *, is_nap: bool) -> Sequence[tuple[int, int]]:
        """Wait up to `timeout_us` for events; with `is_nap` for all of that time, then report what came meanwhile."""
        if timeout_us > 0:
            select.select([] if is_nap else self._epoll_only, (), (), timeout_us / 1e6)
        return self._epoll.poll(0)
