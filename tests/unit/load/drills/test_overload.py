"""The overload drill's judgement on runs made up for it: the good one passes, each bad one fails its own check."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from penstock.load.drills.form import Findings
from penstock.load.drills.loading import Yield
from penstock.load.drills.overload import DEVICE, OVERLOAD, judge
from penstock.load.driver import SHED, TIMEOUT
from tests.docs.pages import code_spans, read_page

PHASE_US = 2_000_000
FACTORS = (0.5, 0.5, 1.0, 1.5, 2.0, 5.0, 0.5)
CAPACITY = 500  # requests per second answered, whatever is offered
AFTER_US = 6 * PHASE_US


def good_run() -> Yield:
    """Return a run in which each phase answers up to the capacity in 60 ms and refuses the rest in 1 ms."""
    intended: list[int] = []
    latency: list[int] = []
    for phase, factor in enumerate(FACTORS):
        count = int(factor * CAPACITY * PHASE_US / 1e6)
        gap_us = PHASE_US / count
        for i in range(count):
            intended.append(phase * PHASE_US + int(i * gap_us))
            is_answered = int((i + 1) / max(factor, 1)) > int(i / max(factor, 1))
            latency.append(60_000 if is_answered else SHED)
    times, outcomes = np.array(intended), np.array(latency)
    refused = np.flatnonzero(outcomes == SHED)
    took = np.full(len(refused), 1_000)
    return Yield(
        intended_us=times,
        due_us=times,
        tenant=np.zeros(len(times), dtype=np.uint8),
        latency_us=outcomes,
        attempt_us=outcomes,
        refusals=np.stack([refused, times[refused] + took, took, np.full(len(refused), 503)], axis=1),
        bounds_us=tuple(PHASE_US * i for i in range(len(FACTORS) + 1)),
        lateness_p99_us=500,
    )


def failed_checks(run: Yield) -> list[str]:
    """Return the checks that a run fails, without their units."""
    findings = Findings()
    judge(run, findings, "")
    assert len(findings.checks) == 10
    return [check.what.split(",")[0] for check in findings.checks if not check.passed]


def answer(run: Yield, outcome: int, where: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> Yield:
    """Return the run with another outcome of some of its requests."""
    latency = np.where(where, outcome, run.latency_us)
    return replace(run, latency_us=latency, attempt_us=latency)


def collapse(run: Yield) -> Yield:
    """One answer in ten of the phase at five times the capacity comes late."""
    answered = np.flatnonzero(run.in_phase(5) & (run.latency_us >= 0))
    late = np.zeros(len(run.latency_us), dtype=bool)
    late[answered[::10]] = True
    return answer(run, DEVICE.slo_us + 1, late)


def refuse_slowly(run: Yield) -> Yield:
    """Of the few refusals at 1.5 times the capacity two in a hundred take 6 ms: under 1 % of all refusals."""
    refusals = run.refusals.copy()
    rows = np.flatnonzero((refusals[:, 1] >= 3 * PHASE_US) & (refusals[:, 1] < 4 * PHASE_US))
    refusals[rows[::50], 2] = 6_000
    return replace(run, refusals=refusals)


def stay_slow(run: Yield) -> Yield:
    """From 1 s after the step down on one answer in ten takes 100 ms instead of 60."""
    after = run.in_phase(6, skip_us=1_000_000)
    return answer(run, 100_000, after & (np.arange(len(after)) % 10 == 0))


def refuse_late(run: Yield) -> Yield:
    """One request is refused 1.2 s after the step down."""
    row = np.array([[len(run.latency_us) - 1, AFTER_US + 1_200_000, 500, 503]])
    return replace(run, refusals=np.concatenate([run.refusals, row]))


def lose_one(run: Yield) -> Yield:
    """One request of all is never answered."""
    return answer(run, TIMEOUT, np.arange(len(run.latency_us)) == 0)


def test_a_good_run_passes() -> None:
    """Full goodput, quick refusals and a quick recovery are what is asked."""
    assert failed_checks(good_run()) == []


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (collapse, ["goodput at 5x"]),
        (refuse_slowly, ["refusal p99 at 1.5x"]),
        (stay_slow, ["p95 1 s after the step down"]),
        (refuse_late, ["refusals later than 1 s after the step down"]),
        (lose_one, ["requests failed"]),
        (lambda run: replace(run, lateness_p99_us=2_500), ["generator lateness p99"]),
        (lambda run: replace(run, refusals=run.refusals[:0]), [f"refusal p99 at {x}x" for x in ("1.5", "2", "5")]),
    ],
)
def test_each_fault_fails_its_own_check(break_it: Callable[[Yield], Yield], expected: list[str]) -> None:
    """Each way to break the invariant is found by the check that is for it, and by no other."""
    assert failed_checks(break_it(good_run())) == expected


def test_nothing_answered_passes_nothing() -> None:
    """A server that refuses everything has no peak, and its goodput checks fail."""
    run = good_run()
    failed = failed_checks(answer(run, SHED, np.ones(len(run.latency_us), dtype=bool)))
    assert failed[:3] == ["goodput at 1.5x", "goodput at 2x", "goodput at 5x"]
    assert "p95 1 s after the step down" in failed


def test_figures_name_their_phase_and_unit() -> None:
    """Each phase has its load, goodput and refusals, per second, under a label of its own."""
    findings = Findings()
    judge(good_run(), findings, "retry_")
    assert findings.figures["retry_5x_offered_per_s"] == 2_500
    assert findings.figures["retry_5x_goodput_per_s"] == 500
    assert findings.figures["retry_5x_refusals_per_s"] == pytest.approx(2_000, abs=2)
    assert findings.figures["retry_last_refusal_after_step_ms"] == pytest.approx(0, abs=1.5)
    assert OVERLOAD.device.startswith("emulated")


def test_every_figure_is_documented() -> None:
    """docs/drills.md names each figure, with STEP for the phase it is of."""
    run = good_run()
    findings = Findings()
    judge(replace(run, due_us=run.due_us + 1), findings, "")
    documented = set(code_spans(read_page("docs/drills.md")))
    steps = ("normal_", "1x_", "1_5x_", "2x_", "5x_", "after_")
    for name in findings.figures:
        step = next((step for step in steps if name.startswith(step)), "")
        assert (f"STEP_{name.removeprefix(step)}" if step else name) in documented
