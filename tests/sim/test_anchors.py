"""The simulator against queues that theory knows: means within their statistical error, Little's law to the µs.

The scheduler is the one that serves, told to do what the theory assumes: one request at a time, or all that waits.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from penstock.adapters.chance import seeded_stream
from penstock.core.arrivals import parse_arrivals
from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.policy.queueing import BATCH
from penstock.policy.scheduling import Dispatch, Drop, Scheduler, Served, Wait
from penstock.sim import DeviceModel, Fault, Overheads, Recording, Scenario, Source, simulate
from tests.sim.queues import (
    batch_queue_bound,
    batch_queue_latency,
    erlang_c_wait,
    md1_wait,
    mean_with_error,
    mg1_wait,
    mm1_sojourn,
    repairman_throughput,
)

REQUESTS = 60_000
SERVICE_US = 10_000.0
HOUR_US = 3_600_000_000
ONE_BY_ONE = Batching(policy="size_or_timeout", size_max=1, wait_us_max=0)
ALL_THAT_WAITS = Batching(policy="size_or_timeout", size_max=2_000, wait_us_max=60_000_000)
PROFILE = CostProfile((1,), (round(SERVICE_US),))


def exponential(rows: int, rng: np.random.Generator) -> float:
    """Return an exponential service time."""
    return float(rng.exponential(SERVICE_US))


def poisson(load: float, device: DeviceModel, batching: Batching = ONE_BY_ONE, replicas: int = 1) -> Scenario:
    """Return a Poisson stream of single rows that keeps the replicas busy to `load`; nothing costs or limits."""
    rate = load * replicas / SERVICE_US * 1e6
    return Scenario(
        "anchor",
        (Source("all", rate=rate),),
        device,
        duration_us=round(REQUESTS / rate * 1e6),
        batching=batching,
        bounds=QueueBounds(requests_max=10**9),
        timeout_us=HOUR_US,
        replicas=replicas,
    )


def run(scenario: Scenario, seed: int = 1) -> Recording:
    """Simulate it; nothing may be refused."""
    recording = simulate(scenario, partial(seeded_stream, seed))
    assert recording.is_answered.all()
    return recording


def assert_mean(values_us: "np.ndarray[tuple[int], np.dtype[np.int64]]", expected_us: float, error_max: float) -> float:
    """The mean is within its 99.9 % confidence interval of theory, and that is narrow enough to tell. Returns it."""
    mean, error = mean_with_error(values_us.astype(np.float64))
    assert error < error_max * expected_us, "the run is too short to say anything"
    assert abs(mean - expected_us) < error
    return error


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_mm1_sojourn(load: float) -> None:
    """M/M/1: the time in the system has the mean 1/(mu - lambda), and is exponential."""
    recording = run(poisson(load, DeviceModel(PROFILE, service=exponential)))
    mean_us = mm1_sojourn(load / SERVICE_US, 1 / SERVICE_US)
    assert_mean(recording.latency_us, mean_us, 0.12)
    for percent in (50, 90, 99):
        assert np.percentile(recording.latency_us, percent) == pytest.approx(
            -mean_us * np.log(1 - percent / 100), rel=0.12
        )


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_md1_wait(load: float) -> None:
    """M/D/1: the mean wait is rho * D / (2 (1 - rho))."""
    recording = run(poisson(load, DeviceModel(PROFILE)))
    assert_mean(recording.latency_us - round(SERVICE_US), md1_wait(load / SERVICE_US, SERVICE_US), 0.12)


def test_mg1_wait_under_lognormal_noise() -> None:
    """M/G/1: noise of standard deviation s multiplies the second moment by 1 + s², and the wait as Khinchine says."""
    noise, load = 0.8, 0.6
    recording = run(poisson(load, DeviceModel(PROFILE, noise_ratio=noise)))
    expected_us = mg1_wait(load / SERVICE_US, SERVICE_US, SERVICE_US**2 * (1 + noise**2))
    assert_mean(recording.latency_us - recording.service_us, expected_us, 0.15)


class Central(Scheduler):
    """The scheduler with the central queue of equal servers that Erlang's formula assumes.

    Nothing is staged behind a running batch, and no replica is put aside for being slow by chance.
    """

    def decide(self, now_us: int) -> Dispatch | Drop | Wait:
        """Wait while every replica works."""
        return Wait(None) if all(replica.in_flight for replica in self.replicas) else super().decide(now_us)

    def observe_reply(self, dispatch: Dispatch, served: Served, now_us: int) -> None:
        """Take back what it may have concluded about the replica."""
        super().observe_reply(dispatch, served, now_us)
        dispatch.replica.restore()


@pytest.mark.parametrize(("servers", "load"), [(2, 0.5), (4, 0.7)])
def test_mmk_wait(servers: int, load: float) -> None:
    """M/M/k with one central queue: the mean wait is Erlang's C over k mu - lambda."""
    scenario = poisson(load, DeviceModel(PROFILE, service=exponential), replicas=servers)
    recording = simulate(scenario, partial(seeded_stream, 1), make_scheduler=Central)
    wait_us = erlang_c_wait(load * servers / SERVICE_US, 1 / SERVICE_US, servers)
    assert_mean(recording.latency_us, wait_us + SERVICE_US, 0.12)


