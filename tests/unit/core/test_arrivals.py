"""Arrival processes: means and dispersions within statistical error, determinism, and what bad input gets."""

import numpy as np
import pytest

from penstock.core.arrivals import (
    MMPP_BURST_RATE_RATIO,
    MMPP_BURST_TIME_RATIO,
    MMPP_CYCLE_S,
    Arrivals,
    Times,
    parse_arrivals,
    plan_arrivals,
)
from penstock.core.errors import ConfigError

RATE = 1_000.0


def plan(text: str, duration_s: float = 100.0, seed: int = 1, rate: float = RATE) -> Times:
    rng = np.random.default_rng(seed)
    return plan_arrivals(parse_arrivals(text), rng, rate=rate, duration_us=round(duration_s * 1e6))


@pytest.mark.parametrize(("text", "cv"), [("poisson", 1.0), ("gamma:0.5", 0.5), ("gamma:2", 2.0), ("gamma:4", 4.0)])
def test_renewal_processes_have_the_asked_mean_and_cv(text: str, cv: float) -> None:
    """Over n gaps the mean is within 4 standard errors of 1/rate and the CV within 5 % of what was asked."""
    gaps = np.diff(plan(text, duration_s=400.0))
    mean_us = 1e6 / RATE
    assert abs(gaps.mean() - mean_us) < 4 * cv * mean_us / np.sqrt(len(gaps))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_poisson_counts_are_poisson() -> None:
    """Counts in disjoint windows have a variance equal to their mean (index of dispersion 1)."""
    counts = np.bincount(plan("poisson", duration_s=400.0) // 100_000)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / len(counts)))


def test_constant_is_exact() -> None:
    """Constant arrivals are rate * duration requests, evenly spaced from 0."""
    assert plan("constant", duration_s=0.005).tolist() == [0, 1000, 2000, 3000, 4000]
    assert len(plan("constant", duration_s=30.0, rate=10_000)) == 300_000


def test_mmpp_has_the_asked_mean_and_is_bursty() -> None:
    """The mean is within 4 standard errors of the rate; the counts are as dispersed as the two-state chain says."""
    horizon_s, window_s = 20_000.0, 50.0
    rate = 20.0
    times = plan("mmpp", duration_s=horizon_s, rate=rate)
    burst, calm = MMPP_BURST_TIME_RATIO, 1 - MMPP_BURST_TIME_RATIO
    calm_rate_ratio = (1 - burst * MMPP_BURST_RATE_RATIO) / calm
    leave_rates = 1 / (MMPP_CYCLE_S * burst) + 1 / (MMPP_CYCLE_S * calm)
    dispersion = 1 + 2 * burst * calm * (MMPP_BURST_RATE_RATIO - calm_rate_ratio) ** 2 * rate / leave_rates
    assert abs(len(times) - rate * horizon_s) < 4 * np.sqrt(dispersion * rate * horizon_s)
    counts = np.bincount(times // round(window_s * 1e6), minlength=round(horizon_s / window_s))
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.35)


@pytest.mark.parametrize("text", ["poisson", "gamma:4", "mmpp", "step:3,0.2,0.4", "diurnal:0.5,1"])
def test_a_seed_decides_the_schedule(text: str) -> None:
    """The same seed gives the same schedule, another seed another one."""
    assert np.array_equal(plan(text, 2.0, seed=5), plan(text, 2.0, seed=5))
    assert not np.array_equal(plan(text, 2.0, seed=5)[:50], plan(text, 2.0, seed=6)[:50])


def test_a_trace_is_stretched_to_the_rate_and_keeps_its_shape() -> None:
    """Replaying scales time only: gaps keep their ratios, and a short trace repeats with the asked mean rate."""
    trace = np.array([0, 1_000_000, 4_000_000], dtype=np.int64)
    arrivals = Arrivals("trace", path="trace.csv")
    times = plan_arrivals(arrivals, np.random.default_rng(0), rate=3.0, duration_us=10_000_000, trace_us=trace)
    assert len(times) == 30
    first = np.diff(times[:3])
    assert first[1] / first[0] == pytest.approx(3.0, rel=1e-4)
    assert times[3] - times[0] == 1_000_000


def test_a_step_multiplies_the_rate_between_two_instants() -> None:
    """Counts before, inside and after the step are within 4 standard errors of the base rate and of its multiple."""
    times = plan("step:5,20,30", duration_s=60.0)
    for from_s, to_s, rate in ((0, 20, RATE), (20, 30, 5 * RATE), (30, 60, RATE)):
        count = np.count_nonzero((times >= from_s * 1e6) & (times < to_s * 1e6))
        assert abs(count - rate * (to_s - from_s)) < 4 * np.sqrt(rate * (to_s - from_s))


def test_a_step_after_the_end_changes_nothing() -> None:
    """A step that begins when the run is over leaves a schedule of the base rate."""
    assert abs(len(plan("step:9,50,60", duration_s=50.0)) - 50 * RATE) < 4 * np.sqrt(50 * RATE)


def test_a_diurnal_rate_is_a_sine_about_its_mean() -> None:
    """Each quarter of a period holds the integral of rate * (1 + a sin) within 4 standard errors."""
    times = plan("diurnal:0.8,40", duration_s=400.0)
    quarters = np.bincount((times % 40_000_000) // 10_000_000, minlength=4)
    swing = 0.8 * 2 / np.pi  # mean of the sine over a quarter
    for count, ratio in zip(quarters, (1 + swing, 1 + swing, 1 - swing, 1 - swing), strict=True):
        expected = RATE * 100 * ratio
        assert abs(count - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize(
    "text",
    [
        *["", "posson", "poisson:2", "gamma", "gamma:", "gamma:x", "gamma:0", "gamma:nan", "trace:", "gamma:1,2"],
        *["step", "step:5", "step:5,3,2", "step:-1,2,3", "step:2,a,3", "step:2,1,inf"],
        *["diurnal:1.1,5", "diurnal:0.5", "diurnal:0.5,0", "diurnal:nan,1"],
    ],
)
def test_unparsable_arrivals_name_the_option(text: str) -> None:
    """Bad arrivals are the operator's error; the message names the option and what was got."""
    with pytest.raises(ConfigError, match=r"--arrivals: expected .*got"):
        parse_arrivals(text)


@pytest.mark.parametrize(
    "text", ["poisson", "constant", "gamma:4", "mmpp", "trace:a.csv", "step:5,20,40", "diurnal:0.8,3600"]
)
def test_describe_round_trips(text: str) -> None:
    """What an arrival process is called parses back to it."""
    assert parse_arrivals(text).describe() == text


def test_a_complaint_begins_with_the_place() -> None:
    """Whoever reads arrivals from elsewhere than the command line says where."""
    with pytest.raises(ConfigError, match=r"^sources\[2\].arrivals: expected "):
        parse_arrivals("gamma:0", "sources[2].arrivals")
