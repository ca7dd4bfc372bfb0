"""`penstock serve`: reads the configuration, opens ports, runs the head until a signal ends it.

stdout gets exactly one line, when everything is ready; stderr is for people. Exit status: 0 stopped in good order;
1 a model could not be loaded at start, or a second Ctrl-C cut the stop short; 2 bad usage or configuration.
Not here: what may be configured (`config.py`), the fleet (`fleet/head.py`).
"""

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import uvloop
from rich.console import Console

from penstock import __version__
from penstock.adapters.clock import now_us
from penstock.adapters.sql.keys import KeyStore
from penstock.cli.config import ServeConfig, check_exposure, load_target, with_overrides
from penstock.cli.config_sections import Address
from penstock.cli.limit_authority import make_authority
from penstock.cli.progress import Progress
from penstock.cli.state import default_state, keys_file
from penstock.core.authority import Operation, Reply
from penstock.core.errors import ConfigError
from penstock.core.launch import GatewayLaunch
from penstock.core.limits import LimitSettings
from penstock.core.ports import Clock
from penstock.fleet.admin import AdminServer, admin_app
from penstock.fleet.head import FleetSettings, Head, StartFailed
from penstock.fleet.listening import hold_port, listen_on, port_of
from penstock.fleet.processes import is_running, read_boot_id
from penstock.fleet.state_directory import StateDirectory
from penstock.fleet.supervisor import Launch

