"""Every authority over limits behind one handle: a test moves its clock, asks, and may make it lose everything.

Not here: the laws (`test_limit_authority.py`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from penstock.adapters.redis import RedisAuthority
from penstock.core.authority import Operation, Reply
from penstock.core.ports import LimitAuthority
from penstock.policy.limit_book import LimitBook
from penstock.testing.authority import BookAuthority
from penstock.testing.clock import ManualClock
from penstock.testing.redis_servers import RedisServer, manual_script

__all__ = ["START_US", "BookWorld", "RedisWorld", "World"]

# A day of this century: clocks of authorities count µs since 1970.
START_US = 1_800_000_000_000_123
# A law is about what is answered, not how soon: the machine may be busy.
DEADLINE_US = 10_000_000


class SteppingClock(ManualClock):
    """A clock that may be set back, too."""

    def step_us(self, us: int) -> None:
        """Move by so many µs, in either direction."""
        self._now_us += us


class World(ABC):
    """An authority, its clock and an event loop. `with` it."""

    def __init__(self) -> None:
        self.clock = SteppingClock(START_US)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self.authority = self._loop.run_until_complete(self._open())
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.run_until_complete(self._close())
        self._loop.close()

    @abstractmethod
    async def _open(self) -> LimitAuthority: ...

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    def lose_everything(self) -> None:
        """Let another authority take its place now, that knows nothing of what this one counted."""

    def ask(self, *operations: Operation) -> list[Reply]:
        """Return the replies to operations that are submitted together; each must be answered."""
        replies = self._loop.run_until_complete(self._ask(operations))
        found = [reply for reply in replies if reply is not None]
        assert len(found) == len(operations), replies
        return found

    async def _ask(self, operations: Sequence[Operation]) -> Sequence[Reply | None]:
        answered: asyncio.Future[Sequence[Reply | None]] = self._loop.create_future()
        self.authority.submit(operations, answered.set_result)
        return await answered


class BookWorld(World):
    """The book in memory."""

    async def _open(self) -> LimitAuthority:
        self._book = BookAuthority(self.clock, self._loop.call_soon, LimitBook("first", self.clock()))
        return self._book

    async def _close(self) -> None:
        """There is nothing to end."""

    def lose_everything(self) -> None:
        """Begin another book."""
        self._book.book = LimitBook("second", self.clock())


class RedisWorld(World):
    """The script in a real Redis, on the test's clock.

    Args:
        server: It is emptied.
    """

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.server = server
        server.ask("FLUSHALL")

    async def _open(self) -> LimitAuthority:
        self._redis = RedisAuthority(self.server.url, deadline_us=DEADLINE_US, script=manual_script(self.clock))
        await self._redis.start()
        return self._redis

    async def _close(self) -> None:
        self._redis.close()
        await asyncio.sleep(0)

    def lose_everything(self) -> None:
        """Restart without anything on disk."""
        self.server.kill()
        self.server.start_again()
        self._loop.run_until_complete(self._reconnect())

    async def _reconnect(self) -> None:
        self._redis.close()
        self.authority = await self._open()
