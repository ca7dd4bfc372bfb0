"""`penstock limits explain` and `replay`: what stands in a user's way now, and what another limit would have changed.

Not here: what is said of a user (`fleet/limit_explaining.py`), replaying (`sim/limit_replay.py`), the decision log
(`wire/decisions.py`). Exit status: 0; 1 no server there, or it cannot ask what counts; 2 bad usage, which includes a
user, a model or a limit that does not exist, and a log that is none.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from penstock.cli.admin_port import ADMIN_URL, admin_error, ask_admin
from penstock.cli.config import load_config
from penstock.cli.limit_simulation import simulate
from penstock.core.errors import ConfigError, PenstockError, UpstreamError
from penstock.core.limit_text import LimitText, format_limit, parse_limit
from penstock.core.limits import RateLimit
from penstock.sim.limit_replay import Fate, LimitFate, LimitReplay, Replayed
from penstock.wire.decisions import LINE_BEGIN, decode_line

__all__ = ["fetch_limits", "read_log", "register"]

# A line has a few hundred bytes; what has so many is another file.
_LINE_BYTES_MAX = 1 << 20
# The bar moves after so many lines, several times a second.
_SHOW_EVERY = 5_000

_Url = Annotated[str, typer.Option(help="The server's admin port.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def fetch_limits(url: str, user: str, tenant: str, model: str) -> dict[str, Any]:
    """Return what the server whose admin port is at `url` says of a user's limits.

    Raises:
        ConfigError: `url` is not http://HOST:PORT, or there is no such user or model.
        UpstreamError: Nothing there answers with such a document, or the server cannot ask what counts limits.
    """
    asked = {name: value for name, value in (("user", user), ("tenant", tenant), ("model", model)) if value}
    status, document = ask_admin(url, f"/api/limits?{urlencode(asked)}")
    if isinstance(document, dict) and isinstance(document.get("limits"), list):
        return document
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        raise (UpstreamError if status >= 500 else ConfigError)(document["error"])
    raise admin_error(url, f"another answer (status {status})")


def register(app: typer.Typer, *, fetch: Callable[[str, str, str, str], dict[str, Any]] = fetch_limits) -> None:
    """Add `penstock limits` to the command line.

    Args:
        app: The program.
        fetch: Returns what the server at a URL says of a user, a tenant and a model.
    """
    limits = typer.Typer(no_args_is_help=True)

    @limits.callback(epilog="Example: penstock limits explain alice; penstock limits replay decisions.ndjson")
    def group() -> None:
        """Say what a user's limits leave them, and what other limits would have done."""

    @limits.command(epilog="Example: penstock limits explain alice --tenant acme --model digits")
    def explain(
        user: Annotated[str, typer.Argument(help="The user, as their key says; `anonymous` for callers without one.")],
        tenant: Annotated[str, typer.Option(help="Only keys of this tenant.")] = "",
        model: Annotated[str, typer.Option(help="Only limits of requests for this model.")] = "",
        url: _Url = ADMIN_URL,
        as_json: _Json = False,
    ) -> None:
        """Say which limits a user is under, what is left of each now, and which would refuse first.

        --json prints `user`, `tenant`, `model`, `callers`, `limits`, `refuses_first`.
        """
        with _refusals():
            document = fetch(url, user, tenant, model)
        if as_json:
            print(json.dumps(document, indent=2))
        else:
            _print_explanation(document)

    example = "penstock limits replay decisions.ndjson --with 'per-user: 200/s burst 400'"
    limits.command(epilog=f"Example: {example}")(replay)
    limits.command(epilog="Example: penstock limits simulate --limit '1000/s burst 200' --gateways 20")(simulate)
    app.add_typer(limits, name="limits")


def replay(
    log: Annotated[Path, typer.Argument(help="The decision log.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="'NAME: RATE'", help="A limit and what it would be; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A penstock.toml whose limits count as those in force.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="Users to show, those with the most change first.")] = 10,
    as_json: _Json = False,
) -> None:
    """Run the requests of a decision log under its limits and under changed ones: who would gain, who would lose.

    --json prints `log`, `requests`, `duration_s`, `others`, `late_lines`, `torn_lines`, `recorded`, `before`, `after`,
    `limits`, `users`.
    """
    with _refusals():
        rules = {} if config is None else {x.name: x for x in load_config(config).limits.limits}
        rates = {name: limit for name, limit in rules.items() if isinstance(limit, RateLimit)}
        run = LimitReplay(rates, dict(map(_parse_change, changes or ())))
        with _progress_bar(log) as show:
            torn = read_log(log, run, show)
        document = _to_document(log, run.finish(), torn)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        _print_replay(document, top)


