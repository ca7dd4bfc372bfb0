"""What a library must offer to be measured: connect, make a limiter for one key, decide.

Imported by the worker inside each library's own environment, so it needs the standard library only. Not here: what is
done with it (`worker.py`), which libraries there are (`catalogue.py`).
"""

from enum import StrEnum
from typing import NamedTuple, Protocol

__all__ = ["Client", "Connect", "Limit", "Limiter", "Purpose", "UnsupportedError"]


class Limit(NamedTuple):
    """`tokens` in `per_s` seconds. Buckets also know `burst`; windows take `tokens` for both."""

    tokens: int
    per_s: int
    burst: int


class Purpose(StrEnum):
    """What costs will be: one token each, given with each request, or corrected afterwards."""

    REQUESTS = "requests"
    WEIGHTS = "weights"
    SETTLED = "settled"


class UnsupportedError(Exception):
    """The library has no way to do this."""


class Limiter(Protocol):
    """One key under one limit."""

    async def acquire(self, cost: int = 1) -> bool:
        """Decide now, without waiting for tokens."""
        ...

    async def settle(self, estimate: int, actual: int) -> bool:
        """Take the estimate, then say that it was the actual cost; raises `UnsupportedError` if there is no way."""
        ...


class Client(Protocol):
    """A process's connection to Redis."""

    async def limiter(self, limit: Limit, key: str, purpose: Purpose) -> Limiter:
        """Return the limiter of a key."""
        ...

    async def close(self) -> None:
        """Close it, and give back what it holds."""
        ...


class Connect(Protocol):
    """What each library's `adapter.py` defines as `connect`."""

    async def __call__(self, url: str, algorithm: str) -> Client:
        """Connect to Redis at `url` and decide by one of the library's algorithms."""
        ...
