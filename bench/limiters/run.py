"""Penstock's limiter and those of other libraries over the same Redis: `python -m bench.limiters.run`.

Each library is installed in an environment of its own; all use the same Python, redis-py, hiredis and uvloop. Prints
tables, and appends one line to `bench/history.ndjson`. Run alone on the machine: `--quick` shows that it works, not
how fast anything is. What is measured and how to read it: `README.md`, docs/limiters-compared.md.
"""

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from bench.history import append_history
from bench.limiters.catalogue import LIMITERS, LIMITS, WINDOW_LIMITS, Claim, Contender
from bench.limiters.crew import crew, own_python
from bench.limiters.scenarios import (
    FULL,
    PROCESSES,
    QUICK,
    Lengths,
    measure_bound,
    measure_cancel,
    measure_clock,
    measure_pulses,
    measure_refund,
    measure_slow,
    measure_speed,
    measure_trouble,
    measure_weight,
)
from bench.limiters.serving import Server, redis_server
from bench.limiters.tables import to_markdown
from bench.peers.installing import install, read_version

_FOLDER = Path(__file__).parent
_LIMIT = "100/s burst 50"
console = Console(stderr=True)


def _install(contender: Contender, work: Path) -> tuple[Path, str]:
    """Return the interpreter of a library's environment, and the version that is in it."""
    if not contender.package:
        return own_python(), version("penstock")
    bin_ = install(contender.library, python=sys.executable, work=work, folder=_FOLDER)
    return bin_ / "python", read_version(bin_, contender.package)


def _measure(contender: Contender, python: Path, server: Server, lengths: Lengths) -> dict[str, Any]:
    """Return one limiter's figures, all but those of the slow caller."""
    found: dict[str, Any] = {"bound": {}}
    with crew(contender, python, server.url, (0.0,) * PROCESSES) as workers:
        for name, limit in LIMITS.items():
            if contender.claim is Claim.BUCKET or name in WINDOW_LIMITS:
                server.empty()
                found["bound"][name] = measure_bound(workers, contender, limit, lengths)
        server.empty()
        found["pulses"] = measure_pulses(workers, contender, LIMITS[_LIMIT], lengths)
        found["speed"] = measure_speed(workers, server, lengths)
        found["weight"] = measure_weight(workers, server)
        found["refund"] = measure_refund(workers, server)
        found["cancel"] = measure_cancel(workers, server)
        found["trouble"] = measure_trouble(workers, server)
    found["clock"] = measure_clock(contender, python, server, LIMITS[_LIMIT], lengths)
    return found


def measure_all(names: list[str], work: Path, lengths: Lengths) -> dict[str, Any]:
    """Measure the named limiters; return the results."""
    rows: list[dict[str, Any]] = []
    installed: list[tuple[Contender, Path]] = []
    for name in names:
        contender = LIMITERS[name]
        console.print(f"{name}: installing")
        python, release = _install(contender, work)
        installed.append((contender, python))
        rows.append({"name": name, "version": release, "claim": contender.claim.value})
    with redis_server() as server:
        results: dict[str, Any] = {
            "redis": server.version(),
            "lengths_s": {f: getattr(lengths, f) for f in Lengths.__slots__},
        }
        for row, (contender, python) in zip(rows, installed, strict=True):
            console.print(f"{contender.name}: measuring")
            try:
                row.update(_measure(contender, python, server, lengths))
            except RuntimeError as error:
                row["not_measured"] = str(error)
        console.print("all, slowly: measuring")
        slow = measure_slow(installed, server, lengths)
    for row in rows:
        row["slow"] = slow[row["name"]]
    return {**results, "rows": rows}


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.limiters.run", description="Measure limiters over Redis.")
    parser.add_argument(
        "--only", nargs="+", choices=list(LIMITERS), metavar="NAME", help=f"some, not recorded: {'; '.join(LIMITERS)}"
    )
    parser.add_argument("--quick", action="store_true", help="short runs, not recorded: see that it works")
    parser.add_argument("--record", action="store_true", help="record a quick run too, as what it is")
    parser.add_argument("--work", type=Path, help="keep the environments here for the next run (default: a temporary)")
    parser.add_argument("--json", action="store_true", help="print the results instead of the tables")
    return parser.parse_args()


def main() -> int:
    """Measure what the command line asks for. Returns 2 if redis-server is missing."""
    arguments = _parse_arguments()
    if shutil.which("redis-server") is None:
        console.print("redis-server is missing; install it with: sudo apt-get install redis-server")
        return 2
    with ExitStack() as stack:
        work = arguments.work
        if work is None:
            work = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="limiters-", ignore_cleanup_errors=True))
            )
        lengths = QUICK if arguments.quick else FULL
        results = measure_all(arguments.only or list(LIMITERS), work.resolve(), lengths)
    if not arguments.only and (arguments.record or not arguments.quick):
        append_history("limiters", {**results, "quick": arguments.quick})
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        text, out = "\n".join(to_markdown(results)), Console()
        out.print(Markdown(text) if out.is_terminal else text, soft_wrap=not out.is_terminal)
    return 0


if __name__ == "__main__":
    sys.exit(main())
