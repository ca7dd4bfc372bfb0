"""What deciding by deadline costs: `digits` at 10,000 requests per second, beside deciding by size and timeout.

Two servers with one gateway each take turns under the same load, so that a drifting machine hits both. CPU time of
gateway and replica for each request; bar: `deadline` at most 1.10 of `size_or_timeout` (eager), and both keep the SLO.
Not here: what deciding by deadline gains (`capacity.py`).
"""

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench.history import ROOT
from bench.serving import PENSTOCK, Server, cpu_s, penstock

POLICIES = ("deadline", "size_or_timeout")
RATE, SLO_MS, ROUNDS, ROUND_S = 10_000, 50, 3, 10
CPU_RATIO_MAX = 1.10


def _to_toml(policy: str) -> str:
    """Return the configuration of a server of `digits`; eager and 2 ms are what size_or_timeout does untold."""
    return (
        f'[models.digits]\npath = "{ROOT / "examples" / "digits"}"\nslo_ms = {SLO_MS}\n'
        f'batching = {{ policy = "{policy}" }}\n'
    )


def _measure(server: Server, round_s: int) -> dict[str, Any]:
    """Apply the load once; return latency, losses, and the CPU time of gateway and replica for each request."""
    load = [str(PENSTOCK), "bench", server.http, "--model", "digits", "--rate", str(RATE)]
    used = {name: cpu_s(pid) for name, pid in server.pids.items()}
    run = subprocess.run(
        [*load, "--duration", str(round_s), "--slo-ms", str(SLO_MS), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    used = {name: cpu_s(pid) - used[name] for name, pid in server.pids.items()}
    report: dict[str, Any] = json.loads(run.stdout)
    # The warm-up's requests cost CPU time, too, and are not among those reported.
    requests = RATE * (round_s + report["warmup_s"])
    return {
        "rate_achieved": report["rate_achieved"],
        "latency_ms": report["latency_ms"],
        "shed": report["shed"],
        "failed": report["failed"],
        "slo_held": report["slo_held"],
        "certified": report["verdict"]["certified"],
        "valid": report["valid"],
        "lateness_p99_ms": report["generator_lateness_ms"]["p99"],
        "cpu_us_per_request": {
            "gateway" if name.startswith("gateway") else "replica": s * 1e6 / requests for name, s in used.items()
        },
    }


def bench_policies(rounds: int = ROUNDS, round_s: int = ROUND_S) -> dict[str, Any]:
    """Measure both policies in turn; return the report."""
    found: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        configs = {policy: Path(directory) / f"{policy}.toml" for policy in POLICIES}
        for policy, config in configs.items():
            config.write_text(_to_toml(policy), encoding="utf-8")
        with (
            penstock(configs[POLICIES[0]]) as first,
            penstock(configs[POLICIES[1]]) as second,
            Progress(console=Console(stderr=True), transient=True) as progress,
        ):
            task = progress.add_task("policies", total=rounds * len(POLICIES))
            for _ in range(rounds):
                for policy, server in zip(POLICIES, (first, second), strict=True):
                    found[policy].append(_measure(server, round_s))
                    progress.advance(task)
    return _summarise(found)


def _summarise(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the report: medians over rounds, and the median of the rounds' ratios."""
    totals = {policy: [sum(r["cpu_us_per_request"].values()) for r in rounds] for policy, rounds in found.items()}
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*(totals[p] for p in POLICIES), strict=True))
    report: dict[str, Any] = {"rate": RATE, "slo_ms": SLO_MS, "gateways": 1}
    for policy, rounds in found.items():
        names = rounds[0]["cpu_us_per_request"]
        cpu_us = {name: statistics.median(r["cpu_us_per_request"][name] for r in rounds) for name in names}
        report[policy] = {
            "p50_ms": statistics.median(r["latency_ms"]["p50"] for r in rounds),
            "p95_ms": statistics.median(r["latency_ms"]["p95"] for r in rounds),
            "p99_ms": statistics.median(r["latency_ms"]["p99"] for r in rounds),
            "cpu_us_per_request": {name: round(us, 2) for name, us in cpu_us.items()},
            "cpu_us_per_request_total": round(statistics.median(totals[policy]), 2),
        }
    everything = [r for rounds in found.values() for r in rounds]
    kept = all(r["valid"] and r["slo_held"] and r["certified"] for r in everything)
    return {
        **report,
        "cpu_ratio": round(ratio, 3),
        "cpu_ratio_max": CPU_RATIO_MAX,
        "slo_kept": kept,
        "rounds": found,
        "passed": kept and ratio <= CPU_RATIO_MAX,
    }
