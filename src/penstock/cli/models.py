"""`penstock models list` and `show`: what a running server serves, how well, and what its batches cost.

Both read the admin port's status document and print; `--json` gives scripts the same. Not here: what the document says
(`fleet/status.py`). Exit status: 0; 1 no server there; 2 bad usage, which includes a model it does not have.
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.cli.admin_port import ADMIN_URL, admin_error, ask_admin
from penstock.core.errors import ConfigError, PenstockError

__all__ = ["fetch_status", "register"]

_Url = Annotated[str, typer.Option(help="The server's admin port.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def fetch_status(url: str) -> dict[str, Any]:
    """Return the status document of the server whose admin port is at `url`. Waits for the answer, 10 s at most.

    Raises:
        ConfigError: `url` is not http://HOST:PORT.
        UpstreamError: Nothing there answers with such a document. Start a server, or give the right URL.
    """
    status, document = ask_admin(url, "/api/status")
    if status != 200 or not isinstance(document, dict) or not isinstance(document.get("models"), list):
        raise admin_error(url, f"another answer (status {status})")
    return document


def register(app: typer.Typer, *, fetch: Callable[[str], dict[str, Any]] = fetch_status) -> None:
    """Add `penstock models` to the command line.

    Args:
        app: The program.
        fetch: Returns the status document of the server at a URL.
    """
    models = typer.Typer(no_args_is_help=True)

    @models.callback(epilog="Example: penstock models list; penstock models show digits")
    def group() -> None:
        """Say what a running server serves: its models, how well they do, what their batches cost."""

    @models.command(name="list", epilog="Example: penstock models list --json | jq '.[] | select(.ready | not)'")
    def list_models(url: _Url = ADMIN_URL, as_json: _Json = False) -> None:
        """List the models of a running server.

        --json prints a list of objects: `name`, `version`, `state`, `ready`, `platform`, `policy`, `mode`, `size_max`,
        `slo_ms`, `replicas`, `replicas_ready`, `requests`, `goodput_ratio`.
        """
        rows = [_to_row(model) for model in _ask(lambda: fetch(url)["models"])]
        if as_json:
            print(json.dumps(rows, indent=2))
        else:
            Console().print(_list_table(rows))

    @models.command(epilog="Example: penstock models show digits --json | jq '.profile.\"\"'")
    def show(
        name: Annotated[str, typer.Argument(help="The model, NAME or NAME:VERSION.")],
        url: _Url = ADMIN_URL,
        as_json: _Json = False,
    ) -> None:
        """Show one model: batching, replicas, goodput, and the measured cost of its batches by rows.

        --json prints the model's object of `GET /api/status`.
        """
        model = _ask(lambda: _find(fetch(url)["models"], name))
        if as_json:
            print(json.dumps(model, indent=2))
        else:
            _print_model(model)

    app.add_typer(models, name="models")


def _ask(question: Callable[[], Any]) -> Any:
    """Return the answer; on an error of ours say it on stderr and end the command with its status."""
    try:
        return question()
    except PenstockError as error:
        print(f"penstock models: {error.message}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error


def _find(models: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = [m for m in models if name in (m["name"], f"{m['name']}:{m['version']}")]
    if not found:
        known = ", ".join(f"{m['name']}:{m['version']}" for m in models) or "none"
        raise ConfigError(f"NAME: expected a model that the server has ({known}), got {name!r}")
    return found[-1]


def _to_row(model: dict[str, Any]) -> dict[str, Any]:
    batching = model["batching"] or {}
    return {
        "name": model["name"],
        "version": model["version"],
        "state": model["state"],
        "ready": model["ready"],
        "platform": model["platform"],
        "policy": batching.get("policy"),
        "mode": batching.get("mode"),
        "size_max": batching.get("size_max"),
        "slo_ms": model["slo_ms"],
        "replicas": len(model["replicas"]),
        "replicas_ready": sum(r["state"] == "ready" for r in model["replicas"]),
        "requests": model["statistics"]["requests"],
        "goodput_ratio": model["statistics"]["goodput_ratio"],
    }


def _list_table(rows: Iterable[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "state", "replicas", "batching"):
        table.add_column(column, overflow="fold")
    for column in ("SLO", "requests", "in time"):
        table.add_column(column, justify="right")
    for row in rows:
        state = row["state"] if row["ready"] or row["state"] != "READY" else "READY, not proven"
        batching = "-" if row["policy"] is None else _batching_text(row)
        table.add_row(
            Text(f"{row['name']}:{row['version']}"),
            Text(state, "green" if row["ready"] else "yellow"),
            f"{row['replicas_ready']}/{row['replicas']}",
            batching,
            _ms_text(row["slo_ms"]),
            f"{row['requests']:,}",
            _ratio_text(row["goodput_ratio"], row["requests"]),
        )
    return table


def _print_model(model: dict[str, Any]) -> None:
    console = Console()
    batching, statistics = model["batching"], model["statistics"]
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    reason = f" ({model['reason']})" if model["reason"] else ""
    facts.add_row("model", Text(f"{model['name']}:{model['version']} ({model['platform'] or 'not loaded yet'})"))
    facts.add_row("state", Text(f"{model['state']}{reason}, {'ready' if model['ready'] else 'not ready'}"))
    if batching is not None:
        facts.add_row("batching", _batching_text(batching))
    facts.add_row("SLO", _ms_text(model["slo_ms"]))
    for replica in model["replicas"]:
        text = f"{replica['name']} {replica['state']}, pid {replica['pid'] or '-'}, restarts {replica['restarts']}"
        facts.add_row("replica", Text(text))
    facts.add_row("requests", f"{statistics['requests']:,}, failed {statistics['failures']:,}")
    in_time = _ratio_text(statistics["goodput_ratio"], statistics["requests"])
    facts.add_row("goodput", f"{statistics['goodput']:,} answered well in time ({in_time})")
    wasted = _ratio_text(statistics["wasted_ratio"], statistics["device_us"])
    facts.add_row("device time", f"{statistics['device_us'] / 1e6:,.3f} s, wasted {wasted}")
    console.print(facts)
    if not model["profile"]:
        console.print("cost of a batch: not measured (no replica has loaded the model, or it refuses the canary)")
    for bucket, profile in model["profile"].items():
        beta_ms, alpha_ms = profile["beta_us"] / 1_000, profile["alpha_us"] / 1_000
        of_bucket = f" of bucket {bucket}" if bucket else ""
        title = f"cost of a batch{of_bucket}: β {beta_ms:.3f} ms + α {alpha_ms:.4f} ms per row"
        console.print()
        console.print(Text(title, "bold"))
        console.print(_profile_table(profile))


def _profile_table(profile: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("rows", "ms", "ms per row", "rows/s"):
        table.add_column(column, justify="right")
    for rows, time_us in zip(profile["rows"], profile["times_us"], strict=True):
        table.add_row(
            f"{rows}", f"{time_us / 1_000:.3f}", f"{time_us / 1_000 / rows:.4f}", f"{rows * 1e6 / time_us:,.0f}"
        )
    return table


def _batching_text(batching: dict[str, Any]) -> str:
    mode = f" ({batching['mode']})" if batching["policy"] == "deadline" else ""
    return f"{batching['policy']}{mode}, {batching['size_max']} rows"


def _ms_text(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:g} ms"


def _ratio_text(ratio: float, of: float) -> str:
    """Write a share in percent; of nothing there is none."""
    return f"{ratio:.1%}" if of else "-"
