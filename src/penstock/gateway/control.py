"""The gateway's end of the control channel: snapshots in, reports out. The head may come and go.

Not here: the messages (`wire/control.py`), what a snapshot changes (`catalogue.py`).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from penstock.core.authority import Operation, Reply
from penstock.core.keys import KeySnapshot
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
    Keys,
    KeysApplied,
    LimitCall,
    LimitReplies,
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
# The head does other things too: starting a process, or writing a page of metrics, holds it up for some ms.
LIMIT_TIMEOUT_US = 50_000
# With so many calls unanswered the head hangs: further ones are given up at once, until it answers.
LIMIT_CALLS_MAX = 256

_OnReplies = Callable[[Sequence[Reply | None]], None]


class ControlClient(asyncio.Protocol):
    """Keeps a channel to the head for as long as the gateway lives.

    Args:
        path: The head's control socket.
        hello: Said after each connection.
        loop: The event loop.
        now_us: Clock.
        on_snapshot: Called with each snapshot.
        on_keys: Called with the API keys, each time they change; when it returns, no other is accepted.
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
        on_keys: Callable[[KeySnapshot], None],
        on_drain: Callable[[int], None],
        own_statistics: Callable[[], GatewayStatistics],
    ) -> None:
        self.lost_at_us = now_us()  # when the head was last heard of; 0 while connected
        self._path = path
        self._hello = hello
        self._loop = loop
        self._now_us = now_us
        self._on_snapshot = on_snapshot
        self._on_keys = on_keys
        self._on_drain = on_drain
        self._own_statistics = own_statistics
        self._transport: asyncio.Transport | None = None
        self._decoder = ControlDecoder()
        self._queries: dict[int, Callable[[GatewayStatistics], None]] = {}
        self._query_id = 0
        self._limit_calls: dict[int, tuple[int, int, _OnReplies]] = {}  # operations, when to give up, whom to tell
        self._limit_call_id = 0
        self._is_limit_timer_set = False
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
            elif isinstance(message, Keys):
                self._on_keys(message.snapshot)
                self._send(KeysApplied(message.sequence))
            elif isinstance(message, Drain):
                self._on_drain(message.drain_us)
            elif isinstance(message, StatisticsReply):
                answer = self._queries.pop(message.id, None)
                if answer is not None:
                    answer(message.statistics)
            elif isinstance(message, LimitReplies):
                call = self._limit_calls.pop(message.id, None)
                if call is not None:
                    call[2](message.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the head is gone."""
        self._transport = None
        self.lost_at_us = self._now_us()
        for query_id in list(self._queries):
            self._answer_alone(query_id)
        self._give_up_limit_calls(now_us=None)
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

    def submit(self, operations: Sequence[Operation], on_replies: _OnReplies) -> None:
        """See `LimitAuthority`: the head is one."""
        if self._transport is None or len(self._limit_calls) >= LIMIT_CALLS_MAX:
            self._loop.call_soon(on_replies, [None] * len(operations))
            return
        self._limit_call_id += 1
        give_up_us = self._now_us() + LIMIT_TIMEOUT_US
        self._limit_calls[self._limit_call_id] = (len(operations), give_up_us, on_replies)
        self._send(LimitCall(self._limit_call_id, tuple(operations)))
        if not self._is_limit_timer_set:
            self._is_limit_timer_set = True
            self._loop.call_later(LIMIT_TIMEOUT_US / 1e6, self._watch_limit_calls)

    def _watch_limit_calls(self) -> None:
        """The one timer for all calls under way: each is given up after once to twice the time allowed."""
        self._is_limit_timer_set = False
        self._give_up_limit_calls(now_us=self._now_us())
        if self._limit_calls:
            self._is_limit_timer_set = True
            self._loop.call_later(LIMIT_TIMEOUT_US / 1e6, self._watch_limit_calls)

    def _give_up_limit_calls(self, *, now_us: int | None) -> None:
        """Answer None to limit calls that have waited too long; to all of them if `now_us` is None."""
        for call_id, (count, give_up_us, on_replies) in list(self._limit_calls.items()):
            if now_us is not None and now_us < give_up_us:
                break  # the others are younger
            del self._limit_calls[call_id]
            on_replies([None] * count)

    def close(self, drained: Drained) -> None:
        """Say goodbye and close."""
        self._wanted = False
        self._redial.cancel()
        self._send(drained)
        if self._transport is not None:
            self._transport.close()
