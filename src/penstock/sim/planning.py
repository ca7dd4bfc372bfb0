"""Capacity: does a fleet hold its SLO at a rate, and how many replicas are the fewest that do?

Pure search over `simulate`: an analytic bracket, then runs under several seeds of which the worst counts. Not here:
what follows from the answer (`plan_knee.py`, `plan_frontier.py`, `plan_failure.py`), the command (`cli/plan.py`).
Source: N staggered replicas behind one queue hold T while ℓ(b)(1 + 1/N) <= T, so with ℓ(b) = β + α·b each does
(1/α)(1 - (1 + 1/N)β/T) rows per second: Symphony, arXiv 2308.07470.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from penstock.core.profiles import CostProfile
from penstock.sim.recording import Recording
from penstock.sim.run import simulate
from penstock.sim.scenario import Scenario, StreamFactory
from penstock.sim.summary import summarise

__all__ = [
    "ATTAINMENT_RATIO_MIN",
    "LOST_RATIO_MAX",
    "Question",
    "Staffing",
    "Trial",
    "Trials",
    "count_requests_max",
    "estimate_replicas",
    "find_replicas",
    "floor_replicas",
    "rows_per_s_max",
]

# What holding the SLO means, as `penstock bench` judges it on a live server: the percentile that the SLO is about
# (p95), and how many may be failed and shed together.
ATTAINMENT_RATIO_MIN = 0.95
LOST_RATIO_MAX = 0.01

# A configuration that misses by this factor in a short run will not make it in a long one.
_STRAIN_HOPELESS = 3.0
# A short run has this share of a long one's requests.
_PROBE_RATIO = 0.2
# Near saturation queues build up slowly, and a short run ends before they have: devices that are busy for more than
# this share of the time even in their best batches are watched for so many times as long.
_SATURATED_RATIO, _SATURATED_LENGTHS = 0.9, 4
# No run is shorter than this many times the SLO, or it would end before a queue could build up.
_RUN_SLOS_MIN = 6
_WARMUP_SLOS = 2
_WARMUP_RATIO = 0.1
# What a request costs to simulate, µs, measured on one 2.6 GHz core: some, and more for each replica to choose from.
_REQUEST_US, _REQUEST_REPLICA_US = 15.0, 0.6
_PLAN_US_MAX, _PLAN_REQUESTS_MAX = 40e6, 1_500_000
# Arrivals whose gaps are independent: any stretch of them is like any other, so short runs say something.
_RENEWAL = ("poisson", "constant", "gamma")


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be planned.

    Args:
        scenario: One open loop at the asked rate, the SLO (> 0), the batching asked for, the device. Its replicas, its
            times and its faults are not read.
        streams: Chance, one factory for each seed, at least one.
        headroom_ratio: The plan must hold at so much more than the asked rate.
        replicas_max: Most replicas to think of, >= 1.
        requests: About how many requests a run has.
        period_us: No run is shorter than this, µs: what the arrivals need to show all they do.
    """

    scenario: Scenario
    streams: tuple[StreamFactory, ...]
    headroom_ratio: float = 0.1
    replicas_max: int = 128
    requests: int = 20_000
    period_us: int = 0

    @property
    def rate_planned(self) -> float:
        """Requests per second that must be held."""
        return self.scenario.rate * (1 + self.headroom_ratio)

    @property
    def request_rows(self) -> float:
        """Mean rows of a request."""
        rows = self.scenario.sources[0].rows
        return sum(rows) / len(rows)

    def shape(
        self,
        *,
        replicas: int,
        rate: float,
        policy: str = "",
        size_max: int = 0,
        requests: int = 0,
    ) -> Scenario:
        """Return the scenario of one run.

        Args:
            replicas: How many.
            rate: Requests per second.
            policy: Of `POLICIES`; as asked if empty.
            size_max: Rows in a batch; as asked if 0.
            requests: About how many are measured; as asked if 0.
        """
        asked = self.scenario
        batching = replace(
            asked.batching, policy=policy or asked.batching.policy, size_max=size_max or asked.batching.size_max
        )
        length_us = max((requests or self.requests) / rate * 1e6, _RUN_SLOS_MIN * asked.slo_us, self.period_us)
        return replace(
            asked.at_rate(rate),
            batching=batching,
            replicas=replicas,
            duration_us=round(length_us),
            warmup_us=round(max(_WARMUP_RATIO * length_us, _WARMUP_SLOS * asked.slo_us)),
            faults=(),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration at one rate.

    Attributes:
        policy, size_max, replicas, rate: What was tried; requests per second.
        goodput: Requests per second answered within the SLO.
        p50_ms, p95_ms, p99_ms: Latency of those answered; None if none was.
        attainment: Share of all requests answered within the SLO, 0-1.
        shed_ratio, failed_ratio: Share of all requests, 0-1.
        utilisation: Share of the time that devices worked, 0-1.
        batch_rows: Mean rows of an execution.
    """

    policy: str
    size_max: int
    replicas: int
    rate: float
    goodput: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    attainment: float
    shed_ratio: float
    failed_ratio: float
    utilisation: float
    batch_rows: float

    @property
    def strain(self) -> float:
        """How much of what may go wrong went wrong: at most 1 if the SLO held."""
        late = (1 - self.attainment) / (1 - ATTAINMENT_RATIO_MIN)
        return max(late, (self.shed_ratio + self.failed_ratio) / LOST_RATIO_MAX)

    @property
    def holds(self) -> bool:
        """Whether the SLO held: p95 within it, and at most 1 % failed or shed."""
        return self.strain <= 1 + 1e-9


class Trials:
    """Runs configurations and keeps count of what that costs.

    Args:
        question: What is planned.
        on_run: Told after each run: requests simulated so far.

    Attributes:
        requests: Simulated so far.
    """

    __slots__ = ("_on_run", "_proven", "question", "requests")

    def __init__(self, question: Question, on_run: Callable[[int], None] = lambda _: None) -> None:
        self.question = question
        self.requests = 0
        self._on_run = on_run
        self._proven: dict[tuple[str, int, int, float, int], Trial] = {}

    def record(self, scenario: Scenario, stream: StreamFactory) -> Recording:
        """Run a scenario once."""
        recording = simulate(scenario, stream)
        self.requests += len(recording.arrived_us)
        self._on_run(self.requests)
        return recording

    def run(self, scenario: Scenario, seed_index: int = 0) -> Trial:
        """Run a scenario once, under one of the question's seeds, and judge it."""
        summary = summarise(self.record(scenario, self.question.streams[seed_index]))
        return Trial(
            policy=scenario.batching.policy,
            size_max=scenario.batching.size_max,
            replicas=scenario.replicas,
            rate=scenario.rate,
            goodput=summary.goodput,
            p50_ms=summary.latency_ms["p50"],
            p95_ms=summary.latency_ms["p95"],
            p99_ms=summary.latency_ms["p99"],
            attainment=summary.attainment,
            shed_ratio=summary.shed_ratio,
            failed_ratio=summary.failed_ratio,
            utilisation=summary.utilisation,
            batch_rows=summary.batch_rows,
        )

    def prove(self, scenario: Scenario) -> Trial:
        """Return the worst run of a scenario over all seeds; the first that fails is bad enough.

        A short run comes first: what misses by far there is not run at length. Asked again, it answers at once.
        """
        batching = scenario.batching
        key = (batching.policy, batching.size_max, scenario.replicas, scenario.rate, scenario.duration_us)
        if key not in self._proven:
            self._proven[key] = self._prove(scenario)
        return self._proven[key]

    def _prove(self, scenario: Scenario) -> Trial:
        if scenario.sources[0].arrivals.kind in _RENEWAL:
            length_us = max(round(scenario.duration_us * _PROBE_RATIO), _RUN_SLOS_MIN * scenario.slo_us)
            if length_us < scenario.duration_us / 2:
                probed = self.run(replace(scenario, duration_us=length_us))
                if probed.strain > _STRAIN_HOPELESS:
                    return probed
        worst = self.run(self._lengthen(scenario))
        for seed_index in range(1, len(self.question.streams)):
            if not worst.holds:
                break
            worst = max(worst, self.run(scenario, seed_index), key=lambda trial: (trial.strain, trial.p95_ms or 0.0))
        return worst

    def _lengthen(self, scenario: Scenario) -> Scenario:
        """Return the scenario as long as it must be to say something about loads near saturation."""
        rows_per_s = scenario.rate * self.question.request_rows
        most = scenario.replicas * rows_per_s_max(scenario.device.profile, scenario.batching.size_max)
        if rows_per_s < _SATURATED_RATIO * most:
            return scenario
        return replace(scenario, duration_us=scenario.duration_us * _SATURATED_LENGTHS)


@dataclass(frozen=True, slots=True)
class Staffing:
    """How many replicas.

    Attributes:
        replicas: The fewest that hold; None if none do.
        trial: Its worst run at the planned rate; None likewise.
        floor: Fewer cannot do the work, whatever their batches.
        estimate: What the formula says.
        tried: Every number of replicas tried, ascending.
        reason: Why there is none; empty if there is one.
    """

    replicas: int | None
    trial: Trial | None
    floor: int
    estimate: int
    tried: tuple[Trial, ...] = field(default=())
    reason: str = ""


def rows_per_s_max(profile: CostProfile, size_max: int) -> float:
    """Return how many rows one device does per second in its best batches of at most `size_max` rows."""
    sizes = np.arange(1, size_max + 1)
    return max(float(b) * 1e6 / profile.time_us(int(b)) for b in sizes)


def floor_replicas(question: Question, size_max: int = 0) -> int:
    """Return a number of replicas below which the work cannot be done, even if as much is shed as may be."""
    rows_per_s = question.rate_planned * question.request_rows * (1 - LOST_RATIO_MAX)
    most = rows_per_s_max(question.scenario.device.profile, size_max or question.scenario.batching.size_max)
    return max(math.ceil(rows_per_s / most - 1e-9), 1)


def estimate_replicas(question: Question) -> int:
    """Return the fewest replicas that the formula says will do; one more than allowed if it says that none will."""
    scenario = question.scenario
    profile, size_max = scenario.device.profile, scenario.batching.size_max
    allowed_us = scenario.slo_us - _fixed_us(scenario)
    rows_per_s = question.rate_planned * question.request_rows
    times = [(b, profile.time_us(b)) for b in range(1, size_max + 1)]
    for replicas in range(1, question.replicas_max + 1):
        held = [b * 1e6 / time_us for b, time_us in times if time_us * (1 + 1 / replicas) <= allowed_us]
        if held and replicas * max(held) >= rows_per_s:
            return replicas
    return question.replicas_max + 1


def count_requests_max(replicas: int) -> int:
    """Return how many requests a plan about so many replicas may simulate, to be done within a minute."""
    return round(min(_PLAN_REQUESTS_MAX, _PLAN_US_MAX / (_REQUEST_US + _REQUEST_REPLICA_US * replicas)))


def _fixed_us(scenario: Scenario) -> int:
    """Return what every request takes besides queueing and its device time, µs."""
    costs = scenario.overheads
    return costs.request_us + costs.gateway_us + costs.reply_us + costs.batch_us + costs.replica_us


def find_replicas(question: Question, trials: Trials) -> Staffing:
    """Return the fewest replicas that hold the SLO at the planned rate.

    It assumes that more replicas are never worse, starts at the estimate, and doubles its steps until it has both a
    number that holds and one that does not.
    """
    floor, estimate = floor_replicas(question), estimate_replicas(question)
    reason = _explain_hopeless(question, floor)
    if reason:
        return Staffing(None, None, floor, estimate, reason=reason)
    tried: dict[int, Trial] = {}

    def holds(replicas: int) -> bool:
        tried[replicas] = trials.prove(question.shape(replicas=replicas, rate=question.rate_planned))
        return tried[replicas].holds

    good, bad = _bracket(holds, min(max(estimate, floor), question.replicas_max), floor, question.replicas_max)
    while good is not None and good - bad > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    runs = tuple(tried[n] for n in sorted(tried))
    if good is None:
        return Staffing(None, None, floor, estimate, runs, _explain_failure(question, runs[-1]))
    return Staffing(good, tried[good], floor, estimate, runs)


def _bracket(holds: Callable[[int], bool], start: int, floor: int, most: int) -> tuple[int | None, int]:
    """Return a number of replicas that holds, None if there is none, and a smaller one that does not."""
    step = 1
    if not holds(start):
        bad = start
        while bad < most:
            replicas = min(bad + step, most)
            if holds(replicas):
                return replicas, bad
            bad, step = replicas, step * 2
        return None, bad
    good = start
    while good > floor:
        replicas = max(good - step, floor)
        if not holds(replicas):
            return good, replicas
        good, step = replicas, step * 2
    return good, floor - 1


def _explain_hopeless(question: Question, floor: int) -> str:
    """Return why no number of replicas can do, as far as that is plain without a run; else nothing."""
    scenario = question.scenario
    profile, rows = scenario.device.profile, max(scenario.sources[0].rows)
    alone_us, fixed_us = profile.time_us(rows), _fixed_us(scenario)
    if alone_us + fixed_us > scenario.slo_us:
        return (
            f"a request takes {(alone_us + fixed_us) / 1e3:g} ms even alone ({alone_us / 1e3:g} ms on the device, where"
            f" any batch costs β = {profile.beta_us / 1e3:g} ms), the SLO is {scenario.slo_us / 1e3:g} ms: no number of"
            " replicas makes a request faster. Use a faster device, a smaller model or a longer SLO."
        )
    if floor > question.replicas_max:
        each = rows_per_s_max(profile, scenario.batching.size_max)
        return (
            f"{question.rate_planned * question.request_rows:,.0f} rows per second are to be held, and one replica does"
            f" at most {each:,.0f}, in its best batches: expected at least {floor} replicas to be allowed, got"
            f" {question.replicas_max}. Use more, larger batches, or a faster device."
        )
    return ""


def _explain_failure(question: Question, trial: Trial) -> str:
    p95 = "none was answered" if trial.p95_ms is None else f"p95 is {trial.p95_ms:,.1f} ms"
    return (
        f"with replicas: {trial.replicas}, the most allowed, {p95}, {trial.attainment:.1%} are answered within"
        f" {question.scenario.slo_us / 1e3:g} ms, and {trial.shed_ratio + trial.failed_ratio:.1%} failed or shed. Use"
        " more replicas, a longer SLO, or another policy or batch size."
    )
