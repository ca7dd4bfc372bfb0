"""`make bench-fidelity`: does the simulator predict what the server does? Ten fleets that no cost was measured on.

Each is simulated, then served live under the very same arrivals, on emulated devices (sleeps: no hardware is meant).
Costs come from `calibration.py`. The maximum rate is the highest at which, simulated, the SLO holds for this schedule:
p95 within it, at most 1 % failed or shed. At parts of that rate:

0.70 p50 within 5 %, p95 within 10 %       0.95 live holds the SLO    } so live maximum and
1.20 shed + failed within 2 points         1.05 live does not hold it } simulated one differ by at most 5 %
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.calibration import STEPS, calibrate
from bench.emulation import Calibration, Fleet, Outcomes, Run, apply_load, freeze_arrivals, predict, serve
from bench.history import append_history
from bench.serving import Server
from penstock.core.models import Batching

P50_ERROR_MAX, P95_ERROR_MAX = 0.05, 0.10
LOST_DIFFERENCE_MAX = 0.02
MIDDLE, HELD, LOST, OVER = 0.70, 0.95, 1.05, 1.20
RATE_STEP_RATIO = 0.005
REPETITIONS = 3  # of each simulation, with other noise: live, it is the only chance left
SEED = 11
TRACE_SEED = 14  # its pass has calm and bursts
ATTEMPTS_MAX = 2  # of a live run whose generator was late: it measured itself


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a live run is measured, and warmed up before; and how long each calibration takes."""

    duration_us: int
    warmup_us: int
    calibration_us: int


FULL = Lengths(6_500_000, 1_500_000, 5_000_000)
QUICK = Lengths(3_000_000, 1_000_000, 2_500_000)


def _deadline(size_max: int) -> Batching:
    return Batching("deadline", size_max=size_max)


# Rates stay below about 1,500 requests per second, so that devices and not the two cores are what is short.
FLEETS = (
    Fleet("plain", 10_000, 500, 1, 100_000, _deadline(32)),
    Fleet("tight", 5_000, 1_000, 1, 50_000, _deadline(32)),
    Fleet("pair", 20_000, 1_000, 2, 150_000, _deadline(32)),
    Fleet("trio", 20_000, 1_000, 3, 75_000, _deadline(16)),
    Fleet("flat", 18_000, 100, 3, 60_000, _deadline(8)),
    Fleet("bursty", 8_000, 800, 1, 80_000, _deadline(32), "gamma:2"),
    Fleet("waves", 10_000, 800, 2, 100_000, _deadline(12), "mmpp"),
    Fleet("eager", 3_000, 500, 1, 50_000, Batching("size_or_timeout", size_max=12, wait_us_max=2_000)),
    Fleet("patient", 5_000, 1_000, 2, 60_000, Batching("size_or_timeout", size_max=8, wait_us_max=5_000, eager=False)),
    Fleet("adaptive", 10_000, 500, 1, 100_000, Batching("adaptive", size_max=32)),
)
QUICK_FLEETS = ("plain", "flat", "eager")


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure, simulated and live.

    Args:
        of_max: At which rate, over the simulated maximum.
        figure: What is compared.
        simulated, live: Both values; None if there is none.
        error: Live against simulated: a share of it, or a difference; None if that cannot be said.
        limit: The most that may be, in words.
        passed: Whether it is kept.
    """

    of_max: float
    figure: str
    simulated: float | None
    live: float | None
    error: float | None
    limit: str
    passed: bool


def find_rate_max(holds: Callable[[float], bool], most: float) -> float:
    """Return the highest rate that holds, to `RATE_STEP_RATIO` of itself; 0 if none from a hundredth of `most` on does.

    Args:
        holds: Whether a rate, requests per second, does.
        most: What the devices can do.
    """
    low, high = 0.01 * most, 1.2 * most
    if not holds(low):
        return 0.0
    while high - low > RATE_STEP_RATIO * low:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def compare_latency(of_max: float, simulated: Outcomes, live: Outcomes) -> list[Pair]:
    """Return p50 and p95 of both sides."""
    pairs = []
    for figure, ratio, limit in (("p50_ms", 0.50, P50_ERROR_MAX), ("p95_ms", 0.95, P95_ERROR_MAX)):
        expected, got = simulated.percentile_ms(ratio), live.percentile_ms(ratio)
        error = got / expected - 1 if expected and got else None
        is_kept = error is not None and abs(error) <= limit
        pairs.append(Pair(of_max, figure, expected, got, error, f"±{limit:.0%}", is_kept))
    return pairs


def compare_lost(of_max: float, simulated: Outcomes, live: Outcomes) -> list[Pair]:
    """Return the share of requests failed or shed of both sides."""
    error = live.lost_ratio - simulated.lost_ratio
    is_kept = abs(error) <= LOST_DIFFERENCE_MAX
    limit = f"±{LOST_DIFFERENCE_MAX * 100:g} points"
    return [Pair(of_max, "lost_ratio", simulated.lost_ratio, live.lost_ratio, error, limit, is_kept)]


def compare_held(of_max: float, simulated: Outcomes, live: Outcomes) -> list[Pair]:
    """Return whether the SLO held on both sides: below the simulated maximum it must live, above it must not."""
    must = of_max < 1
    return [Pair(of_max, "slo_held", simulated.holds, live.holds, None, "yes" if must else "no", live.holds == must)]


COMPARISONS = ((MIDDLE, compare_latency), (HELD, compare_held), (LOST, compare_held), (OVER, compare_lost))


def measure(
    stated: Fleet, calibration: Calibration, lengths: Lengths, on_load: Callable[[str], None]
) -> dict[str, Any]:
    """Simulate and serve one fleet at every rate; return the report on it."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        fleet = freeze_arrivals(stated, TRACE_SEED, lengths.warmup_us + lengths.duration_us, Path(folder))
        return {"name": stated.name, "fleet": stated.describe(), **_measure(fleet, calibration, lengths, on_load)}


