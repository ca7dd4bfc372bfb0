"""Starting and stopping what a benchmark measures: Penstock, or any server in its own process group."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

START_S_MAX = 60.0
PENSTOCK = Path(sys.executable).with_name("penstock")


class Server(NamedTuple):
    """A running Penstock: `pids` are those of its gateways and replicas by name."""

    http: str
    admin: str
    pids: dict[str, int]
    head_pid: int


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command in its own process group; ask it to end on the way out, and end the group if it does not."""
    process = subprocess.Popen(command, start_new_session=True, text=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def penstock(target: Path, *arguments: str) -> Iterator[Server]:
    """Serve `target` on free ports; yields once a canary has passed for every model."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as state:
        command = [str(PENSTOCK), "serve", str(target), "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        with running([*command, "--state", state, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"ready http=(\S+) admin=(\S+)", line)
            if found is None:
                raise RuntimeError(f"penstock serve: expected a line 'ready http=... admin=...', got {line!r}")
            yield Server(found[1], found[2], process_ids(found[2]), process.pid)


def process_ids(admin: str) -> dict[str, int]:
    """Return the pids of gateways and replicas by name, from `/api/status`."""
    with urllib.request.urlopen(f"{admin}/api/status", timeout=5) as answer:  # noqa: S310 - http, our own
        status = json.load(answer)
    pids = {gateway["name"]: gateway["pid"] for gateway in status["gateways"]}
    for model in status["models"]:
        pids |= {replica["name"]: replica["pid"] for replica in model["replicas"]}
    return pids


def cpu_s(pid: int) -> float:
    """Return the CPU time a process has used, user and system, s."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait_for_port(port: int) -> None:
    """Return when something listens on a loopback port."""
    end = time.monotonic() + START_S_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
