"""Planning: bounds are right, the search finds the least number that holds, failures cost what they cost."""

from dataclasses import replace
from functools import partial

import pytest

from penstock.adapters.chance import seeded_stream
from penstock.core.models import Batching
from penstock.core.profiles import CostProfile
from penstock.load.reporting import ATTAINMENT_RATIO_MIN as BENCH_ATTAINMENT
from penstock.load.reporting import LOST_RATIO_MAX as BENCH_LOST
from penstock.sim import DeviceModel, Fault, Recording, Scenario, Source, simulate
from penstock.sim.plan_failure import compare_runs, price_failure
from penstock.sim.plan_frontier import drop_dominated, find_frontier
from penstock.sim.plan_knee import find_knee, interpolate_doubling
from penstock.sim.planning import (
    ATTAINMENT_RATIO_MIN,
    LOST_RATIO_MAX,
    Question,
    Trial,
    Trials,
    count_requests_max,
    estimate_replicas,
    find_replicas,
    floor_replicas,
    rows_per_s_max,
)

# 16 rows take 10 ms: one replica does at most 1,600 rows per second.
PROFILE = CostProfile.from_line(beta_us=2_000, alpha_us=500, size_max=16)
TRIAL = Trial("deadline", 16, 1, 100.0, 100.0, 5.0, 10.0, 12.0, 1.0, 0.0, 0.0, 0.5, 4.0)


def question(rate: float = 3_000.0, **changes: object) -> Question:
    """Return a small question: an SLO of 50 ms, short runs, two seeds."""
    scenario = Scenario(
        "small",
        sources=(Source("load", rate=rate),),
        device=DeviceModel(PROFILE),
        duration_us=1,
        batching=Batching(size_max=16),
        slo_us=50_000,
    )
    streams = (partial(seeded_stream, 1), partial(seeded_stream, 2))
    asked = Question(scenario, streams, headroom_ratio=0.0, replicas_max=16, requests=1_500)
    return replace(asked, **changes)  # type: ignore[arg-type]  # fields by name, each of its own type


def test_holding_means_what_it_means_to_the_load_generator() -> None:
    """A plan and a benchmark judge by the same two limits."""
    assert (ATTAINMENT_RATIO_MIN, LOST_RATIO_MAX) == (BENCH_ATTAINMENT, BENCH_LOST)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"attainment": 0.95}, True),
        ({"attainment": 0.949}, False),
        ({"attainment": 0.99, "shed_ratio": 0.01}, True),
        ({"attainment": 0.98, "shed_ratio": 0.006, "failed_ratio": 0.006}, False),
    ],
)
def test_a_trial_holds_within_both_limits(changes: dict[str, float], holds: bool) -> None:
    """95 % in time and at most 1 % failed or shed: at the limits it holds, past either it does not."""
    assert replace(TRIAL, **changes).holds is holds  # type: ignore[arg-type]  # fields by name, each of its own type


def test_the_best_rate_is_that_of_the_best_batch() -> None:
    """Rows per second are those of the batch size with the least time for each row, which need not be the largest."""
    assert rows_per_s_max(PROFILE, 16) == pytest.approx(1_600)
    assert rows_per_s_max(PROFILE, 4) == pytest.approx(1_000)
    assert rows_per_s_max(CostProfile((1, 4, 8), (1_000, 2_000, 9_000)), 8) == pytest.approx(2_000)


@pytest.mark.parametrize(("rate", "floor"), [(1_600, 1), (1_616, 1), (1_617, 2), (3_200, 2), (16_000, 10)])
def test_the_floor_is_work_over_capacity(rate: float, floor: int) -> None:
    """Below it devices cannot do 99 % of the rows; at it they can."""
    assert floor_replicas(question(rate)) == floor


def test_rows_of_a_request_count() -> None:
    """Requests of four rows need as much as four times as many of one."""
    asked = question(1_000)
    four = replace(asked.scenario, sources=(replace(asked.scenario.sources[0], rows=(4,)),))
    assert floor_replicas(replace(asked, scenario=four)) == floor_replicas(question(4_000)) == 3


def test_the_estimate_is_the_formula() -> None:
    """With unlimited batches N replicas do N(1/α)(1 - (1 + 1/N)β/T), so an SLO near β needs more of them."""
    asked = question(3_000)
    scenario = replace(
        asked.scenario,
        device=DeviceModel(CostProfile.from_line(beta_us=20_000, alpha_us=500, size_max=256)),
        batching=Batching(size_max=256),
    )
    # 2,000 N (1 - (1 + 1/N) 0.4) = 1,200 N - 800 >= 3,000 from N = 3.17 on.
    assert estimate_replicas(replace(asked, scenario=scenario)) == 4
    assert estimate_replicas(replace(asked, scenario=replace(scenario, slo_us=200_000))) == 2
    assert estimate_replicas(replace(asked, scenario=replace(scenario, slo_us=20_000))) == 17


