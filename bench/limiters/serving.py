"""A real Redis of our own for as long as a bench runs: started on a free loopback port, nothing kept on disk.

Not here: what is done with it (`scenarios.py`).
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bench.serving import free_port, running

__all__ = ["Server", "Usage", "redis_server"]

_START_S_MAX = 10.0


class Usage(NamedTuple):
    """What Redis had done by some instant.

    Attributes:
        calls: Commands that clients sent to decide: scripts by hash or by text.
        commands: Commands run, those inside scripts included.
        cpu_us: CPU time of its process.
    """

    calls: int
    commands: int
    cpu_us: int


class Server:
    """A running Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = Redis.from_url(url)

    def wait_ready(self) -> None:
        """Wait until it answers; raises RuntimeError if it does not in time."""
        deadline = time.monotonic() + _START_S_MAX
        while True:
            try:
                self._client.ping()
            except RedisConnectionError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"redis-server: expected an answer at {self.url}, got none") from None
                time.sleep(0.02)
            else:
                return

    def version(self) -> str:
        """Return its version."""
        return str(self._info("server")["redis_version"])

    def empty(self) -> None:
        """Delete every key. Scripts stay."""
        self._client.flushall()

    def usage(self) -> Usage:
        """Return what it has done so far."""
        commands: dict[str, dict[str, Any]] = self._info("commandstats")
        calls = {name.removeprefix("cmdstat_"): int(figures["calls"]) for name, figures in commands.items()}
        cpu = self._info("cpu")
        cpu_us = round((float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])) * 1e6)
        return Usage(calls.get("evalsha", 0) + calls.get("eval", 0), sum(calls.values()), cpu_us)

    def stored_bytes(self) -> tuple[int, int]:
        """Return the number of keys, and the memory that they take."""
        keys: list[bytes] = list(self._client.scan_iter())
        return len(keys), sum(int(self._client.memory_usage(key, samples=0) or 0) for key in keys)  # type: ignore[arg-type, misc, unused-ignore]  # Any

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _info(self, section: str) -> dict[str, Any]:
        found: Any = self._client.info(section)
        return dict(found)


@contextmanager
def redis_server() -> Iterator[Server]:
    """Run a redis-server; yields it once it answers, and ends it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="limiters-") as directory:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        with running([*command, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL):
            server = Server(f"redis://127.0.0.1:{port}/0")
            try:
                server.wait_ready()
                yield server
            finally:
                server.close()
