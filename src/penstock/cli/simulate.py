"""`penstock simulate`: run a scenario through the schedulers that serve, in virtual time, and say what came of it.

Not here: simulating (`sim/`), reading the scenario (`scenario.py`), drawing the report (`report.py`).
Exit status: 0 it ran; 2 bad usage.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from penstock.adapters.chance import seeded_stream
from penstock.cli.scenario import read_scenario
from penstock.core.arrivals import Arrivals
from penstock.core.errors import ConfigError, PenstockError
from penstock.core.models import POLICIES
from penstock.sim import Recording, Scenario, Summary, simulate, summarise

__all__ = ["Sweep", "register", "run_simulations"]

# The report's sweep: load as multiples of the scenario's own.
SWEEP_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
# No point of it has more requests than about this many: goodput is known to a percent then.
SWEEP_REQUESTS_MAX = 30_000


@dataclass(frozen=True, slots=True)
class Sweep:
    """Goodput against load: for each policy, points of (offered, goodput, p95 in ms or None)."""

    points: dict[str, list[tuple[float, float, float | None]]]


def choose_policies(compare: str, scenario: Scenario) -> list[str]:
    """Return the policies to run, in order.

    Raises:
        ConfigError: `--compare` names one that does not exist, or one twice.
    """
    if not compare:
        return [scenario.batching.policy]
    policies = [name.strip() for name in compare.split(",")]
    for name in policies:
        if name not in POLICIES or policies.count(name) > 1:
            raise ConfigError(
                f"--compare: expected some of {', '.join(POLICIES)}, each once, with commas between, got {compare!r}."
                f" Use e.g. --compare {','.join(POLICIES)}."
            )
    return policies


def scale_rate(scenario: Scenario, rate: float | None) -> Scenario:
    """Return the scenario at the asked total rate.

    Raises:
        ConfigError: `--rate` is not a rate, or the scenario has no open loop that could be scaled.
    """
    if rate is None:
        return scenario
    if not 0 < rate <= 10_000_000:
        raise ConfigError(f"--rate: expected requests per second above 0, at most 10,000,000, got {rate:g}.")
    if not scenario.rate:
        raise ConfigError(f"--rate: expected a scenario with an open loop, {scenario.name!r} has only clients.")
    return scenario.at_rate(rate)


def run_simulations(
    scenario: Scenario, policies: list[str], seed: int, on_run: Callable[[], None]
) -> dict[str, Recording]:
    """Run the scenario under each policy, all with the same chance: the same arrivals, the same noise."""
    recordings = {}
    for policy in policies:
        recordings[policy] = simulate(scenario.with_policy(policy), partial(seeded_stream, seed))
        on_run()
    return recordings


def run_sweep(scenario: Scenario, policies: list[str], seed: int, on_run: Callable[[], None]) -> Sweep:
    """Run `steady` versions of the scenario at several loads; empty without an open loop."""
    points: dict[str, list[tuple[float, float, float | None]]] = {policy: [] for policy in policies}
    for factor in SWEEP_FACTORS if scenario.rate else ():
        rate = scenario.rate * factor
        shorter = steady(scenario.at_rate(rate), SWEEP_REQUESTS_MAX)
        for policy in policies:
            summary = summarise(simulate(shorter.with_policy(policy), partial(seeded_stream, seed)))
            points[policy].append((summary.offered, summary.goodput, summary.latency_ms["p95"]))
            on_run()
    return Sweep(points)


def steady(scenario: Scenario, requests_max: int) -> Scenario:
    """Return the scenario with Poisson arrivals and no faults, no longer than `requests_max` requests take."""
    ratio = min(requests_max / (scenario.rate * scenario.end_us / 1e6), 1.0)
    return replace(
        scenario,
        sources=tuple(replace(source, arrivals=Arrivals("poisson"), trace_us=None) for source in scenario.sources),
        duration_us=max(round(scenario.duration_us * ratio), 1),
        warmup_us=round(scenario.warmup_us * ratio),
        faults=(),
    )


def build_document(scenario: Scenario, seed: int, summaries: dict[str, Summary]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "scenario": scenario.name,
        "seed": seed,
        "duration_s": scenario.duration_us / 1e6,
        "warmup_s": scenario.warmup_us / 1e6,
        "slo_ms": scenario.slo_us / 1e3,
        "runs": [{"policy": policy, **asdict(summary)} for policy, summary in summaries.items()],
    }


def _describe(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table: what, and how much."""
    yield "offered /s", f"{summary.offered:,.1f}"
    yield "goodput /s", f"[bold]{summary.goodput:,.1f}[/]"
    yield "in time", f"{summary.attainment:.2%}"
    for name in ("p50", "p95", "p99", "p999"):
        value = summary.latency_ms[name]
        yield f"{name} ms", "-" if value is None else f"{value:,.2f}"
    yield "shed", f"{summary.shed_ratio:.2%}"
    yield "failed", f"{summary.failed_ratio:.2%}"
    yield "busy", f"{summary.utilisation:.1%}"
    yield "rows per batch", f"{summary.batch_rows:,.1f}"
    yield "device time wasted", f"{summary.wasted_ratio:.2%}"
    yield "fairness (Jain)", f"{summary.jain:.3f}"