__all__ = ["check_redis", "child_command", "register", "run_fleet", "serve"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(name="serve")(serve)


def serve(
    target: Annotated[
        str, typer.Argument(metavar="CONFIG|MODULE", help="penstock.toml, a .py file, or a directory with model.toml.")
    ],
    http: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Inference port; port 0 picks one.")] = None,
    admin: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Admin port; port 0 picks one.")] = None,
    gateways: Annotated[int | None, typer.Option(metavar="N", help="Gateway processes sharing the port.")] = None,
    state: Annotated[Path | None, typer.Option(metavar="DIR", help="State directory.")] = None,
    redis: Annotated[
        str | None, typer.Option(metavar="URL", help='Redis that counts limits; "env:NAME" if it has a password.')
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Ready line as JSON: ready, http, admin, state, pid.")
    ] = False,
) -> None:
    """Serve models until SIGTERM or Ctrl-C.

    Prints `ready http=... admin=...` when, and only when, every model answers.

    Examples: penstock serve examples/quickstart.toml; penstock serve my_model.py --http 127.0.0.1:0 --json
    """
    try:
        config = with_overrides(
            load_target(target), http=http, admin=admin, gateways=gateways, state=state, redis=redis
        )
        check_exposure(config)
        check_redis(config.limits)
        code = run_fleet(config, command=child_command, clock=now_us, as_json=as_json)
    except ConfigError as error:
        print(f"penstock: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    raise typer.Exit(code)


def check_redis(limits: LimitSettings) -> None:
    """See, before anything is started, whether the Redis that shall count answers and will do.

    Raises:
        ConfigError: It does not, or it may drop what it counts. The message names the field and the fix.
    """
    if limits.redis:
        asyncio.run(_try_redis(limits))


async def _try_redis(limits: LimitSettings) -> None:
    authority = make_authority(limits, on_warning=lambda text: print(f"penstock: {text}", file=sys.stderr))
    try:
        await authority.start()
    finally:
        authority.close()


async def _ask_redis(limits: LimitSettings, operations: Sequence[Operation]) -> Sequence[Reply | None]:
    """Ask the Redis that counts, over a connection of its own: people ask seldom.

    Raises:
        ConfigError: It does not answer.
    """
    authority = make_authority(limits, on_warning=lambda _: None)
    try:
        await authority.start()
        replies: asyncio.Future[Sequence[Reply | None]] = asyncio.get_running_loop().create_future()
        authority.submit(operations, replies.set_result)
        return await replies
    finally:
        authority.close()


def child_command(launch: Launch) -> list[str]:
    """Return the argv of a child. `-P`: a file `queue.py` in the user's directory must not replace the standard one."""
    module = "penstock.cli.run_gateway" if isinstance(launch, GatewayLaunch) else "penstock.cli.run_replica"
    return [sys.executable, "-P", "-m", module, msgspec.json.encode(launch).decode()]


def run_fleet(
    config: ServeConfig, *, command: Callable[[Launch], Sequence[str]], clock: Clock, as_json: bool = False
) -> int:
    """Serve a checked configuration until a signal; return the exit status.

    Raises:
        ConfigError: A port is taken, or the state directory has a head already or cannot be used, its keys included.
    """
    opened = _open(config)
    settings = FleetSettings(
        http=str(opened.http),
        sources=config.sources,
        gateways=config.gateways,
        http_limits=config.http_limits,
        access_log=config.access_log,
        canary_age_us_max=config.canary_age_us_max,
        orphan_us=config.orphan_us,
        limits=config.limits,
        requires_key=config.requires_key,
        drain_us=config.drain_us,
        version=__version__,
    )
    progress = Progress(Console(stderr=True))
    head = Head(
        settings,
        opened.directory,
        command=command,
        now_us=clock,
        on_event=progress.show,
        read_keys=_keys_of(opened.directory).read,
        ask_limits=partial(_ask_redis, config.limits) if config.limits.redis else None,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Session(head, opened, progress, as_json=as_json).run())
    finally:
        progress.finish()
        opened.held.close()


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a head holds: its ports and its directory. `held` keeps the inference port for the gateways."""

    http: Address
    admin: Address
    held: socket.socket
    listener: socket.socket
    directory: StateDirectory


def _open(config: ServeConfig) -> _Opened:
    """Take ports and directory, in the order in which each may depend on the one before."""
    http, held, state = config.http, None, config.state
    if state is None:
        if http.port == 0:
            held = hold_port(http.host, 0)
            http = Address(http.host, port_of(held))
        state = default_state(http.host, http.port)
    directory = StateDirectory(state)
    try:
        _keys_of(directory).read()  # now, while nothing has been taken over or started
        if held is None:
            survivors = _survivors_port(directory, http)
            http = Address(http.host, survivors or http.port)
            held = hold_port(http.host, http.port, is_shared=survivors is not None)
            http = Address(http.host, port_of(held))
        listener = listen_on(config.admin.host, config.admin.port)
    except ConfigError:
        directory.close(is_empty=False)
        raise
    return _Opened(http, Address(config.admin.host, port_of(listener)), held, listener, directory)


def _keys_of(directory: StateDirectory) -> KeyStore:
    # A command that writes at the same moment holds the file for a few ms; gateways wait for the head meanwhile.
    return KeyStore(keys_file(directory.path), busy_s=0.2)


def _survivors_port(directory: StateDirectory, http: Address) -> int | None:
    """Return the port that gateways of an earlier head still listen on, if it is the wanted one or any will do."""
    record = directory.load(read_boot_id())
    if record is None:
        return None
    port = int(record.http.rpartition(":")[2])
    if http.port not in (0, port) or record.http != str(Address(http.host, port)):
        return None
    alive = (c for c in record.children if c.role == "gateway" and is_running(c.pid, c.start_ticks))
    return port if any(alive) else None


# A look at everything takes 20 ms here, 40 with ten thousand limited keys, and gateways wait for it. As in gateways.
_GC_THRESHOLD = 100_000


def _rest_collector() -> None:
    """Leave what was loaded at the start out of collections, and make those that look at everything rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 50, 100)


class _Session:
    """One run of a head, from its start to its end."""

    def __init__(self, head: Head, opened: _Opened, progress: Progress, *, as_json: bool) -> None:
        self._head = head
        self._opened = opened
        self._progress = progress
        self._as_json = as_json
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        """Run it; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        admin = AdminServer(admin_app(self._head.view, self._head.explain_limits), self._opened.listener)
        try:
            await self._head.start()
            admin.start()
            code = await self._serve()
        except BaseException:
            # A bug of ours before the end: children nobody watches would hold the port and the memory.
            self._head.kill()
            raise
        await admin.stop()
        return code

    def _interrupt(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _serve(self) -> int:
        failure = await self._wait_first(self._head.wait_ready(), self._stop.wait())
        if failure is None and not self._stop.is_set():
            _rest_collector()
            self._announce()
            await self._stop.wait()
        if failure is None:
            self._progress.say("stopping: finishing what is in flight (Ctrl-C again to stop at once)")
        self._stop.set()
        await self._wait_first(self._head.stop(), self._hurry.wait())
        if self._hurry.is_set():
            self._head.kill()
            return 1
        if failure is not None:
            self._progress.say(f"cannot start: {failure.reason}")
            return 1
        return 0

    async def _wait_first(self, *waits: Coroutine[Any, Any, object]) -> StartFailed | None:
        """Wait for the first of several and drop the others; return the failure to start, if that is what it was."""
        tasks = [asyncio.create_task(wait) for wait in waits]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            error = task.exception()
            if isinstance(error, StartFailed):
                return error
            if error is not None:
                raise error
        return None

    def _announce(self) -> None:
        self._progress.finish()
        http, admin = f"http://{self._opened.http}", f"http://{self._opened.admin}"
        state = str(self._opened.directory.path)
        line = f"ready http={http} admin={admin}"
        if self._as_json:
            line = json.dumps({"ready": True, "http": http, "admin": admin, "state": state, "pid": os.getpid()})
        try:
            print(line, flush=True)
        except OSError:
            # Whoever started us has closed the pipe and does not want to know; serving goes on.
            self._progress.say(line)
