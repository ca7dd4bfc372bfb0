"""The admin port: metrics, status and liveness of the head, on Starlette and uvicorn in the head's own event loop.

    GET /metrics      Prometheus text        GET /api/status   the fleet as JSON        GET /healthz   the head lives

Everything here only reads. Not here: what is shown (`status.py`, `metrics.py`), the inference port (gateways).
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from penstock.fleet.metrics import CONTENT_TYPE, render_metrics
from penstock.fleet.status import to_status
from penstock.fleet.view import FleetView

__all__ = ["AdminServer", "admin_app"]

# How long a scrape in progress may take to finish when the head stops.
_STOP_TIMEOUT_S = 2


def admin_app(view: Callable[[], FleetView]) -> Starlette:
    """Return the application. Args: view: returns the fleet as it is now."""

    async def metrics(_request: Request) -> Response:
        return Response(render_metrics(view()), media_type=CONTENT_TYPE)

    async def status(_request: Request) -> Response:
        return JSONResponse(to_status(view()))

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            Route("/metrics", metrics, methods=["GET"]),
            Route("/api/status", status, methods=["GET"]),
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
