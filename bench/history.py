"""Appending measurements to `bench/history.ndjson`: one JSON object a line, with the commit and the machine."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "bench" / "history.ndjson"


def describe_machine() -> dict[str, Any]:
    """Processor, cores, kernel and Python: what a figure must be read with."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    megahertz = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("cpu MHz")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "mhz": megahertz[0] if megahertz else "",
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def describe_commit() -> str:
    """Return the commit, with `+` if the tree differs from it (measurements themselves do not count)."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    status = subprocess.run(
        [*git, "status", "--porcelain", "--", ".", ":!bench/history.ndjson"],
        capture_output=True,
        text=True,
        check=False,
    )
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")


def append_history(bench: str, results: dict[str, Any] | list[Any]) -> None:
    """Append one measurement."""
    record = {
        "bench": bench,
        "at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "results": results,
    }
    with HISTORY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
