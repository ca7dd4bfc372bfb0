"""Penstock and its peers on the same trivial model, one after the other: `python3 -m bench.peers.run`.

Each is installed in an environment of its own, started, checked for a right answer, loaded by wrk, checked again and
stopped. Prints a table, and appends one line to `bench/history.ndjson`. Run alone on the machine.
"""

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from bench.history import HISTORY, describe_commit, describe_machine
from bench.peers.catalogue import PEERS, Peer
from bench.peers.closed_loop import CONNECTIONS, measure_closed_loop
from bench.peers.hosting import check_answer, hosting
from bench.peers.installing import install, read_version

WARM_UP_S = 3
_DEBIAN_PYTHON = Path("/usr/bin/python3.11")


def measure(peer: Peer, *, python: str, work: Path, seconds: int) -> dict[str, Any]:
    """Return one system's row: figures, or `not_measured` with the reason. Waits until its server has ended."""
    row: dict[str, Any] = {"name": peer.name, "version": None, "configuration": peer.configuration}
    try:
        _say(f"{peer.name}: installing")
        bin_ = install(peer.name, python=python, work=work)
        row["version"] = read_version(bin_, peer.package)
        _say(f"{peer.name}: starting")
        with hosting(peer, bin_) as url:
            _say(f"{peer.name}: measuring")
            measure_closed_loop(url, peer.body, seconds=WARM_UP_S)
            figures = measure_closed_loop(url, peer.body, seconds=seconds)
            check_answer(peer, url)
    except (OSError, HTTPException, RuntimeError) as error:
        return {**row, "not_measured": str(error) or type(error).__name__}
    return {**row, **figures._asdict()}


def make_record(rows: list[dict[str, Any]], *, seconds: int) -> dict[str, Any]:
    """Return what goes into the history: the rows, and what they must be read with."""
    return {
        "bench": "peers",
        "at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "load": {"tool": "wrk", "threads": 1, "connections": CONNECTIONS, "seconds": seconds, "warm_up_s": WARM_UP_S},
        "results": rows,
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text in columns."""
    cells = [("system", "version", "configuration", "rps", "p50 ms", "p99 ms", "non-2xx", "socket errors", "timeouts")]
    for row in rows:
        names = (row["name"], row["version"] or "-", row["configuration"])
        if "not_measured" in row:
            cells.append((*names, f"not measured: {row['not_measured']}", "", "", "", "", ""))
        else:
            latency = (f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}")
            errors = (str(row["non_2xx"]), str(row["socket_errors"]), str(row["timeouts"]))
            cells.append((*names, f"{row['rps']:,.0f}", *latency, *errors))
    widths = [max(len(line[i]) for line in cells if line[4] or i < 3) for i in range(len(cells[0]))]
    return "\n".join("  ".join(_align(i, text, widths[i]) for i, text in enumerate(line)).rstrip() for line in cells)


def _align(column: int, text: str, width: int) -> str:
    return text.ljust(width) if column < 3 else text.rjust(width)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m bench.peers.run", description="Measure Penstock and its peers.")
    parser.add_argument("--only", nargs="+", choices=list(PEERS), metavar="NAME", help=f"any of {', '.join(PEERS)}")
    parser.add_argument("--seconds", type=int, default=10, help="length of each measurement (default 10)")
    parser.add_argument("--out", type=Path, default=HISTORY, help="append the record here (default: the history)")
    parser.add_argument("--work", type=Path, help="keep the environments here for the next run (default: a temporary)")
    parser.add_argument(
        "--python",
        default=str(_DEBIAN_PYTHON if _DEBIAN_PYTHON.exists() else sys.executable),
        help="interpreter of the environments (default: Debian's python3.11, else this one)",
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    return parser.parse_args()


def main() -> int:
    """Measure what the command line asks for. Returns 1 if something could not be measured, 2 if wrk is missing."""
    arguments = _parse_arguments()
    if shutil.which("wrk") is None:
        _say("wrk is missing; install it with: sudo apt-get install wrk")
        return 2
    with ExitStack() as stack:
        work = arguments.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True)))
        rows = [
            measure(PEERS[name], python=arguments.python, work=work.resolve(), seconds=arguments.seconds)
            for name in arguments.only or PEERS
        ]
    record = make_record(rows, seconds=arguments.seconds)
    with arguments.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=2) if arguments.json else format_table(rows))
    return 1 if any("not_measured" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
