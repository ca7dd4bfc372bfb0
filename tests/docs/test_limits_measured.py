"""docs/rate-limiting.md shows what the benches of limits found, in the form in which they report it.

Not here: what holds for every page (`test_pages.py`, `test_reference.py`).
"""

from typing import Any

import pytest

from bench.limited import summarise_limited
from scripts.render_figures import LIMIT_REPORTS, LIMITING, MISSING, render_limiting, render_report, replace_reports

CURE = "run: python scripts/render_figures.py"
TIMED = {"median_us": 0.5, "p99_us": 4.25, "local_ratio": 0.9999}
CASE = {
    "limit": "5000/s burst 1000",
    "decisions_counted": 200_000,
    "rejected_ratio": 0.5,
    "per_decision": 0.00441,
    "run_by_scripts_per_decision": 0.03,
}


def load(p95_ms: float, gateways_us: float, **more: Any) -> dict[str, Any]:
    """Return what `apply_load` finds."""
    latency = {"p50_ms": 1.0, "p95_ms": p95_ms, "p99_ms": 3.0, "max_ms": 9.0}
    outcomes = {"planned": 100, "completed": 100, "shed": 0, "limited": 0, "failed": 0, "valid": True}
    costs = {"gateways": gateways_us, "replica": 30.0, "head": 1.0}
    return {**latency, **outcomes, "cpu_us_per_request": costs, **more}


def record(bench: str, results: dict[str, Any]) -> dict[str, Any]:
    """Return a record of the history."""
    machine = {"cpu": "A CPU", "mhz": "", "cores": 2, "kernel": "6.1", "python": "3.11.7"}
    return {"bench": bench, "at": "2026-01-01", "commit": "abc", "machine": machine, "results": results}


RESULTS: dict[str, dict[str, Any]] = {
    "limits-hot": {
        **dict.fromkeys(("one_limit", "one_audited", "three_limits"), TIMED),
        "empty_call": TIMED,
        "median_us_max": 5.0,
    },
    "limits-direct": {
        "redis": "7.0.15",
        "keys": 10_000,
        "checks_per_s": 120_000,
        "checks_per_s_min": 50_000,
        "pairs_per_s": 480_000,
        "ratio": 0.25,
    },
    "limits-commands": {
        "rate": 10_000,
        "gateways": 4,
        "per_decision_max": 0.02,
        "admitted": CASE,
        "saturated": CASE,
    },
    "limits-users": {
        "rate": 10_000,
        "users": 10_000,
        "p95_ms_max": 10.0,
        "p99_ms_max": 25.0,
        "without": load(2.0, 50.0),
        "head": load(3.0, 60.0),
        "redis": load(3.5, 70.0, completed=98),
    },
    "limits-limited": summarise_limited(
        [{"off": load(2.0, 50.0), "head": load(2.2, 60.0), "redis": load(p95_ms, 60.0)} for p95_ms in (2.0, 2.1, 4.0)]
    ),
}


def test_the_figures_are_those_of_the_history() -> None:
    """The page is what scripts/render_figures.py makes of it and of bench/history.ndjson."""
    assert LIMITING.read_text() == render_limiting(), CURE


def test_every_figure_is_measured() -> None:
    """No figure is still to come."""
    assert MISSING not in LIMITING.read_text(), f"run: python -m bench.run limits, then {CURE}"


@pytest.mark.parametrize("report", LIMIT_REPORTS, ids=lambda report: report.bench)
def test_a_record_is_written(report: Any) -> None:
    """What a bench reports can be shown, and a record without it is an error that names it."""
    assert render_report(report, record(report.bench, RESULTS[report.bench]))
    with pytest.raises(ValueError, match=f"the newest {report.bench} record"):
        render_report(report, record(report.bench, {}))


def test_what_is_shown_is_what_was_found() -> None:
    """Figures stand beside what is allowed, and who was not answered is counted."""
    text = "\n".join(f"<!-- figure:{name} --><!-- /figure:{name} -->" for name in RESULTS)
    shown = replace_reports(text, {name: record(name, results) for name, results in RESULTS.items()}, LIMIT_REPORTS)
    assert "| one limit, audited | 0.50 | 4.25 | 99.99% |" in shown
    assert "a check costs as much as 4.0 of them" in shown
    assert "| `5000/s burst 1000` | 200,000 | 50.0% | 0.0044 | 0.0300 |" in shown
    assert "Unanswered: 0 (nobody), 0 (the head), 2 (Redis)." in shown
    assert "p95 over that without: 1.10 (the head), 1.05 (Redis); 1.15 is allowed" in shown


@pytest.mark.parametrize(
    ("changes", "is_passed"),
    [({}, True), ({"p95_ms": 2.31}, False), ({"completed": 99}, False), ({"valid": False}, False)],
)
def test_when_the_bar_is_kept(changes: dict[str, Any], is_passed: bool) -> None:
    """The median of the rounds' ratios decides for each authority, and every request of every round is answered."""
    rounds = [{"off": load(2.0, 50.0), "head": load(2.3, 60.0), "redis": load(2.0, 60.0)} for _ in range(3)]
    for found in rounds[1:]:
        found["head"] |= changes
    assert summarise_limited(rounds)["passed"] is is_passed
