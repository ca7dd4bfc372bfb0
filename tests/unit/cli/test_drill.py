"""`penstock drill` without running one: what there is, what is bad usage, how a report is shown."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from penstock.cli.drilling import render_report
from penstock.cli.main import build_app
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
        ((), "NAME: expected one of overload, fairness, rate-limit, or --all, got nothing"),
        (("--all", "overload"), "NAME: expected no options before it, got some before 'overload'"),
        (("--json", "rate-limit"), "NAME: expected no options before it, got some before 'rate-limit'"),
        (("overload", "--seed", "-1"), "--seed: expected an integer >= 0, got -1"),
        (("--all", "--seed", "-1"), "--seed: expected an integer >= 0, got -1"),
        (("overload", "--duration-scale", "0"), "--duration-scale: expected a number from 0.01 to 100, got 0"),
        (("overload", "--duration-scale", "nan"), "--duration-scale: expected a number from 0.01 to 100, got nan"),
        (("overload", "--report", "/nowhere/at/all.json"), "--report: expected a file in a directory that exists"),
        (("overload", "--report", "/"), "--report: expected a file in a directory that exists"),
        (("rate-limit", "--report", "/"), "--report: expected a file in a directory that exists"),
        (("rate-limit", "--instances", "0"), "--instances: expected 1 to 64, got 0"),
        (("rate-limit", "--limit", "0/s"), "--limit: rate: expected a whole number of 1 to 1,000,000,000,000, got '0'"),
        (("rate-limit", "--limit", "5 rows/s"), "--limit: expected a limit on requests, got one on rows"),
        (("rate-limit", "--limit", "fast"), "--limit: expected a rate such as 100/s"),
        (("rate-limit", "--burst", "0"), "--limit, --burst: burst: expected at least 1, got 0"),
        (("rate-limit", "--redis", "http://a"), "--redis: expected a URL that begins with redis://"),
        (("rate-limit", "--redis", "redis://:pw@127.0.0.1"), "--redis: expected no password here"),
        (("rate-limit", "--redis", "own", "--fault", "kill-head"), "--fault kill-head: expected no --redis"),
    ],
)
def test_bad_usage_names_the_option(words: tuple[str, ...], expected: str) -> None:
    """Status 2 and one line that says what was expected and got; nothing is started."""
    status, out, err = invoke(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {expected}")


def test_an_unknown_drill_is_bad_usage() -> None:
    """Its name is said, and nothing is started."""
    status, out, err = invoke("flood")
    assert (status, out) == (2, "")
    assert "No such command 'flood'" in err


@pytest.mark.parametrize("name", list(DRILLS))
def test_each_drill_is_a_command_that_explains_itself(name: str) -> None:
    """Its help says what must hold."""
    status, out, _ = invoke(name, "--help")
    assert status == 0
    assert DRILLS[name].invariant.split(",", maxsplit=1)[0] in " ".join(out.split())


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
