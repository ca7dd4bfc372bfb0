"""One gateway process: wires the port, the routes, the catalogue and the control channel, and keeps their time.

starting -> serving -> draining -> stopped
"""

import asyncio
import gc
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.keys import KeySnapshot
from penstock.core.launch import GatewayLaunch
from penstock.core.ports import Clock, LimitAuthority
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.catalogue import Catalogue
from penstock.gateway.control import ControlClient
from penstock.gateway.decision_log import DecisionLog
from penstock.gateway.http import HttpConnection, Port
from penstock.gateway.identity import Identifier
from penstock.gateway.limit_audit import LimitWatch, measure_skew_us
from penstock.gateway.limiter import Limiter
from penstock.gateway.routes import Routes
from penstock.policy.admission import RefusalReason
from penstock.wire.control import Drained, GatewayHello, GatewayReport, Snapshot

__all__ = ["Gateway"]

SWEEP_S = 0.25
REPORT_S = 0.5
# How often a draining gateway looks whether it is done.
DRAIN_POLL_S = 0.01
# Readiness goes off this long before the listener closes.
DRAIN_NOTICE_S = 0.2
# A connection idle for this long is not about to ask: one that was just opened is given the time to.
DRAIN_IDLE_US = 200_000
BACKLOG = 4_096
# asyncio allocates a few container objects per request; the default threshold would collect every 100 requests.
GC_THRESHOLD = 100_000


