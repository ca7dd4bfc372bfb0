"""What a run amounts to: goodput, attainment, percentiles, waste, fairness; over the measured time only.

Not here: the columns it is computed from (`recording.py`), tables and plots (`cli/`).
Source: Jain's index as in `core/statistics.py`; percentiles by linear interpolation, numpy's default.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.core.statistics import jain_index
from penstock.sim.recording import Outcome, Recording

__all__ = ["Summary", "TenantSummary", "percentiles_ms", "summarise"]

PERCENTILES = (("p50", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0), ("p999", 99.9))
_SHED = (Outcome.REFUSED, Outcome.DROPPED, Outcome.EXPIRED)
_FAILED = (Outcome.LOST, Outcome.UNANSWERED)


@dataclass(frozen=True, slots=True)
class TenantSummary:
    """One tenant, or one class of requests.

    Attributes:
        name: Tenant.
        requests: Sent in the measured time.
        goodput: Requests per second answered within what their callers allow.
        attainment: Those over all requests, 0-1; 1 if there were none.
        shed: Requests refused for good.
        p50_ms, p95_ms, p99_ms: Latency of those answered; None if none was.
        device_s: Device time charged to it.
    """

    name: str
    requests: int
    goodput: float
    attainment: float
    shed: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    device_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers: all requests that first arrived after the warm-up, and what devices did from then to its end.

    Attributes:
        offered: Requests per second.
        requests: Requests.
        goodput: Requests per second answered within what their callers allow, from the first sending.
        attainment: Those over all requests, 0-1; 1 if there were none.
        latency_ms: `p50`, `p90`, `p95`, `p99`, `p999`, `max` of those answered, in time or late; None if none was.
        wait_ms: The same of the time queued at the gateway, of those executed.
        shed_ratio: Refused for good over all requests.
        failed_ratio: Lost with replicas, given up on or never answered, over all requests.
        hit_ratio: Answered by the cache over all requests.
        tries: Mean tries for each request.
        refusals: Tries refused in the whole run, by reason.
        utilisation: Share of the time that the replicas' devices worked, 0-1.
        batch_rows: Mean rows of an execution.
        fill: Mean rows of an execution over the largest allowed.
        executions: Executions begun in the measured time.
        wasted_ratio: Share of device time, of the whole run, spent on tries that were late, unwanted or lost.
        jain: Jain's index over tenants' device time by weight, 1 if there are fewer than two.
        closes: Share of batches sent, by the reason for which they were closed.
        tenants: One for each tenant, by name.
    """

    offered: float
    requests: int
    goodput: float
    attainment: float
    latency_ms: dict[str, float | None]
    wait_ms: dict[str, float | None]
    shed_ratio: float
    failed_ratio: float
    hit_ratio: float
    tries: float
    refusals: dict[str, int]
    utilisation: float
    batch_rows: float
    fill: float
    executions: int
    wasted_ratio: float
    jain: float
    closes: dict[str, float]
    tenants: tuple[TenantSummary, ...]


def percentiles_ms(times_us: NDArray[np.int64]) -> dict[str, float | None]:
    """Return the percentiles and the maximum of durations in µs, as ms; None of each if there are none."""
    if not len(times_us):
        return {name: None for name, _ in (*PERCENTILES, ("max", 100.0))}
    values = np.percentile(times_us, [p for _, p in (*PERCENTILES, ("max", 100.0))]) / 1_000
    return {name: float(value) for (name, _), value in zip((*PERCENTILES, ("max", 100.0)), values, strict=True)}


def _count(which: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(which))


def _ratio(part: float, whole: float, empty: float = 0.0) -> float:
    return float(part / whole) if whole else empty


def summarise(recording: Recording) -> Summary:
    """Return what a run amounts to."""
    scenario = recording.scenario
    measured = recording.is_measured
    answered, good = recording.is_answered & measured, recording.is_good & measured
    count = _count(measured)
    outcome = recording.outcome[measured]
    tenants = _summarise_tenants(recording)
    weights = dict(scenario.weights)
    worked_us = float(recording.share_us.sum()) + recording.lost_us
    begun = (recording.started_us >= scenario.warmup_us) & (recording.started_us < scenario.end_us)
    rows = recording.execution_rows[begun]
    sent = recording.dispatched_us >= scenario.warmup_us
    reasons, counts = np.unique(np.array(recording.dispatch_reason, dtype=np.str_)[sent], return_counts=True)
    batch_rows = float(rows.mean()) if len(rows) else 0.0
    return Summary(
        offered=count / scenario.duration_us * 1e6,
        requests=count,
        goodput=_count(good) / scenario.duration_us * 1e6,
        attainment=_ratio(_count(good), count, 1.0),
        latency_ms=percentiles_ms(recording.latency_us[answered]),
        wait_ms=percentiles_ms(recording.wait_us[measured & (recording.outcome == Outcome.SERVED)]),
        shed_ratio=_ratio(_count(np.isin(outcome, _SHED)), count),
        failed_ratio=_ratio(_count(np.isin(outcome, (*_FAILED, Outcome.ABANDONED))), count),
        hit_ratio=_ratio(_count(outcome == Outcome.HIT), count),
        tries=_ratio(recording.tries[measured].sum(), count, 1.0),
        refusals=dict(sorted(recording.refusals.items())),
        utilisation=_utilisation(recording),
        batch_rows=batch_rows,
        fill=batch_rows / scenario.batching.size_max,
        executions=len(rows),
        wasted_ratio=_ratio(recording.wasted_us + recording.lost_us, worked_us),
        jain=jain_index(tenant.device_s / weights.get(tenant.name, 1.0) for tenant in tenants),
        closes={str(reason): float(n / counts.sum()) for reason, n in zip(reasons, counts, strict=True)},
        tenants=tenants,
    )


def _utilisation(recording: Recording) -> float:
    """Return the share of the measured time in which devices worked."""
    scenario = recording.scenario
    begin = np.maximum(recording.started_us, scenario.warmup_us)
    end = np.minimum(recording.started_us + recording.service_us, scenario.end_us)
    worked_us = float(np.maximum(end - begin, 0).sum())
    return worked_us / (scenario.duration_us * scenario.replicas)


def _summarise_tenants(recording: Recording) -> tuple[TenantSummary, ...]:
    scenario = recording.scenario
    by_name: dict[str, list[int]] = {}
    for k, source in enumerate(scenario.sources):
        by_name.setdefault(source.tenant, []).append(k)
    latency_us, good = recording.latency_us, recording.is_good
    found = []
    for name in sorted(by_name):
        mine = np.isin(recording.source, by_name[name]) & recording.is_measured
        count = _count(mine)
        latency = percentiles_ms(latency_us[mine & recording.is_answered])
        good_count = _count(mine & good)
        found.append(
            TenantSummary(
                name=name,
                requests=count,
                goodput=good_count / scenario.duration_us * 1e6,
                attainment=_ratio(good_count, count, 1.0),
                shed=_count(np.isin(recording.outcome[mine], _SHED)),
                p50_ms=latency["p50"],
                p95_ms=latency["p95"],
                p99_ms=latency["p99"],
                device_s=float(recording.share_us[mine].sum()) / 1e6,
            )
        )
    return tuple(found)
