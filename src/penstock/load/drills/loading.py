"""Load for a drill: several tenants in phases of different rates, and what came of them by phase.

One run is one schedule, so a step of the load is exact to the microsecond. A request counts as offered in the phase of
its intended time, and its outcome in that of its last attempt. Its latency counts from its intended time, its attempt's
from when that attempt was due: the server cannot know that a retry is one.
Not here: the generator (`driver.py`, `crew.py`), limits (each drill's module).
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.core.arrivals import Times
from penstock.load.crew import Crew
from penstock.load.discovery import fetch_inputs, parse_target
from penstock.load.drills.form import Findings, Rig
from penstock.load.inputs import Target
from penstock.load.job import Job, Phase, Source, plan_schedule, resolve
from penstock.load.reporting import LATENESS_P99_US_MAX, percentile_us

__all__ = ["Tenant", "Yield", "apply_load", "goodput_per_s", "p95_us"]

TIMEOUT_US = 5_000_000  # ten times the longest SLO of a drill: who waited so long is lost
CONNECTIONS_MAX = 4_096  # a server that refuses nothing holds as many requests as come in a second or two
_STALL_GRACE_US = 30_000_000
TENANT_HEADER = "penstock-tenant"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who sends: a name for the tenant header ('' for none), rates by phase, rows in each request."""

    name: str
    rates: tuple[float, ...]
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Yield:
    """What came of a run. Arrays have one element for each request, in the order of intended times.

    Args:
        intended_us: Intended times, µs from the start of the run.
        due_us: When the last attempt was due.
        tenant: Index of the tenant.
        latency_us: From the first intended time to a good answer, or a negative outcome code of `driver.py`.
        attempt_us: From when the last attempt was due to a good answer, or the same code.
        refusals: As in `Recording`, four columns.
        bounds_us: Where the phases begin, and the end of the last.
        lateness_p99_us: How late the generator itself was.
        start_at_us: The clock at the start of the run.
    """

    intended_us: Times
    due_us: Times
    tenant: NDArray[np.uint8]
    latency_us: Times
    attempt_us: Times
    refusals: Times
    bounds_us: tuple[int, ...]
    lateness_p99_us: int
    start_at_us: int = 0

    def in_phase(self, phase: int, *, tenant: int | None = None, skip_us: int = 0) -> NDArray[np.bool_]:
        """Return which requests had their last attempt in a phase, from `skip_us` on, of one tenant or all."""
        is_in = (self.due_us >= self.bounds_us[phase] + skip_us) & (self.due_us < self.bounds_us[phase + 1])
        return is_in if tenant is None else is_in & (self.tenant == tenant)

    def offered_per_s(self, phase: int, *, tenant: int | None = None) -> float:
        """Return how many requests a phase's schedule holds, of one tenant or all, per second."""
        begin_us, end_us = self.bounds_us[phase : phase + 2]
        is_in = (self.intended_us >= begin_us) & (self.intended_us < end_us)
        if tenant is not None:
            is_in &= self.tenant == tenant
        return int(np.count_nonzero(is_in)) / self.duration_s(phase)

    def duration_s(self, phase: int) -> float:
        """Return the length of a phase, s."""
        return (self.bounds_us[phase + 1] - self.bounds_us[phase]) / 1e6

    def refusals_between(self, begin_us: int, end_us: int) -> Times:
        """Return the refusals that came in [begin_us, end_us)."""
        came_us = self.refusals[:, 1]
        return self.refusals[(came_us >= begin_us) & (came_us < end_us)]

    def check_generator(self, findings: Findings, suffix: str = "") -> None:
        """Check that the generator was on time: a late one measured itself."""
        limit_ms = LATENESS_P99_US_MAX / 1e3
        findings.expect_at_most(f"generator lateness p99{suffix}, ms", limit_ms, self.lateness_p99_us / 1e3)


def goodput_per_s(run: Yield, phase: int, slo_us: int) -> float:
    """Return the attempts that were answered within the SLO, per second, by when their answers came.

    By when they were due the first phase of an overload would be credited with what it left in the queue.
    """
    came_us = run.due_us + run.attempt_us
    is_in = (came_us >= run.bounds_us[phase]) & (came_us < run.bounds_us[phase + 1])
    return int(np.count_nonzero(is_in & (run.attempt_us >= 0) & (run.attempt_us <= slo_us))) / run.duration_s(phase)


def p95_us(latency_us: Times) -> int | None:
    """Return what 95 % of requests did not exceed; None if there are none, or more than 5 % had no good answer."""
    if len(latency_us) == 0:
        return None
    ordered = np.sort(np.where(latency_us >= 0, latency_us, np.iinfo(np.int64).max))
    found = percentile_us(ordered, 0.95)
    return found if found < np.iinfo(np.int64).max else None


def apply_load(
    rig: Rig,
    url: str,
    model: str,
    tenants: Sequence[Tenant],
    durations_us: Sequence[int],
    *,
    retries: int = 0,
    is_spread: bool = False,
    show: Callable[[float], None],
) -> Yield:
    """Send what the tenants send, phase after phase, and wait for the answers.

    Args:
        rig: The generator's command, clock, chance and seed.
        url: The server.
        model: The model.
        tenants: Each with one rate for each phase; 0 is silence.
        durations_us: Of the phases.
        retries: How often a refused request is sent again, after what the server says.
        is_spread: Spread it over all gateways, also those that come later.
        show: Called with the share of the schedule that is done, 0 to 1.

    Raises:
        UpstreamError: A generator process ended early.
        ConfigError: The server does not know the model.
    """
    job = _plan_job(rig, parse_target(url, model), tenants, durations_us)
    job = replace(job, retries=retries, is_spread=is_spread)
    schedule = plan_schedule(job, rig.streams)
    count = max(1, len(schedule.times_us))
    with tempfile.TemporaryDirectory(prefix="ps-load-") as folder:
        assignment = {"job": msgspec.to_builtins(job)}
        with Crew(rig.generator_command, assignment, 1, Path(folder), rig.now_us) as crew:
            run_us = job.duration_us + job.timeout_us + _STALL_GRACE_US
            result = crew.wait_result(run_us, lambda _, ended: show(ended / count))
    latency_us = result.latency_us
    delay_us = result.delay_us if len(result.delay_us) else np.zeros_like(latency_us)
    bounds = np.cumsum([0, *durations_us])
    return Yield(
        intended_us=schedule.times_us,
        due_us=schedule.times_us + delay_us,
        tenant=schedule.source,
        latency_us=latency_us,
        attempt_us=np.where(latency_us >= 0, latency_us - delay_us, latency_us),
        refusals=result.refusals,
        bounds_us=tuple(bounds.tolist()),
        lateness_p99_us=percentile_us(np.sort(result.lateness_us), 0.99) if len(latency_us) else 0,
        start_at_us=result.start_at_us,
    )


def _plan_job(rig: Rig, target: Target, tenants: Sequence[Tenant], durations_us: Sequence[int]) -> Job:
    inputs = tuple(fetch_inputs(target))
    family, address = resolve(target)
    sources = []
    for tenant in tenants:
        headers = (f"{TENANT_HEADER}: {tenant.name}",) if tenant.name else ()
        phases = tuple(map(Phase, tenant.rates, durations_us))
        aimed = Target(target.host, target.port, target.base, target.model, headers)
        sources.append(Source(aimed, inputs, phases, rows=tenant.rows))
    return Job(
        sources=tuple(sources),
        address=address,
        family=family,
        seed=rig.seed,
        timeout_us=TIMEOUT_US,
        connections_start=256,
        connections_max=CONNECTIONS_MAX,
    )