class Gateway:
    """See the module.

    Args:
        launch: What the head asked for.
        now_us: Monotonic clock.
        wall_us: Wall clock, for dates.
        version: Of this program.
        pid: Of this process.
        chance: Uniform in [0, 1), for choosing among replicas.
        authority: Who counts what is limited; None for the head.
        limits_us: The clock that limits go by here; None for `now_us`. A drill may set it wrong.
    """

    def __init__(
        self,
        launch: GatewayLaunch,
        *,
        now_us: Clock,
        wall_us: Clock,
        version: str,
        pid: int,
        chance: Callable[[], float],
        authority: LimitAuthority | None = None,
        limits_us: Clock | None = None,
    ) -> None:
        self._launch = launch
        self._now_us = now_us
        self._wall_us = wall_us
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._draining_for: asyncio.Future[int] = self._loop.create_future()  # µs allowed, once draining
        self._is_drained: asyncio.Future[None] = self._loop.create_future()
        self._statistics = GatewayStatistics()
        self._due: list[ModelBatcher] = []
        self._log_lines: list[bytes] = []
        self._reported_ready: dict[str, bool] = {}
        self._pid = pid
        self.catalogue = Catalogue(
            loop=self._loop,
            now_us=now_us,
            statistics=self._statistics,
            canary_age_us_max=launch.canary_age_us_max,
            call_later=self._call_later,
            schedule_flush=self._schedule_flush,
            on_fault=self._report_fault,
            on_change=self._forget_routes,
            chance=chance,
            on_bug=_print_bug,
        )
        self._control = self._connect_to_head()
        self._identifier = Identifier(requires_key=launch.requires_key)
        self._limit_watch = self._make_limit_watch(limits_us)
        self._limiter = self._make_limiter(authority, limits_us)
        self._routes = Routes(
            self.catalogue,
            self._identifier,
            self._limiter,
            requires_key=launch.requires_key,
            now_us=now_us,
            version=version,
            started_s=wall_us() // 1_000_000,
            query_statistics=self._query_statistics,
            on_bug=_print_bug,
        )
        self._port = self._make_port()

    def _connect_to_head(self) -> ControlClient:
        launch = self._launch
        return ControlClient(
            launch.control,
            GatewayHello(self._pid, launch.index, launch.http),
            loop=self._loop,
            now_us=self._now_us,
            on_snapshot=self._apply,
            on_keys=self._apply_keys,
            on_drain=self.drain,
            own_statistics=self._own_statistics,
        )

    def _make_port(self) -> Port:
        return Port(
            self._routes,
            limits=self._launch.http_limits,
            statistics=self._statistics,
            now_us=self._now_us,
            log=self._log if self._launch.access_log else None,
        )

    def _make_limit_watch(self, limits_us: Clock | None) -> LimitWatch:
        launch = self._launch
        return LimitWatch(
            launch.limits.prefix,
            gateway=launch.index,
            pid=self._pid,
            log=self._open_decision_log(),
            skew_us=0 if limits_us is None else measure_skew_us(limits_us, self._now_us),
        )

    def _make_limiter(self, authority: LimitAuthority | None, limits_us: Clock | None) -> Limiter:
        return Limiter(
            self._launch.limits,
            authority or self._control,
            holder=f"{self._launch.index}-{self._pid}-{self._wall_us()}",
            statistics=self._statistics,
            now_us=limits_us or self._now_us,
            call_soon=self._loop.call_soon,
            observer=self._limit_watch,
        )

    async def run(self) -> None:
        """Serve until drained. Raises OSError if the address cannot be bound."""
        host, _, port = self._launch.http.rpartition(":")
        listener = _listen(host.strip("[]"), int(port))
        server = await self._loop.create_server(lambda: HttpConnection(self._port), sock=listener, backlog=BACKLOG)
        self._loop.add_signal_handler(signal.SIGTERM, self.drain, 30_000_000)
        self._loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches the whole group; the head decides
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 50, 100)
        self._sweep()
        self._report()
        drain_us = await self._draining_for
        end_us = self._now_us() + drain_us
        notice_is_over = self._loop.create_future()
        # Readiness is off by now; keep accepting for a moment, so that a balancer that polls it can react.
        self._loop.call_later(min(DRAIN_NOTICE_S, drain_us / 1e6), notice_is_over.set_result, None)
        await notice_is_over
        latecomers = _accept_waiting(listener)
        server.close()
        for latecomer in latecomers:
            await self._loop.connect_accepted_socket(lambda: HttpConnection(self._port), latecomer)
        self._poll_drained(end_us)
        await self._is_drained
        await self._finish()

    def _poll_drained(self, end_us: int) -> None:
        # Polled, because it depends on every queue and connection and matters only in a process's last seconds.
        is_busy = self._port.drain(DRAIN_IDLE_US) or self.catalogue.pending
        if is_busy and self._now_us() < end_us:
            self._loop.call_later(DRAIN_POLL_S, self._poll_drained, end_us)
        else:
            self._is_drained.set_result(None)

    async def _finish(self) -> None:
        for model in self.catalogue.models.values():
            if model.batcher is not None:
                model.batcher.end(503, "the server is stopping", RefusalReason.DRAINING)
        self._limiter.close()
        await asyncio.sleep(0)  # let the last answers leave
        self._limit_watch.close()
        audit = self._limit_watch.take_bins()
        self._control.report(GatewayReport(self._own_statistics(), {}, draining=True, audit=audit))
        self.catalogue.close()
        self._control.close(Drained(self._pid))
        self._write_log()

    def drain(self, drain_us: int) -> None:
        """Stop being ready, finish what is in flight within `drain_us`, then stop."""
        if not self._draining:
            self._draining = self._routes.is_draining = True
            self._port.start_drain()
            self._report_now()
            self._draining_for.set_result(drain_us)

    def _open_decision_log(self) -> DecisionLog | None:
        path = self._launch.limits.decision_log
        if not path:
            return None
        warn = partial(_warn, f"gateway {self._launch.index}")
        return DecisionLog(Path(path), call_later=self._call_later, warn=warn)

    # The catalogue, the routes and the control channel know each other through these, since none can be made last.

    def _apply(self, snapshot: Snapshot) -> None:
        self.catalogue.apply_snapshot(snapshot)

    def _apply_keys(self, snapshot: KeySnapshot) -> None:
        self._identifier.apply(snapshot.revision, snapshot.records)
        self._routes.forget()
        self._port.heads.clear()  # they hold the texts of keys

    def _report_fault(self, address: str, reason: str) -> None:
        self._control.report_fault(address, reason)

    def _forget_routes(self) -> None:
        self._routes.forget()

    def _query_statistics(self, answer: Callable[[GatewayStatistics], None]) -> None:
        self._report_now()
        self._control.query_statistics(answer)

    # -- time ----------------------------------------------------------------------------------------------------

    def _call_later(self, delay_us: int, callback: Callable[[], None]) -> Callable[[], None]:
        # uvloop counts milliseconds and rounds to the nearest: rounded up here, a timer never fires before its time.
        return self._loop.call_later(-(-delay_us // 1_000) / 1e3, callback).cancel

    def _schedule_flush(self, batcher: ModelBatcher) -> None:
        if not self._due:
            self._loop.call_soon(self._flush)
        self._due.append(batcher)

    def _flush(self) -> None:
        due, self._due = self._due, []
        for batcher in due:
            batcher.flush()

    def _sweep(self) -> None:
        self._loop.call_later(SWEEP_S, self._sweep)
        self._port.date = b"date: %b\r\n" % formatdate(self._wall_us() / 1e6, usegmt=True).encode()
        self._port.sweep()
        self.catalogue.tend()
        self._limiter.tend()
        self._write_log()
        if self.catalogue.readiness() != self._reported_ready:
            self._report_now()
        lost_at_us = self._control.lost_at_us
        if lost_at_us and self._now_us() - lost_at_us > self._launch.orphan_us:
            self.drain(30_000_000)

    def _report(self) -> None:
        self._loop.call_later(REPORT_S, self._report)
        self._report_now()

    def _report_now(self) -> None:
        self._reported_ready = self.catalogue.readiness()
        ready = {} if self._draining else self._reported_ready
        models = self.catalogue.models.items()
        profiles = {f"{name}:{version}": m.batcher.profiles() for (name, version), m in models if m.batcher is not None}
        audit = self._limit_watch.take_bins()
        self._control.report(GatewayReport(self._own_statistics(), ready, self._draining, profiles, audit))

    def _own_statistics(self) -> GatewayStatistics:
        """The counters with those gauges filled in that are not kept per request."""
        monotonic_to_wall_us = self._wall_us() - self._now_us()
        for model in self.catalogue.models.values():
            if model.batcher is not None:
                model.batcher.snapshot_gauges()
                if model.batcher.success_at_us:
                    model.statistics.last_inference_ms = (model.batcher.success_at_us + monotonic_to_wall_us) // 1_000
        return self._statistics

    # -- access log ----------------------------------------------------------------------------------------------

    def _log(self, record: dict[str, Any]) -> None:
        self._log_lines.append(msgspec.json.encode({"at_us": self._wall_us(), **record}) + b"\n")
        if len(self._log_lines) >= 1_000:
            self._write_log()

    def _write_log(self) -> None:
        if self._log_lines:
            lines, self._log_lines = self._log_lines, []
            sys.stderr.buffer.write(b"".join(lines))
            sys.stderr.buffer.flush()


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address)
    return listener


def _accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """Accept whom the kernel has let in already: closing the listener would reset them, requests and all."""
    accepted: list[socket.socket] = []
    try:
        while True:
            accepted.append(listener.accept()[0])
            accepted[-1].setblocking(False)
    except OSError:  # nobody is left, or there is no descriptor for more
        return accepted


def _warn(name: str, text: str) -> None:
    sys.stderr.write(f"{name}: {text}\n")


def _print_bug(error: Exception) -> None:
    traceback.print_exception(error, file=sys.stderr)
