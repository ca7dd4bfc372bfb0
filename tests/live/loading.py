"""A small open-loop load for live tests: sends on schedule whatever happens, and accounts for every request.

It checks answers and does not measure: for latencies there is `penstock bench`.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

__all__ = ["LoadReport", "run_load"]

TICK_S = 0.002


@dataclass(slots=True)
class LoadReport:
    """What became of the requests. `unanswered` are those whose connection ended first, or that nobody answered."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unanswered: int = 0


class _Connection(asyncio.Protocol):
    """One connection; answers come in the order of the requests."""

    def __init__(self, report: LoadReport, is_right: Callable[[int, bytes], bool]) -> None:
        self.waiting: deque[int] = deque()
        self.is_open = False
        self._report = report
        self._is_right = is_right
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._report.unanswered += len(self.waiting)
        self.waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        index, body, self._body = self.waiting.popleft(), self._body, b""
        status = self._parser.get_status_code()
        self._report.statuses[status] += 1
        if (status != 200 or not self._is_right(index, body)) and len(self._report.wrong) < 10:
            self._report.wrong.append(f"request {index}: {status} {body[:200]!r}")

    def send(self, index: int, request: bytes) -> None:
        self.waiting.append(index)
        self.transport.write(request)


async def _load(
    url: str,
    request: Callable[[int], bytes],
    is_right: Callable[[int, bytes], bool],
    events: Mapping[float, Callable[[], Any]],
    *,
    rate: int,
    count: int,
    connections: int,
    limit_s: float,
) -> LoadReport:
    loop = asyncio.get_running_loop()
    report = LoadReport()
    host, _, port = urlsplit(url).netloc.rpartition(":")
    opened = [
        (await loop.create_connection(lambda: _Connection(report, is_right), host, int(port)))[1]
        for _ in range(connections)
    ]
    start_s = loop.time()
    for at_s, event in events.items():
        loop.call_at(start_s + at_s, event)

    def send_due() -> None:
        due = min(count, int((loop.time() - start_s) * rate) + 1)
        for index in range(report.sent, due):
            connection = opened[index % connections]
            if connection.is_open:
                connection.send(index, request(index))
            else:
                report.unanswered += 1
        report.sent = due
        if due < count:
            loop.call_later(TICK_S, send_due)

    send_due()

    async def wait_answers() -> None:
        while report.sent < count or any(c.waiting for c in opened):
            await asyncio.sleep(TICK_S)

    try:
        await asyncio.wait_for(wait_answers(), count / rate + limit_s)
    except TimeoutError:
        pass  # what is still waiting is counted as unanswered when the connections close
    for connection in opened:
        connection.transport.abort()
    await asyncio.sleep(0)
    return report


def run_load(
    url: str,
    request: Callable[[int], bytes],
    is_right: Callable[[int, bytes], bool],
    *,
    events: Mapping[float, Callable[[], Any]],
    rate: int,
    duration_s: float,
    connections: int = 64,
    limit_s: float = 30.0,
) -> LoadReport:
    """Send `rate * duration_s` requests on schedule; wait for every answer, at most `limit_s` after the last.

    Args:
        url: The server's.
        request: Writes the request of an index, head and body.
        is_right: Judges the body of a 200 to the request of an index.
        events: What to do when, in seconds after the start.
        rate: Requests per second.
        duration_s: How long to send.
        connections: Used in turn; a request does not wait for the answers before it.
        limit_s: See above.
    """
    count = int(rate * duration_s)
    load = _load(url, request, is_right, events, rate=rate, count=count, connections=connections, limit_s=limit_s)
    return asyncio.run(load)