def test_larger_fleets_get_fewer_requests() -> None:
    """A request costs more to simulate with more replicas, and the time for a plan is the same."""
    assert count_requests_max(1) == 1_500_000
    assert 0 < count_requests_max(200) < count_requests_max(100) < 1_500_000


def test_the_least_number_of_replicas_is_found() -> None:
    """The answer holds, one less does not, and it lies at or above the floor."""
    asked = question()
    trials = Trials(asked)
    staffing = find_replicas(asked, trials)
    assert staffing.replicas is not None
    assert staffing.trial is not None
    assert staffing.trial.holds
    assert staffing.replicas >= staffing.floor == 2
    tried = {trial.replicas: trial.holds for trial in staffing.tried}
    assert tried[staffing.replicas]
    assert staffing.replicas == staffing.floor or not tried[staffing.replicas - 1]


class Oracle(Trials):
    """Trials whose outcome is known: so many replicas hold, fewer do not."""

    def __init__(self, asked: Question, least: int) -> None:
        super().__init__(asked)
        self.least = least

    def prove(self, scenario: Scenario) -> Trial:
        """Return a trial without a run."""
        attainment = 1.0 if scenario.replicas >= self.least else 0.5
        return replace(TRIAL, replicas=scenario.replicas, attainment=attainment)


@pytest.mark.parametrize("least", range(1, 19))
def test_a_wrong_estimate_is_corrected_in_either_direction(least: int) -> None:
    """Whatever the formula says, the search ends at the least number that holds, between the floor and the most."""
    asked = question(8_000)
    staffing = find_replicas(asked, Oracle(asked, least))
    floor = floor_replicas(asked)
    assert floor == 5
    assert staffing.replicas == (None if least > asked.replicas_max else max(least, floor))
    assert (staffing.reason == "") is (staffing.replicas is not None)


def test_a_batch_longer_than_the_slo_is_told_without_a_run() -> None:
    """Where one request alone is late, nothing is simulated and the reason names β and the SLO."""
    asked = question()
    slow = replace(asked.scenario, slo_us=2_000)
    trials = Trials(replace(asked, scenario=slow))
    staffing = find_replicas(trials.question, trials)
    assert (staffing.replicas, trials.requests) == (None, 0)
    assert "2.5 ms even alone" in staffing.reason
    assert "SLO is 2 ms" in staffing.reason


def test_too_few_replicas_allowed_is_told_without_a_run() -> None:
    """Where the work alone needs more than are allowed, the reason says how many."""
    asked = question(replicas_max=1)
    trials = Trials(asked)
    staffing = find_replicas(asked, trials)
    assert (staffing.replicas, trials.requests) == (None, 0)
    assert "at least 2 replicas to be allowed, got 1" in staffing.reason


def test_no_number_that_holds_is_told_after_the_runs() -> None:
    """Where the work could be done but the SLO does not hold, the reason says how far off the largest fleet is."""
    asked = question(rate=1_500, replicas_max=1)
    asked = replace(asked, scenario=replace(asked.scenario, slo_us=8_000))
    staffing = find_replicas(asked, Trials(asked))
    assert staffing.replicas is None
    assert staffing.tried
    assert "with replicas: 1, the most allowed" in staffing.reason


def test_a_proof_is_the_worst_seed_and_is_not_run_twice() -> None:
    """The verdict of all seeds is at least as bad as each one's, and asking again costs nothing."""
    asked = question(1_000)
    trials = Trials(asked)
    scenario = asked.shape(replicas=1, rate=1_000)
    proven, spent = trials.prove(scenario), trials.requests
    assert proven.strain >= max(trials.run(scenario, k).strain for k in range(2))
    run_alone = trials.requests
    assert trials.prove(scenario) == proven
    assert trials.requests == run_alone > spent


def test_what_clearly_fails_is_not_run_at_length() -> None:
    """Far past capacity one short run is enough."""
    asked = question(requests=20_000)
    trials = Trials(asked)
    assert not trials.prove(asked.shape(replicas=1, rate=6_000)).holds
    assert trials.requests < 10_000


def test_the_knee_is_between_what_holds_and_what_does_not() -> None:
    """The curve is by rate, the planned rate holds, and the knee lies within 2 % below a rate that fails."""
    asked = question()
    trials = Trials(asked)
    knee = find_knee(asked, trials, 3)
    rates = [point.rate for point in knee.points]
    assert rates == sorted(rates)
    assert knee.rate_held is not None
    assert knee.rate_lost is not None
    assert asked.rate_planned <= knee.rate_held < knee.rate_lost <= knee.rate_held * 1.021
    assert knee.p95_low_ms == knee.points[0].p95_ms


