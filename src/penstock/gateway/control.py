"""The gateway's end of the control channel: snapshots in, reports out. The head may come and go.

Not here: the messages (`wire/control.py`), what a snapshot changes (`catalogue.py`).
"""

import asyncio
from collections.abc import Callable
from typing import cast

from penstock.core.ports import Clock
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.redial import Redial
from penstock.wire.control import (
    ControlDecoder,
    ControlError,
    Drain,
    Drained,
    GatewayHello,
    GatewayReport,
    Message,
    ReplicaFault,
    Snapshot,
    StatisticsQuery,
    StatisticsReply,
    encode_message,
)

__all__ = ["ControlClient"]

RECONNECT_S_MIN = 0.1
RECONNECT_S_MAX = 2.0
# A head that does not answer within this is treated as gone, and the gateway's own counts are given instead.
QUERY_TIMEOUT_S = 0.5


class ControlClient(asyncio.Protocol):
    """Keeps a channel to the head for as long as the gateway lives.

    Args:
        path: The head's control socket.
        hello: Said after each connection.
        loop: The event loop.
        now_us: Clock.
        on_snapshot: Called with each snapshot.
        on_drain: Called with the drain time, µs.
        own_statistics: This gateway's counts, for when the head is gone.
    """

    def __init__(
        self,
        path: str,
        hello: GatewayHello,
        *,
        loop: asyncio.AbstractEventLoop,
        now_us: Clock,
        on_snapshot: Callable[[Snapshot], None],
        on_drain: Callable[[int], None],
        own_statistics: Callable[[], GatewayStatistics],
    ) -> None:
        self.lost_at_us = now_us()  # when the head was last heard of; 0 while connected
        self._path = path
        self._hello = hello
        self._loop = loop
        self._now_us = now_us
        self._on_snapshot = on_snapshot
        self._on_drain = on_drain
        self._own_statistics = own_statistics
        self._transport: asyncio.Transport | None = None
        self._decoder = ControlDecoder()
        self._queries: dict[int, Callable[[GatewayStatistics], None]] = {}
        self._query_id = 0
        self._wanted = True
        self._redial = Redial(self._connect, loop=loop, delay_s_min=RECONNECT_S_MIN, delay_s_max=RECONNECT_S_MAX)

    async def _connect(self) -> None:
        # While the head is down or restarting, serving goes on with the last snapshot.
        await self._loop.create_unix_connection(lambda: self, self._path)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._decoder = ControlDecoder()
        self.lost_at_us = 0
        self._send(self._hello)

    def data_received(self, data: bytes) -> None:
        """Asyncio: messages from the head."""
        try:
            messages = self._decoder.feed(data)
        except ControlError:
            # Not our head, or a different version of it: start again with a clean channel.
            assert self._transport is not None
            self._transport.abort()
            return
        if messages:
            self._redial.succeed()
        for message in messages:
            if isinstance(message, Snapshot):
                self._on_snapshot(message)
            elif isinstance(message, Drain):
                self._on_drain(message.drain_us)
            elif isinstance(message, StatisticsReply):
                answer = self._queries.pop(message.id, None)
                if answer is not None:
                    answer(message.statistics)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the head is gone."""
        self._transport = None
        self.lost_at_us = self._now_us()
        for query_id in list(self._queries):
            self._answer_alone(query_id)
        if self._wanted:
            self._redial.again()

    def _send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(encode_message(message))

    def report(self, report: GatewayReport) -> None:
        """Send counters and readiness, if the head is there."""
        self._send(report)

    def report_fault(self, address: str, reason: str) -> None:
        """Ask the head to replace a replica."""
        self._send(ReplicaFault(address, reason))

    def query_statistics(self, answer: Callable[[GatewayStatistics], None]) -> None:
        """Ask for the sum over all gateways; `answer` gets it, or this gateway's own counts if the head is gone.

        The head answers from the newest reports, so send one first.
        """
        if self._transport is None:
            answer(self._own_statistics())
            return
        self._query_id += 1
        query_id = self._query_id
        self._queries[query_id] = answer
        self._send(StatisticsQuery(query_id))
        self._loop.call_later(QUERY_TIMEOUT_S, self._answer_alone, query_id)

    def _answer_alone(self, query_id: int) -> None:
        answer = self._queries.pop(query_id, None)
        if answer is not None:
            answer(self._own_statistics())

    def close(self, drained: Drained) -> None:
        """Say goodbye and close."""
        self._wanted = False
        self._redial.cancel()
        self._send(drained)
        if self._transport is not None:
            self._transport.close()
