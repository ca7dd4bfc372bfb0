"""The overload drill: more load than the device can do must not cost what it can do.

The load steps from half of the capacity up to five times of it and back to half, once with clients that give up when
refused and once with clients that retry three times. Not here: how it is sent (`loading.py`).
Source of the failure it looks for: N. Bronson et al., "Metastable Failures in Distributed Systems", HotOS 2021.
"""

from dataclasses import dataclass

import numpy as np

from penstock.core.arrivals import Times
from penstock.load.drills.form import Drill, Findings, Rig
from penstock.load.drills.loading import Tenant, Yield, apply_load, goodput_per_s, p95_us
from penstock.load.drills.serving import DeviceModel, ServedFleet
from penstock.load.driver import SHED
from penstock.load.reporting import percentile_us

__all__ = ["OVERLOAD", "judge"]

# Slow enough that the gateway and the generator have time to spare on two cores at twenty times its capacity: five
# times offered, and each request up to four times.
DEVICE = DeviceModel("device", beta_ms=20.0, alpha_ms=1.0, size_max=32, slo_ms=200.0)

RETRIES = 3
GOODPUT_PERCENT_MIN = 95.0
REFUSAL_P99_MS_MAX = 5.0
P95_RATIO_MAX = 1.5
RECOVERY_US = 1_000_000  # not scaled: it is a limit and not a duration


@dataclass(frozen=True, slots=True)
class _Step:
    label: str
    factor: float  # of the device's capacity
    duration_s: float


_STEPS = (
    _Step("warm_up", 0.5, 1.0),
    _Step("normal", 0.5, 4.0),
    _Step("1x", 1.0, 5.0),
    _Step("1_5x", 1.5, 5.0),
    _Step("2x", 2.0, 5.0),
    _Step("5x", 5.0, 5.0),
    _Step("after", 0.5, 4.0),
)
_NORMAL, _FIRST_FULL, _FIRST_OVER, _AFTER = 1, 2, 3, 6


def _run(rig: Rig) -> Findings:
    findings = Findings()
    rates = tuple(step.factor * DEVICE.rows_per_s_max for step in _STEPS)
    durations_us = [rig.scale_us(step.duration_s) for step in _STEPS]
    durations_us[_AFTER] += RECOVERY_US
    findings.note("capacity_per_s", DEVICE.rows_per_s_max)
    rig.show("starting a server", 0.0)
    with ServedFleet(rig.serve_command, [DEVICE], rig.now_us) as fleet:
        for index, (retries, label) in enumerate(((0, ""), (RETRIES, "retry_"))):
            text = f"overload, clients that retry {retries} times" if retries else "overload"

            def show(done: float, index: int = index, text: str = text) -> None:
                rig.show(text, (index + done) / 2)

            tenant = Tenant("", rates)
            run = apply_load(rig, fleet.http, DEVICE.name, [tenant], durations_us, retries=retries, show=show)
            judge(run, findings, label)
    return findings


def judge(run: Yield, findings: Findings, label: str) -> None:
    """Add figures and checks of one run, its phases those of the drill; `label` sets its figures apart."""
    words = f", retries {RETRIES}" if label else ""
    goodput = {index: goodput_per_s(run, index, DEVICE.slo_us) for index in range(len(_STEPS))}
    peak = max(goodput[index] for index in range(_FIRST_FULL, _AFTER))
    for index, step in enumerate(_STEPS[_NORMAL:], start=_NORMAL):
        _note_phase(run, index, findings, f"{label}{step.label}")
    for index in range(_FIRST_OVER, _AFTER):
        percent = goodput[index] / peak * 100 if peak else None
        what = f"goodput at {_STEPS[index].factor:g}x{words}, % of peak"
        findings.expect_at_least(what, GOODPUT_PERCENT_MIN, percent)
    # Step by step: the many refusals of the highest load would hide slow ones of a lower.
    for index in range(_FIRST_OVER, _AFTER):
        step = _STEPS[index]
        refusal_us = np.sort(run.refusals_between(run.bounds_us[index], run.bounds_us[index + 1])[:, 2])
        for name, ratio in (("p50", 0.5), ("p99", 0.99)):
            findings.note(f"{label}{step.label}_refusal_{name}_ms", _ms_at(refusal_us, ratio))
        what = f"refusal p99 at {step.factor:g}x{words}, ms"
        findings.expect_at_most(what, REFUSAL_P99_MS_MAX, _ms_at(refusal_us, 0.99))
    _judge_recovery(run, findings, label, words)
    failed = int(np.count_nonzero((run.latency_us < 0) & (run.latency_us != SHED)))
    findings.expect_at_most(f"requests failed, neither answered nor refused{words}", 0, failed)
    run.check_generator(findings, words)


def _note_phase(run: Yield, phase: int, findings: Findings, label: str) -> None:
    is_in = run.in_phase(phase)
    latency_us = run.latency_us[is_in]
    in_slo = int(np.count_nonzero((latency_us >= 0) & (latency_us <= DEVICE.slo_us)))
    refusals = run.refusals_between(run.bounds_us[phase], run.bounds_us[phase + 1])
    duration_s = run.duration_s(phase)
    findings.note(f"{label}_offered_per_s", run.offered_per_s(phase))
    findings.note(f"{label}_goodput_per_s", goodput_per_s(run, phase, DEVICE.slo_us))
    if np.any(run.due_us != run.intended_us):
        findings.note(f"{label}_goodput_from_first_attempt_per_s", in_slo / duration_s)
    findings.note(f"{label}_refusals_per_s", len(refusals) / duration_s)
    answered_us = run.attempt_us[is_in & (run.attempt_us >= 0)]
    findings.note(f"{label}_answered_p95_ms", _ms_at(np.sort(answered_us), 0.95))


def _judge_recovery(run: Yield, findings: Findings, label: str, words: str) -> None:
    normal_us = p95_us(run.attempt_us[run.in_phase(_NORMAL)])
    after_us = p95_us(run.attempt_us[run.in_phase(_AFTER, skip_us=RECOVERY_US)])
    ratio = after_us / normal_us if after_us and normal_us else None
    findings.expect_at_most(f"p95 1 s after the step down{words}, × normal", P95_RATIO_MAX, ratio)
    stepped_us = run.bounds_us[_AFTER]
    late = run.refusals_between(stepped_us + RECOVERY_US, run.bounds_us[-1] + RECOVERY_US)
    findings.expect_at_most(f"refusals later than 1 s after the step down{words}", 0, len(late))
    came_us = run.refusals_between(stepped_us, run.bounds_us[-1] + RECOVERY_US)[:, 1]
    findings.note(f"{label}last_refusal_after_step_ms", (int(came_us.max()) - stepped_us) / 1e3 if len(came_us) else 0)


def _ms_at(ordered_us: Times, ratio: float) -> float | None:
    return percentile_us(ordered_us, ratio) / 1e3 if len(ordered_us) else None


OVERLOAD = Drill(
    name="overload",
    invariant="At 1.5, 2 and 5 times its capacity a model answers at least 95 % of its peak within the SLO, refuses the"
    " rest within 5 ms, and is back to normal 1 s after the load is, whether clients retry or not.",
    fault="offered load of 1.5, 2 and 5 times the capacity, then at once half of it",
    device=DEVICE.describe(),
    duration_s=2 * (sum(step.duration_s for step in _STEPS) + RECOVERY_US / 1e6),
    run=_run,
)
