"""One connection to one Redis: commands out, answers back in order. Nothing is ever sent twice.

A caller that stops waiting leaves its place in line, so a late answer meets nobody and costs no connection. Not here:
where to connect and as whom (`target.py`), deadlines and what to do about a lost connection (`node.py`).

Source: RESP, redis.io/docs/reference/protocol-spec; parsed by hiredis.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

import hiredis

__all__ = ["Link", "LinkLost", "Words", "pack"]

Words = tuple[str | int | bytes, ...]

_OnAnswer = Callable[[object], None]


def pack(words: Words) -> bytes:
    """Return a command as it is sent."""
    packed = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says that a command is one word
    assert isinstance(packed, bytes)
    return packed


class LinkLost(ConnectionError):
    """The connection ended before the answer: whether the command was done is not known."""


class Link(asyncio.Protocol):
    """See the module.

    Args:
        loop: The event loop.
        name: Of the server: whoever makes the connection says where it leads.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.name = name
        self.on_lost: Callable[[], None] | None = None  # called once, when the connection has ended
        self._loop = loop
        self._reader = hiredis.Reader()
        self._waiting: deque[_OnAnswer] = deque()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """True while commands can be sent."""
        return self._transport is not None

    @property
    def waiting(self) -> int:
        """Commands without an answer."""
        return len(self._waiting)

    def send(self, command: bytes, on_answer: _OnAnswer) -> None:
        """Send a packed command; `on_answer` gets its reply, a `hiredis.ReplyError`, or `LinkLost`."""
        if self._transport is None:
            self._loop.call_soon(on_answer, LinkLost("the connection ended"))
            return
        self._waiting.append(on_answer)
        self._transport.write(command)

    async def request(self, *words: str | int | bytes) -> object:
        """Send one command and wait for its reply.

        Raises:
            hiredis.ReplyError: The server refuses it.
            LinkLost: See there.
        """
        future: asyncio.Future[object] = self._loop.create_future()
        self.send(pack(words), partial(_resolve, future))
        return await future

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Asyncio: answers, or parts of them."""
        try:
            self._reader.feed(data)
            answer = self._reader.gets()
            while answer is not False and self._waiting:
                self._waiting.popleft()(answer)
                answer = self._reader.gets()
        except hiredis.ProtocolError:
            self.abort()
            return
        if answer is not False:
            self.abort()  # it answers what was not asked: nothing after this can be trusted

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the connection has ended; everybody who waits is told."""
        self._transport = None
        waiting, self._waiting = self._waiting, deque()
        for on_answer in waiting:
            on_answer(LinkLost("the connection ended"))
        if self.on_lost is not None:
            self.on_lost()


def _resolve(future: asyncio.Future[object], answer: object) -> None:
    if future.done():
        return  # its caller has stopped waiting
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
