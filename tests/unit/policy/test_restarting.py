"""Laws of restarting: at once first, doubling after, bounded always, forgiven after a good life."""

import pytest

from penstock.policy.restarting import (
    Restart,
    RestartConfig,
    RestartState,
    Wait,
    decide_restart,
    note_death,
    note_ready,
)

CONFIG = RestartConfig()


def die(times: int, *, at_us: int = 0) -> RestartState:
    """Return the state after `times` deaths in a row at one instant."""
    state = RestartState()
    for _ in range(times):
        state = note_death(CONFIG, state, now_us=at_us)
    return state


def test_the_first_restart_is_at_once() -> None:
    """One death, and a process never started, restart without waiting."""
    assert decide_restart(CONFIG, RestartState(), now_us=0) == Restart()
    assert decide_restart(CONFIG, die(1, at_us=7), now_us=7) == Restart()


@pytest.mark.parametrize(
    ("deaths", "wait_us"),
    [(2, 100_000), (3, 200_000), (4, 400_000), (8, 6_400_000), (9, 10_000_000), (10, 10_000_000), (500, 10_000_000)],
)
def test_the_wait_doubles_up_to_its_maximum(deaths: int, wait_us: int) -> None:
    """Waiting exactly as long as told is enough; one microsecond less is not."""
    state = die(deaths, at_us=1_000)
    assert decide_restart(CONFIG, state, now_us=1_000) == Wait(1_000 + wait_us)
    assert decide_restart(CONFIG, state, now_us=999 + wait_us) == Wait(1_000 + wait_us)
    assert decide_restart(CONFIG, state, now_us=1_000 + wait_us) == Restart()


def test_a_good_life_forgives() -> None:
    """A process ready for `good_life_us` dies a first death; one microsecond less counts on."""
    ready = note_ready(die(5), now_us=100)
    good = note_death(CONFIG, ready, now_us=100 + CONFIG.good_life_us)
    short = note_death(CONFIG, ready, now_us=99 + CONFIG.good_life_us)
    assert (good.failures, short.failures) == (1, 6)


def test_a_long_life_that_was_never_ready_is_not_good() -> None:
    """A model that takes an hour to fail to load is still in a crash loop."""
    assert note_death(CONFIG, die(3), now_us=3_600_000_000).failures == 4


def test_readiness_counts_from_its_first_report() -> None:
    """A process that reports ready again, as after a reconnection, does not become younger."""
    state = note_ready(note_ready(RestartState(), now_us=10), now_us=20)
    assert state.ready_at_us == 10


def test_a_new_life_must_become_ready_anew() -> None:
    """A death ends readiness: two deaths in quick succession count twice, however good the life before was."""
    state = note_ready(RestartState(), now_us=0)
    state = note_death(CONFIG, state, now_us=CONFIG.good_life_us)
    state = note_death(CONFIG, state, now_us=10 * CONFIG.good_life_us)
    assert state.failures == 2
