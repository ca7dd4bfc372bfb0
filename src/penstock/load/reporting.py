"""The report: what a recording means, in numbers that a script and a person can both use.

Pure. All requests after the warm-up count; a request without a good answer within the SLO misses it, whatever the
reason. Percentiles are exact (every latency is kept and sorted), so they merge over processes without error.
Not here: drawing (`cli/bench.py`). Source of the certification rule: `verdict.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np

from penstock.core.arrivals import Times
from penstock.load.driver import FAILURE_REASONS, LIMITED, SHED, UNSENT
from penstock.load.verdict import over_slo_allowed

__all__ = [
    "ATTAINMENT_RATIO_MIN",
    "LATENESS_P99_US_MAX",
    "LOST_RATIO_MAX",
    "SENT_RATIO_MIN",
    "Measurement",
    "bucket_latencies",
    "build_report",
    "find_invalid_reasons",
    "percentile_us",
]

LATENESS_P99_US_MAX = 2_000  # a generator later than this measured itself
SENT_RATIO_MIN = 0.999
ATTAINMENT_RATIO_MIN = 0.95  # the percentile that the SLO is about: p95
LOST_RATIO_MAX = 0.01  # failed, shed and limited together
CONFIDENCE = 0.99

_LATENCY_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
_REFUSAL_PERCENTILES = _LATENESS_PERCENTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run, merged over its processes. Arrays hold the measured requests only (those after the warm-up).

    Args:
        latency_us: Latency of good answers, or a negative outcome code of `driver.py`.
        lateness_us: How late the generator came to each request.
        duration_us: Length of the measured part of the schedule.
        rate_target: Requests per second asked for.
        slo_us: Latency that p95 must not exceed.
        cpu_us: CPU time of the generator over the measured part, all processes.
        distinct_inputs: How many different requests were among those sent.
        status_counts: Answers by HTTP status, every attempt.
        refusal_us: How long each refusal took from sending, every attempt, final or not.
        attempt_count: How often requests were sent altogether; None if none was sent again.
        connections: Connections opened.
        held_count: Requests that waited for a connection.
    """

    latency_us: Times
    lateness_us: Times
    duration_us: int
    rate_target: float
    slo_us: int
    cpu_us: int
    distinct_inputs: int
    status_counts: dict[int, int]
    refusal_us: Times = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    attempt_count: int | None = None
    connections: int = 0
    held_count: int = 0


def percentile_us(ordered: Sequence[int] | Times, ratio: float) -> int:
    """Return the smallest value that at least `ratio` (0-1] of `ordered` (ascending, not empty) do not exceed."""
    assert len(ordered) > 0
    return int(ordered[max(0, ceil(ratio * len(ordered) - 1e-9) - 1)])


def find_invalid_reasons(*, planned: int, sent: int, lateness_p99_us: int) -> list[str]:
    """Return why the run says nothing about the server, empty if it does. Each reason says what to do."""
    reasons = []
    if planned == 0:
        reasons.append("nothing to send: the schedule is empty; raise --rate or --duration")
    elif sent < SENT_RATIO_MIN * planned:
        reasons.append(
            f"short: expected at least {SENT_RATIO_MIN:.1%} of {planned} planned requests to be sent, got {sent}"
            f" ({sent / planned:.2%}); raise --connections, or lower --rate if the server is overloaded"
        )
    if lateness_p99_us > LATENESS_P99_US_MAX:
        reasons.append(
            f"late: expected generator lateness p99 <= {LATENESS_P99_US_MAX / 1e3:g} ms,"
            f" got {lateness_p99_us / 1e3:.3f} ms;"
            " give it more --processes or a core of its own, or lower --rate"
        )
    return reasons


def build_report(run: Measurement) -> dict[str, Any]:
    """Return the report with the keys documented for `penstock bench --json`. Cost: sorts the latencies."""
    planned = len(run.latency_us)
    good = np.sort(run.latency_us[run.latency_us >= 0])
    lateness = np.sort(run.lateness_us)
    shed, limited = (int(np.count_nonzero(run.latency_us == code)) for code in (SHED, LIMITED))
    failures = {text: int(np.count_nonzero(run.latency_us == code)) for code, text in FAILURE_REASONS.items()}
    failed = sum(failures.values())
    assert len(good) + shed + limited + failed == planned, "a request was lost"
    sent = planned - failures[FAILURE_REASONS[UNSENT]]
    within = int(np.searchsorted(good, run.slo_us, side="right"))
    duration_s = run.duration_us / 1e6
    invalid_reasons = find_invalid_reasons(
        planned=planned, sent=sent, lateness_p99_us=percentile_us(lateness, 0.99) if planned else 0
    )
    allowed = over_slo_allowed(planned, percentile=ATTAINMENT_RATIO_MIN, confidence=CONFIDENCE)
    return {
        "rate_target": run.rate_target,
        "rate_achieved": round(sent / duration_s, 1),
        "goodput": round(within / duration_s, 1),
        "latency_ms": _summarise(good, _LATENCY_PERCENTILES),
        "planned": planned,
        "sent": sent,
        "completed": len(good),
        "failed": failed,
        "shed": shed,
        "limited": limited,
        "failures": {text: count for text, count in failures.items() if count},
        "attempts": sent if run.attempt_count is None else run.attempt_count,
        "refusal_ms": _summarise(np.sort(run.refusal_us), _REFUSAL_PERCENTILES),
        "status_counts": {str(status): count for status, count in sorted(run.status_counts.items())},
        "slo_ms": run.slo_us / 1e3,
        "slo_attainment": round(within / planned, 6) if planned else 0.0,
        "slo_held": planned > 0
        and within >= ATTAINMENT_RATIO_MIN * planned
        and failed + shed + limited <= LOST_RATIO_MAX * planned,
        "verdict": {
            "percentile": ATTAINMENT_RATIO_MIN,
            "confidence": CONFIDENCE,
            "over_slo": planned - within,
            "over_slo_allowed": allowed,
            "certified": allowed is not None and not invalid_reasons and planned - within <= allowed,
        },
        "generator_lateness_ms": _summarise(lateness, _LATENESS_PERCENTILES),
        "valid": not invalid_reasons,
        "invalid_reasons": invalid_reasons,
        "cpu_s": {"generator": round(run.cpu_us / 1e6, 3)},
        "cpu_us_per_request": round(run.cpu_us / planned, 1) if planned else 0.0,
        "distinct_inputs": run.distinct_inputs,
        "connections": run.connections,
        "held": run.held_count,
    }


def _summarise(ordered: Times, wanted: dict[str, float]) -> dict[str, float | None]:
    return {name: percentile_us(ordered, ratio) / 1e3 if len(ordered) else None for name, ratio in wanted.items()}


def bucket_latencies(latency_us: Times) -> list[tuple[float, int]]:
    """Return a small distribution of the good answers: (upper bound in ms, count), bounds in 1-2-5 steps.

    Empty buckets at either end are left out. A bucket holds the latencies above the bound before it and up to its own.
    """
    good = latency_us[latency_us >= 0]
    if len(good) == 0:
        return []
    bounds_us = np.array([step * 10**power for power in range(2, 9) for step in (1, 2, 5)])  # 0.1 ms to 500 s
    counts = np.bincount(np.searchsorted(bounds_us, good, side="left"), minlength=len(bounds_us))[: len(bounds_us)]
    filled = np.flatnonzero(counts)
    return [(float(bounds_us[i]) / 1e3, int(counts[i])) for i in range(filled[0], filled[-1] + 1)]