@contextmanager
def _refusals() -> Iterator[None]:
    """Say an error of ours on stderr and end the command with its status."""
    try:
        yield
    except PenstockError as error:
        print(f"penstock limits: {error.message}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


# -- explain ----------------------------------------------------------------------------------------------------------


def _print_explanation(document: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for caller in document["callers"]:
        key = f"key {caller['key']}" if caller["key"] else "no key"
        whose = f"{caller['tenant']}/{caller['user']}" if caller["tenant"] else caller["user"]
        tier = f", tier {caller['tier']}" if caller["tier"] else ""
        console.print(Text(f"{whose}: {key}{tier}"))
    if not document["limits"]:
        console.print("no limits")
        return
    table = _table(("limit", "level", "of", "allows", "left", "lent", "full in"), 4)
    # Whose models differ is told in a column of its own, which a table for one model does without.
    has_models = len({tuple(limit["models"]) for limit in document["limits"]}) > 1
    if has_models:
        table.add_column("models", overflow="fold")
    for limit in document["limits"]:
        left = "?" if limit["left"] is None else f"{limit['left']:,} of {limit['size']:,}"
        table.add_row(
            Text(limit["name"]),
            limit["level"],
            Text(limit["subject"]),
            limit["rule"],
            Text(left, "" if limit["left"] else "red"),
            f"{limit['lent']:,}" if limit["lent"] else "-",
            _wait_text(limit["full_after_s"]),
            *([Text(", ".join(limit["models"]))] if has_models else []),
        )
    console.print(table)
    first = document["refuses_first"]
    if first is None:
        console.print("What counts the limits did not answer: what is left is not known.")
    else:
        console.print(Text(f"{first['name']} ({first['level']} {first['subject']}) would refuse first."))


def _wait_text(wait_s: float | None) -> str:
    if wait_s is None:
        return "-"
    return "now" if not wait_s else f"{wait_s:,.1f} s" if wait_s >= 1 else f"{wait_s * 1e3:,.1f} ms"


# -- replay -----------------------------------------------------------------------------------------------------------


def _parse_change(text: str) -> tuple[str, LimitText]:
    """Read `NAME: RATE`."""
    name, colon, rate = text.partition(":")
    if not colon or not name.strip():
        raise ConfigError(f"--with: expected 'NAME: RATE' such as 'per-user: 200/s burst 400', got {text!r}")
    try:
        return name.strip(), parse_limit(rate)
    except ValueError as error:
        raise ConfigError(f"--with: {name.strip()}: {error}") from error


def read_log(path: Path, run: LimitReplay, show: Callable[[int], None]) -> int:
    """Feed a decision log to a replay; return how many lines were torn.

    A gateway that is killed while it writes leaves part of a line, and another's line may follow it at once.

    Args:
        path: The file.
        run: Gets each line.
        show: Told now and then how many bytes are read.

    Raises:
        ConfigError: It cannot be read, or a line of it is none; the message has its number.
    """
    try:
        with path.open("rb") as file:
            number = nbytes = torn = 0
            while line := file.readline(_LINE_BYTES_MAX):
                number += 1
                nbytes += len(line)
                if number % _SHOW_EVERY == 0:
                    show(nbytes)
                begin = max(line.rfind(LINE_BEGIN), 0)
                torn += begin > 0
                try:
                    run.note(decode_line(line[begin:]))
                except ValueError as error:
                    if not line.endswith(b"\n") and line.startswith(LINE_BEGIN):
                        return torn + 1
                    raise ConfigError(f"{path}, line {number}: {error}") from error
            return torn
    except OSError as error:
        raise ConfigError(f"LOG: expected a file that can be read, got {path} ({error.strerror})") from error


@contextmanager
def _progress_bar(path: Path) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr if that is a terminal; yield the function that moves it."""
    if not sys.stderr.isatty():
        yield lambda _nbytes: None
        return
    columns = (TextColumn("[bold]replaying"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    # No refresh thread: the bar moves after some thousand lines, several times a second.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=path.stat().st_size if path.is_file() else None)
        yield lambda nbytes: progress.update(task, completed=nbytes, refresh=True)


def _to_document(log: Path, replayed: Replayed, torn: int) -> dict[str, Any]:
    users = sorted(replayed.users.items(), key=lambda item: (-abs(item[1].after - item[1].before), item[0]))
    return {
        "log": str(log),
        "requests": replayed.all.requests,
        "duration_s": replayed.duration_us / 1e6,
        "others": replayed.others,
        "late_lines": replayed.late,
        "torn_lines": torn,
        **_admitted(replayed.all),
        "limits": [_limit_document(name, fate) for name, fate in replayed.limits.items()],
        "users": [
            {"tenant": tenant, "user": user, "requests": fate.requests, **_admitted(fate)}
            for (tenant, user), fate in users
        ],
    }


def _admitted(fate: Fate) -> dict[str, int]:
    counts = asdict(fate)
    del counts["requests"]
    return counts


def _limit_document(name: str, fate: LimitFate) -> dict[str, Any]:
    document = asdict(fate)
    for moment, limit in (("before", fate.before), ("after", fate.after)):
        document[moment] = format_limit(LimitText(limit.tokens, limit.per_us, limit.burst, limit.cost))
    return {"name": name, "level": fate.before.level.value, **document}


def _print_replay(document: dict[str, Any], top: int) -> None:
    console = Console(highlight=False)
    requests = document["requests"]
    console.print(Text(f"{requests:,} requests in {document['duration_s']:,.1f} s ({document['log']})"))
    if document["others"]:
        console.print(f"left out, because concurrency limits rejected them: {document['others']:,}")
    if document["late_lines"]:
        console.print(f"lines that came too late to be put in order: {document['late_lines']:,}")
    if document["torn_lines"]:
        console.print(f"lines that gateways left unfinished when they were killed: {document['torn_lines']:,}")
    if not requests:
        return
    table = _table(("", "requests", "as recorded", "before", "after", "change"))
    _add_fate(table, "admitted", document)
    _add_fate(table, "rejected", document, is_rejected=True)
    console.print(table)
    _print_limits(console, document["limits"])
    changed = [user for user in document["users"] if user["after"] != user["before"]]
    if not changed:
        console.print("No user would gain or lose.")
    elif top:
        gaining = sum(user["after"] > user["before"] for user in changed)
        console.print(f"Users who would gain: {gaining:,}; who would lose: {len(changed) - gaining:,}. Most changed:")
        table = _table(("user", "requests", "as recorded", "before", "after", "change"))
        for user in changed[:top]:
            _add_fate(table, f"{user['tenant']}/{user['user']}" if user["tenant"] else user["user"], user)
        console.print(table)


def _print_limits(console: Console, limits: Iterable[dict[str, Any]]) -> None:
    console.print("Rejected by each limit; `used`: how much of its bound the worst window used up, before and after:")
    table = _table(("limit", "allows", "would allow", "as recorded", "before", "after", "used", "would be"), 3)
    for limit in limits:
        is_changed = limit["before"] != limit["after"]
        table.add_row(
            Text(limit["name"]),
            limit["before"],
            Text(limit["after"] if is_changed else "the same", "bold" if is_changed else "dim"),
            *(f"{limit[key]:,}" for key in ("rejected", "rejected_before", "rejected_after")),
            *(f"{limit[key]:.0%}" for key in ("peak_before", "peak_after")),
        )
    console.print(table)
    for limit in limits:
        if limit["excess_tokens"]:
            text = f"{limit['name']}: as recorded, {limit['excess_tokens']:,} more than its bound in the worst window"
            console.print(Text(text, "red"))


def _table(columns: Iterable[str], texts: int = 1) -> Table:
    """Return an empty table: so many columns of texts, the first of them names, then numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < texts else "right", overflow="fold", no_wrap=not index)
    return table


def _add_fate(table: Table, name: str, fate: dict[str, Any], *, is_rejected: bool = False) -> None:
    requests = fate["requests"]
    recorded, before, after = (requests - fate[k] if is_rejected else fate[k] for k in ("recorded", "before", "after"))
    style = "" if after == before else "green" if (after > before) != is_rejected else "red"
    counts = (f"{count:,}" for count in (requests, recorded, before, after))
    table.add_row(Text(name), *counts, Text(f"{after - before:+,}", style))
