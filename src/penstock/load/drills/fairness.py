"""The fairness drill: what a tenant gets depends on its share, not on how loud the others are.

An aggressor joins a tenant that keeps within its share; then two tenants, one with small and one with large requests,
both want more than there is. Not here: how it is sent (`loading.py`), Jain's index (`core/statistics.py`).
"""

from collections.abc import Sequence
from typing import Any

from penstock.core.statistics import jain_index
from penstock.load.drills.form import Drill, Findings, Rig
from penstock.load.drills.loading import Tenant, Yield, apply_load, goodput_per_s, p95_us
from penstock.load.drills.serving import DeviceModel, ServedFleet

__all__ = ["FAIRNESS", "judge_shares", "judge_victim"]

# Its fixed cost dominates: a full batch takes hardly longer than the victim's alone. Else the victim's batches would
# grow by the aggressor's rows, which no scheduler can prevent that neither preempts nor leaves room in a batch unused.
SHARED = DeviceModel("shared", beta_ms=40.0, alpha_ms=0.1, size_max=32, slo_ms=250.0)
MIXED = DeviceModel("mixed", beta_ms=20.0, alpha_ms=1.0, size_max=32, slo_ms=250.0)

P95_RATIO_MAX = 1.2
JAIN_MIN = 0.98
VICTIM_OF_SHARE = 0.4  # well within it
AGGRESSOR_OF_SHARE = 10.0
DEMAND_OF_CAPACITY = 1.5  # of each of the two backlogged tenants
ROWS = (1, 8)
_SETTLE_S, _ALONE_S, _JOINED_S, _SHARES_S = 1.0, 12.0, 12.0, 10.0


def _run(rig: Rig) -> Findings:
    findings = Findings()
    rig.show("starting a server", 0.0)
    with ServedFleet(rig.serve_command, [SHARED, MIXED], rig.now_us) as fleet:
        judge_victim(_apply_aggression(rig, fleet.http), findings)
        run, device_us = _apply_backlog(rig, fleet)
        judge_shares(run, device_us, findings)
    return findings


def _apply_aggression(rig: Rig, url: str) -> Yield:
    share_per_s = SHARED.rows_per_s_max / 2
    victim = share_per_s * VICTIM_OF_SHARE
    tenants = [
        Tenant("victim", (victim, victim, victim, victim)),
        Tenant("aggressor", (0, 0, share_per_s * AGGRESSOR_OF_SHARE, share_per_s * AGGRESSOR_OF_SHARE)),
    ]
    durations_us = [rig.scale_us(duration_s) for duration_s in (_SETTLE_S, _ALONE_S, _SETTLE_S, _JOINED_S)]
    return apply_load(
        rig, url, SHARED.name, tenants, durations_us, show=lambda done: rig.show("victim and aggressor", done * 0.7)
    )


def _apply_backlog(rig: Rig, fleet: ServedFleet) -> tuple[Yield, list[float | None]]:
    """Let two tenants ask for more than there is; return what came of it and each one's device time, µs."""
    rate = MIXED.rows_per_s_max * DEMAND_OF_CAPACITY
    tenants = [Tenant(f"rows-{rows}", (rate / rows,), rows) for rows in ROWS]
    before = _device_times_us(fleet.fetch_model_status(MIXED.name), [tenant.name for tenant in tenants])
    run = apply_load(
        rig,
        fleet.http,
        MIXED.name,
        tenants,
        [rig.scale_us(_SHARES_S)],
        show=lambda done: rig.show("two backlogged tenants", 0.7 + done * 0.3),
    )
    fleet.wait_reports()
    after = _device_times_us(fleet.fetch_model_status(MIXED.name), [tenant.name for tenant in tenants])
    return run, [None if end is None else end - (begin or 0) for begin, end in zip(before, after, strict=True)]


def _device_times_us(status: dict[str, Any], names: Sequence[str]) -> list[float | None]:
    """Return the device time of each tenant in a model's status, None where it has none."""
    tenants = status.get("tenants") or {}
    return [float(tenants[name]["device_us"]) if name in tenants else None for name in names]


def judge_victim(run: Yield, findings: Findings) -> None:
    """Add figures and checks of the run in which tenant 1 joins tenant 0 in phase 2."""
    p95 = {}
    for phase, label in ((1, "alone"), (3, "joined")):
        p95[label] = p95_us(run.latency_us[run.in_phase(phase, tenant=0)])
        findings.note(f"victim_{label}_p95_ms", None if p95[label] is None else (p95[label] or 0) / 1e3)
    alone_us, joined_us = p95["alone"], p95["joined"]
    for tenant, label in enumerate(("victim", "aggressor")):
        is_in = run.in_phase(3, tenant=tenant)
        findings.note(f"{label}_joined_offered_per_s", run.offered_per_s(3, tenant=tenant))
        findings.note(f"{label}_joined_answered_per_s", int((run.latency_us[is_in] >= 0).sum()) / run.duration_s(3))
    ratio = joined_us / alone_us if alone_us and joined_us else None
    findings.expect_at_most("victim's p95 beside the aggressor, × alone", P95_RATIO_MAX, ratio)
    findings.note("shared_goodput_per_s", goodput_per_s(run, 3, SHARED.slo_us))
    run.check_generator(findings, " (aggressor)")


def judge_shares(run: Yield, device_us: Sequence[float | None], findings: Findings) -> None:
    """Add figures and checks of the run of two backlogged tenants with their device times, µs."""
    known = [used_us for used_us in device_us if used_us is not None]
    for tenant, (rows, used_us) in enumerate(zip(ROWS, device_us, strict=True)):
        findings.note(f"rows_{rows}_device_s", None if used_us is None else used_us / 1e6)
        answered = int((run.latency_us[run.in_phase(0, tenant=tenant)] >= 0).sum())
        findings.note(f"rows_{rows}_answered_rows_per_s", answered * rows / run.duration_s(0))
    jain = jain_index(known) if len(known) == len(device_us) and sum(known) > 0 else None
    findings.expect_at_least("Jain's index of device time, 1 and 8 rows", JAIN_MIN, jain)
    findings.note("mixed_goodput_per_s", goodput_per_s(run, 0, MIXED.slo_us))
    run.check_generator(findings, " (backlog)")


FAIRNESS = Drill(
    name="fairness",
    invariant="A tenant within its share keeps its p95 within 1.2 times what it is alone while another sends ten times"
    " its own share; and tenants that want more than there is get equal device time, however large their requests are.",
    fault="a tenant that sends ten times its share",
    device=f"{SHARED.describe()}; then {MIXED.describe()}",
    duration_s=2 * _SETTLE_S + _ALONE_S + _JOINED_S + _SHARES_S,
    run=_run,
)
