"""`make bench`: each figure beside its yardstick, in the same run; appended to `bench/history.ndjson`.

closed   wrk -t1 -c128 on the `sum` model, against a bare httptools + uvloop server; the ratio is what counts
open     Poisson at 10,000 requests per second on the `digits` model, with `penstock bench`
minilm   sentence embeddings through the server, against a bare onnxruntime loop over the same batches
kill     2,000 requests per second on `digits` while its only replica is killed with SIGKILL, twice
malformed  ten thousand malformed requests, with a well-behaved open loop beside them; 5xx, files and memory after
policies, capacity, overload, fairness, simulate  scheduling: `policies.py`, `capacity.py`, `drills.py`, `simulation.py`
limits   limits-hot, -direct, -commands, -users and -limited: `limits.py`, `limited.py`

Run alone on the machine: `python -m bench.run open kill` runs some, no name all, in 30 minutes. Status 1: a bar missed.
Elsewhere: the simulator against the server, `fidelity.py`; others on the same work, `peers/run.py`, `limiters/run.py`.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.capacity import bench_capacity
from bench.capacity import render as render_capacity
from bench.drills import bench_fairness, bench_overload
from bench.history import ROOT, append_history
from bench.limited import bench_commands, bench_limited, bench_users
from bench.limits import bench_direct, bench_hot
from bench.policies import bench_policies
from bench.serving import (
    PENSTOCK,
    Server,
    cpu_s,
    free_port,
    open_files,
    penstock,
    process_ids,
    resident_bytes,
    running,
    wait_for_port,
)
from bench.simulation import bench_simulate
from penstock.core.tensors import TensorSpec
from penstock.testing.malformed import Target, malformed_requests
from penstock.testing.rogue import Findings, misbehave

EXAMPLES = ROOT / "examples"
ROUNDS = 5
ROUND_S = 5
GATEWAYS = "2"  # of the closed loop: it takes both cores, and one gateway is one core
_WRK = re.compile(r"Requests/sec:\s+([\d.]+)")
_P99 = re.compile(r"99%\s+([\d.]+)(us|ms|s)\b")
_ERRORS = re.compile(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.+)")
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}

console = Console(stderr=True)


def wrk(url: str, seconds: int) -> dict[str, Any]:
    """One closed-loop round: 128 connections, one thread, the 8-float JSON body."""
    command = ["wrk", "-t1", "-c128", f"-d{seconds}", "--latency", "-s", str(ROOT / "bench" / "sum.lua"), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate, p99, errors = _WRK.search(output), _P99.search(output), _ERRORS.search(output)
    if rate is None or p99 is None:
        raise RuntimeError(f"wrk: expected Requests/sec and 99% in its output, got {output!r}")
    return {"rps": float(rate[1]), "p99_ms": float(p99[1]) * _MS[p99[2]], "errors": errors[0] if errors else ""}


def bench_closed() -> dict[str, Any]:
    """Closed loop, alternating with the yardstick so that a drifting machine hits both."""
    bare_port = free_port()
    ours: list[dict[str, Any]] = []
    bare: list[dict[str, Any]] = []
    bare_command = [sys.executable, str(ROOT / "bench" / "bare_server.py"), str(bare_port)]
    with penstock(EXAMPLES / "sum.py", "--gateways", GATEWAYS) as server, running(bare_command):
        wait_for_port(bare_port)
        urls = (f"http://127.0.0.1:{bare_port}/v2/models/sum/infer", f"{server.http}/v2/models/sum/infer")
        for url in urls:
            wrk(url, 2)
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("closed loop", total=ROUNDS)
            used = {name: cpu_s(pid) for name, pid in server.pids.items()}
            for _ in range(ROUNDS):
                bare.append(wrk(urls[0], ROUND_S))
                ours.append(wrk(urls[1], ROUND_S))
                progress.advance(task)
            used = {name: cpu_s(pid) - used[name] for name, pid in server.pids.items()}
    requests = sum(r["rps"] for r in ours) * ROUND_S
    return {
        "gateways": int(GATEWAYS),
        "rps": statistics.median(r["rps"] for r in ours),
        "p99_ms": statistics.median(r["p99_ms"] for r in ours),
        "bare_rps": statistics.median(r["rps"] for r in bare),
        "bare_p99_ms": statistics.median(r["p99_ms"] for r in bare),
        "ratio": statistics.median(o["rps"] / b["rps"] for o, b in zip(ours, bare, strict=True)),
        "cpu_us_per_request": {name: round(s * 1e6 / requests, 2) for name, s in used.items()},
        "rounds": [{"rps": o["rps"], "bare_rps": b["rps"]} for o, b in zip(ours, bare, strict=True)],
        "errors": [r["errors"] for r in (*ours, *bare) if r["errors"]],
    }


def bench_open() -> dict[str, Any]:
    """Open loop, Poisson, 10,000 requests per second for 30 s on `digits`, served as `make serve` does."""
    with penstock(EXAMPLES / "quickstart.toml") as server:
        used = {name: cpu_s(pid) for name, pid in server.pids.items()}
        load = [*_bench_command(server), "--rate", "10000", "--duration", "30", "--slo-ms", "50", "--json"]
        run = subprocess.run(load, stdout=subprocess.PIPE, text=True, check=False)
        used = {name: cpu_s(pid) - used[name] for name, pid in server.pids.items()}
    report: dict[str, Any] = json.loads(run.stdout)
    report["exit_status"] = run.returncode
    report["cpu_us_per_request"] = {name: round(s * 1e6 / max(report["completed"], 1), 2) for name, s in used.items()}
    return report


def bench_kill() -> dict[str, Any]:
    """Open loop at 2,000 rps for 10 s; the one replica is killed at about 3 s and its replacement at about 6 s."""
    killed: list[int] = []
    with penstock(EXAMPLES / "quickstart.toml") as server:
        load = [*_bench_command(server), "--rate", "2000", "--duration", "10", "--slo-ms", "50", "--json"]
        with subprocess.Popen(load, stdout=subprocess.PIPE, text=True) as run:
            for _ in range(2):
                time.sleep(3.5)
                pid = next(p for name, p in process_ids(server.admin).items() if name.startswith("digits"))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            output, _ = run.communicate()
    report: dict[str, Any] = json.loads(output)
    report["replicas_killed"] = len(set(killed))
    report["exit_status"] = run.returncode
    return report


def bench_malformed() -> dict[str, Any]:
    """Ten thousand malformed requests after a warm-up, beside 200 good ones per second; what it left behind."""
    limits = "[server.limits]\nbody_bytes_max = 1048576\nheader_timeout_ms = 500\nbody_timeout_ms = 500\n"
    targets = [
        Target("digits", (TensorSpec("pixels", "FP32", (-1, 64), finite=True),), 64),
        Target("sum", (TensorSpec("x", "FP32", (-1, 8)),), 256),
        Target("minilm", (TensorSpec("text", "BYTES", (-1, 1), optional=True),), 32),
    ]
    stream = malformed_requests(Random(1), targets)
    findings = Findings()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "penstock.toml"
        paths = {"digits": "digits", "sum": "sum.py", "minilm": "minilm/model.py"}
        config.write_text(limits + "".join(f'[models.{n}]\npath = "{EXAMPLES / p}"\n' for n, p in paths.items()))
        with penstock(config) as server:
            asyncio.run(misbehave(server.http, islice(stream, 1_500), findings))
            time.sleep(2)
            before = {name: (open_files(pid), resident_bytes(pid)) for name, pid in server.pids.items()}
            load = [*_bench_command(server), "--rate", "200", "--duration", "12", "--slo-ms", "50", "--json"]
            with subprocess.Popen(load, stdout=subprocess.PIPE, text=True) as run:
                began = time.monotonic()
                asyncio.run(misbehave(server.http, islice(stream, 10_000), findings))
                seconds = time.monotonic() - began
                beside, _ = run.communicate()
            time.sleep(2)
            after = {name: (open_files(pid), resident_bytes(pid)) for name, pid in server.pids.items()}
            survivors = process_ids(server.admin) == server.pids
    report: dict[str, Any] = json.loads(beside)
    statuses: Counter[int] = Counter()
    for (_, status), count in findings.statuses.items():
        statuses[status] += count
    return {
        "requests": 11_500,
        "seconds": round(seconds, 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "mistakes": findings.mistakes,
        "open_files_grown": {name: after[name][0] - before[name][0] for name in before},
        "resident_mib_grown": {name: round((after[name][1] - before[name][1]) / 2**20, 1) for name in before},
        "same_processes": survivors,
        "beside": {key: report[key] for key in ("completed", "failed", "shed", "latency_ms", "valid")},
    }


def _bench_command(server: Server) -> list[str]:
    return [str(PENSTOCK), "bench", server.http, "--model", "digits"]


def _texts(batches: int, rows: int) -> list[list[bytes]]:
    """Batches of distinct texts of 8 to 16 words, from one seeded stream."""
    stream = np.random.default_rng(7)
    words = (
        "river", "gate", "turbine", "water", "pressure", "flow", "model", "batch",
        "queue", "replica", "latency", "token", "stream", "vector", "steady",
    )  # fmt: skip
    return [
        [" ".join(stream.choice(words, stream.integers(8, 17))).encode() + b" %d" % stream.integers(1_000_000)
         for _ in range(rows)]
        for _ in range(batches)
    ]  # fmt: skip


def _embed_bare(model: Any, batches: list[list[Any]], seconds: float) -> float:
    """Texts per second of a bare loop over tokenised batches."""
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        done += len(model.embed(batches[done // len(batches[0]) % len(batches)]))
    return done / (time.monotonic() - began)


def _embed_served(server: Server, bodies: list[tuple[bytes, int]], rows: int, seconds: float) -> float:
    """Texts per second of three closed-loop clients: one batch running, one staged, one on its way."""
    address = urlsplit(server.http)
    done: list[int] = []
    began = time.monotonic()

    def client(offset: int) -> None:
        connection = HTTPConnection(address.hostname or "", address.port)
        count = offset
        while time.monotonic() - began < seconds:
            body, json_bytes = bodies[count % len(bodies)]
            headers = {"Inference-Header-Content-Length": str(json_bytes)}
            connection.request("POST", "/v2/models/minilm/infer", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"minilm: expected 200, got {answer.status}")
            done.append(rows)
            count += 3

    threads = [threading.Thread(target=client, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - began)


def _binary_body(texts: list[bytes]) -> tuple[bytes, int]:
    data = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    tensor = {
        "name": "text",
        "datatype": "BYTES",
        "shape": [len(texts), 1],
        "parameters": {"binary_data_size": len(data)},
    }
    document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return document + data, len(document)


def bench_minilm() -> dict[str, Any]:
    """Batches of 32 texts: the server (text in, tokenising included) against onnxruntime alone (tokens in)."""
    from examples.minilm.model import MiniLM  # noqa: PLC0415 - needs the built example; the other benches do not

    rows = 32
    texts = _texts(24, rows)
    bodies = [_binary_body(batch) for batch in texts]
    bare_model = MiniLM()
    bare_model.load()
    tokens = [bare_model.tokenize(np.array(batch, dtype=object).reshape(-1, 1)) for batch in texts]
    bare: list[float] = []
    ours: list[float] = []
    with penstock(EXAMPLES / "quickstart.toml") as server, Progress(console=console, transient=True) as progress:
        task = progress.add_task("minilm", total=ROUNDS)
        _embed_bare(bare_model, tokens, 1)
        _embed_served(server, bodies, rows, 1)
        for _ in range(ROUNDS):
            bare.append(_embed_bare(bare_model, tokens, ROUND_S))
            ours.append(_embed_served(server, bodies, rows, ROUND_S))
            progress.advance(task)
    return {
        "rows_per_batch": rows,
        "texts_per_s": statistics.median(ours),
        "bare_texts_per_s": statistics.median(bare),
        "ratio": statistics.median(o / b for o, b in zip(ours, bare, strict=True)),
        "rounds": [{"texts_per_s": o, "bare_texts_per_s": b} for o, b in zip(ours, bare, strict=True)],
    }


BENCHES = {
    "closed": bench_closed,
    "open": bench_open,
    "minilm": bench_minilm,
    "kill": bench_kill,
    "malformed": bench_malformed,
    "policies": bench_policies,
    "capacity": bench_capacity,
    "overload": bench_overload,
    "fairness": bench_fairness,
    "simulate": bench_simulate,
    "limits-hot": bench_hot,
    "limits-direct": bench_direct,
    "limits-commands": bench_commands,
    "limits-users": bench_users,
    "limits-limited": bench_limited,
}
# One name for several.
GROUPS = {"limits": [name for name in BENCHES if name.startswith("limits-")]}


def _check_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing; install it with: sudo apt-get install wrk")


def _show(name: str, results: dict[str, Any]) -> None:
    if name == "capacity":
        render_capacity(results, console)
        return
    table = Table("figure", "value", title=name)
    for key, value in results.items():
        if key not in ("rounds", "scenarios"):
            table.add_row(key, f"{value:,.3f}" if isinstance(value, float) else str(value))
    console.print(table)


def main() -> int:
    """Run the benches named on the command line, or all; return 1 if one of them missed a bar of its own."""
    asked = [name for name in sys.argv[1:] if not name.startswith("-")] or list(BENCHES)
    unknown = [name for name in asked if name not in BENCHES and name not in GROUPS]
    if unknown:
        sys.exit(f"bench: expected names of {', '.join([*BENCHES, *GROUPS])}, got {', '.join(unknown)}")
    names = [name for one in asked for name in GROUPS.get(one, [one])]
    if "closed" in names:
        _check_wrk()
    passed = True
    for name in names:
        results = BENCHES[name]()
        passed &= bool(results.get("passed", True))
        _show(name, results)
        append_history(name, results)
        print(json.dumps({"bench": name, "results": results}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
