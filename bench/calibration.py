"""What requests, batches and sleeps cost on this machine beyond what an emulated device states.

Measured on three fleets of their own, with other parameters than those predicted from it (`fidelity.py`), and only as
costs: no wait in a queue that was observed enters a prediction.

alone      each request finds an idle replica: the way there and back, without queueing
batched    requests share batches that find an idle replica: what a reply costs then, and how executions overrun
saturated  the replica never idles: what it is busy for between executions
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.emulation import MODEL, Calibration, Fleet, Run, apply_load, fetch_statistics, serve
from bench.serving import Server
from penstock.core.models import Batching

STEPS = ("alone", "batched", "saturated")
# Timers of the gateway's event loop count whole milliseconds, rounded up: late by up to one, evenly.
JITTER_US = 1_000
PROBES = 4
SEED = 101
_ASIDE = Batching("size_or_timeout", size_max=4, eager=True)

ALONE = Fleet("alone", beta_us=1_500, alpha_us=100, batching=_ASIDE, arrivals="constant")
_GATHERED = Batching("size_or_timeout", size_max=16, wait_us_max=20_000, eager=False)
# A batch takes 6 ms at most and a replica gets one in 50 ms, so none waits behind another: what waits in a replica's
# socket is not counted as waiting, and would pass for a cost.
BATCHED = Fleet("batched", beta_us=4_000, alpha_us=125, replicas=2, batching=_GATHERED)
SATURATED = Fleet(
    "saturated", beta_us=2_500, alpha_us=250, batching=Batching("size_or_timeout", size_max=2), arrivals="constant"
)
ALONE_RATE, BATCHED_RATE, SATURATED_RATE = 300.0, 600.0, 850.0  # the last can do 667
_WARMUP_US = 1_000_000


@dataclass(frozen=True, slots=True)
class _Means:
    """Mean times of a request, µs: as its client saw it, as the gateway did, waiting, and executing."""

    client_us: float
    server_us: float
    wait_us: float
    compute_us: float


def calibrate(duration_us: int, on_step: Callable[[str], None]) -> tuple[Calibration, dict[str, Any]]:
    """Measure the costs; return them, and the figures they were made from.

    Args:
        duration_us: How long each of the three loads is applied after its warm-up.
        on_step: Told the name of each of `STEPS` when it is done.
    """
    with serve(ALONE) as server:
        alone = _measure_means(server, ALONE, _run(ALONE_RATE, duration_us))
    on_step("alone")
    with serve(BATCHED) as server:
        batched, overshoot_us = _measure_overshoot(server, _run(BATCHED_RATE, duration_us))
    on_step("batched")
    with serve(SATURATED) as server:
        replica_us = _measure_between(server, _run(SATURATED_RATE, duration_us))
    on_step("saturated")
    request_us = max((alone.client_us - alone.server_us) / 2, 0)
    batch_us = max(alone.server_us - alone.wait_us - alone.compute_us, 0)
    reply_us = max(batched.client_us - batched.wait_us - batched.compute_us - batch_us - request_us, 0)
    calibration = Calibration(
        request_us=round(request_us),
        reply_us=round(reply_us),
        batch_us=round(batch_us),
        replica_us=round(replica_us),
        jitter_us=JITTER_US,
        overshoot_us=tuple(overshoot_us),
    )
    return calibration, {
        "request_us": calibration.request_us,
        "reply_us": calibration.reply_us,
        "batch_us": calibration.batch_us,
        "replica_us": calibration.replica_us,
        "jitter_us": calibration.jitter_us,
        "overshoot_samples": len(overshoot_us),
        "overshoot_us": {f"p{p}": round(float(np.percentile(overshoot_us, p)), 1) for p in (5, 50, 95, 99)},
        "fleets": [fleet.describe() for fleet in (ALONE, BATCHED, SATURATED)],
    }


def _run(rate: float, duration_us: int) -> Run:
    return Run(rate, SEED, duration_us, _WARMUP_US)


def _mean_us(part: dict[str, Any]) -> float:
    return float(part["ns"] / 1e3 / max(part["count"], 1))


def _measure_means(server: Server, fleet: Fleet, run: Run) -> _Means:
    outcomes = apply_load(server, fleet, run)
    parts = fetch_statistics(server)["inference_stats"]
    compute = ("compute_input", "compute_infer", "compute_output")
    return _Means(
        client_us=float(outcomes.latency_us.mean()),
        server_us=_mean_us(parts["success"]),
        wait_us=_mean_us(parts["queue"]),
        compute_us=sum(_mean_us(parts[name]) for name in compute),
    )


def _measure_overshoot(server: Server, run: Run) -> tuple[_Means, list[float]]:
    """Return the means, and how much longer than stated each execution seen by a probe beside the load took, µs."""
    found: list[float] = []
    ended = threading.Event()
    probes = [threading.Thread(target=_probe, args=(server, found, ended)) for _ in range(PROBES)]
    for probe in probes:
        probe.start()
    try:
        means = _measure_means(server, BATCHED, run)
    finally:
        ended.set()
        for probe in probes:
            probe.join()
    if not found:
        raise RuntimeError("calibration: expected probes to be answered, got no answer")
    parts = fetch_statistics(server)["inference_stats"]
    around_us = _mean_us(parts["compute_input"]) + _mean_us(parts["compute_output"])
    return means, [overshoot_us + around_us for overshoot_us in found]


def _probe(server: Server, found: list[float], ended: threading.Event) -> None:
    """Send one request after the other; note the execution time in `Server-Timing` beyond the one that was emulated."""
    address = urlsplit(server.http)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0.0]}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "emulated_device_ms"}]})
    while not ended.is_set():
        connection.request("POST", f"/v2/models/{MODEL}/infer", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        document = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"calibration: expected 200, got {answer.status}: {document}")
        _, _, rest = (answer.getheader("server-timing") or "").partition("execute;dur=")
        found.append(float(rest.partition(",")[0]) * 1e3 - document["outputs"][0]["data"][0] * 1e3)
    connection.close()


def _measure_between(server: Server, run: Run) -> float:
    """Return what a replica that always has work is busy for between two executions, µs."""
    looks: list[tuple[float, dict[str, Any]]] = []
    total = run.rate * (run.duration_us + run.warmup_us) / 1e6

    def look(begun: int, _ended: int) -> None:
        if (not looks and begun >= 0.3 * total) or (len(looks) == 1 and begun >= 0.95 * total):
            looks.append((time.monotonic(), fetch_statistics(server)))

    apply_load(server, SATURATED, run, look)
    if len(looks) != 2:
        raise RuntimeError(f"calibration: expected two looks at the statistics during the load, got {len(looks)}")
    (from_s, before), (to_s, after) = looks
    executions = after["execution_count"] - before["execution_count"]
    busy_us = _busy_us(after) - _busy_us(before)
    return float(max(((to_s - from_s) * 1e6 - busy_us) / executions, 0.0))


def _busy_us(statistics: dict[str, Any]) -> float:
    """Return the device time of all executions, µs."""
    steps = ("compute_input", "compute_infer", "compute_output")
    return float(sum(size[step]["ns"] for size in statistics["batch_stats"] for step in steps)) / 1e3