def _measure(
    fleet: Fleet, calibration: Calibration, lengths: Lengths, on_load: Callable[[str], None]
) -> dict[str, Any]:
    run = Run(0.0, SEED, lengths.duration_us, lengths.warmup_us)

    def simulated(rate: float) -> Outcomes:
        return predict(fleet, replace(run, rate=rate), calibration, REPETITIONS)

    rate_max = find_rate_max(lambda rate: simulated(rate).holds, fleet.rows_per_s_max)
    if not rate_max:
        raise RuntimeError(f"fleet {fleet.name}: expected some rate to hold the SLO in simulation, got none")
    pairs: list[Pair] = []
    expected: dict[float, Outcomes] = {}
    live: dict[float, Outcomes] = {}
    with serve(fleet) as server:
        for of_max, compare in COMPARISONS:
            expected[of_max] = simulated(of_max * rate_max)
            live[of_max] = _apply_valid_load(server, fleet, replace(run, rate=of_max * rate_max))
            pairs += compare(of_max, expected[of_max], live[of_max])
            on_load(fleet.name)
    is_valid = not any(outcomes.invalid_reasons for outcomes in live.values())
    return {
        "live_p50_ms": live[MIDDLE].percentile_ms(0.50),
        "simulated_p50_ms": expected[MIDDLE].percentile_ms(0.50),
        "live_p95_ms": live[MIDDLE].percentile_ms(0.95),
        "simulated_p95_ms": expected[MIDDLE].percentile_ms(0.95),
        "live_shed_ratio": round(live[OVER].lost_ratio, 5),
        "simulated_shed_ratio": round(expected[OVER].lost_ratio, 5),
        "max_rate_simulated_per_s": round(rate_max, 1),
        "held_below": live[HELD].holds,
        "held_above": live[LOST].holds,
        "pairs": [asdict(pair) for pair in pairs],
        "runs": [
            {"of_max": of_max, "simulated": _figures(expected[of_max]), "live": _figures(live[of_max])}
            for of_max in expected
        ],
        "valid": is_valid,
        "passed": is_valid and all(pair.passed for pair in pairs),
    }


def _apply_valid_load(server: Server, fleet: Fleet, run: Run) -> Outcomes:
    """Apply a load, once more if the generator was late; return what came of the last."""
    outcomes = apply_load(server, fleet, run)
    for _ in range(ATTEMPTS_MAX - 1):
        if outcomes.invalid_reasons:
            outcomes = apply_load(server, fleet, run)
    return outcomes


def _figures(outcomes: Outcomes) -> dict[str, Any]:
    return {
        "requests": outcomes.requests,
        "p50_ms": outcomes.percentile_ms(0.50),
        "p95_ms": outcomes.percentile_ms(0.95),
        "p99_ms": outcomes.percentile_ms(0.99),
        "attainment": round(outcomes.attainment, 5),
        "lost_ratio": round(outcomes.lost_ratio, 5),
        "slo_held": outcomes.holds,
        "lateness_p50_ms": outcomes.lateness_ms(0.50),
        "lateness_p99_ms": outcomes.lateness_ms(0.99),
        "invalid_reasons": list(outcomes.invalid_reasons),
    }


