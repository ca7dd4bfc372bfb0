"""The price of the next failure: what callers lose when one replica dies and is back after a cold start.

The same run twice, with the death and without: same arrivals, same devices, so the difference is what the death cost.
Not here: how long a cold start takes (`cli/plan.py` asks the server), drills on a live one (`load/drills/`).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock.sim.planning import ATTAINMENT_RATIO_MIN, LOST_RATIO_MAX, Question, Trials
from penstock.sim.recording import Outcome, Recording
from penstock.sim.scenario import Fault

__all__ = ["Failure", "compare_runs", "price_failure"]

Floats = NDArray[np.float64]

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
        disturbance_us: From the first stretch with fewer than 95 % answered in time to the end of the last, µs.
        is_over: Whether that ended before the run did.
        simulated_us: Length of the outage that was simulated, µs: a long one is continued as its second half went.
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
    is_over: bool
    simulated_us: int


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
    calm = replace(calm, duration_us=outage_us + recovery_us)
    fault = Fault("replica_death", at_us=calm.warmup_us, duration_us=outage_us)
    found = []
    for stream in question.streams[:_SEEDS]:
        before, after = trials.record(calm, stream), trials.record(replace(calm, faults=(fault,)), stream)
        found.append(compare_runs(before, after, cold_start_us))
    return max(found, key=lambda failure: (failure.lost, failure.disturbance_us))


def compare_runs(calm: Recording, struck: Recording, outage_us: int) -> Failure:
    """Return what the one fault of `struck` cost.

    Args:
        calm: The run without it; the same arrivals.
        struck: The run with it.
        outage_us: How long the outage really is, µs; if that is longer than the simulated one, requests of its second
            half stand for those of the rest.
    """
    (fault,) = struck.scenario.faults
    arrived, end_us, half_us = struck.arrived_us, fault.at_us + fault.duration_us, fault.duration_us // 2
    extra_us = max(outage_us - fault.duration_us, 0)
    is_settled = (arrived >= end_us - half_us) & (arrived < end_us)
    weights = np.where(is_settled, 1 + extra_us / max(half_us, 1), 1.0)
    during = (arrived >= fault.at_us) & (arrived < end_us)
    before, after = _sort_out(calm), _sort_out(struck)

    def cost(kind: str) -> int:
        return round(float((weights * after[kind]).sum() - (weights * before[kind]).sum()))

    count = float(weights[during].sum())
    attainment = float((weights * after["good"])[during].sum()) / count if count else 1.0
    unserved = float((weights * (after["shed"] + after["failed"]))[during].sum()) / count if count else 0.0
    stretch_us, is_over = _measure_disturbance(before["good"], after["good"], struck, extra_us)
    return Failure(
        replicas=struck.scenario.replicas,
        holds=attainment >= ATTAINMENT_RATIO_MIN and unserved <= LOST_RATIO_MAX,
        attainment=attainment,
        outage_requests=round(count),
        lost=max(-cost("good"), 0),
        failed=max(cost("failed"), 0),
        shed=max(cost("shed"), 0),
        late=max(cost("late"), 0),
        disturbance_us=stretch_us,
        is_over=is_over,
        simulated_us=fault.duration_us,
    )


def _sort_out(recording: Recording) -> dict[str, Floats]:
    """Return for each way that a request may end 1 where it did, else 0."""
    good, answered = recording.is_good, recording.is_answered
    kinds = {
        "good": good,
        "late": answered & ~good,
        "shed": np.isin(recording.outcome, _SHED),
        "failed": np.isin(recording.outcome, _FAILED),
    }
    return {kind: which.astype(np.float64) for kind, which in kinds.items()}


def _measure_disturbance(before: Floats, after: Floats, struck: Recording, extra_us: int) -> tuple[int, bool]:
    """Return how long the disturbance after the fault was, µs, and whether it was over when the run was."""
    scenario = struck.scenario
    (fault,) = scenario.faults
    window_us = round(max(_WINDOW_REQUESTS / scenario.rate * 1e6, _WINDOW_SLO_RATIO * scenario.slo_us))
    count = max((scenario.end_us - fault.at_us) // window_us, 1)
    window = (struck.arrived_us - fault.at_us) // window_us
    inside = (window >= 0) & (window < count)
    sizes = np.bincount(window[inside], minlength=count)
    shares = [np.bincount(window[inside], good[inside], count) / np.maximum(sizes, 1) for good in (before, after)]
    # A window that is bad without the fault, too, says nothing about it.
    is_bad = (shares[1] < ATTAINMENT_RATIO_MIN) & (shares[0] >= ATTAINMENT_RATIO_MIN) & (sizes > 0)
    bad = np.flatnonzero(is_bad)
    if not len(bad):
        return 0, True
    first, last = int(bad[0]), int(bad[-1])
    # It reaches past the simulated part of the outage, so it lasts as long as the rest of it.
    is_lasting = (last + 2) * window_us >= fault.duration_us
    return (last + 1 - first) * window_us + (extra_us if is_lasting else 0), last < count - 1
