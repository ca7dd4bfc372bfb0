"""Render what the documents show of runs: `python scripts/render_figures.py [--check]`.

Figures of README.md, docs/batching.md, docs/rate-limiting.md and docs/limiters-compared.md come from
`bench/history.ndjson`: the newest record of each bench, with the command that made it, its machine and its commit; a
bench without a record is shown as not measured. What docs/batching.md shows of simulations, the same on any machine, is
simulated anew.
Not here: measuring (`bench/run.py`, `bench/peers/run.py`).
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
HISTORY = ROOT / "bench" / "history.ndjson"
README = ROOT / "README.md"
BATCHING = ROOT / "docs" / "batching.md"
LIMITERS = ROOT / "docs" / "limiters-compared.md"
LIMITING = ROOT / "docs" / "rate-limiting.md"
POLICY = ROOT / "src" / "penstock" / "policy"
BEGIN = "<!-- figures:begin -->"
END = "<!-- figures:end -->"
MISSING = "not measured yet"

Record = dict[str, Any]
Written = TypeVar("Written", str, list[str])


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


# -- docs/batching.md: one report for each bench of scheduling, between its own markers -----------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """What one bench found: its record is written as lines of Markdown below a line that says where it is from."""

    bench: str
    title: str
    command: str
    write: Callable[[Record], list[str]]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|" + "|".join("---" if k == 0 else "--:" for k in range(len(head))) + "|"
    return [_row(head), rule, *(_row(row) for row in rows)]


def _write_capacity(results: Record) -> list[str]:
    head = ["β / SLO", "replicas", "`size_or_timeout`", "tuned to", "`adaptive`", "`deadline`", "ratio", "with noise"]
    rows = [
        [
            f"{cell['beta_slo_ratio']:g}",
            str(cell["replicas"]),
            f"{cell['baseline_per_s']:,.0f}",
            cell["setting"],
            *(f"{cell[name]:,.0f}" for name in ("adaptive_per_s", "deadline_per_s")),
            *(f"{cell[ratio]:.2f}" for ratio in ("ratio", "ratio_noise")),
        ]
        for cell in results["rows"]
    ]
    lead = (
        f"Highest Poisson rate, requests per second, with p95 within {results['slo_ms']:g} ms and at most 1 % failed or"
        f" shed; α is {results['alpha_ms']:g} ms. Ratio: `deadline` over the tuned `size_or_timeout`,"
        f" {results['ratio_min']:.2f} to {results['ratio_max']:.2f}. With noise: the same where device times vary by"
        f" {results['noise_ratio']:.0%}, {results['ratio_noise_min']:.2f} to {results['ratio_noise_max']:.2f}."
    )
    return [lead, "", *_table(head, rows)]


def _write_policies(results: Record) -> list[str]:
    found = {policy: results[policy] for policy in ("deadline", "size_or_timeout")}
    processes = list(found["deadline"]["cpu_us_per_request"])
    head = ["policy", "p50 ms", "p95 ms", "p99 ms", *(f"CPU µs per request, {name}" for name in processes)]
    rows = [
        [
            f"`{policy}`",
            *(f"{figures[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
            *(f"{figures['cpu_us_per_request'][name]:.2f}" for name in processes),
        ]
        for policy, figures in found.items()
    ]
    lead = (
        f"`digits` at {results['rate']:,} requests per second, one gateway. CPU time of `deadline` over that"
        f" of `size_or_timeout`: {results['cpu_ratio']:.2f}, at most {results['cpu_ratio_max']:.2f} is allowed."
    )
    return [lead, "", *_table(head, rows)]


def _write_fidelity(results: Record) -> list[str]:
    head = ["scenario", "p50 ms, simulated", "live", "p95 ms, simulated", "live", "lost at 1.2, simulated", "live"]
    head += ["highest rate, simulated", "live holds 0.95 of it", "1.05 of it", "within limits"]
    sides = ("simulated", "live")
    rows = [
        [
            f"{scenario['name']}: {scenario['fleet']}",
            *(_ms(scenario[f"{side}_{name}"]) for name in ("p50_ms", "p95_ms") for side in sides),
            *(f"{scenario[f'{side}_shed_ratio']:.1%}" for side in sides),
            f"{scenario['max_rate_simulated_per_s']:,.0f}",
            *("yes" if scenario[name] else "no" for name in ("held_below", "held_above", "passed")),
        ]
        for scenario in results["scenarios"]
    ]
    lead = (
        f"{results['pairs_passed']} of {results['pairs_compared']} pairs of figures are within limits: p50 within 5 %,"
        " p95 within 10 %, both at 0.7 of the highest simulated rate; lost, which is failed or shed, within 2 points at"
        " 1.2 of it; at 0.95 of it the live server must hold the SLO, at 1.05 it must not."
    )
    return [lead, "", *_table(head, rows)]


def _write_drill(results: Record) -> list[str]:
    rows = [
        [
            check["what"],
            check["limit"],
            "not measured" if check["measured"] is None else f"{check['measured']:g}",
            "yes" if check["passed"] else "no",
        ]
        for check in results["checks"]
    ]
    return _table(["check", "limit", "measured", "passed"], rows)


def _write_simulate(results: Record) -> list[str]:
    rows = [
        [f"`{scenario['name']}`", f"{scenario['us_per_request']:.1f}", f"{scenario['requests_per_minute']:,}"]
        for scenario in results["scenarios"]
    ]
    lead = f"{results['requests_per_minute']:,} requests a minute on one core, over all of `examples/scenarios`."
    return [lead, "", *_table(["scenario", "µs per request", "requests a minute"], rows)]


REPORTS = (
    Report("capacity", "Capacity at SLO, simulated", "python -m bench.run capacity", _write_capacity),
    Report("policies", "What deciding costs, live", "python -m bench.run policies", _write_policies),
    Report("overload", "Overload, live, emulated device", "python -m bench.run overload", _write_drill),
    Report("fairness", "Fairness, live, emulated device", "python -m bench.run fairness", _write_drill),
    Report("fidelity", "Simulated beside live, emulated devices", "make bench-fidelity", _write_fidelity),
    Report("simulate", "Speed of the simulator", "python -m bench.run simulate", _write_simulate),
)


def _write_limiters(results: Record) -> list[str]:
    # The bench prints the same tables, so they are made there.
    lines: list[str] = importlib.import_module("bench.limiters.tables").to_markdown(results)
    return lines


def _write_hot(results: Record) -> list[str]:
    names = {"one_limit": "one limit", "one_audited": "one limit, audited", "three_limits": "three limits, audited"}
    found = {name: results[key] for key, name in names.items()}
    rows = [
        [name, f"{case['median_us']:.2f}", f"{case['p99_us']:.2f}", f"{case['local_ratio']:.2%}"]
        for name, case in found.items()
    ]
    lead = (
        f"One decision in the gateway's process at 10,000 per second; a median of {results['median_us_max']:g} µs is"
        f" allowed. An empty call, timed alike, takes {results['empty_call']['median_us']:.2f} µs."
    )
    return [lead, "", *_table(["decided by what is lent", "median µs", "p99 µs", "without asking"], rows)]


def _write_direct(results: Record) -> list[str]:
    text = (
        f"{results['checks_per_s']:,} checks for each second that Redis {results['redis']} computes, on"
        f" {results['keys']:,} keys of which nothing is lent; {results['checks_per_s_min']:,} are required. Of GET and"
        f" SET pairs, pipelined on the same server, {results['pairs_per_s']:,}: a check costs as much as"
        f" {1 / results['ratio']:.1f} of them."
    )
    return [text]


def _write_commands(results: Record) -> list[str]:
    rows = [
        [
            f"`{case['limit']}`",
            f"{case['decisions_counted']:,}",
            f"{case['rejected_ratio']:.1%}",
            f"{case['per_decision']:.4f}",
            f"{case['run_by_scripts_per_decision']:.4f}",
        ]
        for case in (results["admitted"], results["saturated"])
    ]
    lead = (
        f"{results['rate']:,} requests per second on one key of {results['gateways']} gateways; at most"
        f" {results['per_decision_max']:g} commands for each decision are allowed."
    )
    head = ["limit", "decisions", "rejected", "commands sent per decision", "run by scripts per decision"]
    return [lead, "", *_table(head, rows)]


def _write_load(cases: dict[str, Record]) -> list[str]:
    """Write what came of one load on several servers."""
    processes = ("gateways", "replica", "head", "redis")
    head = ["limits counted by", "p50 ms", "p95 ms", "p99 ms", *(f"CPU µs per request, {name}" for name in processes)]
    rows = []
    for name, case in cases.items():
        costs = [case["cpu_us_per_request"].get(process) for process in processes]
        cells = ["" if cost is None else f"{cost:.1f}" for cost in costs]
        rows.append([name, *(_ms(case[f"{p}_ms"]) for p in ("p50", "p95", "p99")), *cells])
    return _table(head, rows)


def _write_users(results: Record) -> list[str]:
    cases = {"nobody": results["without"], "the head": results["head"], "Redis": results["redis"]}
    lost = {name: case["planned"] - case["completed"] for name, case in cases.items()}
    shown = ", ".join(f"{count:,} ({name})" for name, count in lost.items())
    lead = (
        f"{results['users']:,} users with a key and a limit of `10/s burst 20` each, {results['rate']:,} requests per"
        f" second through one gateway. Allowed: p95 {results['p95_ms_max']:g} ms, p99 {results['p99_ms_max']:g} ms, no"
        f" request unanswered. Unanswered: {shown}."
    )
    return [lead, "", *_write_load(cases)]


def _write_limited(results: Record) -> list[str]:
    cases = {"nobody": results["off"], "the head": results["head"], "Redis": results["redis"]}
    ratios = {name: cases[name] for name in ("the head", "Redis")}
    p95 = ", ".join(f"{case['p95_ratio']:.2f} ({name})" for name, case in ratios.items())
    cpu = ", ".join(f"{case['cpu_ratio']:.2f} ({name})" for name, case in ratios.items())
    lead = (
        f"`digits` at {results['rate']:,} requests per second under limits on user, tenant and everybody, beside none,"
        f" in turns on fresh servers. p95 over that without: {p95}; {results['p95_ratio_max']:g} is allowed. CPU time"
        f" of all processes over that without: {cpu}."
    )
    return [lead, "", *_write_load(cases)]


LIMIT_REPORTS = (
    Report("limits-hot", "A hot key", "python -m bench.run limits-hot", _write_hot),
    Report("limits-direct", "Cold keys in Redis", "python -m bench.run limits-direct", _write_direct),
    Report("limits-commands", "What a hot key asks of Redis", "python -m bench.run limits-commands", _write_commands),
    Report("limits-users", "Many users", "python -m bench.run limits-users", _write_users),
    Report("limits-limited", "With limits and without", "python -m bench.run limits-limited", _write_limited),
)
LIMITER_REPORTS = (Report("limiters", "Limiters over one Redis", "make bench-limiters", _write_limiters),)


def render_report(report: Report, record: Record | None) -> str:
    """Return what stands between the markers of a report.

    Raises:
        ValueError: The record lacks a key. The message names both.
    """
    lead = f"**{report.title}** (`{report.command}`)"
    if record is None:
        return f"{lead}: {MISSING}."
    lines = _written(report.bench, report.write, record["results"])
    return "\n".join([f"{lead}: {describe_origin(record)}, {describe_machine(record)}.", "", *lines])


def replace_reports(text: str, records: dict[str, Record], reports: Sequence[Report] = REPORTS) -> str:
    """Return `text` with what stands between `<!-- figure:NAME -->` and `<!-- /figure:NAME -->` rendered anew.

    Raises:
        ValueError: The markers of a report do not stand there once each, in order.
    """
    for report in reports:
        begin, end = f"<!-- figure:{report.bench} -->", f"<!-- /figure:{report.bench} -->"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end or begin in after or end in before + after:
            raise ValueError(f"page of {report.bench}: expected one {begin} and after it one {end}")
        text = f"{before}{begin}\n\n{render_report(report, records.get(report.bench))}\n\n{end}{after}"
    return text


_CONSTANT = re.compile(r"^\| `([A-Z][A-Z_]+)` \|[^|]*\|[^|]*\|", re.MULTILINE)
_DEFINITION = r"^{name}(?:: [^=]+)? = "


def find_constant(name: str) -> tuple[str, float]:
    """Return the module of `policy` that defines a constant of this name, as a path, and its value.

    Raises:
        ValueError: No module does, or several do.
    """
    definition = re.compile(_DEFINITION.format(name=name), re.MULTILINE)
    found = [path for path in sorted(POLICY.glob("*.py")) if definition.search(path.read_text(encoding="utf-8"))]
    if len(found) != 1:
        raise ValueError(f"docs/batching.md: expected one module of policy that defines {name}, got {found}")
    return f"policy/{found[0].name}", getattr(importlib.import_module(f"penstock.policy.{found[0].stem}"), name)


def replace_constants(text: str) -> str:
    """Return `text` with value and module of each constant that a row of a table begins with.

    Raises:
        ValueError: No module has such a constant.
    """

    def write(match: re.Match[str]) -> str:
        path, value = find_constant(match[1])
        return f"| `{match[1]}` | {value:{',' if isinstance(value, int) else 'g'}} | `{path}` |"

    return _CONSTANT.sub(write, text)


def render_batching(page: Path = BATCHING, history: Path = HISTORY) -> str:
    """Return what docs/batching.md should say, outputs of simulations as they stand."""
    lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
    return replace_constants(replace_reports(page.read_text(encoding="utf-8"), newest_records(lines)))


def render_limiting(page: Path = LIMITING, history: Path = HISTORY) -> str:
    """Return what docs/rate-limiting.md should say."""
    lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
    return replace_reports(page.read_text(encoding="utf-8"), newest_records(lines), LIMIT_REPORTS)


def render_limiters(page: Path = LIMITERS, history: Path = HISTORY) -> str:
    """Return what docs/limiters-compared.md should say."""
    lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
    return replace_reports(page.read_text(encoding="utf-8"), newest_records(lines), LIMITER_REPORTS)


# What comes of these is the same on any machine; planning takes half a minute of it.
DETERMINISTIC = ("simulate", "plan")
_FILE = re.compile(r"^<!-- snippet: file (\S+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OUTPUT = re.compile(r"^```sh\n((?:(?!^```).)*)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def render_outputs(text: str, commands: Sequence[str] = DETERMINISTIC) -> str:
    """Return `text` with the output below each shell snippet that has one of these commands as it prints it now.

    The snippets run in one temporary directory, with the files that the page says to save and with `examples`.

    Raises:
        CalledProcessError: A command failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "examples").symlink_to(ROOT / "examples")
        for file, content in _FILE.findall(text):
            (folder / file).write_text(content, encoding="utf-8")
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "100"}

        def run(match: re.Match[str]) -> str:
            if not any(f"penstock {command} " in match[1] for command in commands):
                return match[0]
            command = ["bash", "-eu", "-o", "pipefail", "-c", match[1]]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
            return f"```sh\n{match[1]}```\n\n```text\n{printed}\n```"

        return _OUTPUT.sub(run, text)


def _written(bench: str, write: Callable[[Record], Written], results: Record) -> Written:
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
    """Run the command line; returns the exit status: 1 if `--check` finds a page out of date."""
    parser = argparse.ArgumentParser(description="Render what README.md and pages of docs show of runs.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    options = parser.parse_args(arguments)
    status = 0
    batching = render_outputs(render_batching())
    limits = ((LIMITERS, render_limiters()), (LIMITING, render_limiting()))
    for page, rendered in ((README, render_readme()), (BATCHING, batching), *limits):
        name = page.relative_to(ROOT)
        if rendered == page.read_text(encoding="utf-8"):
            print(f"{name}: up to date")
        elif options.check:
            print(f"{name}: out of date; run: python scripts/render_figures.py", file=sys.stderr)
            status = 1
        else:
            page.write_text(rendered, encoding="utf-8")
            print(f"{name}: rendered")
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # a script that is run by its path finds only what is beside it
    sys.exit(main(sys.argv[1:]))
