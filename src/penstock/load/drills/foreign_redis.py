"""A Redis that a drill was told to use: asked, and hurt only as far as the fault that was asked for needs it.

It is restarted only on this machine, saved first, by its own executable; promoted only by its own sentinels.
Not here: servers of a drill's own (`redis_servers.py`), which fault when (`limit_faults.py`).
"""

import contextlib
import ipaddress
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from penstock.core.errors import ConfigError, UpstreamError
from penstock.core.ports import Clock
from penstock.load.drills.redis_servers import wait_for

__all__ = ["ForeignRedis", "has_sentinels", "is_local", "plan_restart"]

_TIMEOUT_S = 5.0
_SENTINEL_PORT = 26_379
# What a server that was started without a file needs to be the same again; the rest are defaults or tuning.
_LISTS = ("bind", "save")  # several values each, which may be none
_SETTINGS = (
    *("port", *_LISTS, "unixsocket", "protected-mode", "requirepass", "databases", "dir", "dbfilename"),
    *("appendonly", "appendfilename", "appenddirname", "maxmemory", "maxmemory-policy"),
)


def is_local(url: str) -> bool:
    """Return whether the Redis of a URL is on this machine, by its address."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return True
    hosts = [_split_host(host)[0] for host in _hosts_of(url)]
    return all(host == "localhost" or _is_loopback(host) for host in hosts)


def has_sentinels(url: str) -> bool:
    """Return whether the Redis of a URL is found by asking sentinels."""
    return urlsplit(url).scheme == "redis+sentinel"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts_of(url: str) -> list[str]:
    return urlsplit(url).netloc.rpartition("@")[2].split(",")


def _split_host(text: str, default: int = 6_379) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or default


def plan_restart(settings: Mapping[str, str]) -> str:
    """Return the configuration file by which a server that was started without one is the same again.

    Args:
        settings: What CONFIG GET says of it.
    """
    lines = []
    for name in _SETTINGS:
        text = settings.get(name, "")
        quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if name in _LISTS:
            lines.append(f"{name} {text or quoted}")
        elif text:
            lines.append(f"{name} {quoted}")
    return "\n".join(lines) + "\n"


class ForeignRedis:
    """The Redis at a URL. `with` it: leaving closes connections, and nothing else.

    Args:
        url: As gateways take it.
        now_us: The clock.
    """

    def __init__(self, url: str, now_us: Clock) -> None:
        self.url = url
        self._now_us = now_us
        self._sentinels: Any = None
        self._service = ""
        self._client: Any = None
        self._is_cluster = False
        # How to start it again.
        self._executable = Path()
        self._config = self._settings = ""
        self._is_supervised = False

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            ConfigError: It does not answer.
        """
        try:
            self._client = self._connect()
            self._client.ping()
        except (redis.RedisError, OSError, ValueError) as fault:
            raise ConfigError(
                f"--redis: expected a Redis that answers, got {type(fault).__name__}. Start it, or use --redis own."
            ) from fault
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close the connections."""
        with contextlib.suppress(redis.RedisError, OSError):
            self._client.close()

    def _connect(self) -> Any:
        parts = urlsplit(self.url)
        options: dict[str, Any] = {
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
            "decode_responses": True,
        }
        login: dict[str, Any] = {"username": unquote(parts.username or "") or None}
        login["password"] = unquote(parts.password or "") or None
        if parts.scheme == "redis+cluster":
            host, port = _split_host(_hosts_of(self.url)[0])
            self._is_cluster = True
            return RedisCluster(host=host, port=port, **login, **options)
        options["retry"] = Retry(NoBackoff(), 0)
        if parts.scheme != "redis+sentinel":
            return redis.Redis.from_url(self.url, **options)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        theirs = {"username": asked.get("sentinel_username"), "password": asked.get("sentinel_password")}
        hosts = [_split_host(host, _SENTINEL_PORT) for host in _hosts_of(self.url)]
        self._service = unquote(parts.path.strip("/").split("/")[0])
        make: Any = Sentinel  # redis-py has no types for it
        self._sentinels = make(hosts, sentinel_kwargs={**options, **theirs}, **login, **options)
        return self._sentinels.master_for(self._service)

    def ask(self, *words: str | int) -> Any:
        """Return the answer of the primary; of a cluster, that of any of its nodes. Raises redis.RedisError."""
        where = {"target_nodes": RedisCluster.RANDOM} if self._is_cluster else {}
        return self._client.execute_command(*words, **where)

    def flush_scripts(self) -> None:
        """Make it, or all primaries of a cluster, forget every script."""
        self._client.script_flush("SYNC")  # a cluster's client sends it to all

    def stop(self) -> None:
        """Save everything and end it in good order, to be started again.

        Raises:
            UpstreamError: It is not a process that we may see and start.
        """
        about = self._client.info("server")
        pid = int(about["process_id"])
        self._is_supervised = str(about.get("process_supervised", "no")) != "no"
        try:
            self._executable = Path(f"/proc/{pid}/exe").readlink()
        except OSError as fault:
            raise UpstreamError(f"Redis: expected to see process {pid} on this machine, got {fault!r}") from fault
        self._config = str(about.get("config_file", ""))
        self._settings = plan_restart(self._client.config_get())
        with contextlib.suppress(redis.ConnectionError):  # it hangs up instead of an answer
            self.ask("SHUTDOWN", "SAVE")
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), "its end", self._now_us)

    def start_again(self) -> None:
        """Start it by its own executable and configuration, unless a supervisor does.

        Raises:
            UpstreamError: It does not come back.
        """
        with tempfile.TemporaryDirectory(prefix="ps-redis-") as made:
            file = self._config
            if not file:
                written = Path(made) / "redis.conf"  # in a directory that only we may read: it may hold a password
                written.write_text(self._settings, encoding="utf-8")
                file = str(written)
            if not self._is_supervised:
                _spawn(self._executable, file)
            wait_for(self._client.ping, "an answer after the restart", self._now_us)

    def begin_failover(self) -> None:
        """Do nothing: what others rely on is not made to lose writes."""

    def finish_failover(self) -> None:
        """Ask its sentinels to promote a replica, again until they find one good enough.

        Raises:
            UpstreamError: They do not.
        """
        sentinel = self._sentinels.sentinels[0]
        ask = partial(sentinel.execute_command, "SENTINEL", "FAILOVER", self._service)
        wait_for(ask, "a replica that can be promoted", self._now_us)


def _spawn(executable: Path, config: str) -> None:
    """Start a server that is to outlive us, as it would have: in a session of its own, and nobody waits for it."""
    # Called by this name: Debian's file is also a tool that checks files, if that is what it is called.
    words = ["redis-server", config]
    silence = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    os.posix_spawn(executable, words, os.environ, file_actions=silence, setsid=True)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    return True
