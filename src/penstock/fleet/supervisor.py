"""Keeps children running: starts them, notices their end, starts them again with backoff, kills and stops them.

    WAITING --start--> LOADING --hello--> READY
       ^                  |                 |
       +------ ended -----+------ended------+         any --stop--> STOPPING --ended--> STOPPED
                          ^                 |
                          +- STOPPING <-kill+         (killed: ended, then started again)

Not here: when to start again (`policy/restarting.py`), what children say and are told (`head.py`).
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from signal import SIGKILL, SIGTERM

from penstock.core.launch import GatewayLaunch, ReplicaLaunch
from penstock.core.models import ModelSource, ModelSpec
from penstock.core.profiles import CostProfile
from penstock.fleet.processes import Process, spawn_process
from penstock.policy.restarting import (
    RestartConfig,
    RestartState,
    Wait,
    decide_restart,
    note_death,
    note_ready,
)

__all__ = ["Child", "ChildState", "Launch", "Role", "Supervisor"]

Launch = GatewayLaunch | ReplicaLaunch

# A process killed with SIGKILL is gone as soon as the kernel has freed its memory; what takes longer hangs in a driver.
_KILLED_WAIT_US = 5_000_000


class Role(StrEnum):
    """What a child does."""

    GATEWAY = "gateway"
    REPLICA = "replica"


class ChildState(StrEnum):
    """Where a child is in its life. `StrEnum`, because people and metrics read it."""

    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(slots=True, eq=False)
class Child:
    """One process that is wanted, over all its lives.

    Attributes:
        name: Unique: `gateway-0`, `digits:1#0`.
        role: What it does.
        make_launch: Makes the argument of its next life; a replica listens on a new address each time.
        source: The model, for replicas.
        launch: The argument of its present (or last) life.
        spec, load_us, profile: What its last hello said, for replicas.
        restarts: Lives after the first.
        is_wanted: It is started again when it ends.
        unready_lives: Lives in a row that ended before a hello.
        fault: What its present life did wrong, as it or a gateway said; '' if nobody said anything.
        reason: Why it is not ready, for people; '' when it is. Outlives a life, until one is ready.
        exit_text: How its last life ended; '' before. `last_pid`: which process that was.
    """

    name: str
    role: Role
    make_launch: Callable[[], Launch]
    source: ModelSource | None = None
    launch: Launch | None = None
    process: Process | None = None
    state: ChildState = ChildState.WAITING
    spec: ModelSpec | None = None
    load_us: int = 0
    profile: CostProfile | None = None
    restarts: int = 0
    unready_lives: int = 0
    is_wanted: bool = True
    fault: str = ""
    reason: str = ""
    exit_text: str = ""
    last_pid: int = 0
    restart: RestartState = field(default_factory=RestartState)
    timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """Where its present (or last) life listens; '' before the first."""
        if isinstance(self.launch, ReplicaLaunch):
            return self.launch.address
        return "" if self.launch is None else self.launch.http


class Supervisor:
    """Runs children. All methods belong to the event loop's thread; none but `stop` waits."""

    def __init__(
        self,
        *,
        command: Callable[[Launch], Sequence[str]],
        now_us: Callable[[], int],
        on_change: Callable[[Child], None],
        on_exit: Callable[[Child, Process], None],
        config: RestartConfig,
    ) -> None:
        """Keep nothing yet.

        Args:
            command: Turns a launch into an argv.
            now_us: Monotonic clock.
            on_change: Called after a child's state has changed.
            on_exit: Called when a life has ended, before anything is done about it.
            config: How patient to be with a child that keeps dying.
        """
        self._command = command
        self._now_us = now_us
        self._on_change = on_change
        self._on_exit = on_exit
        self._config = config

    def start(self, child: Child) -> None:
        """Start a child's next life now."""
        assert child.process is None
        child.launch = child.make_launch()
        child.fault = ""
        try:
            child.process = spawn_process(self._command(child.launch), lambda process: self._ended(child, process))
        except OSError as error:
            child.exit_text = f"could not be started: {error}"
            self._note_death(child)
            return
        child.state = ChildState.LOADING
        self._on_change(child)

    def adopt(self, child: Child, process: Process, *, is_ready: bool) -> None:
        """Take over a process that an earlier head started; `launch` must be set. See `ended_of`."""
        child.process = process
        child.state = ChildState.READY if is_ready else ChildState.LOADING
        if is_ready:
            child.restart = note_ready(child.restart, now_us=self._now_us())
        self._on_change(child)

    def ended_of(self, child: Child) -> Callable[[Process], None]:
        """Return what a process adopted for `child` must call when it ends."""
        return lambda process: self._ended(child, process)

    def note_hello(self, child: Child) -> None:
        """Note that a child works. Saying so again changes nothing."""
        child.restart = note_ready(child.restart, now_us=self._now_us())
        child.unready_lives = 0
        child.reason = ""
        child.state = ChildState.READY
        self._on_change(child)

    def kill(self, child: Child, reason: str) -> None:
        """End a child's present life at once, because it is faulty; the next one follows by the usual rules."""
        if child.process is None or child.state is ChildState.STOPPING:
            return
        child.state = ChildState.STOPPING
        child.fault = child.reason = reason
        child.process.signal(SIGKILL)
        self._on_change(child)

    async def stop(self, children: Iterable[Child], *, ask: Callable[[Child], bool], wait_us: int) -> None:
        """Stop children for good: ask, wait, then kill what is still there.

        Args:
            children: Which.
            ask: Asks one to drain; False if it cannot be reached, which makes it a SIGTERM.
            wait_us: How long they may take.
        """
        stopping = list(children)
        for child in stopping:
            self._begin_stop(child, ask)
        if not await _wait_ended(stopping, wait_us):
            self.kill_all(stopping)
            await _wait_ended(stopping, _KILLED_WAIT_US)

    def kill_all(self, children: Iterable[Child]) -> None:
        """End children at once and for good, without waiting for their end."""
        for child in children:
            child.is_wanted = False
            if child.process is not None:
                child.process.signal(SIGKILL)

    def _begin_stop(self, child: Child, ask: Callable[[Child], bool]) -> None:
        child.is_wanted = False
        if child.timer is not None:
            child.timer.cancel()
            child.timer = None
        had_said_hello = child.state is ChildState.READY
        child.state = ChildState.STOPPED if child.process is None else ChildState.STOPPING
        self._on_change(child)
        if child.process is None:
            return
        if not had_said_hello:
            # Nothing was ever sent to it, so there is nothing to finish; and it may be loading for minutes, deaf.
            child.process.signal(SIGKILL)
        elif not ask(child):
            child.process.signal(SIGTERM)

    def _ended(self, child: Child, process: Process) -> None:
        assert child.process is process
        self._on_exit(child, process)
        child.process = None
        child.exit_text, child.last_pid = process.exit_text, process.pid
        self._note_death(child)

    def _note_death(self, child: Child) -> None:
        if child.is_wanted:
            # A child that was stopped ended as it should: what went wrong before stays the reason.
            child.reason = child.fault or child.exit_text
        if child.restart.ready_at_us is None:
            child.unready_lives += 1
        child.restart = note_death(self._config, child.restart, now_us=self._now_us())
        child.state = ChildState.WAITING if child.is_wanted else ChildState.STOPPED
        self._on_change(child)
        self._revive(child)

    def _revive(self, child: Child) -> None:
        child.timer = None
        if not child.is_wanted:
            return
        now_us = self._now_us()
        decision = decide_restart(self._config, child.restart, now_us=now_us)
        if isinstance(decision, Wait):
            wait_s = (decision.until_us - now_us) / 1_000_000
            child.timer = asyncio.get_running_loop().call_later(wait_s, self._revive, child)
        else:
            child.restarts += 1
            self.start(child)


async def _wait_ended(children: list[Child], wait_us: int) -> bool:
    """Wait until all processes of `children` have ended; False if that took longer than `wait_us`."""
    running = [child.process.wait_ended() for child in children if child.process is not None]
    try:
        async with asyncio.timeout(wait_us / 1_000_000):
            await asyncio.gather(*running)
    except TimeoutError:
        return False
    return True