def render(scenario: Scenario, seed: int, summaries: dict[str, Summary], console: Console) -> None:
    """Print one table: a column for each policy, then the tenants if there are several."""
    table = Table(title=f"{scenario.name}, seed {seed}", title_style="bold", box=None)
    table.add_column("", style="dim", justify="right")
    for policy in summaries:
        table.add_column(policy, justify="right")
    rows = [list(_describe(summary)) for summary in summaries.values()]
    for cells in zip(*rows, strict=True):
        table.add_row(cells[0][0], *[text for _, text in cells])
    first = next(iter(summaries.values()))
    if len(first.tenants) > 1:
        for k, tenant in enumerate(first.tenants):
            texts = [
                f"{s.tenants[k].goodput:,.1f}/s  {s.tenants[k].p95_ms or 0:,.1f} ms  {s.tenants[k].device_s:,.1f} s"
                for s in summaries.values()
            ]
            table.add_row(f"{tenant.name or '(no tenant)'}: goodput, p95, device", *texts)
    console.print(table)


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr if that is a terminal; yield the function that moves it by one run."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    columns = (TextColumn("[bold]simulating"), BarColumn(), TextColumn("{task.completed}/{task.total} runs"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _load_report() -> Any:
    """Return the module that draws reports, which needs an extra.

    Raises:
        ConfigError: The extra is not installed.
    """
    try:
        return importlib.import_module("penstock.cli.report")
    except ModuleNotFoundError as fault:
        raise ConfigError(
            f"--report: expected the package {fault.name!r}, which is not installed."
            " Use pip install 'penstock[report]'."
        ) from fault


def run_command(
    path: Path, *, seed: int | None, compare: str, rate: float | None, report: Path | None, is_json: bool
) -> None:
    """Do what the command line asks.

    Raises:
        ConfigError: Bad usage.
    """
    scenario = scale_rate(read_scenario(path), rate)
    policies = choose_policies(compare, scenario)
    seed = scenario.seed if seed is None else seed
    if seed < 0:
        raise ConfigError(f"--seed: expected an integer >= 0, got {seed}.")
    drawing = _load_report() if report is not None else None
    sweep_runs = len(SWEEP_FACTORS) * len(policies) if drawing is not None and scenario.rate else 0
    with _progress_bar(len(policies) + sweep_runs) as on_run:
        recordings = run_simulations(scenario, policies, seed, on_run)
        sweep = run_sweep(scenario, policies, seed, on_run) if drawing is not None else Sweep({})
    summaries = {policy: summarise(recording) for policy, recording in recordings.items()}
    document = build_document(scenario, seed, summaries)
    if report is not None and drawing is not None:
        try:
            report.write_text(drawing.render_report(document, recordings, sweep.points), encoding="utf-8")
        except OSError as fault:
            raise ConfigError(f"--report: expected a file that can be written, got {report} ({fault}).") from fault
    if is_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        render(scenario, seed, summaries, Console(highlight=False))


def register(app: typer.Typer) -> None:
    """Add the `simulate` command to `app`."""

    @app.command("simulate")
    def simulate_command(
        scenario: Annotated[Path, typer.Argument(help="A scenario, e.g. examples/scenarios/overload.toml.")],
        *,
        seed: Annotated[int | None, typer.Option(help="Same seed, same run; the scenario's when left out.")] = None,
        compare: Annotated[
            str, typer.Option(help="Policies to run side by side, with commas between; the scenario's when left out.")
        ] = "",
        rate: Annotated[float | None, typer.Option(help="Scale all open loops to so many requests per second.")] = None,
        report: Annotated[
            Path | None, typer.Option(help="Write an HTML page with plots.", metavar="FILE", dir_okay=False)
        ] = None,
        is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    ) -> None:
        """Ask what would happen: run a scenario through the very schedulers that serve, in virtual time.

        Example: penstock simulate examples/scenarios/overload.toml --compare size_or_timeout,adaptive,deadline

        Exit status 0 if it ran, 2 for bad usage.
        """
        try:
            run_command(scenario, seed=seed, compare=compare, rate=rate, report=report, is_json=is_json)
        except PenstockError as fault:
            Console(stderr=True, soft_wrap=True).print(Text(f"error: {fault.message}", style="red"))
            raise typer.Exit(2 if isinstance(fault, ConfigError) else 1) from None
