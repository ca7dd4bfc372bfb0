"""docs/batching.md says what the code does: constants, outputs of simulations, figures of benches, all of them real.

Not here: what holds for every page (`test_pages.py`, `test_reference.py`).
"""

import importlib
import json
from typing import Any

import pytest

from bench import capacity, fidelity, policies
from penstock.load.drills.form import Findings
from scripts.render_figures import (
    BATCHING,
    MISSING,
    README,
    REPORTS,
    newest_records,
    render_batching,
    render_outputs,
    render_report,
    replace_constants,
    replace_reports,
)
from tests.docs.pages import code_spans, table_rows

CURE = "run: python scripts/render_figures.py"
MARKERS = "\n".join(f"<!-- figure:{report.bench} -->\n<!-- /figure:{report.bench} -->" for report in REPORTS)


def test_every_constant_is_what_the_page_says() -> None:
    """Each row of the table of numbers has the value and the module of its constant."""
    rows = table_rows("docs/batching.md", "## The numbers in it")
    assert rows
    for cells in rows:
        (name,), (path,) = code_spans(cells[0]), code_spans(cells[2])
        module = importlib.import_module(f"penstock.{path.removesuffix('.py').replace('/', '.')}")
        assert float(cells[1].replace(",", "")) == getattr(module, name), f"docs/batching.md: {name}; {CURE}"


def test_a_constant_that_is_gone_is_named() -> None:
    """A row for a constant that no module defines is an error that names it."""
    with pytest.raises(ValueError, match="NO_SUCH_CONSTANT"):
        replace_constants("| `NO_SUCH_CONSTANT` | 1 | `policy/batching.py` | nothing |")


def test_the_figures_are_those_of_the_history() -> None:
    """The page is what scripts/render_figures.py makes of it and of bench/history.ndjson."""
    assert BATCHING.read_text() == render_batching(), CURE


def test_the_simulations_print_what_the_page_shows() -> None:
    """What stands below each `penstock simulate` is what it prints: same seed, same run."""
    text = BATCHING.read_text()
    assert "penstock simulate" in text
    assert render_outputs(text, ("simulate",)) == text, CURE


@pytest.mark.parametrize("page", [README, BATCHING], ids=lambda page: page.name)
def test_every_figure_is_measured(page: Any) -> None:
    """No figure is still to come: each bench that a page shows has a record."""
    assert MISSING not in page.read_text(), f"{page.name}: run the commands that stand beside {MISSING!r}, then {CURE}"


# -- rendering ------------------------------------------------------------------------------------------------------


def fidelity_report() -> dict[str, Any]:
    """Return what `make bench-fidelity` writes about one scenario, summed up by its own function."""
    scenario = {
        "name": "plain",
        "fleet": "emulated",
        "simulated_p50_ms": 40.0,
        "live_p50_ms": 41.0,
        "simulated_p95_ms": 80.0,
        "live_p95_ms": None,
        "simulated_shed_ratio": 0.09,
        "live_shed_ratio": 0.1,
        "max_rate_simulated_per_s": 1_234.4,
        "held_below": True,
        "held_above": False,
        "pairs": [],
        "passed": False,
    }
    return fidelity.summarise([scenario], {}, fidelity.QUICK)


def policies_report() -> dict[str, Any]:
    """Return what the bench of policies writes, made by its own function."""
    found = {
        "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
        "cpu_us_per_request": {"gateway": 20.0, "replica": 5.0},
        "valid": True,
        "slo_held": True,
        "certified": True,
    }
    return policies._summarise({"deadline": [found], "size_or_timeout": [found]})


def drill_report() -> dict[str, Any]:
    """Return what a drill reports."""
    findings = Findings()
    findings.expect_at_least("goodput, %", 95, 98.7654)
    findings.expect_at_most("refusal p99, ms", 5, None)
    return {"checks": [{f: getattr(check, f) for f in check.__slots__} for check in findings.checks]}


FINDING = capacity.Finding(0.2, 4, 4_000.0, 3_900.0, 5_000.0, 3_800.0, 4_560.0, "wait 5 ms, eager, size 64", 1)
SIMULATED = {
    "requests_per_minute": 2_500_000,
    "scenarios": [{"name": "s", "us_per_request": 24.0, "requests_per_minute": 9}],
}
RESULTS = {
    "capacity": (
        capacity.summarise([FINDING]),
        "| 0.2 | 4 | 4,000 | wait 5 ms, eager, size 64 | 3,900 | 5,000 | 1.25 |",
    ),
    "policies": (policies_report(), "| `size_or_timeout` | 1.00 | 2.00 | 3.00 | 20.00 | 5.00 |"),
    "overload": (drill_report(), "| refusal p99, ms | <= 5 | not measured | no |"),
    "fairness": (drill_report(), "| goodput, % | >= 95 | 98.7654 | yes |"),
    "fidelity": (
        fidelity_report(),
        "| plain: emulated | 40.00 | 41.00 | 80.00 | - | 9.0% | 10.0% | 1,234 | yes | no | no |",
    ),
    "simulate": (SIMULATED, "| `s` | 24.0 | 9 |"),
}


def record(bench: str, results: object) -> dict[str, Any]:
    """Return one record of the history, as it is read."""
    machine = {"cpu": "A CPU", "mhz": "", "cores": 2, "kernel": "6.1", "python": "3.11.7"}
    line = {"bench": bench, "at": "2026-01-01", "commit": "abc", "machine": machine, "results": results}
    return newest_records([json.dumps(line)])[bench]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.bench)
def test_a_record_becomes_a_table(report: Any) -> None:
    """What a bench writes is shown with its command, its commit, its machine and its figures."""
    results, row = RESULTS[report.bench]
    text = render_report(report, record(report.bench, results))
    assert f"(`{report.command}`): `abc`, 2026-01-01, 2 cores of A CPU" in text
    assert row in text


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.bench)
def test_a_record_that_lacks_a_figure_is_named(report: Any) -> None:
    """A record of an older form is an error that says which bench must be measured again."""
    with pytest.raises(ValueError, match=f"the newest {report.bench} record"):
        render_report(report, record(report.bench, {}))


def test_without_records_the_page_says_so() -> None:
    """What is not measured is said to be, with the command that does it; rendering again changes nothing."""
    text = replace_reports(MARKERS, {})
    assert text.count(MISSING) == len(REPORTS)
    assert all(report.command in text for report in REPORTS)
    assert replace_reports(text, {}) == text


@pytest.mark.parametrize("text", ["", MARKERS + MARKERS, MARKERS.replace("/", "")])
def test_markers_must_stand_there_once(text: str) -> None:
    """Without the markers of a report the page is left alone."""
    with pytest.raises(ValueError, match="expected one"):
        replace_reports(text, {})


def test_only_outputs_of_the_asked_commands_are_replaced() -> None:
    """A block below another command stays as it is."""
    text = "```sh\ncurl x\n```\n\n```text\nold\n```\n"
    assert render_outputs(text) == text
