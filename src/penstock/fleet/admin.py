"""The admin port: metrics, status and liveness of the head, on Starlette and uvicorn in the head's own event loop.

    GET /metrics      Prometheus text             GET /api/status   the fleet as JSON
    GET /healthz      the head lives              GET /api/limits   what is left of a user's limits

Everything here only reads. Not here: what is shown (`status.py`, `metrics.py`), the inference port (gateways).
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from penstock.core.errors import CallerError, PenstockError
from penstock.fleet.metrics import CONTENT_TYPE, render_metrics
from penstock.fleet.status import to_status
from penstock.fleet.view import FleetView

__all__ = ["AdminServer", "ExplainLimits", "admin_app"]

# How long a scrape in progress may take to finish when the head stops.
_STOP_TIMEOUT_S = 2


class ExplainLimits(Protocol):
    """Says what is left of a user's limits. See `limit_explaining.explain_limits`."""

    def __call__(self, *, user: str, tenant: str, model: str) -> Awaitable[dict[str, Any]]:
        """Return the document. Raises PenstockError."""
        ...


def admin_app(view: Callable[[], FleetView], explain: ExplainLimits) -> Starlette:
    """Return the application.

    Args:
        view: Returns the fleet as it is now.
        explain: Says what is left of a user's limits.
    """

    async def metrics(_request: Request) -> Response:
        return Response(render_metrics(view()), media_type=CONTENT_TYPE)

    async def status(_request: Request) -> Response:
        return JSONResponse(to_status(view()))

    async def limits(request: Request) -> Response:
        asked = {name: request.query_params.get(name, "") for name in ("user", "tenant", "model")}
        try:
            return JSONResponse(await explain(**asked))
        except PenstockError as error:
            # Whoever counts may not be reachable: that is nobody's mistake here.
            status = error.status if isinstance(error, CallerError) else 503
            return JSONResponse({"error": error.message}, status)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            Route("/metrics", metrics, methods=["GET"]),
            Route("/api/status", status, methods=["GET"]),
            Route("/api/limits", limits, methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
        ]
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: in this process SIGTERM is the head's, and means drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class AdminServer:
    """Serves an application on a listening socket until stopped."""

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_STOP_TIMEOUT_S,
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve, in a task of the running loop."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def stop(self) -> None:
        """Stop serving and wait for what is in progress, at most two seconds."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._listener.close()
