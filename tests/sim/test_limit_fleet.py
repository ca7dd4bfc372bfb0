"""Fleets under rate limits: no window over the bound whatever goes wrong, and little less than an ideal bucket gives.

The seeds here are the first of those that `python -m tests.sim.limit_fleet --windows 1000000` tries.
"""

from functools import partial

import pytest

from penstock.adapters.chance import seeded_stream
from penstock.sim.limit_fleet import Admission, LimitOutcome, simulate_limits
from penstock.sim.limit_scenario import LimitFault, LimitNetwork, LimitScenario, LimitSource
from tests.sim.limit_fleet import judge, quota_of, replay_command, simulate_seed

KEY = "key"


def simulate(
    rate: int,
    burst: int,
    offered: float,
    *,
    gateways: int = 4,
    duration_s: float = 10,
    cost: int = 1,
    is_hard: bool = False,
    shares: tuple[float, ...] = (),
    network: LimitNetwork | None = None,
    faults: tuple[LimitFault, ...] = (),
) -> LimitOutcome:
    """Return what comes of one key under `rate` per second, asked for `offered` times per second by all together."""
    scenario = LimitScenario(
        "test",
        {KEY: quota_of(rate, burst, is_hard=is_hard)},
        (LimitSource(((KEY, cost),), offered, shares=shares),),
        gateways,
        round(duration_s * 1e6),
        network=network or LimitNetwork(),
        faults=faults,
    )
    return simulate_limits(scenario, partial(seeded_stream, 1))


# -- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1, 41))
def test_no_window_is_over_the_bound(seed: int) -> None:
    """With delay, loss, duplicates, pauses, crashes, drifting clocks, failovers: 0 tokens over, no promise broken."""
    complaints = judge(simulate_seed(seed))
    assert not complaints, f"{complaints}; replay with: {replay_command(seed)}"


def test_a_run_depends_on_nothing_but_its_seed() -> None:
    """The same seed gives the same admissions at the same instants, another seed others."""
    first, again, other = (simulate_seed(seed).admissions for seed in (5, 5, 6))

    def instants(admissions: dict[str, list[Admission]]) -> dict[str, list[tuple[int, int]]]:
        return {key: [(a.at_us, a.tokens) for a in taken] for key, taken in admissions.items()}

    assert instants(first) == instants(again) != instants(other)


def test_the_bound_is_reached() -> None:
    """The audit is not idle: at five times the limit the worst window is filled to within a token of its bound."""
    outcome = simulate(1_000, 20, 5_000, gateways=20)
    assert -1 <= outcome.audit()[KEY].excess <= 0


@pytest.mark.parametrize("kind", ["restart", "failover"])
def test_what_a_failover_lets_in_twice_is_published_or_nothing(kind: str) -> None:
    """Lost writes are free quota under `soft`, as much as is said at most; under `hard` they are refusals."""
    faults = tuple(LimitFault(kind, at_us, operations=150) for at_us in (3_000_000, 5_000_000, 7_000_000))
    soft = simulate(300, 200, 2_000, faults=faults)
    over = soft.audit()[KEY].excess_tokens
    assert 0 < over <= soft.losses[KEY]
    hard = simulate(300, 200, 2_000, faults=faults, is_hard=True)
    assert hard.losses[KEY] == 0
    assert not judge(hard)
    assert hard.deliveries[KEY].delivered_tokens < soft.deliveries[KEY].delivered_tokens


# -- delivery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gateways", "rate", "burst", "offered", "duration_s"),
    [
        (4, 1_000, 200, 5_000, 20),
        (20, 1_000, 200, 5_000, 20),
        (4, 1_000, 20, 5_000, 10),
        (4, 20_000, 2_000, 25_000, 5),
        (20, 20_000, 2_000, 40_000, 4),
        (4, 5_000, 1_000, 10_000, 10),
        (4, 30, 30, 500, 20),
    ],
)
def test_saturated_limits_are_delivered(gateways: int, rate: int, burst: int, offered: int, duration_s: int) -> None:
    """Offered more than the limit, gateways let in 98 % of what one ideal bucket would have, or more."""
    outcome = simulate(rate, burst, offered, gateways=gateways, duration_s=duration_s)
    assert outcome.deliveries[KEY].under_delivery_ratio <= 0.02
    assert not judge(outcome)


@pytest.mark.parametrize("shares", [(), (97, 1, 1, 1)])
@pytest.mark.parametrize(("rate", "burst", "offered"), [(1_000, 200, 900), (1_000, 200, 1_000), (5_000, 1_000, 4_000)])
def test_limits_above_the_demand_refuse_few(rate: int, burst: int, offered: int, shares: tuple[float, ...]) -> None:
    """Near the limit and below it, through one gateway or all alike, 98 % or more of what an ideal bucket lets in."""
    assert simulate(rate, burst, offered, shares=shares).deliveries[KEY].under_delivery_ratio <= 0.02


def test_cold_keys_are_decided_exactly() -> None:
    """A key that is asked for a few times per second lets in what one bucket would, request by request."""
    outcome = simulate(20, 10, 60, duration_s=60, network=LimitNetwork(delay_us=0))
    assert outcome.lent == 0
    assert outcome.deliveries[KEY].delivered_tokens == outcome.deliveries[KEY].ideal_tokens


def test_large_requests_are_not_starved_by_blocks() -> None:
    """Where a block would not serve a request, nothing is lent and the rate is delivered all the same."""
    outcome = simulate(10_000, 2_000, 50, cost=300, duration_s=20)
    assert outcome.deliveries[KEY].under_delivery_ratio <= 0.02


# -- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "burst"), [(20_000, 2_000), (1_000, 200), (5_000, 1_000)])
def test_a_hot_key_costs_few_calls(rate: int, burst: int) -> None:
    """At 10,000 requests per second over four gateways at most 2 calls to the authority for 100 decisions."""
    outcome = simulate(rate, burst, 10_000)
    assert outcome.calls <= 0.02 * outcome.decisions


def test_only_what_is_lost_strands() -> None:
    """Nothing lent is wasted while nothing fails; of each gateway that dies at most what may be lent to all."""
    assert simulate(1_000, 200, 900).stranded_tokens == 0
    crashes = tuple(LimitFault("crash", at_us, at_us % 4, 100_000) for at_us in range(1_000_001, 9_000_000, 1_000_000))
    outcome = simulate(1_000, 200, 900, faults=crashes)
    assert 0 < outcome.stranded_tokens <= len(crashes) * quota_of(1_000, 200).lease_max
