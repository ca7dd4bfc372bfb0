"""The Redis servers of drills, real ones: what each way to end them loses, and what it does not.

Needs redis-server on PATH.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from penstock.adapters.clock import now_us
from penstock.core.errors import ConfigError, UpstreamError
from penstock.load.drills.foreign_redis import ForeignRedis
from penstock.load.drills.limit_stores import open_store
from penstock.load.drills.redis_servers import RedisCluster, RedisReplication, RedisServer, find_redis
from tests.live.serving import is_alive, wait_until


@pytest.fixture(scope="module")
def replication() -> Iterator[RedisReplication]:
    """A primary, a replica in step, three sentinels."""
    with RedisReplication(now_us) as servers:
        yield servers


def test_a_restart_keeps_what_a_kill_loses() -> None:
    """Stopped in good order it knows all afterwards, on the same port; killed, what it had saved before."""
    with RedisServer(now_us) as server:
        pid = server.pid
        server.ask("SET", "a", "1")
        server.restart()
        server.ask("SET", "b", "2")
        server.kill()
        server.start_again()
        assert (server.ask("GET", "a"), server.ask("GET", "b")) == ("1", None)
        assert not is_alive(pid)
        pid = server.pid
    assert not is_alive(pid)


def test_scripts_can_be_forgotten() -> None:
    """After it, a script is known by its text alone."""
    with RedisServer(now_us) as server:
        sha = server.ask("SCRIPT", "LOAD", "return 1")
        server.flush_scripts()
        with pytest.raises(redis.exceptions.NoScriptError):
            server.ask("EVALSHA", sha, 0)


def test_a_paused_server_answers_later() -> None:
    """It keeps its connections, and everything."""
    with RedisServer(now_us) as server:
        server.ask("SET", "a", "1")
        server.pause()
        wait_until(lambda: " T " in Path(f"/proc/{server.pid}/stat").read_text(), "stopped")
        server.resume()
        assert server.ask("GET", "a") == "1"


def test_a_server_that_cannot_start_says_why() -> None:
    """A wrong setting is in the message, and nothing is left."""
    with pytest.raises(UpstreamError, match=r"(?s)expected it to start, got its end.*maxmemory-policy"):
        RedisServer(now_us, ["--maxmemory-policy", "sometimes"]).__enter__()


def test_a_failover_loses_what_was_cut_off(replication: RedisReplication) -> None:
    """The replica is promoted with what it had before the cut, and nothing after; the sentinels say so."""
    replication.primary.ask("SET", "before", "1")
    wait_until(lambda: replication.replica.ask("GET", "before") == "1", "replicated")
    replication.cut_replication()
    replication.primary.ask("SET", "after", "1")
    assert replication.find_primary_port() == replication.primary.port
    replication.primary.kill()
    wait_until(lambda: replication.find_primary_port() == replication.replica.port, "promoted")
    wait_until(lambda: replication.replica.ask("ROLE")[0] == "master", "a primary")
    assert (replication.replica.ask("GET", "before"), replication.replica.ask("GET", "after")) == ("1", None)


def test_a_cluster_shares_its_slots() -> None:
    """Keys live on different nodes, each of which says so of the others'."""
    with RedisCluster(now_us) as cluster:
        homes = set()
        for key in "abc":
            for node in cluster.nodes:
                try:
                    node.ask("SET", key, "1")
                    homes.add(node.port)
                except redis.exceptions.MovedError:
                    continue
        assert len(homes) > 1


def test_a_foreign_server_is_itself_after_a_restart(tmp_path: Path) -> None:
    """Started by nothing but options it has them again: port, directory, password and all; and its data."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", "s3 cret", "--maxmemory", "100mb"]
    command = [find_redis(), *options, "--dir", str(tmp_path), "--save", ""]
    with subprocess.Popen(command) as process:
        with socket.socket() as probe:
            wait_until(lambda: probe.connect_ex(("127.0.0.1", port)) == 0, "listening")
        with ForeignRedis(f"redis://:s3%20cret@127.0.0.1:{port}/0", now_us) as foreign:
            foreign.ask("SET", "a", "1")
            foreign.stop()
            assert process.wait(20) == 0
            foreign.start_again()
            pid = int(foreign.ask("INFO", "server")["process_id"])
            assert foreign.ask("GET", "a") == "1"
            assert foreign.ask("CONFIG", "GET", "maxmemory") == {"maxmemory": str(100 << 20)}
        assert is_alive(pid), "it outlives whoever has restarted it"
        os.kill(pid, signal.SIGKILL)


def test_a_foreign_server_with_a_file_is_started_by_it() -> None:
    """Its own file is what says how it is to be, the second time as well."""
    with RedisServer(now_us) as server, ForeignRedis(server.url, now_us) as foreign:
        foreign.ask("SET", "a", "1")
        for _ in range(2):
            foreign.stop()
            foreign.start_again()
        about = foreign.ask("INFO", "server")
        assert about["config_file"].endswith("redis.conf")
        assert foreign.ask("GET", "a") == "1"
        os.kill(int(about["process_id"]), signal.SIGKILL)


def test_a_foreign_server_is_promoted_by_its_sentinels() -> None:
    """A failover of theirs is asked for; the client then finds the new primary."""
    with RedisReplication(now_us, sentinels=1) as servers, ForeignRedis(servers.url, now_us) as foreign:
        foreign.ask("SET", "a", "1")
        wait_until(lambda: servers.replica.ask("GET", "a") == "1", "replicated")
        foreign.begin_failover()
        foreign.finish_failover()
        wait_until(lambda: servers.find_primary_port() == servers.replica.port, "promoted")
        foreign.flush_scripts()
        assert foreign.ask("GET", "a") == "1"


def test_a_url_that_does_not_answer_is_bad_usage() -> None:
    """The option is named and what to do; a password is not."""
    with pytest.raises(ConfigError, match="--redis: expected a Redis that answers") as caught:
        open_store("redis://:s3cret@127.0.0.1:1/0", "", now_us).__enter__()
    assert "s3cret" not in caught.value.message