def summarise(scenarios: Sequence[dict[str, Any]], costs: dict[str, Any], lengths: Lengths) -> dict[str, Any]:
    """Return the whole report: the largest errors, the costs, every pair of numbers."""
    pairs = [pair for scenario in scenarios for pair in scenario["pairs"]]

    def worst(figure: str) -> float | None:
        errors = [abs(pair["error"]) for pair in pairs if pair["figure"] == figure and pair["error"] is not None]
        return round(max(errors), 4) if errors else None

    return {
        "device": "emulated",
        "duration_s": lengths.duration_us / 1e6,
        "warmup_s": lengths.warmup_us / 1e6,
        "seed": SEED,
        "calibration": costs,
        "p50_error_max": worst("p50_ms"),
        "p95_error_max": worst("p95_ms"),
        "shed_difference_max": worst("lost_ratio"),
        "scenarios_passed": sum(scenario["passed"] for scenario in scenarios),
        "pairs_passed": sum(pair["passed"] for pair in pairs),
        "pairs_compared": len(pairs),
        "scenarios": list(scenarios),
        "passed": all(scenario["passed"] for scenario in scenarios),
    }


def _text(value: object) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:,.3f}"


def render(report: dict[str, Any], console: Console) -> None:
    """Print every pair of numbers, and the verdict."""
    table = Table("scenario", title="simulated against live, emulated devices", title_style="bold")
    for heading in ("rate/s", "of max", "figure", "simulated", "live", "error", "limit", "late p50", "passed"):
        table.add_column(heading, justify="left" if heading in ("figure", "limit", "passed") else "right")
    for scenario in report["scenarios"]:
        late = {run["of_max"]: run["live"]["lateness_p50_ms"] for run in scenario["runs"]}
        name = scenario["name"]
        for pair in scenario["pairs"]:
            rate = pair["of_max"] * scenario["max_rate_simulated_per_s"]
            values = [_text(pair["simulated"]), _text(pair["live"])]
            error = "" if pair["error"] is None else f"{pair['error']:+.1%}"
            verdict = "[green]yes[/]" if pair["passed"] else "[bold red]no[/]"
            at = [f"{rate:,.0f}", f"{pair['of_max']:.2f}", pair["figure"]]
            table.add_row(name, *at, *values, error, pair["limit"], _text(late[pair["of_max"]]), verdict)
            name = ""
        table.add_section()
    console.print(table)
    for scenario in report["scenarios"]:
        for run in scenario["runs"]:
            for reason in run["live"]["invalid_reasons"]:
                console.print(f"{scenario['name']} at {run['of_max']:.2f}: [bold yellow]not valid[/]: {reason}")
    costs = {name: value for name, value in report["calibration"].items() if name != "fleets"}
    console.print(f"costs, µs: {json.dumps(costs)}")
    verdict = "[bold green]passed[/]" if report["passed"] else "[bold red]failed[/]"
    console.print(f"{report['pairs_passed']} of {report['pairs_compared']} pairs within limits: {verdict}")


def bench_fidelity(names: Sequence[str] = (), lengths: Lengths = FULL) -> dict[str, Any]:
    """Calibrate, then measure the fleets of these names, or all; return the report. Takes about 40 s for each."""
    fleets = [fleet for fleet in FLEETS if not names or fleet.name in names]
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} loads"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("calibration", total=len(STEPS) + len(COMPARISONS) * len(fleets))

        def advance(name: str) -> None:
            progress.update(task, description=name, advance=1)

        calibration, costs = calibrate(lengths.calibration_us, advance)
        reports = [measure(fleet, calibration, lengths, advance) for fleet in fleets]
    return summarise(reports, costs, lengths)


def main() -> int:
    """Run it; return the exit status: 0 if every limit was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [fleet.name for fleet in FLEETS]
    parser.add_argument("--only", action="append", choices=known, default=[], help="this fleet; may be repeated")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK_FLEETS)} only, in short runs")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    asked = parser.parse_args()
    names = asked.only or (QUICK_FLEETS if asked.quick else ())
    report = bench_fidelity(names, QUICK if asked.quick else FULL)
    if asked.json:
        print(json.dumps(report))
    else:
        render(report, Console())
    if not names:
        append_history("fidelity", report)  # only a whole measurement is one
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
