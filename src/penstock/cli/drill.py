"""`penstock drill`: prove a failure behaviour on a server of its own, on an emulated device.

Not here: the drills and their limits (`load/drills/`). Exit status: 0 every drill passed; 1 a check failed, or a drill
could not be carried out; 2 bad usage; 130 stopped by Ctrl-C or SIGTERM, with every process that it started ended.
"""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from penstock.adapters.chance import seeded_stream
from penstock.adapters.clock import now_us
from penstock.core.errors import ConfigError, PenstockError
from penstock.load.drills import DRILLS, Drill, Rig, run_drill

__all__ = ["choose_drills", "register", "render_list", "render_report"]

# The shortest scale at which every phase still holds requests, and the longest that is no mistake.
_SCALE_MIN, _SCALE_MAX = 0.01, 100.0
_SERVE = (sys.executable, "-P", "-m", "penstock.cli.main", "serve")
_GENERATE = (sys.executable, "-P", "-m", "penstock.cli.bench_worker")


def choose_drills(name: str | None, *, is_all: bool) -> list[Drill]:
    """Return the drills asked for.

    Raises:
        ConfigError: None was named, or an unknown one, or one beside `--all`.
    """
    known = ", ".join(DRILLS)
    if is_all and name is not None:
        raise ConfigError(f"NAME: expected none beside --all, got {name!r}.")
    if is_all:
        return list(DRILLS.values())
    if name is None:
        raise ConfigError(f"NAME: expected one of {known}, or --all, got nothing.")
    if name not in DRILLS:
        raise ConfigError(f"NAME: expected one of {known}, or --all, got {name!r}.")
    return [DRILLS[name]]


def check_options(seed: int, duration_scale: float, report: Path | None) -> None:
    """Raise ConfigError, naming the option, if one is out of range or the report cannot be written there."""
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


def _run(drill: Drill, seed: int, duration_scale: float) -> dict[str, Any]:
    """Run one drill; return its report."""
    with _progress_bar() as show:
        rig = Rig(
            serve_command=_SERVE,
            generator_command=_GENERATE,
            now_us=now_us,
            streams=lambda name: seeded_stream(seed, name),
            seed=seed,
            duration_scale=duration_scale,
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


def _carry_out(drills: list[Drill], seed: int, duration_scale: float, *, is_json: bool) -> list[dict[str, Any]]:
    """Run the drills one after the other; show each report as it comes unless JSON is wanted."""
    reports = []
    for drill in drills:
        report = _run(drill, seed, duration_scale)
        reports.append(report)
        if not is_json:
            render_report(report, Console(highlight=False))
    return reports


def register(app: typer.Typer) -> None:
    """Add the `drill` command to `app`."""

    @app.command("drill")
    def drill(
        name: Annotated[str | None, typer.Argument(help="Which drill; see --list.")] = None,
        *,
        is_all: Annotated[bool, typer.Option("--all", help="Every drill, one after the other.")] = False,
        is_list: Annotated[bool, typer.Option("--list", help="Say what there is, and run nothing.")] = False,
        seed: Annotated[int, typer.Option(help="Same seed, same arrivals and inputs.")] = 1,
        duration_scale: Annotated[
            float, typer.Option(help="Make every phase so many times as long; below 1 for a quick look.")
        ] = 1.0,
        report: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.", metavar="FILE")] = None,
        is_json: Annotated[
            bool, typer.Option("--json", help="Print the report as JSON; with --all or --list an array.")
        ] = False,
    ) -> None:
        """Prove a failure behaviour on a server of its own, on an emulated device.

        Starts `penstock serve` on free loopback ports, applies load, injects a fault, judges, and ends it.

        Example: penstock drill overload; penstock drill --all --report drills.json

        Exit status 0 if every check passed, 1 if one failed or the drill could not be carried out, 2 for bad usage.
        """
        if is_list:
            listed = [{"name": d.name, "invariant": d.invariant, "duration_s": d.duration_s} for d in DRILLS.values()]
            print(json.dumps(listed)) if is_json else render_list(Console(highlight=False))
            return
        signal.signal(signal.SIGTERM, _stop)
        try:
            drills = choose_drills(name, is_all=is_all)
            check_options(seed, duration_scale, report)
            reports = _carry_out(drills, seed, duration_scale, is_json=is_json)
        except PenstockError as fault:
            Console(stderr=True, soft_wrap=True).print(Text(f"error: {fault.message}", style="red"))
            raise typer.Exit(2 if isinstance(fault, ConfigError) else 1) from fault
        text = json.dumps(reports if is_all else reports[0], indent=2)
        if is_json:
            print(text)
        if report is not None:
            report.write_text(text + "\n", encoding="utf-8")
        raise typer.Exit(0 if all(r["passed"] for r in reports) else 1)
