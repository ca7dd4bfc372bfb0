"""The head: owns what is wanted, hears what is there, and tells every gateway the whole catalogue on every change.

It is never on the request path: without it gateways and replicas go on, and its successor adopts them.
Not here: the life of one child (`supervisor.py`), the catalogue's contents (`catalogue.py`), showing (`admin.py`).
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from penstock.core.authority import Operation, Reply
from penstock.core.errors import PenstockError
from penstock.core.keys import KeySnapshot
from penstock.core.launch import GatewayLaunch, HttpLimits, ReplicaLaunch
from penstock.core.limits import LimitSettings
from penstock.core.models import ModelSource
from penstock.fleet.catalogue import describe_model, fingerprint, name_replica
from penstock.fleet.control import Channel, ControlServer
from penstock.fleet.costs import Costs
from penstock.fleet.keys import KeyDesk, ProcessId
from penstock.fleet.ledger import Ledger
from penstock.fleet.limit_audit import LimitAudit
from penstock.fleet.limit_explaining import AskLimits, Circumstances, explain_limits
from penstock.fleet.limits import LimitDesk
from penstock.fleet.processes import Process, adopt_process, read_boot_id, read_usage
from penstock.fleet.readiness import SILENCE_US_MAX, Readiness
from penstock.fleet.state_directory import ChildRecord, FleetRecord, StateDirectory
from penstock.fleet.supervisor import Child, ChildState, Launch, Role, Supervisor
from penstock.fleet.view import FleetView, GatewayView, ModelView, ProcessView, view_gateway, view_limits, view_model
from penstock.policy.restarting import RestartConfig
from penstock.wire.control import (
    Drain,
    GatewayHello,
    GatewayReport,
    KeysApplied,
    KeysChanged,
    LimitCall,
    LoadFailed,
    Message,
    ModelEntry,
    ReplicaFault,
    ReplicaHello,
    Snapshot,
    StatisticsQuery,
    StatisticsReply,
    encode_message,
)

__all__ = ["FleetEvent", "FleetSettings", "Head", "StartFailed"]

_SILENCE_CHECK_S = 1.0
# On top of the drain time: a gateway's last report, closing its sockets, the interpreter's own end.
_GATEWAY_STOP_GRACE_US = 2_000_000
# No gateway is left to wait for a replica's answer, so it only finishes what it cannot interrupt.
_REPLICA_STOP_US = 5_000_000
# So many lives in a row without a hello, before the fleet was ever ready, mean a setting is wrong.
_START_TRIES = 3


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What is wanted.

    Args:
        http: `host:port` of the inference port, never port 0; whoever starts the head holds it.
        gateways: How many gateway processes share it.
        sources: The models.
        http_limits, access_log, canary_age_us_max, orphan_us, limits, requires_key: Passed on to the children.
        drain_us: How long gateways may take to finish what is in flight.
        version: Of the program, for people.
    """

    http: str
    sources: tuple[ModelSource, ...]
    gateways: int = 1
    http_limits: HttpLimits = field(default_factory=HttpLimits)
    access_log: bool = False
    canary_age_us_max: int = 10_000_000
    orphan_us: int = 300_000_000
    limits: LimitSettings = field(default_factory=LimitSettings)
    requires_key: bool = False
    drain_us: int = 30_000_000
    version: str = ""


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """Something happened to a child (or, with kind `warning`, to the head); `text` is for people."""

    kind: Literal["started", "adopted", "ready", "died", "killed", "stopped", "warning"]
    name: str
    text: str


class StartFailed(PenstockError):
    """A child keeps failing before the fleet was ever ready. Change what its reason says; then start again."""

    def __init__(self, child: Child) -> None:
        super().__init__(f"{child.name} could not be started")
        self.child = child

    @property
    def reason(self) -> str:
        """Why, as it is known by now: the child's own words may arrive a moment after its end."""
        return f"{self.child.name}: {self.child.reason}"


