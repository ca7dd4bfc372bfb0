"""Limits as people see them: the metrics, the decision log, an explanation and a replay tell of the same requests."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.clock import now_us
from penstock.testing.redis_servers import RedisServer
from penstock.wire.decisions import Decision, decode_line
from tests.live.serving import EXAMPLES, PENSTOCK, Caller, Server, infer_body, open_server, wait_until

pytestmark = pytest.mark.live

BODY = infer_body("x", "FP32", [[1.0] * 8])
BURST = 20
CONNECTIONS = 8


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of two gateways, one limit on each user and one on everybody, with a decision log beside it."""
    file = tmp_path / "penstock.toml"
    file.write_text(
        f'[server]\ngateways = 2\n[models.sum]\npath = "{EXAMPLES / "sum.py"}"\n'
        f'[limits.per-user]\nlevel = "user"\nrate = "1/h burst {BURST}"\n'
        '[limits.everybody]\nlevel = "global"\nrate = "1000000/s"\n'
        '[limiting]\ndecision_log = "decisions.ndjson"\ndeadline_ms = 500\n'
    )
    return file


def ask(callers: list[Caller], count: int) -> list[int]:
    """Send so many requests in turn over all connections; return the statuses."""
    return [callers[k % len(callers)].infer("sum", BODY).status for k in range(count)]


def decisions(server: Server, outcome: str) -> float:
    """Return how many requests the metrics show under the users' limit."""
    return server.metrics().value("penstock_limit_decisions_total", limit="per-user", outcome=outcome)


def limits(*words: str) -> Any:
    """Return what `penstock limits` prints as JSON."""
    done = subprocess.run(
        [str(PENSTOCK), "limits", *words, "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


@pytest.fixture
def callers() -> Iterator[ExitStack]:
    """Connections to be closed."""
    with ExitStack() as stack:
        yield stack


def test_all_tell_of_the_same_requests(config: Path, callers: ExitStack) -> None:
    """Callers, metrics, log, audit, explanation and replay agree, whichever gateway a request went to."""
    with open_server(config) as server:
        statuses = ask([callers.enter_context(server.caller()) for _ in range(CONNECTIONS)], BURST + 7)
        assert statuses == [200] * BURST + [429] * 7
        wait_until(lambda: decisions(server, "rejected") == 7, "counted")
        assert sum(decisions(server, outcome) for outcome in ("local", "checked")) == BURST
        explained = limits("explain", "anonymous", "--url", server.admin)
        wait_until(
            lambda: server.metrics().value("penstock_limit_under_delivery_ratio", limit="per-user") == 0, "heard"
        )
        metrics = server.metrics()
        server.terminate()
        assert server.wait_exit() == 0
    lines = [decode_line(line) for line in (config.parent / "decisions.ndjson").read_bytes().splitlines()]
    decided = [line for line in lines if isinstance(line, Decision)]
    assert sorted(line.outcome == "rejected" for line in decided) == [False] * BURST + [True] * 7
    assert {line.gateway for line in decided} <= {0, 1}
    assert all(line.asked_us <= line.authority_us <= line.at_us for line in decided if line.authority_us)
    assert [(x["name"], x["left"]) for x in explained["limits"]] == [("per-user", 0), ("everybody", 1_000_000)]
    assert explained["refuses_first"] == {"name": "per-user", "level": "user", "subject": "anonymous"}
    assert metrics.value("penstock_limit_excess_max") == 0
    replayed = limits("replay", str(config.parent / "decisions.ndjson"), "--with", f"per-user: 1/h burst {BURST + 5}")
    assert [replayed[key] for key in ("requests", "recorded", "before", "after")] == [27, BURST, BURST, BURST + 5]


def test_a_store_that_forgets_is_found_out(config: Path, callers: ExitStack) -> None:
    """If Redis loses what it counted, the same tokens are admitted again, and the audit says how many were too much."""
    with RedisServer(now_us) as redis, open_server(config, "--redis", redis.url) as server:
        connections = [callers.enter_context(server.caller()) for _ in range(CONNECTIONS)]
        assert ask(connections, BURST + 1) == [200] * BURST + [429]
        (limit, _) = limits("explain", "anonymous", "--url", server.admin)["limits"]
        assert (limit["left"], limit["lent"]) == (0, 0)
        redis.ask("FLUSHALL")
        # A refusal is believed for a quarter of a second, and nobody is asked meanwhile.
        wait_until(lambda: connections[0].infer("sum", BODY).status == 200, "admitted again")
        assert 200 in ask(connections, BURST)
        wait_until(lambda: server.metrics().value("penstock_limit_excess_max", limit="per-user") > 0, "found out")
        redis.kill()
        with server.caller() as caller:
            assert caller.call("GET", "/v2/health/live").status == 200
        with Caller(server.admin) as admin:
            answer = admin.call("GET", "/api/limits?user=anonymous")
        assert answer.status == 503
        assert "redis.url" in answer.json()["error"]
