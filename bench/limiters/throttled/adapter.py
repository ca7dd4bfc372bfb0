"""`throttled-py`, as its documentation writes it: `Throttled` over the asyncio `RedisStore`, without waiting.

Source: throttled-py's README, "Store Backends" and "Rate Limiting Algorithms".
"""

from datetime import timedelta
from typing import Any

from throttled.asyncio import RedisStore, Throttled, rate_limiter

from bench.limiters.form import Client, Limit, Limiter, Purpose, UnsupportedError


class _Throttled:
    def __init__(self, throttle: Any) -> None:
        self._throttle = throttle

    async def acquire(self, cost: int = 1) -> bool:
        return not (await self._throttle.limit(cost=cost)).limited

    async def settle(self, estimate: int, actual: int) -> bool:
        raise UnsupportedError


class _Client:
    def __init__(self, url: str, algorithm: str) -> None:
        self._store = RedisStore(server=url)
        self._algorithm = algorithm

    async def limiter(self, limit: Limit, key: str, purpose: Purpose) -> Limiter:
        quota = rate_limiter.per_duration(timedelta(seconds=limit.per_s), limit.tokens, limit.burst)
        return _Throttled(Throttled(key=key, using=self._algorithm, quota=quota, store=self._store))

    async def close(self) -> None:
        await self._store._backend.get_client().aclose(close_connection_pool=True)  # noqa: SLF001 - it offers no way to close


async def connect(url: str, algorithm: str) -> Client:
    """See `Connect`."""
    return _Client(url, algorithm)
