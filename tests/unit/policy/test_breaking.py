"""The breaker: when it opens, who may ask meanwhile, and how long it rests."""

import pytest

from penstock.policy.breaking import Breaker, BreakerState

MS = 1_000


def opened(now_us: int = 0) -> Breaker:
    """Return a breaker that has just opened: 3 failures, pauses of 50 to 400 ms."""
    breaker = Breaker(3, 50 * MS, 400 * MS)
    for _ in range(3):
        breaker.fail(now_us)
    return breaker


def probe(breaker: Breaker, now_us: int, *, is_well: bool) -> None:
    """Carry out one probe."""
    breaker.begin_probe()
    breaker.end_probe(now_us, is_well=is_well)


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    """A success in between begins the count anew."""
    breaker = Breaker(3, 50 * MS, 400 * MS)
    for _ in range(2):
        breaker.fail(0)
        breaker.fail(0)
        breaker.succeed()
    assert breaker.allows
    assert breaker.openings == 0
    for _ in range(3):
        breaker.fail(0)
    assert (breaker.state, breaker.allows, breaker.openings) == (BreakerState.OPEN, False, 1)


def test_it_opens_at_once_if_told() -> None:
    """A lost connection needs no further proof; being told twice changes nothing."""
    breaker = Breaker(3, 50 * MS, 400 * MS)
    breaker.trip(0)
    breaker.trip(40 * MS)
    assert (breaker.state, breaker.openings, breaker.probe_after_us(0)) == (BreakerState.OPEN, 1, 50 * MS)


def test_a_probe_waits_for_the_pause() -> None:
    """Only an open breaker is probed, when its pause is over, and by one at a time."""
    breaker = opened(now_us=1_000 * MS)
    assert Breaker(3, 50 * MS, 400 * MS).probe_after_us(0) is None
    assert [breaker.probe_after_us(at * MS) for at in (1_000, 1_040, 1_050, 1_099)] == [50 * MS, 10 * MS, 0, 0]
    breaker.begin_probe()
    assert breaker.probe_after_us(1_200 * MS) is None
    assert not breaker.allows


def test_the_pause_doubles_up_to_its_bound() -> None:
    """Each probe in vain makes the next wait twice as long, at most the longest."""
    breaker, pauses = opened(), []
    for _ in range(5):
        pauses.append(breaker.probe_after_us(0))
        probe(breaker, 0, is_well=False)
    assert pauses == [50 * MS, 100 * MS, 200 * MS, 400 * MS, 400 * MS]
    assert breaker.openings == 1


def test_a_probe_that_goes_well_lets_callers_try() -> None:
    """One success closes it, and the next opening begins with the shortest pause."""
    breaker = opened()
    probe(breaker, 0, is_well=False)
    probe(breaker, 0, is_well=True)
    assert (breaker.state, breaker.allows) == (BreakerState.TRIAL, True)
    breaker.succeed()
    assert breaker.state is BreakerState.CLOSED
    breaker.trip(0)
    assert breaker.probe_after_us(0) == 50 * MS


@pytest.mark.parametrize("how", ["fail", "trip"])
def test_one_failure_on_trial_opens_it_again(how: str) -> None:
    """Who answers probes and nothing else is asked ever more rarely."""
    breaker = opened()
    probe(breaker, 0, is_well=True)
    getattr(breaker, how)(0)
    assert (breaker.state, breaker.probe_after_us(0)) == (BreakerState.OPEN, 100 * MS)


def test_late_words_change_nothing() -> None:
    """While nobody may ask, answers and failures of those who asked before neither close it nor lengthen its pause."""
    breaker = opened()
    breaker.succeed()
    for _ in range(9):
        breaker.fail(40 * MS)
    assert (breaker.state, breaker.probe_after_us(0), breaker.openings) == (BreakerState.OPEN, 50 * MS, 1)
    breaker.begin_probe()
    breaker.succeed()
    breaker.fail(40 * MS)
    assert breaker.state is BreakerState.PROBING
