"""Real Redis servers of a drill's own: on free loopback ports, in a directory of their own, ended whatever happens.

    RedisServer                    one process: kill -9, restart, pause, SCRIPT FLUSH
    RedisReplication               a primary, its replica, and sentinels that promote it
    RedisCluster                   three primaries that share the slots

Nothing is written to disk unless asked for (`restart` saves first). Not here: which faults are injected when
(`limit_faults.py`). Source: redis.io/docs on Sentinel and Cluster; redis-server >= 6.2 or Valkey must be on PATH.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from penstock.core.errors import ConfigError, UpstreamError
from penstock.core.ports import Clock

__all__ = ["RedisCluster", "RedisReplication", "RedisServer", "find_redis", "wait_for"]

SERVICE = "penstock"  # what sentinels call the primary
START_TIMEOUT_US = 20_000_000  # one starts in 30 ms here
_TRIES = 5  # somebody else may take a port between our look and the server's
_POLL_S = 0.01
# A primary that is silent for so long is taken for dead: short, as a drill is; production says seconds.
_DOWN_MS = 500
_NO_RETRY = Retry(NoBackoff(), 0)


def find_redis() -> str:
    """Return the server's path.

    Raises:
        ConfigError: There is none on PATH.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise ConfigError("redis-server: expected it on PATH, got nothing. Install it: apt-get install redis-server")


