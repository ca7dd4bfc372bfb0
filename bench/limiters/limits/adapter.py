"""`limits`, as its documentation writes it: `RedisStorage` on redis-py's asyncio client, and a strategy by name.

Source: limits.readthedocs.io, "Async Support" and "Rate limiting strategies".
"""

from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import STRATEGIES

from bench.limiters.form import Client, Limit, Limiter, Purpose, UnsupportedError


class _Strategy:
    def __init__(self, strategy: Any, limit: Limit, key: str) -> None:
        self._strategy = strategy
        self._item = RateLimitItemPerSecond(limit.tokens, limit.per_s)
        self._key = key

    async def acquire(self, cost: int = 1) -> bool:
        return bool(await self._strategy.hit(self._item, self._key, cost=cost))

    async def settle(self, estimate: int, actual: int) -> bool:
        raise UnsupportedError


class _Client:
    def __init__(self, url: str, algorithm: str) -> None:
        self._storage = RedisStorage(f"async+{url}", implementation="redispy")
        self._strategy = STRATEGIES[algorithm](self._storage)

    async def limiter(self, limit: Limit, key: str, purpose: Purpose) -> Limiter:
        return _Strategy(self._strategy, limit, key)

    async def close(self) -> None:
        await self._storage.bridge.storage.aclose()


async def connect(url: str, algorithm: str) -> Client:
    """See `Connect`."""
    return _Client(url, algorithm)
