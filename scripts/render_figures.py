"""Render the README's figures from `bench/history.ndjson`: `python scripts/render_figures.py [--check]`.

The newest record of each bench is shown with the command that made it, its machine and its commit; a bench without a
record is shown as not measured. Not here: measuring (`bench/run.py`, `bench/peers/run.py`).
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HISTORY = ROOT / "bench" / "history.ndjson"
README = ROOT / "README.md"
BEGIN = "<!-- figures:begin -->"
END = "<!-- figures:end -->"
MISSING = "not measured yet"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: which bench, what is measured, the command that does it, and how its results read."""

    bench: str
    title: str
    command: str
    write: Callable[[Record], str]


def newest_records(lines: Iterable[str]) -> dict[str, Record]:
    """Return the newest record of each bench; of two of one time, the later line.

    Raises:
        ValueError: A line is not a record. The message names it.
    """
    newest: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = json.loads(line)
        if not isinstance(record, dict) or not {"bench", "at", "commit", "machine", "results"} <= record.keys():
            raise ValueError(f"history line {number}: expected bench, at, commit, machine and results, got {line[:80]}")
        before = newest.get(record["bench"])
        if before is None or before["at"] <= record["at"]:
            newest[record["bench"]] = record
    return newest


def describe_machine(record: Record) -> str:
    """Return the machine in a few words."""
    machine = record["machine"]
    clock = f" at {float(machine['mhz']) / 1_000:.2f} GHz" if machine.get("mhz") else ""
    return f"{machine['cores']} cores of {machine['cpu']}{clock}, Linux {machine['kernel']}, Python {machine['python']}"


def describe_origin(record: Record) -> str:
    """Return commit and day."""
    return f"`{record['commit'] or 'no commit'}`, {record['at'][:10]}"


def _write_closed(results: Record) -> str:
    cpu = ", ".join(f"{name} {us:g}" for name, us in results["cpu_us_per_request"].items())
    errors = f"; errors: {'; '.join(results['errors'])}" if results["errors"] else "; no errors"
    return (
        f"{results['rps']:,.0f} requests/s, p99 {results['p99_ms']:.1f} ms, with {results['gateways']} gateways; the"
        f" bare server {results['bare_rps']:,.0f} requests/s; ratio {results['ratio']:.2f}; CPU µs per request: {cpu}"
        f"{errors}"
    )


def _write_open(results: Record) -> str:
    latency = ", ".join(f"{name} {_ms(results['latency_ms'][name])}" for name in ("p50", "p95", "p99", "p999", "max"))
    return (
        f"{results['rate_achieved']:,.0f} requests/s sent; latency ms: {latency}; {results['completed']:,} completed,"
        f" {results['failed']:,} failed, {results['shed']:,} shed; generator lateness p99"
        f" {_ms(results['generator_lateness_ms']['p99'])} ms; the run is {'valid' if results['valid'] else 'not valid'}"
    )


def _write_minilm(results: Record) -> str:
    return (
        f"{results['texts_per_s']:,.0f} texts/s in batches of {results['rows_per_batch']}; a bare onnxruntime loop"
        f" {results['bare_texts_per_s']:,.0f} texts/s; ratio {results['ratio']:.2f}"
    )


def _write_kill(results: Record) -> str:
    latency = ", ".join(f"{name} {_ms(results['latency_ms'][name])}" for name in ("p50", "p95", "p99", "max"))
    return (
        f"{results['replicas_killed']} replicas killed; {results['completed']:,} of {results['planned']:,} answered,"
        f" {results['failed']:,} failed, {results['shed']:,} shed; latency ms: {latency};"
        f" the run is {'valid' if results['valid'] else 'not valid'}"
    )


