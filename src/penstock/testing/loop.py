"""An event loop on manual time: timers fire when a test advances them, connections are made in memory.

It offers the few methods that protocols of this project use, not all of asyncio's. Tasks are run to their first wait;
what they wait for here is there at once. Not here: real sockets.
"""

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from typing import Any, cast

from penstock.testing.clock import ManualClock
from penstock.testing.transport import MemoryTransport

__all__ = ["ManualLoop"]

# A test whose callbacks call each other this often at one instant is in a loop of its own.
CALLS_MAX = 10_000


class _Handle:
    """What `call_later` returns."""

    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def run(self) -> None:
        if not self.is_cancelled:
            self._callback(*self._args)


class _Task:
    """What `create_task` returns: a coroutine that has already run."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            coroutine.send(None)
        except StopIteration:
            return
        coroutine.close()
        raise AssertionError("a task on a ManualLoop may only await the loop's own connections")

    def cancel(self) -> None:
        """The task is over; there is nothing to cancel."""


class ManualLoop:
    """See the module.

    Attributes:
        clock: What `call_later` counts by; pass it to what takes a clock.
        refuses: Addresses where nobody listens: connecting raises OSError.
        connections: Every connection ever made: its address, protocol and transport, oldest first.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.refuses: set[str] = set()
        self.connections: list[tuple[str, asyncio.Protocol, MemoryTransport]] = []
        self._timers: list[tuple[int, int, _Handle]] = []
        self._sequence = 0

    @property
    def as_asyncio(self) -> asyncio.AbstractEventLoop:
        """This loop, for signatures that ask for asyncio's."""
        return cast("asyncio.AbstractEventLoop", self)

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> _Handle:
        """Asyncio: call `callback(*args)` once `delay_s` seconds have passed on the clock."""
        handle = _Handle(callback, args)
        self._sequence += 1
        heapq.heappush(self._timers, (self.clock() + round(delay_s * 1e6), self._sequence, handle))
        return handle

    def call_soon(self, callback: Callable[..., None], *args: Any) -> _Handle:
        """Asyncio: call `callback(*args)` at the next `run` or `advance_us`."""
        return self.call_later(0, callback, *args)

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> _Task:
        """Asyncio: run a coroutine; here at once and to its end."""
        return _Task(coroutine)

    async def create_unix_connection(
        self, factory: Callable[[], asyncio.Protocol], path: str
    ) -> tuple[MemoryTransport, asyncio.Protocol]:
        """Asyncio: connect to `unix:path`, or raise OSError if `refuses` names it."""
        return self._connect(f"unix:{path}", factory)

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[MemoryTransport, asyncio.Protocol]:
        """Asyncio: connect to `tcp:host:port`, or raise OSError if `refuses` names it."""
        return self._connect(f"tcp:{host}:{port}", factory)

    def _connect(
        self, address: str, factory: Callable[[], asyncio.Protocol]
    ) -> tuple[MemoryTransport, asyncio.Protocol]:
        if address in self.refuses:
            raise ConnectionRefusedError(address)
        protocol = factory()
        transport = MemoryTransport(on_close=lambda: self._close(protocol))
        self.connections.append((address, protocol, transport))
        protocol.connection_made(transport)
        return transport, protocol

    def _close(self, protocol: asyncio.Protocol) -> None:
        self.call_soon(protocol.connection_lost, None)

    def run(self) -> None:
        """Call what is due now, and what that makes due now."""
        self.advance_us(0)

    def advance_us(self, us: int) -> None:
        """Let `us` microseconds pass, calling what falls due on the way at its own time."""
        end_us = self.clock() + us
        for _ in range(CALLS_MAX):
            if not self._timers or self._timers[0][0] > end_us:
                self.clock.advance_us(end_us - self.clock())
                return
            due_us, _, handle = heapq.heappop(self._timers)
            self.clock.advance_us(max(due_us - self.clock(), 0))
            handle.run()
        raise AssertionError(f"expected at most {CALLS_MAX} calls within {us} µs, got more: a callback loops")