def wait_for(is_done: Callable[[], object], what: str, now_us: Clock, timeout_us: int = START_TIMEOUT_US) -> None:
    """Look every 10 ms until `is_done()`; what it raises of `redis.RedisError` and OSError counts as no.

    Raises:
        UpstreamError: It took too long.
    """
    until_us = now_us() + timeout_us
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if is_done():
                return
        if now_us() > until_us:
            raise UpstreamError(f"Redis: expected {what} within {timeout_us / 1e6:g} s, got nothing of it")
        select.select((), (), (), _POLL_S)


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class RedisServer:
    """One server. `with` it: entering waits until it answers, leaving ends it.

    Args:
        now_us: The clock.
        options: Of its configuration, each as on the command line: `--appendonly`, `yes`.
        is_sentinel: Run it as a sentinel.
        port: Where to listen; 0 for any free one.

    Attributes:
        port: Where it listens; the same after a restart.
    """

    def __init__(self, now_us: Clock, options: Sequence[str] = (), *, is_sentinel: bool = False, port: int = 0) -> None:
        self.port = port
        self._now_us = now_us
        self._options = list(options)
        self._is_sentinel = is_sentinel
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None
        self._ended = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            ConfigError: There is no redis-server.
            UpstreamError: It does not start; the message ends with what it wrote.
        """
        path = find_redis()
        with contextlib.ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="ps-redis-", ignore_cleanup_errors=True)
            self._folder = Path(stack.enter_context(made))
            stack.callback(self.kill)
            is_any = not self.port
            for attempt in range(_TRIES):
                self.port = self.port if not is_any else _free_port()
                try:
                    self._start(path)
                    break
                except UpstreamError:
                    if not is_any or attempt == _TRIES - 1:
                        raise
            self._ended = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        """End it at once; nothing of it is left."""
        self._ended.close()

    def _start(self, path: str) -> None:
        # A file, as a sentinel insists on one that it may rewrite.
        config = self._folder / "redis.conf"
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), *self._options]
        if not self._is_sentinel:
            settings = ["--save", "", "--repl-diskless-sync-delay", "0", *settings]
        if not config.exists():
            config.write_text("".join(_to_lines(settings)), encoding="utf-8")
        command = [path, str(config), *(["--sentinel"] if self._is_sentinel else [])]
        log = self._folder / "log"
        with log.open("wb") as stream:
            # A group of its own: a Ctrl-C is the drill's to handle.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, process_group=0
            )
        try:
            wait_for(self._is_up, "an answer", self._now_us)
        except UpstreamError as fault:
            self.kill()
            config.unlink()
            said = log.read_text(encoding="utf-8", errors="replace")[-2_000:].strip()
            raise UpstreamError(f"{fault.message}:\n{said}") from fault

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise UpstreamError("redis-server: expected it to start, got its end")
        # Somebody else's server may have taken the port: then it answers, and ours is about to end.
        said: Any = self.client.info("server")
        return bool(said["process_id"] == self._process.pid)

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Return its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> "redis.Redis":
        """Return a client for the drill's own questions. It connects anew after a restart."""
        if self._client is None:
            # Without retries: whoever asks knows whether it may be down.
            self._client = redis.Redis(
                port=self.port, socket_timeout=5.0, socket_connect_timeout=5.0, retry=_NO_RETRY, decode_responses=True
            )
        return self._client

    def ask(self, *words: str | int) -> Any:
        """Return the answer to a command. Raises redis.RedisError if there is none."""
        client: Any = self.client  # redis-py has no types for this method
        return client.execute_command(*words)

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs: what it had not written is lost, and it knows nothing of it."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it in good order, with all it knows on its disk, as an administrator would."""
        with contextlib.suppress(redis.ConnectionError):  # it hangs up instead of an answer
            self.ask("SHUTDOWN", "SAVE")
        assert self._process is not None
        self._process.wait()

    def start_again(self) -> None:
        """Start it on the same port after `stop` or `kill`, with what is on its disk.

        Raises:
            UpstreamError: It does not start.
        """
        self._start(find_redis())

    def restart(self) -> None:
        """Do both, the one after the other."""
        self.stop()
        self.start_again()

    def pause(self) -> None:
        """Stop it as it stands: connections stay open and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def flush_scripts(self) -> None:
        """Make it forget every script that it has been sent."""
        self.ask("SCRIPT", "FLUSH", "SYNC")


def _to_lines(settings: Sequence[str]) -> Iterator[str]:
    """Yield `--port 1 --save ''` as lines of a configuration file; several values may follow a name."""
    words: list[str] = []
    for word in settings:
        if word.startswith("--") and words:
            yield " ".join(words) + "\n"
            words = []
        words.append(word.removeprefix("--") if word.startswith("--") else word or '""')
    yield " ".join(words) + "\n"


class RedisReplication:
    """A primary and a replica of it, watched by sentinels. `with` it, as a server.

    Args:
        now_us: The clock.
        sentinels: How many; most of them must agree that the primary is dead.

    Attributes:
        primary, replica: As they began; after a failover the replica is the primary.
        sentinels: Those who decide.
    """

    def __init__(self, now_us: Clock, sentinels: int = 3) -> None:
        self._now_us = now_us
        self._count = sentinels
        self._ended = contextlib.ExitStack()
        self.primary = RedisServer(now_us)
        self.replica = RedisServer(now_us)
        self.sentinels: list[RedisServer] = []

    def __enter__(self) -> Self:
        """Start them and wait until the replica is in step and every sentinel knows of all. Raises as a server does."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.primary)
            stack.enter_context(self.replica)
            self.replica.ask("REPLICAOF", "127.0.0.1", self.primary.port)
            wait_for(self.is_in_step, "a replica in step", self._now_us)
            watched = ("monitor", SERVICE, "127.0.0.1", str(self.primary.port), str(self._count // 2 + 1))
            options = ["--sentinel", *watched]
            for name, value in (("down-after-milliseconds", _DOWN_MS), ("failover-timeout", 5_000)):
                options += ["--sentinel", name, SERVICE, str(value)]
            self.sentinels = [
                stack.enter_context(RedisServer(self._now_us, options, is_sentinel=True)) for _ in range(self._count)
            ]
            wait_for(self._is_watched, "sentinels that know of each other and of the replica", self._now_us)
            self._ended = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        """End all of them at once."""
        self._ended.close()

    @property
    def url(self) -> str:
        """Return the URL by which a client finds whoever is the primary."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def is_in_step(self) -> bool:
        """Return whether the replica has all that the primary has had to say, as far as it knows."""
        return bool(self.replica.client.info("replication").get("master_link_status") == "up")

    def _is_watched(self) -> bool:
        for sentinel in self.sentinels:
            found: Any = sentinel.client.sentinel_masters()
            (state,) = found.values()
            if state["num-slaves"] != 1 or state["num-other-sentinels"] != self._count - 1:
                return False
        return True

    def cut_replication(self) -> None:
        """Keep what the primary writes from now on from the replica. It cannot be undone."""
        # The primary has no password, and refuses whoever says one: the replica tries again in vain.
        self.replica.ask("CONFIG", "SET", "masterauth", "cut")
        self.primary.ask("CLIENT", "KILL", "TYPE", "replica")

    def find_primary_port(self) -> int:
        """Return the port of whoever the sentinels say is the primary."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(port)


class RedisCluster:
    """Three primaries that share the slots, without replicas. `with` it, as a server.

    Attributes:
        nodes: The servers.
    """

    def __init__(self, now_us: Clock) -> None:
        self._now_us = now_us
        self._ended = contextlib.ExitStack()
        self.nodes = [RedisServer(now_us, ["--cluster-enabled", "yes"]) for _ in range(3)]

    def __enter__(self) -> Self:
        """Start them and wait until every one says that all slots are served. Raises as a server does."""
        with contextlib.ExitStack() as stack:
            for index, node in enumerate(self.nodes):
                stack.enter_context(node)
                first, end = (16_384 * part // len(self.nodes) for part in (index, index + 1))
                node.ask("CLUSTER", "ADDSLOTS", *range(first, end))
            for node in self.nodes[1:]:
                node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
            wait_for(self._is_whole, "a whole cluster", self._now_us)
            self._ended = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        """End all of them at once."""
        self._ended.close()

    @property
    def url(self) -> str:
        """Return its URL by its first node."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def _is_whole(self) -> bool:
        states = [str(node.ask("CLUSTER", "INFO")) for node in self.nodes]
        return all("cluster_state:ok" in state and "cluster_known_nodes:3" in state for state in states)
