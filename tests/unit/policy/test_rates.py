"""Laws of rates: arrivals averaged over a tenth of a second, departures counted over the last one to two seconds."""

import pytest

from penstock.policy.rates import DRAIN_WINDOW_US, MEMORY_US, WINDOW_US, ArrivalRate, DrainRate


def test_a_steady_rate_is_found() -> None:
    """Rows that arrive evenly are counted at their rate, from the first full memory on to within a few percent."""
    rate = ArrivalRate(0)
    for now_us in range(0, 10 * MEMORY_US, 500):
        rate.arrived += 2
        rate.fold(now_us)
    assert rate.value == pytest.approx(2 / 500, rel=0.05)


def test_a_step_is_followed() -> None:
    """Ten times the rate is mostly believed after as long as is remembered, and so is its end."""
    rate = ArrivalRate(0)
    values = []
    for now_us in range(0, 4 * MEMORY_US, WINDOW_US):
        rate.arrived += 100 if now_us < 2 * MEMORY_US else 10
        values.append(rate.fold(now_us))
    per_window = 2 * MEMORY_US // WINDOW_US
    assert values[per_window // 2] > 0.5 * 100 / WINDOW_US
    assert values[per_window - 1] > 0.8 * 100 / WINDOW_US
    assert values[-1] < 0.3 * 100 / WINDOW_US


def test_a_rate_is_folded_once_a_window() -> None:
    """Asked again within a window the rate is the same, and nothing counted is lost."""
    rate = ArrivalRate(0)
    rate.arrived += 10
    assert rate.fold(WINDOW_US - 1) == 0.0
    rate.arrived += 10
    folded = rate.fold(WINDOW_US)
    assert folded == pytest.approx(WINDOW_US / MEMORY_US * 20 / WINDOW_US)
    assert rate.fold(2 * WINDOW_US - 1) == folded


def test_a_silence_is_not_averaged() -> None:
    """After a pause longer than the memory only what came since counts."""
    rate = ArrivalRate(0)
    rate.arrived += 10_000
    rate.fold(WINDOW_US)
    rate.arrived += 30
    assert rate.fold(WINDOW_US + 3 * MEMORY_US) == pytest.approx(30 / (3 * MEMORY_US))


@pytest.mark.parametrize("every_us", [1_000, 30_000])
def test_a_steady_drain_is_found(every_us: int) -> None:
    """Requests that leave evenly are counted at their rate, wherever in a window one asks."""
    drain = DrainRate()
    for now_us in range(0, 5 * DRAIN_WINDOW_US, every_us):
        drain.count(3, now_us)
        if now_us > DRAIN_WINDOW_US:
            drained, window_us = drain.read(now_us)
            assert DRAIN_WINDOW_US <= window_us <= 2 * DRAIN_WINDOW_US
            assert drained / window_us == pytest.approx(3 / every_us, rel=0.07)


def test_an_old_drain_is_forgotten() -> None:
    """What left before a pause of two windows counts no more; and asked at once nothing divides by zero."""
    drain = DrainRate()
    assert drain.read(0) == (0, 1)
    drain.count(1_000, 10)
    drain.count(1, 10 + 3 * DRAIN_WINDOW_US)
    assert drain.read(20 + 3 * DRAIN_WINDOW_US)[0] == 1
