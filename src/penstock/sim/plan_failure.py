"""The price of the next failure: what callers lose when one replica dies and is back after a cold start.

The same run twice, with the death and without: same arrivals, same devices, so the difference is what the death cost.
Not here: how long a cold start takes (`cli/plan.py` asks the server), drills on a live one (`load/drills/`).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock.sim.planning import ATTAINMENT_RATIO_MIN, LOST_RATIO_MAX, Question, Trials
from penstock.sim.recording import Outcome, Recording
from penstock.sim.scenario import Fault, Scenario

__all__ = ["Failure", "compare_runs", "longest_stretch", "price_failure"]

_SHED = (Outcome.REFUSED, Outcome.DROPPED, Outcome.EXPIRED)
_FAILED = (Outcome.LOST, Outcome.UNANSWERED, Outcome.ABANDONED)
# A longer outage is simulated for about so many requests and continued as its second half went.
_OUTAGE_REQUESTS = 15_000
_OUTAGE_SLOS_MIN = 10
# Time to recover, in outages and in SLOs: the longer counts, up to as many requests as an outage.
_RECOVERY_RATIO, _RECOVERY_SLOS_MIN = 0.5, 10
# A window must hold enough requests for a share of 95 % to mean something.
_WINDOW_REQUESTS = 200
_WINDOW_SLO_RATIO = 0.2
_SEEDS = 2


@dataclass(frozen=True, slots=True)
class Failure:
    """One replica's death, against the same run without it. Numbers of requests are of the worst seed.

    Attributes:
        replicas: How many there are before.
        holds: Whether the SLO held among the requests of the outage: 95 % in time, at most 1 % failed or shed.
        attainment: Share of those answered in time, 0-1.
        outage_requests: How many those are.
        lost: Answers in time that the death cost, from then on.
        failed, shed, late: Requests that failed, were refused, or were answered late because of it.
        disturbance_us: Longest stretch in which fewer than 95 % were answered in time, µs.
        simulated_us: Length of the outage that was simulated, µs.
        is_extrapolated: Whether that is shorter than the outage asked about.
    """

    replicas: int
    holds: bool
    attainment: float
    outage_requests: int
    lost: int
    failed: int
    shed: int
    late: int
    disturbance_us: int
    simulated_us: int
    is_extrapolated: bool


def price_failure(question: Question, trials: Trials, replicas: int, cold_start_us: int) -> Failure:
    """Return what the death of one of `replicas` costs at the asked rate, without headroom.

    Args:
        question: What is planned.
        trials: Runs it.
        replicas: >= 1.
        cold_start_us: How long it is gone, µs, > 0.
    """
    rate, slo_us = question.scenario.rate, question.scenario.slo_us
    most_us = round(max(_OUTAGE_REQUESTS / rate * 1e6, _OUTAGE_SLOS_MIN * slo_us))
    outage_us = min(cold_start_us, most_us)
    recovery_us = round(max(_RECOVERY_RATIO * outage_us, _RECOVERY_SLOS_MIN * slo_us))
    calm = question.shape(replicas=replicas, rate=rate, requests=1)
    calm = replace(calm, duration_us=calm.warmup_us + outage_us + recovery_us)
    fault = Fault("replica_death", at_us=2 * calm.warmup_us, duration_us=outage_us)
    found = []
    for stream in question.streams[:_SEEDS]:
        before, after = trials.record(calm, stream), trials.record(replace(calm, faults=(fault,)), stream)
        found.append(compare_runs(before, after, cold_start_us))
    return max(found, key=lambda failure: (failure.lost, failure.disturbance_us))


def compare_runs(calm: Recording, struck: Recording, outage_us: int) -> Failure:
    """Return what the one fault of `struck` cost.

    Args:
        calm: The run without it.
        struck: The run with it; the same arrivals.
        outage_us: How long the outage really is, µs; if that is longer than the simulated one, requests of its second
            half stand for those of the rest.
    """
    scenario: Scenario = struck.scenario
    (fault,) = scenario.faults
    at_us, end_us = fault.at_us, fault.at_us + fault.duration_us
    extra_us = max(outage_us - fault.duration_us, 0)
    arrived = struck.arrived_us
    half_us = fault.duration_us // 2
    stands_for = np.where((arrived >= end_us - half_us) & (arrived < end_us), 1 + extra_us / max(half_us, 1), 1.0)
    stands_for[arrived < at_us - scenario.slo_us] = 0.0  # settled before

    def excess(mask: str) -> int:
        return max(round(float((stands_for * (_mask(struck, mask) ^ 0)).sum() - (stands_for * _mask(calm, mask)).sum())), 0)

    during = (arrived >= at_us) & (arrived < end_us)
    count = max(int(during.sum()), 1)
    attainment = float((_mask(struck, "good") & during).sum()) / count if during.any() else 1.0
    unserved = float(((_mask(struck, "shed") | _mask(struck, "failed")) & during).sum()) / count
    lost = max(round(float((stands_for * (_mask(calm, "good") * 1.0 - _mask(struck, "good"))).sum())), 0)
    return Failure(
        replicas=scenario.replicas,
        holds=attainment >= ATTAINMENT_RATIO_MIN and unserved <= LOST_RATIO_MAX,
        attainment=attainment,
        outage_requests=round(float((stands_for * during).sum())),
        lost=lost,
        failed=excess("failed"),
        shed=excess("shed"),
        late=excess("late"),
        disturbance_us=_disturbance_us(calm, struck, extra_us),
        simulated_us=fault.duration_us,
        is_extrapolated=extra_us > 0,
    )
