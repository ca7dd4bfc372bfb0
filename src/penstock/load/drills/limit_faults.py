"""Faults for the rate-limit drill, injected while the load runs.

Each is a generator: it does something, says for how long to let things be, and is asked again; closing it undoes what
must not stay. So a fault reads as its own timetable. Not here: Redis servers (`limit_stores.py`),
what the faults must not do (`rate_limit.py`).
"""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Generator
from typing import Protocol

from penstock.core.errors import UpstreamError
from penstock.load.drills.limit_stores import LimitStore, ReplicatedStore, RestartableStore

__all__ = ["FAULTS", "REDIS_FAULTS", "SKEW_VARIABLE", "Injector", "Scene", "skews_s"]

# In words, by name; '' is none.
FAULTS = {
    "": "none",
    "kill": "a gateway is killed every 3 s, in turn",
    "pause": "a gateway is stopped for 1.2 s, in turn, without end",
    "skew": "the gateways' clocks differ by an hour from one to the next",
    "flush-scripts": "Redis forgets its scripts every second",
    "restart-redis": "Redis is saved, stopped, and started again 1 s later, twice",
    "failover": "Redis dies with its last 0.5 s of writes unreplicated, and sentinels promote the replica",
    "kill-head": "the head, which counts, is killed, and another takes its place 2 s later",
}
REDIS_FAULTS = frozenset(("flush-scripts", "restart-redis", "failover"))
# Read by the gateways, `cli/run_gateway.py`.
SKEW_VARIABLE = "PENSTOCK_DRILL_CLOCK_SKEW_S"
_HOUR_S = 3_600

_KILL_EVERY_US = 3_000_000
# Longer than a lease, shorter than the silence for which the head would kill it (`fleet/readiness.SILENCE_US_MAX`).
_PAUSE_US = 1_200_000
_PAUSE_GAP_US = 400_000
_FLUSH_EVERY_US = 1_000_000
# Well below the lag that a limit publishes its loss for (`LimitSettings.lag_us_max`, 1 s).
_UNREPLICATED_US = 500_000
_DOWN_US = 1_000_000
_HEADLESS_US = 2_000_000

Timetable = Generator[int, None, None]  # what it yields is a wait, µs


class Server(Protocol):
    """What is done to a server; see `ServedFleet`."""

    def fetch_gateway_pid(self, index: int) -> int | None:
        """Return the process id of a gateway that is ready."""
        ...

    def kill_head(self) -> None:
        """Kill the head alone."""
        ...

    def start_next_head(self) -> None:
        """Start another."""
        ...


class Scene:
    """Where a fault is injected.

    Args:
        fleet: The server.
        store: Its Redis, None if the head counts.
        instances: Gateways.
        duration_us: Of the load.
        send: Sends a signal to a process id.

    Attributes:
        injected: How often it was done so far.
    """

    def __init__(
        self,
        fleet: Server,
        store: LimitStore | None,
        instances: int,
        duration_us: int,
        *,
        send: Callable[[int, signal.Signals], None] = os.kill,
    ) -> None:
        self.fleet = fleet
        self.instances = instances
        self.duration_us = duration_us
        self.send = send
        self.injected = 0
        self._store = store

    @property
    def store(self) -> LimitStore:
        """Return the Redis, where there must be one."""
        assert self._store is not None
        return self._store


def skews_s(instances: int) -> str:
    """Return by how much the clock of each gateway is to be ahead, as its variable says it; no clock goes below 0."""
    return ",".join(str(index * _HOUR_S) for index in range(instances))


class Injector:
    """Drives one fault through its timetable: `tend` it a few times a second, `close` it in any case."""

    def __init__(self, fault: str, scene: Scene) -> None:
        self._steps = _TIMETABLES.get(fault, _leave)(scene)
        self._due_us: int | None = None

    def tend(self, now_us: int) -> None:
        """Do what is due. The first call is the start."""
        if self._due_us is None:
            self._due_us = now_us
        while now_us >= self._due_us:
            wait_us = next(self._steps, None)
            if wait_us is None:
                return
            # From now: a call that comes late must not be made up for by faults in a heap.
            self._due_us = now_us + wait_us

    def close(self) -> None:
        """Undo what must not stay."""
        self._steps.close()


def _signal_gateway(scene: Scene, index: int, number: signal.Signals) -> int | None:
    """Send a signal to a gateway that is ready; return its process id, None if it is not, or nobody can say."""
    with contextlib.suppress(UpstreamError, ProcessLookupError):
        pid = scene.fleet.fetch_gateway_pid(index)
        if pid is not None:
            scene.send(pid, number)
            scene.injected += 1
            return pid
    return None


def _leave(_: Scene) -> Timetable:
    yield from ()


def _kill(scene: Scene) -> Timetable:
    for index in itertools.cycle(range(scene.instances)):
        yield min(_KILL_EVERY_US, scene.duration_us // 4)
        _signal_gateway(scene, index, signal.SIGKILL)


def _pause(scene: Scene) -> Timetable:
    for index in itertools.cycle(range(scene.instances)):
        yield min(_PAUSE_GAP_US, scene.duration_us // 8)
        pid = _signal_gateway(scene, index, signal.SIGSTOP)
        if pid is None:
            continue
        try:
            yield _PAUSE_US
        finally:
            with contextlib.suppress(ProcessLookupError):  # it may have been replaced meanwhile
                scene.send(pid, signal.SIGCONT)


def _flush_scripts(scene: Scene) -> Timetable:
    while True:
        yield min(_FLUSH_EVERY_US, scene.duration_us // 4)
        scene.store.flush_scripts()
        scene.injected += 1


def _restart_redis(scene: Scene) -> Timetable:
    store = scene.store
    assert isinstance(store, RestartableStore)
    for _ in range(2):
        yield scene.duration_us // 3
        store.stop()
        try:
            yield min(_DOWN_US, scene.duration_us // 8)
        finally:
            store.start_again()
        scene.injected += 1


def _fail_over(scene: Scene) -> Timetable:
    store = scene.store
    assert isinstance(store, ReplicatedStore)
    yield scene.duration_us * 2 // 5
    store.begin_failover()
    yield _UNREPLICATED_US
    store.finish_failover()
    scene.injected += 1


def _kill_head(scene: Scene) -> Timetable:
    yield scene.duration_us // 3
    scene.fleet.kill_head()
    scene.injected += 1
    yield min(_HEADLESS_US, scene.duration_us // 4)
    scene.fleet.start_next_head()


_TIMETABLES: dict[str, Callable[[Scene], Timetable]] = {
    "kill": _kill,
    "pause": _pause,
    "flush-scripts": _flush_scripts,
    "restart-redis": _restart_redis,
    "failover": _fail_over,
    "kill-head": _kill_head,
}
