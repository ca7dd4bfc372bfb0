"""How fast the simulator is: requests of `examples/scenarios` simulated per minute of one core's time.

Bar: 1,000,000 over all scenarios together. Not here: whether it tells the truth (`fidelity.py`).
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bench.history import ROOT
from penstock.adapters.chance import seeded_stream
from penstock.cli.scenario import read_scenario
from penstock.sim import Scenario, simulate

REQUESTS_PER_MINUTE_MIN = 1_000_000
CPU_S_MIN = 3.0  # each scenario is repeated, with another seed, until it has used so much


def _measure(scenario: Scenario, cpu_s_min: float) -> dict[str, Any]:
    """Simulate a scenario again and again; return its figures."""
    requests = runs = 0
    used_s = 0.0
    while not runs or used_s < cpu_s_min:
        stream = partial(seeded_stream, scenario.seed + runs)
        began_s = time.process_time()
        requests += len(simulate(scenario, stream).arrived_us)
        used_s += time.process_time() - began_s
        runs += 1
    return {
        "requests": requests,
        "cpu_s": round(used_s, 3),
        "us_per_request": round(used_s / requests * 1e6, 2),
        "requests_per_minute": round(requests / used_s * 60),
    }


def bench_simulate(cpu_s_min: float = CPU_S_MIN) -> dict[str, Any]:
    """Simulate every example scenario on one core; return the report."""
    paths = sorted((ROOT / "examples" / "scenarios").glob("*.toml"))
    scenarios: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for path in progress.track(paths, description="simulate"):
            scenario = read_scenario(path)
            _measure(replace(scenario, duration_us=scenario.duration_us // 10), 0.0)  # caches, imports
            scenarios.append({"name": path.stem, **_measure(scenario, cpu_s_min)})
    requests = sum(figures["requests"] for figures in scenarios)
    cpu_s = sum(figures["cpu_s"] for figures in scenarios)
    per_minute = round(requests / cpu_s * 60)
    return {
        "cores": 1,
        "requests": requests,
        "cpu_s": round(cpu_s, 2),
        "requests_per_minute": per_minute,
        "requests_per_minute_slowest": min(figures["requests_per_minute"] for figures in scenarios),
        "requests_per_minute_min": REQUESTS_PER_MINUTE_MIN,
        "scenarios": scenarios,
        "passed": per_minute >= REQUESTS_PER_MINUTE_MIN,
    }
