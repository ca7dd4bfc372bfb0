"""`penstock limits simulate`: one limit, many gateways, virtual time, and whatever goes wrong on the way.

The buckets, leases and gateways' decisions are those that serve; network, clocks and faults are drawn from a seed.
Not here: the simulation (`sim/limit_fleet.py`), real processes (`penstock drill rate-limit`).
Exit status: 0 the bound held, 1 it did not, 2 bad usage.
"""

import json
import sys
from functools import partial
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from penstock.adapters.chance import seeded_stream
from penstock.core.arrivals import Arrivals, parse_arrivals
from penstock.core.errors import ConfigError
from penstock.core.limit_text import parse_limit
from penstock.core.limits import Failover, Level, RateLimit
from penstock.sim.limit_fleet import LimitOutcome, simulate_limits
from penstock.sim.limit_scenario import LIMIT_FAULT_KINDS, LimitFault, LimitNetwork, LimitScenario, LimitSource

__all__ = ["simulate"]

_KEY = "limit"
_GATEWAYS_MAX = 1_000
# A request takes about 20 µs of real time: a minute or so at most.
_REQUESTS_MAX = 3_000_000
# What a fault of each kind does, if nothing else is said: longer than a lease lives, and a tenth of a second of writes.
_FAULT_US = 1_200_000
_FAULT_OPERATIONS = 50


def simulate(
    *,
    limit: Annotated[str, typer.Option(help='The limit, e.g. "1000/s burst 200".')] = "1000/s burst 200",
    gateways: Annotated[int, typer.Option(min=1, max=_GATEWAYS_MAX, help="How many share it.")] = 4,
    offered: Annotated[float, typer.Option(min=0.1, help="Requests per second, to all together.")] = 5_000,
    duration: Annotated[float, typer.Option(min=0.1, help="Virtual time, s.")] = 10,
    arrivals: Annotated[str, typer.Option(help="How requests come, as for `penstock bench`.")] = "poisson",
    fault: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help=f"Once a second: {', '.join(LIMIT_FAULT_KINDS)}.")
    ] = None,
    loss: Annotated[float, typer.Option(min=0, max=0.5, help="Part of all messages that are lost.")] = 0,
    failover: Annotated[Failover, typer.Option(help="Where buckets start after counts may be lost.")] = Failover.HARD,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same run.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate a limit over many gateways: is the bound kept, how much is delivered, what does it cost.

    --json prints `limit`, `gateways`, `offered_per_s`, `duration_s`, `seed`, `decisions`, `admitted`, `excess_tokens`,
    `bound_used_ratio`, `under_delivery_ratio`, `calls_per_decision`, `stranded_tokens`, `failover_loss_tokens`.
    """
    try:
        scenario = _to_scenario(
            limit, gateways, offered, duration, arrivals, _plan_faults(fault or [], gateways, duration), loss, failover
        )
    except (ValueError, ConfigError) as error:
        print(f"penstock limits simulate: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    outcome = simulate_limits(scenario, partial(seeded_stream, seed))
    report = {"limit": limit, "gateways": gateways, "offered_per_s": offered, "duration_s": duration, "seed": seed}
    report |= _to_report(outcome)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    raise typer.Exit(0 if report["excess_tokens"] == 0 else 1)


def _to_scenario(
    limit: str,
    gateways: int,
    offered: float,
    duration: float,
    arrivals: str,
    faults: tuple[LimitFault, ...],
    loss: float,
    failover: Failover,
) -> LimitScenario:
    """Turn the options into a scenario. Raises ValueError: one of them is wrong; the message names it."""
    if offered * duration > _REQUESTS_MAX:
        raise ValueError(
            f"--offered, --duration: expected at most {_REQUESTS_MAX} requests, got {offered * duration:g}"
        )
    try:
        text = parse_limit(limit)
        rate = RateLimit(_KEY, Level.GLOBAL, text.tokens, text.per_us, text.burst, failover=failover)
    except ValueError as error:
        raise ValueError(f"--limit: {error}") from error
    try:
        process: Arrivals = parse_arrivals(arrivals)
    except ValueError as error:
        raise ValueError(f"--arrivals: {error}") from error
    return LimitScenario(
        "command line",
        {_KEY: rate.quota()},
        (LimitSource(((_KEY, 1),), offered, process),),
        gateways,
        round(duration * 1e6),
        network=LimitNetwork(delay_us=200, loss_ratio=loss),
        faults=faults,
    )


def _plan_faults(kinds: list[str], gateways: int, duration: float) -> tuple[LimitFault, ...]:
    """Plan a fault of each kind in every second, of one gateway after the other."""
    unknown = next((kind for kind in kinds if kind not in LIMIT_FAULT_KINDS), None)
    if unknown is not None:
        raise ValueError(f"--fault: expected {', '.join(LIMIT_FAULT_KINDS)}, got {unknown!r}")
    faults = []
    for second in range(max(int(duration) - 1, 1)):
        for offset, kind in enumerate(kinds):
            at_us = second * 1_000_000 + 500_000 + offset * 50_000
            faults.append(LimitFault(kind, at_us, second % gateways, _FAULT_US, _FAULT_OPERATIONS))
    return tuple(faults)


def _to_report(outcome: LimitOutcome) -> dict[str, Any]:
    (audit,) = outcome.audit().values()
    return {
        "decisions": outcome.decisions,
        "admitted": outcome.admitted,
        "excess_tokens": sum(outcome.excess_tokens().values()),
        "bound_used_ratio": round(audit.filled_ratio, 4),
        "under_delivery_ratio": round(outcome.deliveries[_KEY].under_delivery_ratio, 4),
        "calls_per_decision": round(outcome.calls / max(outcome.decisions, 1), 5),
        "stranded_tokens": outcome.stranded_tokens,
        "failover_loss_tokens": outcome.losses[_KEY],
    }


_ROWS = {
    "decisions": "requests decided",
    "admitted": "admitted",
    "excess_tokens": "over the bound in the worst window, tokens",
    "bound_used_ratio": "worst window, part of its bound",
    "under_delivery_ratio": "less than one perfect bucket, part",
    "calls_per_decision": "calls to the authority per decision",
    "stranded_tokens": "lent and neither used nor returned, tokens",
    "failover_loss_tokens": "published as possibly admitted twice, tokens",
}


def _print_report(report: dict[str, Any]) -> None:
    title = f"{report['limit']} over {report['gateways']} gateways, {report['offered_per_s']:g}/s offered (simulated)"
    table = Table("what", "found", box=SIMPLE_HEAD, title=title, title_justify="left")
    table.columns[1].justify = "right"
    for key, words in _ROWS.items():
        table.add_row(words, f"{report[key]:,}")
    Console(highlight=False).print(table)