class Head:
    """One fleet. Everything runs on the loop that called `start`."""

    def __init__(
        self,
        settings: FleetSettings,
        directory: StateDirectory,
        *,
        command: Callable[[Launch], Sequence[str]],
        now_us: Callable[[], int],
        on_event: Callable[[FleetEvent], None],
        read_keys: Callable[[int | None], KeySnapshot | None] | None = None,
        ask_limits: AskLimits | None = None,
        restarting: RestartConfig | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            settings: What is wanted.
            directory: Locked; `stop` closes it.
            command: Turns a launch into the argv of a child process.
            now_us: Monotonic clock, the same for all processes of the machine.
            on_event: Called for what people may want to see. Must not raise.
            read_keys: Returns the API keys in their store, None if they are still those of the revision given. None: no
                keys.
            ask_limits: Asks the authority over limits; None if the head is that.
            restarting: How patient to be with a child that keeps dying.
        """
        self._settings = settings
        self._directory = directory
        self._now_us = now_us
        self._on_event = on_event
        self._supervisor = Supervisor(
            command=command,
            now_us=now_us,
            on_change=self._child_changed,
            on_exit=self._child_ended,
            config=restarting or RestartConfig(),
        )
        self._control = ControlServer(directory.control, self._received, self._channel_closed)
        self._boot_id = read_boot_id()
        self._address_next = 0
        self._gateways = [self._make_gateway(index) for index in range(settings.gateways)]
        self._replicas = {s.name: [self._make_replica(s, i) for i in range(s.replicas_min)] for s in settings.sources}
        self._children = {c.name: c for c in [*self._gateways, *(c for cs in self._replicas.values() for c in cs)]}
        self._strays: list[Child] = []
        self._stray_stop: asyncio.Task[None] | None = None
        self._channels: dict[str, Channel] = {}
        self._accounts: dict[Channel, tuple[int, int]] = {}
        self._readiness = Readiness()
        self._costs = Costs()
        self._shown: dict[str, ChildState] = {}
        self._ledger = Ledger()
        # The clock goes on when heads come and go, so a successor's snapshots are newer than its predecessor's.
        self._sequence = self._started_at_us = now_us()
        self._keys = KeyDesk(
            read_keys or _read_no_keys,
            sequence=self._sequence,
            gateways=self._living_gateways,
            on_warning=lambda text: on_event(FleetEvent("warning", "head", text)),
            tiers=[name for name, _ in settings.limits.tiers],
        )
        self._limits = LimitDesk(f"{self._boot_id}:{self._sequence}", now_us)
        self._limit_audit = LimitAudit()
        self._ask_limits = ask_limits or self._ask_own_limits
        self._is_snapshot_due = False
        self._is_draining = False
        self._silence_timer: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[None] | None = None

    # -- starting and stopping

    async def start(self) -> None:
        """Listen for children, adopt those an earlier head left, start the others.

        Raises:
            OSError: The state directory cannot be written.
            PenstockError: The store of keys cannot be read.
        """
        self._keys.start()
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        # Nobody may be waiting when it fails; `stop` is then all that is left to do.
        self._ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        await self._control.start()
        records = self._load_records()
        for child in self._children.values():
            if not self._adopt(child, records.pop(child.name, None)):
                self._supervisor.start(child)
        for record in records.values():
            self._adopt_stray(record)
        self._stop_strays()
        self._silence_timer = loop.call_later(_SILENCE_CHECK_S, self._check_silence)

    async def wait_ready(self) -> None:
        """Wait until every gateway has found every wanted model ready.

        Raises:
            StartFailed: A child failed to start three times in a row. Call `stop`.
        """
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def stop(self) -> None:
        """Drain the gateways, then stop the replicas, then leave. Takes at most the drain time and a few seconds."""
        self._is_draining = True
        self._cancel_timer()
        wait_us = self._settings.drain_us + _GATEWAY_STOP_GRACE_US
        await self._supervisor.stop(
            self._gateways, ask=lambda child: self._ask_drain(child, self._settings.drain_us), wait_us=wait_us
        )
        replicas = [c for children in self._replicas.values() for c in children]
        await self._supervisor.stop(
            [*replicas, *self._strays],
            ask=lambda child: self._ask_drain(child, _REPLICA_STOP_US),
            wait_us=_REPLICA_STOP_US,
        )
        self._leave()

    def kill(self) -> None:
        """End all children at once and leave. What was in flight is lost."""
        self._is_draining = True
        self._cancel_timer()
        self._supervisor.kill_all([*self._children.values(), *self._strays])
        self._leave()

    def _leave(self) -> None:
        if self._stray_stop is not None:
            self._stray_stop.cancel()
        self._control.close()
        self._directory.close(is_empty=True)

    def _cancel_timer(self) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()

    def _ask_drain(self, child: Child, drain_us: int) -> bool:
        channel = self._channels.get(child.name)
        if channel is None or not channel.is_open:
            return False
        channel.send(Drain(drain_us))
        return True

    # -- what is wanted

    def _make_gateway(self, index: int) -> Child:
        settings = self._settings
        launch = GatewayLaunch(
            index=index,
            http=settings.http,
            control=str(self._directory.control),
            http_limits=settings.http_limits,
            access_log=settings.access_log,
            canary_age_us_max=settings.canary_age_us_max,
            orphan_us=settings.orphan_us,
            limits=settings.limits,
            requires_key=settings.requires_key,
        )
        return Child(name=f"gateway-{index}", role=Role.GATEWAY, make_launch=lambda: launch)

    def _make_replica(self, source: ModelSource, index: int) -> Child:
        name = name_replica(source, index)

        def make_launch() -> Launch:
            # Each life has an address of its own, so that a late word about the last one is never taken for this.
            number, self._address_next = self._address_next, self._address_next + 1
            return ReplicaLaunch(
                replica=name,
                address=f"unix:{self._directory.replica_socket(number)}",
                control=str(self._directory.control),
                source=source,
                orphan_us=self._settings.orphan_us,
            )

        return Child(name=name, role=Role.REPLICA, make_launch=make_launch, source=source)

    # -- adopting

    def _load_records(self) -> dict[str, ChildRecord]:
        record = self._directory.load(self._boot_id)
        if record is None:
            return {}
        self._address_next = record.address_next
        return {child.name: child for child in record.children}

    def _adopt(self, child: Child, record: ChildRecord | None) -> bool:
        """Take over the process that runs for `child`, if it does and was started as it would be now."""
        if record is None:
            return False
        launch = child.make_launch()
        if fingerprint(launch) != record.fingerprint:
            self._adopt_stray(record)
            return False
        process = adopt_process(record.pid, record.start_ticks, self._supervisor.ended_of(child))
        if process is None:
            return False
        child.launch = replace(launch, address=record.address) if isinstance(launch, ReplicaLaunch) else launch
        child.spec, child.load_us, child.profile = record.spec, record.load_us, record.profile
        child.restarts = record.restarts
        self._shown[child.name] = ChildState.READY if record.is_ready else ChildState.LOADING
        self._supervisor.adopt(child, process, is_ready=record.is_ready)
        self._emit("adopted", child, f"pid {process.pid}")
        return True

    def _adopt_stray(self, record: ChildRecord) -> None:
        """Take over a process that is not wanted any more, in order to stop it."""
        stray = Child(name=record.name, role=Role(record.role), make_launch=_make_nothing, is_wanted=False)
        process = adopt_process(record.pid, record.start_ticks, self._supervisor.ended_of(stray))
        if process is not None:
            self._strays.append(stray)
            self._supervisor.adopt(stray, process, is_ready=record.is_ready)

    def _stop_strays(self) -> None:
        if self._strays:
            stop = self._supervisor.stop(
                self._strays, ask=lambda _: False, wait_us=self._settings.drain_us + _GATEWAY_STOP_GRACE_US
            )
            self._stray_stop = asyncio.create_task(stop)

    def _save(self) -> None:
        records = (_to_record(c) for c in self._children.values() if c.process is not None)
        record = FleetRecord(self._boot_id, self._settings.http, self._address_next, tuple(records))
        try:
            self._directory.save(record)
        except OSError as error:
            # The fleet serves on; only a successor would have to start it anew.
            self._on_event(FleetEvent("warning", "head", f"cannot write {self._directory.path}: {error.strerror}"))

    # -- what children do

    def _child_changed(self, child: Child) -> None:
        self._keys.check()
        if self._children.get(child.name) is not child:
            return  # a stray: it matters to nobody any more
        if self._shown.get(child.name) is not child.state:
            self._shown[child.name] = child.state
            self._show(child)
        if self._is_draining:
            return
        self._save()
        self._send_snapshots_soon()
        self._check_ready()
        if child.unready_lives >= _START_TRIES and self._ready is not None and not self._ready.done():
            self._ready.set_exception(StartFailed(child))

    def _child_ended(self, child: Child, process: Process) -> None:
        if child.role is Role.GATEWAY and self._children.get(child.name) is child:
            self._readiness.forget(child.name)
            self._costs.forget(child.name)
            self._close_account_if_over((process.pid, process.start_ticks))
        if child.address.startswith("unix:"):
            Path(child.address.removeprefix("unix:")).unlink(missing_ok=True)

    def _living_gateways(self) -> Iterable[tuple[str, ProcessId]]:
        """Yield every gateway process that lives, those included that are not wanted any more."""
        for child in (*self._gateways, *self._strays):
            if child.role is Role.GATEWAY and child.process is not None:
                yield child.name, (child.process.pid, child.process.start_ticks)

    def _close_account_if_over(self, account: tuple[int, int]) -> None:
        """Close a gateway's account once its process has ended and all it said has been read, whichever comes last."""
        is_running = any(
            c.process is not None and c.process.is_running and (c.process.pid, c.process.start_ticks) == account
            for c in self._gateways
        )
        if not is_running and account not in self._accounts.values():
            self._ledger.close(account)

    def _show(self, child: Child) -> None:
        pid = 0 if child.process is None else child.process.pid
        match child.state:
            case ChildState.LOADING:
                self._emit("started", child, f"pid {pid}")
            case ChildState.READY:
                loaded = f", loaded in {child.load_us / 1_000_000:.2f} s" if child.role is Role.REPLICA else ""
                self._emit("ready", child, f"pid {pid}{loaded}")
            case ChildState.WAITING:
                said = f" ({child.exit_text})" if child.reason != child.exit_text else ""
                self._emit("died", child, f"{child.reason}{said}")
            case ChildState.STOPPING:
                self._emit("killed" if child.is_wanted else "stopped", child, child.reason or f"pid {pid}")
            case ChildState.STOPPED:
                pass

    def _emit(
        self, kind: Literal["started", "adopted", "ready", "died", "killed", "stopped"], child: Child, text: str
    ) -> None:
        self._on_event(FleetEvent(kind, child.name, text))

    def _check_silence(self) -> None:
        """Replace gateways that live but say nothing: they hold their share of new connections and serve none."""
        ready_at_us = {
            child.name: child.restart.ready_at_us
            for child in self._gateways
            if child.state is ChildState.READY and child.restart.ready_at_us is not None
        }
        for name in self._readiness.find_silent(ready_at_us, now_us=self._now_us()):
            self._supervisor.kill(self._children[name], f"no report for {SILENCE_US_MAX // 1_000_000} s")
        self._limits.tend()
        self._limit_audit.advance(self._now_us())
        self._keys.tend()
        self._silence_timer = asyncio.get_running_loop().call_later(_SILENCE_CHECK_S, self._check_silence)

    # -- what children say

    def _received(self, channel: Channel, message: Message) -> None:
        match message:
            case GatewayHello() | ReplicaHello():
                self._hello(channel, message)
            case GatewayReport():
                self._report(channel, message)
            case LoadFailed():
                self._load_failed(message)
            case ReplicaFault():
                self._replica_fault(message)
            case StatisticsQuery():
                channel.send(StatisticsReply(message.id, self._ledger.total()))
            case LimitCall():
                channel.send(self._limits.answer(message))
            case KeysApplied():
                if channel in self._accounts:
                    self._keys.note_applied(self._accounts[channel], message.sequence)
            case KeysChanged():
                self._keys.change(channel, message)
            case _:
                pass  # Drained is followed by the process's end, which is what counts; the rest is ours to say

    def _hello(self, channel: Channel, hello: GatewayHello | ReplicaHello) -> None:
        name = f"gateway-{hello.index}" if isinstance(hello, GatewayHello) else hello.replica
        child = self._children.get(name)
        if child is None or child.process is None or child.process.pid != hello.pid:
            # Left by an earlier head that died before it could write it down.
            channel.send(Drain(self._settings.drain_us))
            return
        channel.name = name
        self._channels[name] = channel
        if isinstance(hello, ReplicaHello):
            child.spec, child.load_us, child.profile = hello.spec, hello.load_us, hello.profile
        else:
            account = self._accounts[channel] = (child.process.pid, child.process.start_ticks)
            self._keys.hello(account, channel)
            channel.send(self._make_snapshot())
        if child.state is not ChildState.STOPPING:
            self._supervisor.note_hello(child)

    def _report(self, channel: Channel, report: GatewayReport) -> None:
        account = self._accounts.get(channel)
        if account is None:
            return  # it has not said hello, or is not one of ours
        self._ledger.record(account, report.statistics)
        self._limit_audit.note(report.audit, self._now_us())
        child = self._children[channel.name]
        if child.process is not None and (child.process.pid, child.process.start_ticks) == account:
            self._readiness.note(channel.name, report, now_us=self._now_us())
            self._costs.note(channel.name, report.profiles)
            self._check_ready()

    def _load_failed(self, failure: LoadFailed) -> None:
        child = self._children.get(failure.replica)
        if child is None:
            return
        if child.process is not None and child.process.pid == failure.pid:
            child.fault = failure.reason
        elif child.last_pid == failure.pid and child.state is not ChildState.READY:
            # Its end was noticed before its last words were read.
            child.reason = failure.reason
            self._send_snapshots_soon()

    def _replica_fault(self, fault: ReplicaFault) -> None:
        for children in self._replicas.values():
            for child in children:
                if child.address == fault.address:
                    self._supervisor.kill(child, fault.reason)

    def _channel_closed(self, channel: Channel) -> None:
        if self._channels.get(channel.name) is channel:
            del self._channels[channel.name]
        self._keys.forget(channel)
        account = self._accounts.pop(channel, None)
        if account is not None:
            self._close_account_if_over(account)

    # -- what gateways are told

    def _entries(self) -> list[ModelEntry]:
        return [describe_model(source, self._replicas[source.name]) for source in self._settings.sources]

    def _make_snapshot(self) -> Snapshot:
        self._sequence += 1
        return Snapshot(self._sequence, tuple(self._entries()))

    def _send_snapshots_soon(self) -> None:
        """Send one snapshot for all the changes of this turn of the loop."""
        if not self._is_snapshot_due:
            self._is_snapshot_due = True
            asyncio.get_running_loop().call_soon(self._send_snapshots)

    def _send_snapshots(self) -> None:
        self._is_snapshot_due = False
        data = encode_message(self._make_snapshot())
        for child in self._gateways:
            if child.name in self._channels:
                self._channels[child.name].send_bytes(data)

    # -- what is there

    def _check_ready(self) -> None:
        if self._ready is not None and not self._ready.done() and self._is_ready(self._entries()):
            self._ready.set_result(None)

    def _is_ready(self, entries: list[ModelEntry]) -> bool:
        keys = [f"{entry.name}:{entry.version}" for entry in entries]
        return not self._is_draining and all(self._is_gateway_ready(g, keys) for g in self._gateways)

    def _is_gateway_ready(self, gateway: Child, keys: Sequence[str]) -> bool:
        is_reachable = gateway.state is ChildState.READY and gateway.name in self._channels
        return is_reachable and self._readiness.is_ready(gateway.name, keys)

    def view(self) -> FleetView:
        """Return the fleet as it is now. Cost: one look into /proc for each process."""
        now_us = self._now_us()
        entries = self._entries()
        living = [(c.role.value, c.name, c.process.pid) for c in self._children.values() if c.process is not None]
        statistics = self._ledger.total()
        usages = [(role, name, read_usage(pid)) for role, name, pid in [("head", "head", os.getpid()), *living]]
        return FleetView(
            version=self._settings.version,
            http=self._settings.http,
            uptime_us=now_us - self._started_at_us,
            is_ready=self._is_ready(entries),
            is_draining=self._is_draining,
            gateways=tuple(self._view_gateway(g, entries, now_us) for g in self._gateways),
            models=tuple(self._view_model(entry) for entry in entries),
            processes=tuple(ProcessView(role, name, usage) for role, name, usage in usages if usage is not None),
            statistics=statistics,
            limits=view_limits(self._settings.limits, statistics, self._limit_audit.findings()),
        )

    async def explain_limits(self, *, user: str, tenant: str, model: str) -> dict[str, Any]:
        """Say what is left of a user's limits: see `limit_explaining.explain_limits`. Waits for who counts them."""
        circumstances = Circumstances(
            settings=self._settings.limits,
            keys=self._keys.records,
            models=tuple(dict.fromkeys(source.name for source in self._settings.sources)),
            requires_key=self._settings.requires_key,
        )
        return await explain_limits(circumstances, self._ask_limits, user=user, tenant=tenant, model=model)

    async def _ask_own_limits(self, operations: Sequence[Operation]) -> Sequence[Reply]:
        return self._limits.run(operations)

    def _view_gateway(self, child: Child, entries: list[ModelEntry], now_us: int) -> GatewayView:
        return view_gateway(
            child,
            is_ready=self._is_gateway_ready(child, [f"{e.name}:{e.version}" for e in entries if e.replicas]),
            report_age_us=self._readiness.age_us(child.name, now_us=now_us),
        )

    def _view_model(self, entry: ModelEntry) -> ModelView:
        key = f"{entry.name}:{entry.version}"
        return view_model(
            entry,
            self._replicas[entry.name],
            is_ready=all(self._is_gateway_ready(g, [key]) for g in self._gateways),
            profiles=self._costs.profiles(key, entry.profile),
            key_weights=self._keys.weights,
        )


def _to_record(child: Child) -> ChildRecord:
    assert child.process is not None
    assert child.launch is not None
    return ChildRecord(
        role=child.role,
        name=child.name,
        pid=child.process.pid,
        start_ticks=child.process.start_ticks,
        address=child.address,
        fingerprint=fingerprint(child.launch),
        spec=child.spec,
        load_us=child.load_us,
        restarts=child.restarts,
        is_ready=child.state is ChildState.READY,
        profile=child.profile,
    )


def _read_no_keys(revision: int | None) -> KeySnapshot | None:
    return None if revision == 0 else KeySnapshot()


def _make_nothing() -> Launch:
    raise AssertionError("a stray is never started again")