def _write_malformed(results: Record) -> str:
    beside = results["beside"]
    server_errors = sum(count for status, count in results["statuses"].items() if status >= "500")
    processes = "the same" if results["same_processes"] else "lost"
    return (
        f"{results['requests']:,} requests, {server_errors} answered 5xx, {len(results['mistakes'])} mistakes;"
        f" in any one process at most {max(results['open_files_grown'].values())} open files and"
        f" {max(results['resident_mib_grown'].values())} MiB more than before; processes {processes}; beside them"
        f" {beside['completed']:,} answered, {beside['failed']} failed, p99 {_ms(beside['latency_ms']['p99'])} ms"
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


FIGURES = (
    Figure(
        "open",
        "Open loop: Poisson, 10,000 requests/s for 30 s on `digits`, one JSON row each",
        "make bench ARGS=open",
        _write_open,
    ),
    Figure(
        "closed",
        "Closed loop: 128 connections on `sum`, eight floats in JSON, beside a bare httptools + uvloop server",
        "make bench ARGS=closed",
        _write_closed,
    ),
    Figure(
        "minilm",
        "Sentence embeddings, text in, beside a bare onnxruntime loop over the same batches, tokens in",
        "make bench ARGS=minilm",
        _write_minilm,
    ),
    Figure(
        "kill",
        "Open loop: 2,000 requests/s for 10 s on `digits` while its only replica is killed with SIGKILL, twice",
        "make bench ARGS=kill",
        _write_kill,
    ),
    Figure(
        "malformed",
        "Ten thousand malformed requests of 17 kinds after a warm-up, beside a good client's 200 requests/s",
        "make bench ARGS=malformed",
        _write_malformed,
    ),
)
PEERS_COMMAND = "python3 -m bench.peers.run"


def render_figures(records: dict[str, Record]) -> str:
    """Return the section between the markers, in Markdown.

    Raises:
        ValueError: A record lacks a key. The message names both.
    """
    lines = ["| what | result | command | commit | machine |", "|---|---|---|---|---|"]
    for figure in FIGURES:
        record = records.get(figure.bench)
        if record is None:
            cells = [figure.title, MISSING, f"`{figure.command}`", "", ""]
        else:
            cells = [
                figure.title,
                _written(figure.bench, figure.write, record["results"]),
                f"`{figure.command}`",
                describe_origin(record),
                describe_machine(record),
            ]
        lines.append(_row(cells))
    return "\n".join([*lines, "", *_render_peers(records.get("peers"))])


def _render_peers(record: Record | None) -> list[str]:
    lead = f"Six systems on the same trivial model, closed loop, 128 connections (`{PEERS_COMMAND}`):"
    if record is None:
        return [f"{lead} {MISSING}."]
    load = record["load"]
    lines = [
        f"{lead} {load['seconds']} s each, {describe_origin(record)}, {describe_machine(record)}.",
        "",
        "| system | version | configuration | requests/s | p50 ms | p99 ms | not 2xx | socket errors | timeouts |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    return lines + [_written("peers", _peer_row, row) for row in record["results"]]


def _peer_row(row: Record) -> str:
    cells = [row["name"], row["version"] or "", row["configuration"]]
    if "not_measured" in row:
        return _row([*cells, f"not measured: {row['not_measured']}", "", "", "", "", ""])
    figures = [f"{row['rps']:,.0f}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"]
    return _row([*cells, *figures, str(row["non_2xx"]), str(row["socket_errors"]), str(row["timeouts"])])


def _written(bench: str, write: Callable[[Record], str], results: Record) -> str:
    try:
        return write(results)
    except KeyError as error:
        raise ValueError(f"history: the newest {bench} record has no {error}; measure it again") from error


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def replace_section(text: str, section: str) -> str:
    """Return `text` with the figures between the markers replaced.

    Raises:
        ValueError: The markers do not stand there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise ValueError(f"README.md: expected one {BEGIN} and after it one {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def render_readme(readme: Path = README, history: Path = HISTORY) -> str:
    """Return what README.md should say."""
    lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
    return replace_section(readme.read_text(encoding="utf-8"), render_figures(newest_records(lines)))


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status: 1 if `--check` finds the section out of date."""
    parser = argparse.ArgumentParser(description="Render the README's figures from bench/history.ndjson.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the section is out of date")
    options = parser.parse_args(arguments)
    rendered = render_readme()
    if rendered == README.read_text(encoding="utf-8"):
        print("README.md: the figures are up to date")
        return 0
    if options.check:
        print("README.md: the figures are out of date; run: python scripts/render_figures.py", file=sys.stderr)
        return 1
    README.write_text(rendered, encoding="utf-8")
    print("README.md: figures rendered")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
