"""What a run amounts to: ratios and percentiles of columns that are known by construction."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from penstock.adapters.chance import seeded_stream
from penstock.core.profiles import CostProfile
from penstock.sim import DeviceModel, Recording, Scenario, Source, simulate, summarise
from penstock.sim.recording import Outcome, Recorder
from penstock.sim.summary import percentiles_ms

SCENARIO = Scenario(
    "four",
    (Source("a", rate=1.0, tenant="x"), Source("b", rate=1.0, tenant="y")),
    DeviceModel(CostProfile((1,), (1_000,))),
    duration_us=2_000_000,
    warmup_us=1_000_000,
    slo_us=50_000,
    weights=(("x", 2.0),),
)


def record() -> Recording:
    """Return a run of five requests: one in the warm-up, one in time, one late, one hit, one refused."""
    recorder = Recorder()
    for at_us, source, outcome, latency_us, share_us in (
        (500_000, 0, Outcome.SERVED, 1_000, 900.0),
        (1_500_000, 0, Outcome.SERVED, 40_000, 2_000.0),
        (1_600_000, 1, Outcome.SERVED, 60_000, 1_000.0),
        (1_700_000, 1, Outcome.HIT, 100, 0.0),
        (2_900_000, 1, Outcome.REFUSED, 10, 0.0),
    ):
        index = recorder.open(source, 1, at_us)
        recorder.outcome[index] = outcome
        recorder.settled_us[index] = at_us + latency_us
        recorder.share_us[index] = share_us
    recorder.executions += [(999_000, 0, 3_000, 1), (1_500_000, 0, 1_000_000, 3), (2_999_000, 0, 5_000, 2)]
    recorder.dispatches += [(1_500_000, 0, 0, 3, 2, "full"), (2_000_000, 0, 0, 1, 1, "idle")]
    recorder.wasted_us = 1_000.0
    recorder.lost_us = 100
    recorder.count_refusal("queue_full")
    return recorder.close(SCENARIO)


def test_ratios_are_of_what_was_measured() -> None:
    """The warm-up does not count; late answers are answers but not goodput."""
    summary = summarise(record())
    assert summary.requests == 4
    assert summary.offered == 2.0
    assert summary.goodput == 1.0
    assert summary.attainment == 0.5
    assert summary.shed_ratio == summary.hit_ratio == 0.25
    assert summary.failed_ratio == 0.0
    assert summary.latency_ms["p50"] == 40.0
    assert summary.latency_ms["max"] == 60.0
    assert summary.refusals == {"queue_full": 1}
    assert summary.tries == 1.0


def test_devices_are_judged_within_the_measured_time() -> None:
    """Executions that reach beyond it count with the part inside; batches count where they begin."""
    summary = summarise(record())
    assert summary.utilisation == pytest.approx((2_000 + 1_000_000 + 1_000) / 2_000_000)
    assert summary.executions == 2
    assert summary.batch_rows == 2.5
    assert summary.wasted_ratio == pytest.approx(1_100 / 4_000)
    assert summary.closes == {"full": 0.5, "idle": 0.5}


def test_tenants_are_told_apart_and_weighed() -> None:
    """Each tenant's own numbers; Jain's index over device time by weight."""
    x, y = summarise(record()).tenants
    assert (x.name, x.requests, x.attainment, x.shed, x.device_s) == ("x", 1, 1.0, 0, 0.002)
    assert (y.name, y.requests, y.goodput, y.shed, y.device_s) == ("y", 3, 0.5, 1, 0.001)
    assert summarise(record()).jain == pytest.approx(1.0)
    unweighted = replace(record(), scenario=replace(SCENARIO, weights=()))
    assert summarise(unweighted).jain == pytest.approx(9 / 10)


def test_nothing_happened_is_a_summary_too() -> None:
    """A run without a measured request divides by nothing and fails nobody."""
    silent = replace(SCENARIO, sources=(Source("a", rate=1e-9),))
    summary = summarise(simulate(silent, partial(seeded_stream, 1)))
    assert summary.requests == 0
    assert summary.attainment == summary.jain == 1.0
    assert summary.latency_ms["p95"] is None
    assert summary.closes == {}


def test_percentiles_interpolate() -> None:
    """They are numpy's, in ms."""
    found = percentiles_ms(np.arange(0, 101_000, 1_000))
    assert found["p50"] == 50.0
    assert found["p999"] == pytest.approx(99.9)
    assert set(percentiles_ms(np.zeros(0, dtype=np.int64)).values()) == {None}


def test_a_summary_is_json() -> None:
    """Every value is a plain one."""
    text = json.dumps(asdict(summarise(record())), allow_nan=False)
    assert json.loads(text)["tenants"][0]["name"] == "x"
