"""PyrateLimiter, as its documentation writes it: a `Limiter` over a `RedisBucket` or a `StateBucket`, without waiting.

Source: PyrateLimiter's README, "RedisBucket", "Token bucket" and "asyncio & event loops".
"""

from typing import Any

from pyrate_limiter import Limiter as PyrateLimiter
from pyrate_limiter import Rate, RedisBucket, RedisStateStore, StateBucket, TokenBucket
from redis.asyncio import Redis

from bench.limiters.form import Client, Limit, Limiter, Purpose, UnsupportedError


class _Pyrate:
    def __init__(self, limiter: Any, key: str) -> None:
        self._limiter = limiter
        self._key = key

    async def acquire(self, cost: int = 1) -> bool:
        return bool(await self._limiter.try_acquire_async(self._key, cost, blocking=False))

    async def settle(self, estimate: int, actual: int) -> bool:
        raise UnsupportedError


class _Client:
    def __init__(self, url: str, algorithm: str) -> None:
        self._redis = Redis.from_url(url)
        self._algorithm = algorithm
        self._limiters: list[Any] = []

    async def limiter(self, limit: Limit, key: str, purpose: Purpose) -> Limiter:
        rates = [Rate(limit.tokens, limit.per_s * 1_000, burst=limit.burst)]
        if self._algorithm == "token_bucket":
            bucket: Any = StateBucket(rates, algorithm=TokenBucket(), store=RedisStateStore(self._redis, key))
        else:
            bucket = await RedisBucket.init(rates, self._redis, key)  # type: ignore[misc, unused-ignore]  # may be awaitable
        limiter = PyrateLimiter(bucket)
        self._limiters.append(limiter)
        return _Pyrate(limiter, key)

    async def close(self) -> None:
        for limiter in self._limiters:
            limiter.close()
        await self._redis.aclose()


async def connect(url: str, algorithm: str) -> Client:
    """See `Connect`."""
    return _Client(url, algorithm)
