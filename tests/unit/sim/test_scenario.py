"""Scenarios as values: deadlines by class, scaling, other policies."""

import pytest

from penstock.core.profiles import CostProfile
from penstock.policy.queueing import BATCH
from penstock.sim import DeviceModel, Scenario, Source

SCENARIO = Scenario(
    "s",
    (Source("a", rate=30.0), Source("b", rate=10.0), Source("c", clients=5)),
    DeviceModel(CostProfile((1,), (1_000,))),
    duration_us=1_000_000,
    warmup_us=500_000,
    slo_us=50_000,
    timeout_us=700_000,
)


@pytest.mark.parametrize(
    ("source", "allowed_us"),
    [
        (Source("a"), 50_000),
        (Source("a", request_class=BATCH), 700_000),
        (Source("a", deadline_us=20), 20),
        (Source("a", request_class=BATCH, deadline_us=30), 30),
    ],
)
def test_what_a_request_allows(source: Source, allowed_us: int) -> None:
    """Its own deadline, else the SLO if it is interactive, else the timeout."""
    assert SCENARIO.allowed_us(source) == allowed_us


def test_scaling_keeps_the_mix() -> None:
    """Open loops keep their proportions, closed ones their clients, and the rate is the asked one."""
    scaled = SCENARIO.at_rate(400.0)
    assert [source.rate for source in scaled.sources] == [300.0, 100.0, 0.0]
    assert scaled.sources[2].clients == 5
    assert scaled.rate == 400.0
    assert SCENARIO.rate == 40.0


def test_another_policy_changes_nothing_else() -> None:
    """Only the name of the policy differs."""
    other = SCENARIO.with_policy("adaptive")
    assert other.batching.policy == "adaptive"
    assert other.with_policy(SCENARIO.batching.policy) == SCENARIO


def test_the_end_is_warm_up_and_duration() -> None:
    """Requests arrive until the measured time is over."""
    assert SCENARIO.end_us == 1_500_000
