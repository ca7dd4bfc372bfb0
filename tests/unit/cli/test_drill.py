"""`penstock drill` without running one: what there is, what is bad usage, how a report is shown."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from penstock.cli.drill import choose_drills, render_report
from penstock.cli.main import build_app
from penstock.core.errors import ConfigError
from penstock.load.drills import DRILLS

REPORT: dict[str, Any] = {
    "name": "overload",
    "invariant": "It holds [always].",
    "fault": "a fault",
    "device": "emulated: a batch takes 1 ms",
    "seed": 7,
    "duration_scale": 0.5,
    "figures": {"peak_per_s": 1234.5, "refusal_p99_ms": None},
    "checks": [
        {"what": "goodput, % of peak", "limit": ">= 95", "measured": 96.5, "passed": True},
        {"what": "refusal p99, ms", "limit": "<= 5", "measured": None, "passed": False},
    ],
    "passed": False,
}


def invoke(*words: str) -> tuple[int, str, str]:
    """Run the command in this process; return exit status, stdout, stderr."""
    done = CliRunner().invoke(build_app("drill"), ["drill", *words], env={"COLUMNS": "200"})
    return done.exit_code, done.stdout, done.stderr


def test_the_list_names_every_drill_with_its_invariant() -> None:
    """For people as a table, for scripts as an array; both say what must hold and how long it takes."""
    status, out, _ = invoke("--list")
    assert status == 0
    listed = json.loads(invoke("--list", "--json")[1])
    assert [entry["name"] for entry in listed] == list(DRILLS)
    for entry in listed:
        assert entry["name"] in out
        assert entry["duration_s"] > 1
        assert entry["invariant"].endswith(".")
        assert set(entry) == {"name", "invariant", "duration_s"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "NAME: expected one of overload, fairness, or --all, got nothing"),
        (("flood",), "NAME: expected one of overload, fairness, or --all, got 'flood'"),
        (("overload", "--all"), "NAME: expected none beside --all, got 'overload'"),
        (("overload", "--seed", "-1"), "--seed: expected an integer >= 0, got -1"),
        (("overload", "--duration-scale", "0"), "--duration-scale: expected a number from 0.01 to 100, got 0"),
        (("overload", "--duration-scale", "nan"), "--duration-scale: expected a number from 0.01 to 100, got nan"),
        (("overload", "--report", "/nowhere/at/all.json"), "--report: expected a file in a directory that exists"),
        (("overload", "--report", "/"), "--report: expected a file in a directory that exists"),
    ],
)
def test_bad_usage_names_the_option(words: tuple[str, ...], expected: str) -> None:
    """Status 2 and one line that says what was expected and got; nothing is started."""
    status, out, err = invoke(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {expected}")


def test_all_means_every_drill() -> None:
    """`--all` chooses them in order, a name chooses one."""
    assert [drill.name for drill in choose_drills(None, is_all=True)] == list(DRILLS)
    assert [drill.name for drill in choose_drills("overload", is_all=False)] == ["overload"]
    with pytest.raises(ConfigError):
        choose_drills(None, is_all=False)


def test_a_report_is_shown_whole() -> None:
    """Invariant, device, every check with limit and outcome, every figure and the verdict; nothing found is a dash."""
    shown = io.StringIO()
    render_report(REPORT, Console(file=shown, width=160))
    lines = shown.getvalue().splitlines()
    assert any("It holds [always]." in line for line in lines)
    assert any("emulated" in line for line in lines)
    (good,) = [line for line in lines if "goodput, % of peak" in line]
    assert good.split()[0] == "passed"
    assert (">= 95" in good, good.split()[-1]) == (True, "96.5")
    (bad,) = [line for line in lines if "refusal p99, ms" in line]
    assert (bad.split()[0], bad.split()[-1]) == ("failed", "-")
    assert any(line.split() == ["peak_per_s", "1,234"] for line in lines)
    assert lines[-1] == "overload: failed (seed 7, duration scale 0.5)"


def test_every_drill_is_documented_and_emulated() -> None:
    """docs/drills.md has a section for each drill, and each says that its device is emulated."""
    page = (Path(__file__).parents[3] / "docs/drills.md").read_text(encoding="utf-8")
    for drill in DRILLS.values():
        assert f"\n## {drill.name}\n" in page
        assert drill.device.startswith("emulated")
