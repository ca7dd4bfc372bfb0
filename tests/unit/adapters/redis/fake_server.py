"""A server that speaks RESP on a Unix socket and says what a test wants it to.

Only for what a real Redis does not do on demand: to be silent, to answer late, to answer wrongly, to hang up. Not here:
limits; those are tried on a real one.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import hiredis
import msgspec

from penstock.core.authority import Settled

__all__ = ["FakeServer", "settled"]

_INFO = b"redis_version:7.0.0\r\nrun_id:abc\r\nrole:master\r\ncluster_enabled:0\r\nmaxmemory_policy:noeviction\r\n"


def settled(words: list[Any]) -> bytes:
    """Return the script's answer to a call of which each operation is answered with its number of tokens."""
    operations = msgspec.msgpack.decode(words[3 + int(words[2])])
    return bulk(msgspec.msgpack.encode([Settled(-operation[4], 0, 1) for operation in operations]))


def bulk(text: bytes) -> bytes:
    """Return text as RESP has it."""
    return b"$%d\r\n%s\r\n" % (len(text), text)


class FakeServer:
    """See the module. `async with` it.

    Args:
        path: Of its socket.
        answer: Called with the words of each EVAL and EVALSHA; returns what to send, None to be silent for now.

    Attributes:
        calls: The words of every EVAL and EVALSHA with operations in it, oldest first.
        connections: How many there were.
    """

    def __init__(self, path: str, answer: Callable[[list[Any]], bytes | None] = settled) -> None:
        self.path = path
        self.answer = answer
        self.calls: list[list[Any]] = []
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        self.hang_up()
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"unix://{self.path}"

    def say(self, text: bytes) -> None:
        """Send something to whoever connected last."""
        self._writers[-1].write(text)

    def hang_up(self) -> None:
        """End every connection."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        parser = hiredis.Reader()
        while data := await reader.read(65_536):
            parser.feed(data)
            while (words := parser.gets()) is not False:
                if (said := self._said(words)) is not None:
                    writer.write(said)
        writer.close()

    def _said(self, words: list[Any]) -> bytes | None:
        if words[0] == b"INFO":
            return bulk(_INFO)
        if words[0] in (b"EVAL", b"EVALSHA"):
            if words[2] != b"0":  # not a probe
                self.calls.append(words)
            return self.answer(words)
        return b"+OK\r\n"