def test_the_curve_ends_at_a_multiple_of_the_planned_rate() -> None:
    """Devices that could do a hundred times as much are not driven there: the knee is beyond the end of the curve."""
    asked = question(100)
    fast = replace(asked.scenario, device=DeviceModel(CostProfile((1, 16), (100, 1_000))))
    asked = replace(asked, scenario=fast)
    knee = find_knee(asked, Trials(asked), 1)
    assert knee.rate_lost is None
    assert knee.rate_held == knee.points[-1].rate == pytest.approx(650)


def test_doubling_is_interpolated() -> None:
    """Between 10 ms at 100 and 30 ms at 200 per second p95 is 20 ms at 150; a curve that never doubles has none."""
    points = [replace(TRIAL, rate=rate, p95_ms=p95) for rate, p95 in ((100, 10.0), (150, None), (200, 30.0))]
    assert interpolate_doubling(points) == pytest.approx(150)
    assert interpolate_doubling(points[:2]) is None
    assert interpolate_doubling([replace(TRIAL, p95_ms=None)]) is None


def test_dominated_configurations_are_dropped() -> None:
    """What another matches in replicas and p95 and beats in one is gone; of equals one stays."""
    cheap, same, good, worse, dear = (
        replace(TRIAL, replicas=n, p95_ms=p95) for n, p95 in ((1, 40.0), (1, 45.0), (2, 20.0), (3, 20.0), (4, 10.0))
    )
    silent = replace(TRIAL, replicas=1, p95_ms=None)
    assert drop_dominated([dear, worse, silent, good, same, cheap, cheap]) == (cheap, good, dear)


def test_the_frontier_falls_and_holds() -> None:
    """Every further replica on it buys latency, all of it holds, and it begins no later than the answer."""
    asked = question()
    frontier = find_frontier(asked, Trials(asked), 3, 20_000)
    replicas = [point.replicas for point in frontier.points]
    p95 = [point.p95_ms or 0.0 for point in frontier.points]
    assert frontier.tried > 0
    assert replicas == sorted(set(replicas))
    assert replicas[0] <= 3
    assert p95 == sorted(p95, reverse=True)
    assert all(point.holds for point in frontier.points)


def struck(replicas: int, outage_us: int) -> tuple[Recording, Recording]:
    """Return a run without and the same with a death of one replica."""
    calm = replace(question(1_500).shape(replicas=replicas, rate=1_500), duration_us=1_500_000)
    fault = Fault("replica_death", at_us=calm.warmup_us, duration_us=outage_us)
    stream = partial(seeded_stream, 1)
    return simulate(calm, stream), simulate(replace(calm, faults=(fault,)), stream)


def test_the_death_of_the_only_replica_costs_all_that_comes_meanwhile() -> None:
    """Nobody is served while nobody is there, so the loss is the outage's arrivals and the disturbance its length."""
    failure = compare_runs(*struck(1, 500_000), 500_000)
    assert not failure.holds
    assert failure.outage_requests == pytest.approx(750, rel=0.15)
    assert failure.lost >= failure.outage_requests * 0.8
    assert failure.shed + failure.failed + failure.late >= failure.lost * 0.99
    assert failure.disturbance_us >= 400_000


def test_a_longer_outage_continues_as_its_second_half_went() -> None:
    """Four times the outage costs about four times as much, though no more of it was simulated."""
    runs = struck(1, 500_000)
    short, long = compare_runs(*runs, 500_000), compare_runs(*runs, 2_000_000)
    assert long.outage_requests == pytest.approx(4 * short.outage_requests, rel=0.1)
    assert long.lost == pytest.approx(short.lost + 1_500_000 * 1_500 / 1e6, rel=0.15)
    assert long.disturbance_us == short.disturbance_us + 1_500_000
    assert long.simulated_us == short.simulated_us == 500_000


def test_no_death_costs_nothing() -> None:
    """A run compared with itself has lost nothing and was never disturbed."""
    before, after = struck(1, 500_000)
    calm = replace(before, scenario=after.scenario)
    failure = compare_runs(calm, calm, 500_000)
    assert (failure.lost, failure.failed, failure.shed, failure.late, failure.disturbance_us) == (0, 0, 0, 0, 0)
    assert failure.is_over


def test_a_spare_replica_rides_through() -> None:
    """With far more replicas than the load needs a death is not felt by more than a few requests."""
    asked = question(1_000)
    failure = price_failure(asked, Trials(asked), 6, 300_000)
    assert failure.holds
    assert failure.attainment > 0.98
    assert failure.is_over