def test_staging_costs_little_where_times_are_known() -> None:
    """M/D/k: a batch staged just before its replica is free waits hardly longer than in a central queue."""
    scenario = poisson(0.8, DeviceModel(PROFILE), replicas=4)
    staged = run(scenario)
    central = simulate(scenario, partial(seeded_stream, 1), make_scheduler=Central)
    assert staged.latency_us.mean() == pytest.approx(central.latency_us.mean(), rel=0.02)


ROW_US, FIXED_US = 500.0, 10_000.0


@pytest.mark.parametrize("per_ms", [0.05, 0.5, 1.5])
def test_batch_queue_latency(per_ms: float) -> None:
    """All that waits is taken when idle: the mean is the Markov chain's, and below Inoue's bound."""
    profile = CostProfile.from_line(beta_us=FIXED_US, alpha_us=ROW_US, size_max=ALL_THAT_WAITS.size_max)
    scenario = poisson(per_ms * SERVICE_US / 1e3, DeviceModel(profile), ALL_THAT_WAITS)
    recording = run(scenario)
    rate = per_ms / 1e3
    chain_us = batch_queue_latency(rate, lambda size: FIXED_US + ROW_US * size, 400)
    error_us = assert_mean(recording.latency_us, chain_us, 0.1)
    assert recording.latency_us.mean() - error_us < batch_queue_bound(rate, ROW_US, FIXED_US)


@pytest.mark.parametrize("per_ms", [0.001, 0.1, 1.0, 1.9])
def test_the_bound_bounds_the_chain(per_ms: float) -> None:
    """Two independent pieces of theory agree: Inoue's bound lies above the chain, and closely so under load."""
    chain_us = batch_queue_latency(per_ms / 1e3, lambda size: FIXED_US + ROW_US * size, 1_500)
    bound_us = batch_queue_bound(per_ms / 1e3, ROW_US, FIXED_US)
    assert chain_us <= bound_us * (1 + 1e-6)
    if per_ms >= 1:
        assert chain_us == pytest.approx(bound_us, rel=1e-3)


def test_closed_loop_throughput() -> None:
    """M/M/1//N: clients that think exponentially get the throughput of the machine repairman's formula."""
    think_us, clients = 40_000, 6
    scenario = replace(
        poisson(0.5, DeviceModel(PROFILE, service=exponential)),
        sources=(Source("clients", clients=clients, think_us=think_us),),
        duration_us=300_000_000,
    )
    recording = run(scenario)
    throughput = len(recording.source) / scenario.duration_us
    assert throughput == pytest.approx(repairman_throughput(clients, think_us, SERVICE_US), rel=0.02)


GPU = DeviceModel(CostProfile.from_line(beta_us=10_000, alpha_us=500, size_max=32), noise_ratio=0.2)
STRESS = Scenario(
    "stress",
    (
        Source("web", arrivals=parse_arrivals("gamma:3"), rate=900.0, tenant="a", retries=2, rows=(1, 3)),
        Source("bulk", rate=150.0, tenant="b", request_class=BATCH, deadline_us=2_000_000, rows=(4,)),
        Source("shy", rate=100.0, patience_us=40_000, hit_ratio=0.3),
        Source("desk", clients=20, think_us=20_000, retries=1),
    ),
    GPU,
    duration_us=6_000_000,
    batching=Batching(size_max=32),
    bounds=QueueBounds(requests_max=300),
    slo_us=100_000,
    replicas=2,
    gateways=2,
    overheads=Overheads(request_us=120, gateway_us=40, reply_us=90, batch_us=301, replica_us=50, jitter_us=900),
    faults=(
        Fault("replica_death", 1_000_000, 500_000, index=0),
        Fault("replica_death", 2_000_000, 1, index=1),
        Fault("slow_device", 3_000_000, 1_000_000, index=1, factor=5.0),
        Fault("gateway_stall", 5_000_000, 300_000, index=1),
        Fault("replica_death", 5_050_000, 100_000, index=0),
    ),
)


@pytest.mark.parametrize("policy", ["deadline", "size_or_timeout", "adaptive"])
@pytest.mark.parametrize("make_load", [lambda s: s, lambda s: s.at_rate(s.rate * 4)], ids=["near", "over"])
def test_little_and_conservation_under_faults(policy: str, make_load: Callable[[Scenario], Scenario]) -> None:
    """Whatever goes wrong, each request ends once, and number over time equals time in system, exactly."""
    recording = simulate(make_load(STRESS).with_policy(policy), partial(seeded_stream, 3))
    assert recording.number_us == recording.sojourn_us > 0
    assert (recording.outcome > 0).all()
    assert (recording.latency_us >= 0).all()
    assert (recording.execution_us[recording.outcome == 1] > 0).all()
    assert recording.dispatch_requests.sum() >= np.count_nonzero(recording.outcome == 1)
    assert recording.share_us.sum() <= recording.service_us.sum() + 1


def test_a_seed_decides_a_run() -> None:
    """Same seed, same columns; another seed, other ones."""
    first, again, other = (simulate(STRESS, partial(seeded_stream, seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.settled_us, again.settled_us)
    assert np.array_equal(first.dispatched_us, again.dispatched_us)
    assert not np.array_equal(first.settled_us[:1_000], other.settled_us[:1_000])
