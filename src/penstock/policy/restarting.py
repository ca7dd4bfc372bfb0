"""When to start a process again that has died: at once the first time, then ever more patiently.

    started --ready--> good life --dies--> failures = 1    (it had been ready for `good_life_us`)
       |                  |
       +----- dies -------+------dies----> failures + 1    (it had not)

Pure. Not here: starting, watching and killing processes (`fleet/supervisor.py`).
Source: systemd's StartLimit and Kubernetes' CrashLoopBackOff shape; the numbers are argued at `RestartConfig`.
"""

from dataclasses import dataclass, replace

__all__ = ["Restart", "RestartConfig", "RestartState", "Wait", "decide_restart", "note_death", "note_ready"]


@dataclass(frozen=True, slots=True)
class RestartConfig:
    """How patient to be.

    Args:
        wait_us_first: Wait before the second restart in a row, µs; it doubles from there. 100 ms is about one
            interpreter start, so a crash loop costs at most half a core.
        wait_us_max: Longest wait, µs. A cause repaired by hand is noticed within this time (Kubernetes: 5 min).
        good_life_us: A process that was ready this long has proved itself; its death is a first death again.
    """

    wait_us_first: int = 100_000
    wait_us_max: int = 10_000_000
    good_life_us: int = 30_000_000

    def __post_init__(self) -> None:
        assert 0 < self.wait_us_first <= self.wait_us_max
        assert self.good_life_us >= 0


@dataclass(frozen=True, slots=True)
class RestartState:
    """What to remember of one process over all its lives.

    Attributes:
        failures: Deaths in a row without a good life between them.
        ready_at_us: When its present life became ready; None if it is not.
        died_at_us: When its last life ended.
    """

    failures: int = 0
    ready_at_us: int | None = None
    died_at_us: int = 0


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until_us` and not before."""

    until_us: int


def note_ready(state: RestartState, *, now_us: int) -> RestartState:
    """Return the state after the process became ready. Saying so again changes nothing."""
    return state if state.ready_at_us is not None else replace(state, ready_at_us=now_us)


def note_death(config: RestartConfig, state: RestartState, *, now_us: int) -> RestartState:
    """Return the state after the process died, or could not even be started."""
    had_good_life = state.ready_at_us is not None and now_us - state.ready_at_us >= config.good_life_us
    return RestartState(failures=1 if had_good_life else state.failures + 1, died_at_us=now_us)


def decide_restart(config: RestartConfig, state: RestartState, *, now_us: int) -> Restart | Wait:
    """Decide whether a dead process may start now.

    Returns:
        `Restart`, always so at the latest `wait_us_max` after its death; or `Wait`. Waiting exactly until
        `until_us` is enough. The state does not change.
    """
    if state.failures <= 1:
        return Restart()
    # 2**60 µs is 36,000 years: the exponent is bounded only to keep the integer small.
    wait_us = min(config.wait_us_first << min(state.failures - 2, 60), config.wait_us_max)
    until_us = state.died_at_us + wait_us
    return Restart() if now_us >= until_us else Wait(until_us)
