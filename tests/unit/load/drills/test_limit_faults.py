"""Faults as timetables: what is done when, in whose turn, and what is undone at the end."""

import signal
from typing import Any

import pytest

from penstock.load.drills.limit_faults import FAULTS, REDIS_FAULTS, Injector, Scene, skews_s

KILL, STOP, GO_ON = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
SECOND_US = 1_000_000


class Recorder:
    """A server and a Redis of which only what was done to them is known, and when."""

    def __init__(self) -> None:
        self.now_us = 0
        self.done: list[tuple[float, str]] = []
        self.is_ready = True

    def note(self, what: str) -> None:
        self.done.append((self.now_us / SECOND_US, what))

    def fetch_gateway_pid(self, index: int) -> int | None:
        return 100 + index if self.is_ready else None

    def kill_head(self) -> None:
        self.note("kill head")

    def start_next_head(self) -> None:
        self.note("next head")

    def send(self, pid: int, number: signal.Signals) -> None:
        self.note(f"{number.name} {pid}")

    url = "redis://nowhere"

    def ask(self, *words: str | int) -> Any:
        raise NotImplementedError

    def flush_scripts(self) -> None:
        self.note("flush")

    def stop(self) -> None:
        self.note("stop")

    def start_again(self) -> None:
        self.note("start")

    def begin_failover(self) -> None:
        self.note("cut")

    def finish_failover(self) -> None:
        self.note("fail over")


def inject(fault: str, duration_s: int, recorder: Recorder, *, from_s: int = 0) -> Scene:
    """Tend a fault four times a second for so long, then close it."""
    scene = Scene(recorder, recorder, 3, duration_s * SECOND_US, send=recorder.send)
    injector = Injector(fault, scene)
    for step in range(duration_s * 4 + 1):
        recorder.now_us = from_s * SECOND_US + step * SECOND_US // 4
        injector.tend(recorder.now_us)
    injector.close()
    return scene


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        ("", []),
        ("skew", []),
        ("kill", [(3, "SIGKILL 100"), (6, "SIGKILL 101"), (9, "SIGKILL 102"), (12, "SIGKILL 100")]),
        ("restart-redis", [(4, "stop"), (5, "start"), (9, "stop"), (10, "start")]),
        ("failover", [(5, "cut"), (5.5, "fail over")]),
        ("kill-head", [(4, "kill head"), (6, "next head")]),
        ("flush-scripts", [(float(second), "flush") for second in range(1, 13)]),
    ],
)
def test_each_fault_has_its_times(fault: str, done: list[tuple[float, str]]) -> None:
    """The times count from the first call, gateways take turns, and each injection is counted."""
    recorder = Recorder()
    scene = inject(fault, 12, recorder, from_s=50)
    assert recorder.done == [(50 + at_s, what) for at_s, what in done]
    assert scene.injected == sum(what not in ("cut", "next head", "stop") for _, what in done)


def test_who_is_stopped_goes_on_in_any_case() -> None:
    """Every gateway that was stopped is let go on, the last one when the fault ends in the middle of its pause."""
    recorder = Recorder()
    inject("pause", 12, recorder)
    stops = [(at_s, what) for at_s, what in recorder.done if what.startswith("SIGSTOP")]
    goes = [(at_s, what) for at_s, what in recorder.done if what.startswith("SIGCONT")]
    assert len(stops) == len(goes) >= 5
    assert [what.split()[1] for _, what in stops] == [what.split()[1] for _, what in goes]
    for (stopped_s, _), (gone_s, _) in zip(stops[:-1], goes, strict=False):
        assert 1.2 <= gone_s - stopped_s <= 1.5


def test_a_redis_that_was_stopped_is_started_in_any_case() -> None:
    """Also when the fault ends while it is down: it may be one that others use."""
    recorder = Recorder()
    injector = Injector("restart-redis", Scene(recorder, recorder, 1, 12 * SECOND_US, send=recorder.send))
    injector.tend(0)
    injector.tend(4 * SECOND_US)
    injector.close()
    assert [what for _, what in recorder.done] == ["stop", "start"]


def test_a_gateway_that_is_not_there_is_passed_over() -> None:
    """Nothing is sent to a gateway that is not ready, and it is no injection."""
    recorder = Recorder()
    recorder.is_ready = False
    assert inject("kill", 12, recorder).injected == inject("pause", 12, recorder).injected == 0
    assert recorder.done == []


def test_a_short_run_has_its_fault() -> None:
    """However short the load, each fault that has a time comes within it."""
    for fault in FAULTS.keys() - {"", "skew"}:
        assert inject(fault, 1, Recorder()).injected >= 1


def test_a_late_call_is_not_made_up_for() -> None:
    """After a call that took long, faults go on at their distance, not in a heap."""
    recorder = Recorder()
    injector = Injector("flush-scripts", Scene(recorder, recorder, 1, 12 * SECOND_US, send=recorder.send))
    for at_s in (0, 5, 5.25, 5.5, 6, 6.5):
        recorder.now_us = round(at_s * SECOND_US)
        injector.tend(recorder.now_us)
    assert [at_s for at_s, _ in recorder.done] == [5, 6]


def test_skewed_clocks_are_an_hour_apart_and_none_is_negative() -> None:
    """The first clock is right: one that begins before the machine did would be a fault of another kind."""
    assert skews_s(3) == "0,3600,7200"


def test_faults_of_redis_are_faults() -> None:
    """What needs a Redis is among what there is."""
    assert FAULTS.keys() > REDIS_FAULTS
