"""The admin port: what its routes answer."""

import asyncio
import json
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette

from penstock.core.errors import ConfigError, NotFound
from penstock.core.models import ModelSpec
from penstock.core.tensors import TensorSpec
from penstock.fleet.admin import admin_app
from penstock.fleet.metrics import render_metrics
from penstock.fleet.status import to_status
from tests.unit.fleet.test_metrics import VIEW

MODEL = {
    "name": "digits",
    "version": "1",
    "state": "READY",
    "reason": "",
    "ready": True,
    "platform": None,
    "slo_ms": None,
    "batching": None,
    "profile": {"": {"rows": [1, 8], "times_us": [1_500, 5_000], "alpha_us": 500.0, "beta_us": 1_000.0}},
    "replicas": [
        {
            "name": "digits:1#0",
            "pid": 11,
            "address": "unix:/r-0.sock",
            "state": "ready",
            "restarts": 2,
            "load_ms": 1.0,
            "reason": "",
            "last_exit": "",
        }
    ],
    "tenants": {
        "b": {"requests": 4, "success": 2, "refused": 2, "device_us": 3_000_000},
        "a": {"requests": 5, "success": 5, "refused": 0, "device_us": 1_000_000},
    },
    "statistics": {
        "requests": 9,
        "failures": 2,
        "failures_by_reason": {"REJECTED": 2},
        "refusals_by_reason": {"queue_full": 2},
        "requests_by_class": {"interactive": 8, "batch": 1},
        "goodput": 6,
        "goodput_ratio": 6 / 9,
        "device_us": 4_000_000,
        "wasted_us": 500_000,
        "wasted_ratio": 0.125,
        "fairness_jain_ratio": 0.8,
        "concurrency_limit": 40,
        "ejections": 1,
        "pending": 5,
        "retries": 1,
        "batch_rows_average": 4.0,
        "batch_closes": {"full": 1, "idle": 2},
        "queue_us": {"p50": 1_023, "p95": 134_217_727},
    },
}

LIMIT = {
    "name": "per-user",
    "level": "user",
    "rule": "100/s burst 200",
    "local": 90,
    "checked": 10,
    "alone": 1,
    "rejected": 5,
    "stranded_tokens": 3,
    "audited_buckets": 2,
    "excess_max": 0,
    "under_delivery_ratio": 0.25,
    "failover_loss_tokens": 300,
}


async def explain(*, user: str, tenant: str, model: str) -> dict[str, Any]:
    """Say what was asked for, or what is wrong with it."""
    if user == "nobody":
        raise NotFound("user: expected another")
    if user == "away":
        raise ConfigError("redis.url: expected an answer")
    return {"user": user, "tenant": tenant, "model": model}


def app() -> Starlette:
    """Return the application over the view of the tests of metrics."""
    return admin_app(lambda: VIEW, explain)


def get(app: Starlette, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Ask an ASGI application for a path; return status, content type and body."""
    sent: list[dict[str, Any]] = []
    path, _, query = path.partition("?")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [],
        "query_string": query.encode(),
        "root_path": "",
    }
    asyncio.run(app(scope, receive, send))
    headers = dict(sent[0]["headers"])
    body = b"".join(m.get("body", b"") for m in sent[1:])
    return sent[0]["status"], headers.get(b"content-type", b"").decode(), body.decode()


def test_metrics_are_prometheus_text() -> None:
    """GET /metrics answers the rendered page under the content type of the text format."""
    assert get(app(), "/metrics") == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
        render_metrics(VIEW),
    )


def test_healthz_says_the_head_lives() -> None:
    """GET /healthz answers 200 whatever the fleet's state."""
    assert get(app(), "/healthz")[0] == 200


def test_status_tells_the_fleet() -> None:
    """GET /api/status has the documented keys with the view's values, in the units the keys name."""
    status, kind, body = get(app(), "/api/status")
    assert (status, kind) == (200, "application/json")
    assert json.loads(body) == {
        "version": "1.2.3",
        "http": "http://127.0.0.1:8000",
        "uptime_s": 1.5,
        "ready": True,
        "draining": False,
        "gateways": [
            {
                "name": "gateway-0",
                "pid": 10,
                "http": "127.0.0.1:8000",
                "state": "ready",
                "ready": True,
                "report_age_s": 0.001,
                "restarts": 0,
                "reason": "",
                "last_exit": "",
            }
        ],
        "models": [MODEL],
        "limits": [LIMIT],
        "limit_calls": 9,
        "limit_epochs": 1,
    }


def test_status_tells_what_is_in_force() -> None:
    """A model that is loaded shows its SLO, policy and mode; one without an SLO shows none."""
    spec = ModelSpec("digits", (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    for slo_us, slo_ms in ((0, None), (50_500, 50.5)):
        view = replace(VIEW, models=(replace(VIEW.models[0], spec=replace(spec, slo_us=slo_us)),))
        (model,) = to_status(view)["models"]
        assert model["slo_ms"] == slo_ms
        assert model["batching"] == {"policy": "deadline", "mode": "latency", "size_max": 32, "wait_ms_max": 2.0}


def test_the_admin_port_only_reads() -> None:
    """Other methods and other paths change nothing and say so."""
    assert get(app(), "/api/status", "POST")[0] == 405
    assert get(app(), "/nothing")[0] == 404


def test_limits_are_explained_for_whom_was_asked() -> None:
    """GET /api/limits hands on what was asked for, left out or not, and answers the document."""
    for query, asked in (
        ("user=alice&tenant=acme&model=m", {"user": "alice", "tenant": "acme", "model": "m"}),
        ("user=bob", {"user": "bob", "tenant": "", "model": ""}),
    ):
        status, kind, body = get(app(), f"/api/limits?{query}")
        assert (status, kind, json.loads(body)) == (200, "application/json", asked)


def test_what_is_wrong_with_a_question_about_limits_is_said() -> None:
    """A user who does not exist is the asker's mistake, an authority that does not answer is not."""
    for user, status in (("nobody", 404), ("away", 503)):
        answered, _, body = get(app(), f"/api/limits?user={user}")
        assert answered == status
        assert "expected" in json.loads(body)["error"]
