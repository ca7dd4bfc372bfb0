"""One generator process of `penstock bench`: takes its assignment from stdin, drives it, leaves arrays for the parent.

Started as `python -m penstock.cli.bench_worker`; not for people. The conversation is drawn in `load/crew.py`.
"""

import gc
import json
import os
import signal
import sys
from array import array
from typing import Any

import numpy as np

from penstock.adapters.chance import seeded_stream
from penstock.adapters.clock import now_us, process_cpu_us
from penstock.core.tensors import TensorSpec
from penstock.load import (
    Driver,
    DriverConfig,
    EpollNetwork,
    RequestPool,
    Target,
    build_request_pool,
    parse_arrivals,
    plan_arrivals,
    read_request_pool,
    read_trace,
)

__all__ = ["main", "make_pool", "make_schedule"]

_CONNECT_TIMEOUT_US = 5_000_000


def make_schedule(job: dict[str, Any]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the intended times of the whole run, all processes, warm-up included, µs from the start."""
    arrivals = parse_arrivals(job["arrivals"])
    trace = read_trace(arrivals.path) if arrivals.kind == "trace" else None
    rng = seeded_stream(job["seed"], "arrivals")
    duration_us = job["warmup_us"] + job["duration_us"]
    return plan_arrivals(arrivals, rng, rate=job["rate"], duration_us=duration_us, trace_us=trace)


def make_pool(job: dict[str, Any]) -> RequestPool:
    """Return the requests of the whole run, the same in every process."""
    target = Target(**job["target"])
    if job["input_path"]:
        return read_request_pool(target, job["input_path"], is_same=job["is_same"])
    inputs = [TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in job["inputs"]]
    return build_request_pool(target, inputs, seeded_stream(job["seed"], "inputs"), is_same=job["is_same"])


def _tell(kind: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **values}) + "\n")
    sys.stdout.flush()


def take_priority(*, is_wanted: bool) -> str:
    """Ask for real-time scheduling, as a client on another machine would not queue for the server's cores.

    Measured beside two busy loops on two cores, it took p99 lateness from 6 ms to 0.3 ms. Returns `realtime`, or
    `normal` if it was not wanted or the system does not permit it (it takes root or CAP_SYS_NICE).
    """
    if not is_wanted:
        return "normal"
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except OSError:
        return "normal"  # the report says so, and the lateness rule catches what it costs
    return "realtime"


def main() -> None:
    """Run one process's share: read a job, get ready, wait for the starting time, run, write the results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it kills its crew
    job = json.loads(sys.stdin.readline())
    index, count = job["process_index"], job["process_count"]
    pool = make_pool(job)
    times = make_schedule(job)[index::count]
    measured_from = int(np.searchsorted(times, job["warmup_us"]))
    schedule = array("q", times.tobytes())
    config = DriverConfig(
        connections_start=job["connections_start"],
        connections_max=job["connections_max"],
        timeout_us=job["timeout_us"],
        measured_from=measured_from,
    )
    driver = Driver(
        config,
        schedule,
        lambda i: pool.request(i * count + index),
        EpollNetwork((job["address"][0], job["address"][1]), job["family"]),
        now_us=now_us,
        cpu_us=process_cpu_us,
        on_progress=lambda begun, ended: _tell("progress", begun=begun, ended=ended),
    )
    driver.wait_connected(_CONNECT_TIMEOUT_US)
    _tell("ready")
    order = sys.stdin.readline()
    if not order:
        return  # the parent gave up
    gc.collect()
    gc.freeze()
    gc.disable()
    priority = take_priority(is_wanted=job["is_realtime"])
    recording = driver.run(json.loads(order)["start_at_us"])
    np.save(f"{job['results']}.latency.npy", np.frombuffer(recording.latency_us, dtype=np.int64))
    np.save(f"{job['results']}.lateness.npy", np.frombuffer(recording.lateness_us, dtype=np.int64))
    _tell(
        "done",
        cpu_us=recording.cpu_us,
        connections=recording.connections_opened,
        held=recording.held_count,
        distinct=pool.distinct_count,
        measured_from=measured_from,
        priority=priority,
        status_counts=recording.status_counts,
    )


if __name__ == "__main__":
    main()
