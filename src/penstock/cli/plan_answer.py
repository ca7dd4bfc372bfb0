"""What `penstock plan` answers: the JSON document, and the tables made from it.

Not here: finding the answer (`sim/planning.py` and its neighbours), drawing it (`report.py`).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.cli.plan_question import Brief
from penstock.sim.plan_failure import Failure
from penstock.sim.plan_frontier import Frontier
from penstock.sim.plan_knee import Knee
from penstock.sim.planning import Staffing, Trial

__all__ = ["Answer", "build_document", "render"]


@dataclass(frozen=True, slots=True)
class Answer:
    """All four answers; without a staffing there are no others.

    Attributes:
        staffing: How many replicas.
        knee: Of the load curve at that number.
        failures: What a death costs with that number, and with one more.
        frontier: Replicas against p95.
        requests: How many were simulated for all this.
    """

    staffing: Staffing
    knee: Knee | None
    failures: tuple[Failure, ...]
    frontier: Frontier | None
    requests: int


def _trial(trial: Trial, replica_cost: float | None) -> dict[str, Any]:
    cost = None if replica_cost is None else replica_cost * trial.replicas
    return {**asdict(trial), "holds": trial.holds, "cost_per_hour": cost}


def _failure(failure: Failure) -> dict[str, Any]:
    figures = asdict(failure)
    return {
        **{key: value for key, value in figures.items() if not key.endswith("_us")},
        "disturbance_ms": failure.disturbance_us / 1e3,
        "simulated_ms": failure.simulated_us / 1e3,
    }


def build_document(brief: Brief, answer: Answer) -> dict[str, Any]:
    """Return what `--json` prints; its keys are in docs/planning.md."""
    question, scenario, staffing = brief.question, brief.question.scenario, answer.staffing
    profile, cost = scenario.device.profile, brief.replica_cost
    per_hour = None if cost is None or staffing.replicas is None else cost * staffing.replicas
    knee, frontier = answer.knee, answer.frontier
    return {
        "model": brief.model,
        "rate": scenario.rate,
        "headroom_ratio": question.headroom_ratio,
        "rate_planned": question.rate_planned,
        "slo_ms": scenario.slo_us / 1e3,
        "rows": scenario.sources[0].rows[0],
        "arrivals": scenario.sources[0].arrivals.describe(),
        "policy": scenario.batching.policy,
        "size_max": scenario.batching.size_max,
        "profile": {
            "source": brief.source,
            "rows": list(profile.rows),
            "times_us": list(profile.times_us),
            "alpha_us": profile.alpha_us,
            "beta_us": profile.beta_us,
        },
        "overhead_ms": sum((scenario.overheads.request_us, scenario.overheads.reply_us, scenario.overheads.batch_us))
        / 1e3,
        "noise_ratio": scenario.device.noise_ratio,
        "seeds": list(brief.seeds),
        "simulated_requests": answer.requests,
        "replicas": staffing.replicas,
        "reason": staffing.reason or None,
        "replicas_floor": staffing.floor,
        "replicas_estimate": staffing.estimate,
        "cost_per_hour": per_hour,
        "cost_per_million": None if per_hour is None else per_hour / (scenario.rate * 3_600) * 1e6,
        "expected": None if staffing.trial is None else _trial(staffing.trial, cost),
        "tried": [_trial(trial, cost) for trial in staffing.tried],
        "knee": None
        if knee is None
        else {
            "rate_held": knee.rate_held,
            "rate_lost": knee.rate_lost,
            "p95_low_ms": knee.p95_low_ms,
            "rate_doubled": knee.rate_doubled,
            "points": [_trial(trial, cost) for trial in knee.points],
        },
        "frontier": None
        if frontier is None
        else {"tried": frontier.tried, "points": [_trial(trial, cost) for trial in frontier.points]},
        "failure": None
        if not answer.failures
        else {
            "cold_start_ms": brief.cold_start_us / 1e3,
            "spare_holds": answer.failures[-1].holds,
            "cases": [_failure(failure) for failure in answer.failures],
        },
    }


def render(document: dict[str, Any], console: Console) -> None:
    """Print the document for people."""
    name = f"{document['model']}: " if document["model"] else ""
    profile = document["profile"]
    console.print(
        Text(
            f"{name}{_rate(document['rate'])}/s ({document['arrivals']}) within {document['slo_ms']:g} ms", style="bold"
        ),
    )
    console.print(
        Text(
            f"planned for {_rate(document['rate_planned'])}/s, {document['policy']}, {document['size_max']} rows; a"
            f" batch takes about {profile['beta_us'] / 1e3:.3g} ms + {profile['alpha_us'] / 1e3:.3g} ms per row"
            f" ({profile['source']}); {document['overhead_ms']:g} ms besides, noise {document['noise_ratio']:.0%};"
            f" {document['simulated_requests']:,} requests simulated,"
            " processor time of gateways not",
            style="dim",
        ),
        soft_wrap=True,
    )
    if document["replicas"] is None:
        console.print(Text("no plan: ", style="bold red").append(document["reason"], style="none"))
        _print_tried(document, console)
        return
    cost = ""
    if document["cost_per_hour"] is not None:
        cost = f", {document['cost_per_hour']:,.2f} an hour, {document['cost_per_million']:,.4g} a million requests"
    console.print(f"[bold green]{_count(document['replicas'])}[/]{cost}")
    _print_tried(document, console)
    _print_knee(document, console)
    _print_frontier(document, console)
    _print_failure(document, console)


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("policy", "") else "right", no_wrap=True)
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if value < 1_000 else f"{value:,.0f}"


def _count(replicas: int) -> str:
    return f"{replicas} replica{'' if replicas == 1 else 's'}"


def _verdict(figures: dict[str, Any]) -> Text:
    return Text("holds", "green") if figures["holds"] else Text("fails", "red")


def _print_tried(document: dict[str, Any], console: Console) -> None:
    if not document["tried"]:
        return
    title = (
        f"How many: at least {document['replicas_floor']} to do the work, about {document['replicas_estimate']} by the"
        " formula; worst seed"
    )
    table = _table(title, ("replicas", "p50 ms", "p95 ms", "in time", "shed", "busy", "rows per batch", ""))
    for t in document["tried"]:
        table.add_row(
            f"{t['replicas']}",
            _ms(t["p50_ms"]),
            _ms(t["p95_ms"]),
            f"{t['attainment']:.2%}",
            f"{t['shed_ratio'] + t['failed_ratio']:.2%}",
            f"{t['utilisation']:.0%}",
            f"{t['batch_rows']:.1f}",
            _verdict(t),
        )
    console.print(table)


def _print_knee(document: dict[str, Any], console: Console) -> None:
    knee = document["knee"]
    table = _table(
        f"Load on {_count(document['replicas'])}", ("per second", "p95 ms", "goodput", "shed", "rows per batch", "")
    )
    for t in knee["points"]:
        table.add_row(
            _rate(t["rate"]),
            _ms(t["p95_ms"]),
            _rate(t["goodput"]),
            f"{t['shed_ratio'] + t['failed_ratio']:.2%}",
            f"{t['batch_rows']:.1f}",
            _verdict(t),
        )
    console.print(table)
    doubled = f"at {_rate(knee['rate_doubled'])}/s" if knee["rate_doubled"] is not None else "nowhere"
    beyond = "" if knee["rate_lost"] is not None else " and beyond"
    console.print(
        f"knee: holds up to [bold]{_rate(knee['rate_held'])}/s[/]{beyond}"
        f" ({(knee['rate_held'] or 0) / document['rate']:.2f} times the asked rate); p95 is twice its"
        f" {_ms(knee['p95_low_ms'])} ms of low load {doubled}\n"
    )


def _print_frontier(document: dict[str, Any], console: Console) -> None:
    is_priced = document["cost_per_hour"] is not None
    columns = ("replicas", *(("cost per hour",) if is_priced else ()), "p95 ms", "policy", "batch rows", "busy")
    table = _table(f"What more replicas buy: best of {document['frontier']['tried']} configurations", columns)
    for t in document["frontier"]["points"]:
        cost = [f"{t['cost_per_hour']:,.2f}"] if is_priced else []
        table.add_row(
            f"{t['replicas']}", *cost, _ms(t["p95_ms"]), t["policy"], f"{t['size_max']}", f"{t['utilisation']:.0%}"
        )
    console.print(table)


def _print_failure(document: dict[str, Any], console: Console) -> None:
    failure = document["failure"]
    table = _table(
        f"One replica dies and is back after {failure['cold_start_ms']:,g} ms, at {_rate(document['rate'])}/s",
        ("replicas", "in time", "lost", "failed", "shed", "late", "disturbed ms", ""),
    )
    for case in failure["cases"]:
        table.add_row(
            f"{case['replicas']}",
            f"{case['attainment']:.2%}",
            *(f"{case[key]:,}" for key in ("lost", "failed", "shed", "late")),
            f"{case['disturbance_ms']:,.0f}{'' if case['is_over'] else '+'}",
            _verdict(case),
        )
    console.print(table)
    first, second = failure["cases"]
    if first["holds"]:
        text = "The SLO holds through a death as it is."
    elif second["holds"]:
        text = f"With {second['replicas']} replicas the SLO holds through a death."
    else:
        text = f"{second['replicas']} replicas are not enough to hold the SLO through a death."
    console.print(text)
