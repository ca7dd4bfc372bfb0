"""The knee: how latency and goodput of a given fleet follow the load, and where that turns.

Not here: how large the fleet is (`planning.py`), drawing the curve (`cli/report.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from penstock.sim.planning import Question, Trial, Trials, rows_per_s_max

__all__ = ["Knee", "find_knee", "interpolate_doubling"]

# The sweep, as shares of what the devices do in full batches, or of so many times the planned rate if that is less:
# beyond it nobody asks, and it would take long to simulate. The first is where nobody waits for anybody.
SWEEP_RATIOS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.95, 1.1, 1.3)
_RATE_MULTIPLE_MAX = 5.0
# A run of the sweep has this share of the requests of others: enough for a p95 within a few per cent.
_SWEEP_RATIO = 0.5
# The knee is known to this share of itself.
_RATE_STEP_RATIO = 0.02


@dataclass(frozen=True, slots=True)
class Knee:
    """A load curve and its turn.

    Attributes:
        points: The curve, by rate.
        rate_held: The highest rate found to hold the SLO, requests per second; None if not even the planned one does.
        rate_lost: The lowest above it found not to; None if none was.
        p95_low_ms: p95 at a tenth of what the devices can do; None if nothing was answered.
        rate_doubled: Where p95 is twice that, requests per second; None if it never is.
    """

    points: tuple[Trial, ...]
    rate_held: float | None
    rate_lost: float | None
    p95_low_ms: float | None
    rate_doubled: float | None


def find_knee(question: Question, trials: Trials, replicas: int) -> Knee:
    """Return the load curve of so many replicas: one run for each point, and all seeds near the knee."""
    scenario = question.scenario
    most = rows_per_s_max(scenario.device.profile, scenario.batching.size_max)
    capacity = min(replicas * most / question.request_rows, question.rate_planned * _RATE_MULTIPLE_MAX)
    requests = round(_SWEEP_RATIO * question.requests)
    rates = [capacity * ratio for ratio in SWEEP_RATIOS]
    points = {rate: trials.run(question.shape(replicas=replicas, rate=rate, requests=requests)) for rate in rates}

    def holds(rate: float) -> bool:
        points[rate] = trials.prove(question.shape(replicas=replicas, rate=rate))
        return points[rate].holds

    held = question.rate_planned if holds(question.rate_planned) else None
    lost = min((rate for rate, p in points.items() if not p.holds and rate > (held or 0)), default=None)
    if held is not None:
        # What one short run found to hold narrows the gap, if it is put to the proof.
        highest = max(rate for rate in points if rate < (lost or math.inf))
        if highest > held:
            held, lost = (highest, lost) if holds(highest) else (held, highest)
    while held is not None and lost is not None and lost - held > _RATE_STEP_RATIO * held:
        middle = (held + lost) / 2
        if holds(middle):
            held = middle
        else:
            lost = middle
    curve = tuple(points[rate] for rate in sorted(points))
    return Knee(curve, held, lost, curve[0].p95_ms, interpolate_doubling(curve))


def interpolate_doubling(points: Sequence[Trial]) -> float | None:
    """Return the rate at which p95 first is twice that of the first point, linear between points; None if nowhere.

    Args:
        points: At least one, by rate.
    """
    answered = [(point.rate, point.p95_ms) for point in points if point.p95_ms is not None]
    if not answered or points[0].p95_ms is None:
        return None
    limit_ms = 2 * points[0].p95_ms
    for (rate, p95_ms), (next_rate, next_p95_ms) in pairwise(answered):
        if next_p95_ms >= limit_ms:
            return rate + (next_rate - rate) * (limit_ms - p95_ms) / (next_p95_ms - p95_ms)
    return None
