"""A run over time: each request is in exactly one window, and sums are those of the run."""

from functools import partial

import numpy as np
import pytest

from penstock.adapters.chance import seeded_stream
from penstock.core.models import QueueBounds
from penstock.core.profiles import CostProfile
from penstock.sim import DeviceModel, Scenario, Source, simulate
from penstock.sim.timeline import trace_timeline

SCENARIO = Scenario(
    "two tenants",
    (Source("a", rate=300.0, tenant="x"), Source("b", rate=900.0, tenant="y")),
    DeviceModel(CostProfile.from_line(beta_us=8_000, alpha_us=900, size_max=32)),
    duration_us=2_000_000,
    slo_us=60_000,
    bounds=QueueBounds(requests_max=64),
)


@pytest.mark.parametrize("window_us", [100_000, 300_000, 5_000_000])
def test_windows_add_up_to_the_run(window_us: int) -> None:
    """Rates times windows are the run's counts; device time by tenant adds up to what was charged."""
    recording = simulate(SCENARIO, partial(seeded_stream, 1))
    line = trace_timeline(recording, window_us)
    seconds = window_us / 1e6
    assert len(line.at_s) == -(-2_000_000 // window_us)
    assert line.offered.sum() * seconds == pytest.approx(len(recording.source))
    assert line.goodput.sum() * seconds == pytest.approx(np.count_nonzero(recording.is_good))
    assert line.refused.sum() * seconds == pytest.approx(np.count_nonzero(~recording.is_answered))
    charged_us = sum(column.sum() for column in line.device_ratio.values()) * window_us
    assert charged_us == pytest.approx(recording.share_us.sum())
    assert (line.p50_ms <= line.p95_ms).all()


def test_a_window_without_answers_has_no_percentile() -> None:
    """It is not a number rather than zero."""
    recording = simulate(
        Scenario("rare", (Source("a", rate=1.0),), SCENARIO.device, duration_us=20_000_000), partial(seeded_stream, 1)
    )
    line = trace_timeline(recording, 100_000)
    assert np.array_equal(np.isnan(line.p95_ms), line.offered == 0)
    assert np.isnan(line.p95_ms).any()
