"""Running drills for `penstock drill`, and showing what they report.

Not here: the commands and their options (`drill.py`), the drills and their limits (`load/drills/`).
"""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from penstock.adapters.chance import seeded_stream
from penstock.adapters.clock import now_us
from penstock.core.errors import ConfigError, PenstockError
from penstock.load.drills import DRILLS, Drill, Rig, run_drill

__all__ = ["Manner", "fail", "render_list", "render_report", "run_and_exit"]

# The shortest scale at which every phase still holds requests, and the longest that is no mistake.
_SCALE_MIN, _SCALE_MAX = 0.01, 100.0
_SERVE = (sys.executable, "-P", "-m", "penstock.cli.main", "serve")
_GENERATE = (sys.executable, "-P", "-m", "penstock.cli.bench_worker")


@dataclass(frozen=True, slots=True)
class Manner:
    """How to run drills and where to say what came of them; see the options of the same names."""

    seed: int = 1
    duration_scale: float = 1.0
    report: Path | None = None
    is_json: bool = False


def fail(fault: PenstockError) -> NoReturn:
    """Say on stderr what is wrong and exit: 2 for bad usage, else 1."""
    Console(stderr=True, soft_wrap=True).print(Text(f"error: {fault.message}", style="red"))
    raise typer.Exit(2 if isinstance(fault, ConfigError) else 1) from fault


def run_and_exit(drills: Sequence[Drill], manner: Manner, *, is_array: bool = False) -> NoReturn:
    """Run drills one after the other, report, and exit: 0 if every check passed, 1 if not.

    Args:
        drills: Which.
        manner: How.
        is_array: Whether the JSON is an array of reports, or the only one.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        _check_manner(manner)
        reports = _carry_out(drills, manner)
    except PenstockError as fault:
        fail(fault)
    text = json.dumps(reports if is_array else reports[0], indent=2)
    if manner.is_json:
        print(text)
    if manner.report is not None:
        manner.report.write_text(text + "\n", encoding="utf-8")
    raise typer.Exit(0 if all(r["passed"] for r in reports) else 1)


def _check_manner(manner: Manner) -> None:
    """Raise ConfigError, naming the option, if one is out of range or the report cannot be written there."""
    seed, duration_scale, report = manner.seed, manner.duration_scale, manner.report
    if seed < 0:
        raise ConfigError(f"--seed: expected an integer >= 0, got {seed}. Use e.g. --seed 1.")
    if not (math.isfinite(duration_scale) and _SCALE_MIN <= duration_scale <= _SCALE_MAX):
        raise ConfigError(
            f"--duration-scale: expected a number from {_SCALE_MIN:g} to {_SCALE_MAX:g}, got {duration_scale:g}."
            " Use e.g. --duration-scale 0.2."
        )
    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise ConfigError(f"--report: expected a file in a directory that exists, got {str(report)!r}.")


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on stderr if that is a terminal; yield the function that moves it."""
    if not sys.stderr.isatty():
        yield lambda _text, _done: None
        return
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    # No refresh thread: the bar moves when the generator reports, four times a second.
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, auto_refresh=False
    ) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda text, done: progress.update(task, description=text, completed=done, refresh=True)


def _run(drill: Drill, manner: Manner) -> dict[str, Any]:
    """Run one drill; return its report."""
    seed = manner.seed
    with _progress_bar() as show:
        rig = Rig(
            serve_command=_SERVE,
            generator_command=_GENERATE,
            now_us=now_us,
            streams=lambda name: seeded_stream(seed, name),
            seed=seed,
            duration_scale=manner.duration_scale,
            show=show,
        )
        return run_drill(drill, rig)


def render_list(console: Console) -> None:
    """Print every drill with its invariant."""
    table = Table(box=None, pad_edge=False)
    table.add_column("drill", style="bold", no_wrap=True)
    table.add_column("s", justify="right")
    table.add_column("invariant")
    for drill in DRILLS.values():
        table.add_row(drill.name, f"{drill.duration_s:.0f}", drill.invariant)
    console.print(table)


def render_report(report: dict[str, Any], console: Console) -> None:
    """Print one drill's report: invariant, device, checks, figures."""
    console.print(Text(f"drill {report['name']}", style="bold"))
    for key in ("invariant", "fault", "device"):
        console.print(Text(f"{key}: ", style="dim").append(report[key], style="none"), soft_wrap=True)
    checks = Table(box=None, pad_edge=False)
    for heading in ("", "check", "limit", "measured"):
        checks.add_column(heading, justify="right" if heading == "measured" else "left")
    for check in report["checks"]:
        word = Text("passed", style="green") if check["passed"] else Text("failed", style="bold red")
        checks.add_row(word, Text(check["what"]), Text(check["limit"]), _number(check["measured"]))
    console.print(checks)
    figures = Table(box=None, pad_edge=False, show_header=False)
    figures.add_column(style="dim")
    figures.add_column(justify="right")
    for name, value in report["figures"].items():
        figures.add_row(name, _number(value))
    console.print(figures)
    verdict = "[bold green]passed[/]" if report["passed"] else "[bold red]failed[/]"
    console.print(f"{report['name']}: {verdict} (seed {report['seed']}, duration scale {report['duration_scale']:g})")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"


def _stop(_number: int, _frame: object) -> None:
    """Leave by an exception, so that the server and the generators are ended on the way out."""
    raise KeyboardInterrupt


def _carry_out(drills: Sequence[Drill], manner: Manner) -> list[dict[str, Any]]:
    """Run the drills one after the other; show each report as it comes unless JSON is wanted."""
    reports = []
    for drill in drills:
        report = _run(drill, manner)
        reports.append(report)
        if not manner.is_json:
            render_report(report, Console(highlight=False))
    return reports
