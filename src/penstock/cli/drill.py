"""`penstock drill`: prove a failure behaviour on a server of its own, on an emulated device.

Not here: running drills and showing what they report (`drilling.py`), the drills and their limits (`load/drills/`).
Exit status: 0 every drill passed; 1 a check failed, or a drill could not be carried out; 2 bad usage; 130 stopped by
Ctrl-C or SIGTERM, with every process that it started ended.
"""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from penstock.cli.drilling import Manner, fail, render_list, run_and_exit
from penstock.cli.redis_url import resolve_redis_url
from penstock.core.errors import ConfigError
from penstock.core.limit_text import parse_limit
from penstock.core.limits import Cost, Failover, Unreachable
from penstock.load.drills import DRILLS, OWN, RATE_LIMIT, Drill, RateLimitCase, make_rate_limit

__all__ = ["register"]

_Seed = Annotated[int, typer.Option(help="Same seed, same arrivals and inputs.")]
_Scale = Annotated[float, typer.Option(help="Make every phase so many times as long; below 1 for a quick look.")]
_Report = Annotated[Path | None, typer.Option(help="Also write the JSON to this file.", metavar="FILE")]
_Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON; with --all or --list an array.")]


class _Fault(StrEnum):
    KILL = "kill"
    PAUSE = "pause"
    SKEW = "skew"
    FLUSH_SCRIPTS = "flush-scripts"
    RESTART_REDIS = "restart-redis"
    FAILOVER = "failover"
    KILL_HEAD = "kill-head"


def register(app: typer.Typer) -> None:
    """Add the `drill` command to `app`, with a part for each drill."""
    drills = typer.Typer()
    example = (
        "penstock drill overload; penstock drill rate-limit --fault kill; penstock drill --all --report drills.json"
    )

    @drills.callback(invoke_without_command=True, epilog=f"Examples: {example}")
    def drill(
        context: typer.Context,
        *,
        is_all: Annotated[bool, typer.Option("--all", help="Every drill, one after the other.")] = False,
        is_list: Annotated[bool, typer.Option("--list", help="Say what there is, and run nothing.")] = False,
        seed: _Seed = 1,
        duration_scale: _Scale = 1.0,
        report: _Report = None,
        is_json: _Json = False,
    ) -> None:
        """Prove a failure behaviour on a server of its own, on an emulated device.

        Starts `penstock serve` on free loopback ports, applies load, injects a fault, judges, and ends it.

        Exit status 0 if every check passed, 1 if one failed or the drill could not be carried out, 2 for bad usage.
        """
        manner = Manner(seed, duration_scale, report, is_json)
        if context.invoked_subcommand is not None:
            if is_all or is_list or manner != Manner():
                fail(
                    ConfigError(f"NAME: expected no options before it, got some before {context.invoked_subcommand!r}.")
                )
            return
        if is_list:
            listed = [{"name": d.name, "invariant": d.invariant, "duration_s": d.duration_s} for d in DRILLS.values()]
            print(json.dumps(listed)) if is_json else render_list(Console(highlight=False))
            return
        if not is_all:
            fail(ConfigError(f"NAME: expected one of {', '.join(DRILLS)}, or --all, got nothing."))
        run_and_exit(list(DRILLS.values()), manner, is_array=True)

    for chosen in DRILLS.values():
        if chosen is not RATE_LIMIT:
            _register_plain(drills, chosen)
    example = "penstock drill rate-limit --redis own --fault failover --failover hard --json"
    drills.command(RATE_LIMIT.name, help=RATE_LIMIT.invariant, epilog=f"Example: {example}")(rate_limit)
    app.add_typer(drills, name="drill")


def _register_plain(drills: typer.Typer, chosen: Drill) -> None:
    """Add the command of a drill that has no options of its own."""

    @drills.command(chosen.name, help=chosen.invariant)
    def run(seed: _Seed = 1, duration_scale: _Scale = 1.0, report: _Report = None, *, is_json: _Json = False) -> None:
        run_and_exit([chosen], Manner(seed, duration_scale, report, is_json))


def rate_limit(
    *,
    instances: Annotated[int, typer.Option(help="Gateways.")] = 4,
    limit: Annotated[
        str, typer.Option(metavar="RATE", help="Requests that all callers together may send: 1000/s, 500/s burst 50.")
    ] = "1000/s burst 200",
    burst: Annotated[int | None, typer.Option(help="Of them at once, in place of what --limit says.")] = None,
    offered: Annotated[float, typer.Option(help="Requests sent per second, in all.")] = 5_000.0,
    duration: Annotated[float, typer.Option(help="How long, s.")] = 20.0,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL|own",
            help="Who counts: a Redis, by URL or env:NAME of a variable that holds it, or one that the drill starts."
            " Without it the head does.",
        ),
    ] = None,
    fault: Annotated[
        _Fault | None,
        typer.Option(
            help="What to break meanwhile. restart-redis restarts the Redis of the URL, saved first, if it is on this"
            " machine. failover promotes the replica of a redis+sentinel URL; for any other the drill brings servers"
            " of its own and kills the primary."
        ),
    ] = None,
    failover: Annotated[Failover, typer.Option(help="What the limit does about lost counts.")] = Failover.SOFT,
    unreachable: Annotated[
        Unreachable, typer.Option(help="What the limit does while nobody can be asked.")
    ] = Unreachable.CLOSED,
    seed: _Seed = 1,
    report: _Report = None,
    is_json: _Json = False,
) -> None:
    """Try a limit over several gateways."""
    try:
        tokens, per_us, burst = _read_limit(limit, burst)
        case = RateLimitCase(
            tokens=tokens,
            per_us=per_us,
            burst=burst,
            instances=instances,
            offered_per_s=offered,
            duration_s=duration,
            redis=_read_redis(redis),
            fault="" if fault is None else fault.value,
            failover=failover,
            unreachable=unreachable,
        )
    except ConfigError as mistake:
        fail(mistake)
    run_and_exit([make_rate_limit(case)], Manner(seed, 1.0, report, is_json))


def _read_limit(text: str, burst: int | None) -> tuple[int, int, int]:
    """Return tokens, period and burst. Raises ConfigError if there is no such limit on requests."""
    try:
        found = parse_limit(text)
    except ValueError as fault:
        raise ConfigError(f"--limit: {fault}") from fault
    if found.cost is not Cost.REQUESTS:
        raise ConfigError(f"--limit: expected a limit on requests, got one on {found.cost}.")
    return found.tokens, found.per_us, found.burst if burst is None else burst


def _read_redis(text: str | None) -> str:
    """Return who counts as a case names it. Raises ConfigError if it is no URL and not `own`."""
    if text in (None, OWN):
        return text or ""
    try:
        return resolve_redis_url(text, os.environ)
    except ValueError as fault:
        raise ConfigError(f"--redis: {fault}, or own") from fault
