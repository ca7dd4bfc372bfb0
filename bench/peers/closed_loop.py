"""A closed loop of 128 connections from one wrk thread, posting the same JSON body over and over.

Closed: each connection sends its next request when it has its answer, so the server sets the pace and latency is about
128 / rps. Not here: an open loop, where the caller sets the pace (`penstock bench`).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

CONNECTIONS = 128
_SCRIPT = Path(__file__).with_name("post.lua")


class Figures(NamedTuple):
    """What one run of wrk saw. `non_2xx` counts answers of status 400 and above."""

    rps: float
    p50_ms: float
    p99_ms: float
    non_2xx: int
    socket_errors: int
    timeouts: int


def measure_closed_loop(url: str, body: bytes, *, seconds: int) -> Figures:
    """Load `url` for `seconds`, and wait until wrk has ended.

    Raises:
        RuntimeError: wrk failed, or no request was answered at all; the message holds what wrk said.
    """
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(_SCRIPT), url]
    environment = {**os.environ, "PEER_BODY": body.decode()}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode != 0 or not lines:
        raise RuntimeError(f"wrk: expected figures, got status {run.returncode}: {(run.stderr or run.stdout).strip()}")
    seen = json.loads(lines[-1])
    if seen["requests"] == 0:
        raise RuntimeError(f"wrk: no request was answered within {seconds} s")
    return Figures(
        rps=round(seen["requests"] * 1e6 / seen["duration_us"], 1),
        p50_ms=round(seen["p50_us"] / 1e3, 2),
        p99_ms=round(seen["p99_us"] / 1e3, 2),
        non_2xx=seen["non_2xx"],
        socket_errors=seen["socket_errors"],
        timeouts=seen["timeouts"],
    )
