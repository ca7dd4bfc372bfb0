"""The admin port: what its three routes answer."""

import asyncio
import json
from typing import Any

from starlette.applications import Starlette

from penstock.fleet.admin import admin_app
from penstock.fleet.metrics import render_metrics
from tests.unit.fleet.test_metrics import VIEW


def get(app: Starlette, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Ask an ASGI application for a path; return status, content type and body."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(app(scope, receive, send))
    headers = dict(sent[0]["headers"])
    body = b"".join(m.get("body", b"") for m in sent[1:])
    return sent[0]["status"], headers.get(b"content-type", b"").decode(), body.decode()


def test_metrics_are_prometheus_text() -> None:
    """GET /metrics answers the rendered page under the content type of the text format."""
    assert get(admin_app(lambda: VIEW), "/metrics") == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
        render_metrics(VIEW),
    )


def test_healthz_says_the_head_lives() -> None:
    """GET /healthz answers 200 whatever the fleet's state."""
    assert get(admin_app(lambda: VIEW), "/healthz")[0] == 200


def test_status_tells_the_fleet() -> None:
    """GET /api/status has the documented keys with the view's values, in the units the keys name."""
    status, kind, body = get(admin_app(lambda: VIEW), "/api/status")
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
        "models": [
            {
                "name": "digits",
                "version": "1",
                "state": "READY",
                "reason": "",
                "ready": True,
                "platform": None,
                "batching": None,
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
                "statistics": {
                    "requests": 9,
                    "failures": 2,
                    "failures_by_reason": {"REJECTED": 2},
                    "pending": 5,
                    "retries": 1,
                    "batch_rows_average": 4.0,
                    "batch_closes": {"full": 1, "idle": 2},
                    "queue_us": {"p50": 1_023, "p95": 134_217_727},
                },
            }
        ],
    }


def test_the_admin_port_only_reads() -> None:
    """Other methods and other paths change nothing and say so."""
    assert get(admin_app(lambda: VIEW), "/api/status", "POST")[0] == 405
    assert get(admin_app(lambda: VIEW), "/nothing")[0] == 404
