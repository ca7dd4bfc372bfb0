"""The Redis behind a rate-limit drill: none, one of its own in the form that its fault needs, or the one it is told.

Not here: starting servers (`redis_servers.py`), dealing with one that is not ours (`foreign_redis.py`).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self, runtime_checkable

from penstock.core.errors import ConfigError
from penstock.core.ports import Clock
from penstock.load.drills.foreign_redis import ForeignRedis, has_sentinels, is_local
from penstock.load.drills.redis_servers import RedisReplication, RedisServer

__all__ = [
    "OWN",
    "LimitStore",
    "ReplicatedStore",
    "RestartableStore",
    "check_store",
    "describe_store",
    "open_store",
]

OWN = "own"


class LimitStore(Protocol):
    """What a drill wants of any Redis."""

    @property
    def url(self) -> str:
        """For the gateways; it may hold a password."""
        ...

    def ask(self, *words: str | int) -> Any:
        """Return the answer of whoever is the primary."""
        ...

    def flush_scripts(self) -> None:
        """Make it forget every script."""
        ...


@runtime_checkable
class RestartableStore(LimitStore, Protocol):
    """One that may be stopped for a while."""

    def stop(self) -> None:
        """End it in good order, with all it knows on disk."""
        ...

    def start_again(self) -> None:
        """Start it after `stop`."""
        ...


@runtime_checkable
class ReplicatedStore(LimitStore, Protocol):
    """One with somebody to take over."""

    def begin_failover(self) -> None:
        """Keep what is written from now on from the replica, if that may be done."""
        ...

    def finish_failover(self) -> None:
        """Take the primary away, so that the replica is promoted."""
        ...


class _OwnReplication:
    """A primary, its replica and sentinels."""

    def __init__(self, now_us: Clock) -> None:
        self._servers = RedisReplication(now_us)
        self._has_failed_over = False

    def __enter__(self) -> Self:
        self._servers.__enter__()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._servers.__exit__(*_exc)

    @property
    def url(self) -> str:
        """By which the sentinels are asked."""
        return self._servers.url

    def ask(self, *words: str | int) -> Any:
        """Ask whoever is the primary."""
        servers = self._servers
        return (servers.replica if self._has_failed_over else servers.primary).ask(*words)

    def flush_scripts(self) -> None:
        """Make both forget."""
        self._servers.primary.flush_scripts()
        self._servers.replica.flush_scripts()

    def begin_failover(self) -> None:
        """Let the replica fall behind."""
        self._servers.cut_replication()

    def finish_failover(self) -> None:
        """Kill the primary."""
        self._has_failed_over = True
        self._servers.primary.kill()


def _needs_own(redis: str, fault: str) -> bool:
    """Return whether the drill brings its own Redis: it was told to, or that of the URL has nobody to take over."""
    return redis == OWN or (fault == "failover" and not has_sentinels(redis))


def check_store(redis: str, fault: str) -> None:
    """Check that a fault may be done to the Redis that was named.

    Raises:
        ConfigError: It may not; the message names the option.
    """
    if fault != "restart-redis" or redis in ("", OWN):
        return
    if not redis.startswith(("redis://", "unix://")) or not is_local(redis):
        raise ConfigError(
            "--redis: expected one server on this machine to restart, or own, got a URL of another kind or host"
        )


def open_store(redis: str, fault: str, now_us: Clock) -> AbstractContextManager[LimitStore | None]:
    """Return the Redis for a drill, to be entered; it is None if the head counts.

    Args:
        redis: A URL, `OWN`, or '' for none.
        fault: What will be done to it.
        now_us: The clock.

    Raises:
        ConfigError: On entering: it does not answer, or there is no redis-server to start.
        UpstreamError: On entering: one of ours does not start.
    """
    if not redis:
        return nullcontext(None)
    if not _needs_own(redis, fault):
        return ForeignRedis(redis, now_us)
    return _OwnReplication(now_us) if fault == "failover" else RedisServer(now_us)


def describe_store(redis: str, fault: str) -> str:
    """Return in words who counts; of a URL nothing but its kind, as it may hold a password."""
    if not redis:
        return "counted by the head"
    if not _needs_own(redis, fault):
        return f"counted by the Redis at the given {redis.partition('://')[0]} URL"
    if fault == "failover":
        why = "" if redis == OWN else ", as the given one has no sentinels"
        return f"counted by a Redis with a replica and three sentinels of the drill's own{why}"
    return "counted by a Redis of the drill's own"
