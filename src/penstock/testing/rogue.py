"""Sending malformed requests to a live server, and judging what comes back: no 5xx, no silence, no second answer.

Not here: the requests (`malformed.py`), a server to send them to.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from penstock.testing.malformed import Ending, Malformed

__all__ = ["Findings", "misbehave"]

# Far past every timeout that a server under this test should have: an answer that takes longer never comes.
ANSWER_S_MAX = 20.0
# More would say nothing new.
MISTAKES_MAX = 20


@dataclass(slots=True)
class Findings:
    """What came back, by kind and status, and what should not have."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)

    def blame(self, request: Malformed, text: str) -> None:
        """Note a mistake of the server's."""
        self.mistakes.append(f"{request.kind} ({request.ending.value}): {text}; sent {request.data[:300]!r}")

    def note(self, request: Malformed, status: int, body: bytes) -> None:
        """Count an answer; whatever is sent, a 5xx is a mistake."""
        self.statuses[request.kind, status] += 1
        if status >= 500:
            self.blame(request, f"got {status} {body[:200]!r}")


class _Rogue:
    """One connection at a time, used again for as long as the server says that it may be."""

    def __init__(self, url: str, findings: Findings) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname, address.port
        self._findings = findings
        self._writer: asyncio.StreamWriter | None = None

    async def commit(self, request: Malformed) -> None:
        """Send one request and behave as it says."""
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._commit(request)
        except TimeoutError:
            self._findings.blame(request, f"no answer and no end within {ANSWER_S_MAX} s")
            self.leave()
        except (OSError, asyncio.IncompleteReadError) as error:
            if request.ending in {Ending.WAIT, Ending.LOOK}:
                self._findings.blame(request, f"no answer: {error!r}")
            self.leave()

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.transport.abort() if reset else self._writer.close()
            self._writer = None

    async def _commit(self, request: Malformed) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(request.data)
        match request.ending:
            case Ending.LEAVE | Ending.RESET:
                await asyncio.sleep(0)
                self.leave(reset=request.ending is Ending.RESET)
            case Ending.SHUT:
                self._writer.write_eof()
                await self._read_to_end(request)
            case Ending.WAIT | Ending.LOOK | Ending.HOLD:
                await self._wait_answer(request)

    async def _wait_answer(self, request: Malformed) -> None:
        status, keeps_open = await self._read_answer(request)
        expected = {Ending.WAIT: range(400, 500), Ending.HOLD: range(408, 409), Ending.LOOK: range(200, 500)}
        if status not in expected[request.ending]:
            self._findings.blame(request, f"expected a status in {expected[request.ending]}, got {status}")
        if keeps_open and request.is_framing:
            self._findings.blame(request, f"{status} without connection: close, where reuse is unsafe")
            self.leave()
        elif not keeps_open:
            rest = await self._reader.read()
            if rest:
                self._findings.blame(request, f"more than one answer: {rest[:200]!r}")
            self.leave()

    async def _read_answer(self, request: Malformed) -> tuple[int, bool]:
        while True:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ")[1])
            if status != 100:
                break
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        self._findings.note(request, status, body)
        if b"error" not in body and status >= 400:
            self._findings.blame(request, f"expected the protocol's error form, got {body[:200]!r}")
        return status, b"connection: close" not in head

    async def _read_to_end(self, request: Malformed) -> None:
        try:
            while True:
                await self._read_answer(request)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self._findings.blame(request, f"part of an answer: {error.partial[:200]!r}")
        self.leave()


async def misbehave(url: str, requests: Iterator[Malformed], findings: Findings, *, connections: int = 16) -> None:
    """Send requests over several connections at once, until they are over or `MISTAKES_MAX` mistakes were found.

    Args:
        url: Of the server, `http://HOST:PORT`.
        requests: From `malformed_requests`.
        findings: Where to note what comes back.
        connections: How many to use at once.
    """

    async def work() -> None:
        rogue = _Rogue(url, findings)
        for request in requests:
            await rogue.commit(request)
            if len(findings.mistakes) >= MISTAKES_MAX:
                break
        rogue.leave()

    await asyncio.gather(*[work() for _ in range(connections)])
