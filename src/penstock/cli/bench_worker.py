"""One generator process of `penstock bench` or `drill`: takes its assignment from stdin, leaves arrays for the parent.

Started as `python -m penstock.cli.bench_worker`; not for people. The conversation is drawn in `load/crew.py`.
"""

import gc
import json
import os
import signal
import socket
import sys
from array import array
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from penstock.adapters.chance import seeded_stream
from penstock.adapters.clock import now_us, process_cpu_us
from penstock.load import (
    Driver,
    DriverConfig,
    EpollNetwork,
    Job,
    Recording,
    RequestPool,
    Schedule,
    build_pools,
    plan_schedule,
)

__all__ = ["main", "share_requests"]

_CONNECT_TIMEOUT_US = 5_000_000


def share_requests(pools: list[RequestPool], schedule: Schedule, index: int, count: int) -> Callable[[int], bytes]:
    """Return the function that makes request i of the `index`-th of `count` processes' shares of a schedule."""
    if len(pools) == 1:
        pool = pools[0]
        return lambda i: pool.request(i * count + index)
    source = schedule.source[index::count].tobytes()
    ordinal = array("q", schedule.ordinal[index::count].tobytes())
    return lambda i: pools[source[i]].request(ordinal[i])


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


def _save(recording: Recording, results: str) -> None:
    for kind, values in (
        ("latency", recording.latency_us),
        ("lateness", recording.lateness_us),
        ("attempts", recording.attempts),
        ("delay", recording.delay_us),
    ):
        np.save(f"{results}.{kind}.npy", np.asarray(values))
    np.save(f"{results}.refusals.npy", np.asarray(recording.refusals).reshape(-1, 4))


def main() -> None:
    """Run one process's share: read a job, get ready, wait for the starting time, run, write the results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it kills its crew
    assignment = json.loads(sys.stdin.readline())
    index, count = assignment["process_index"], assignment["process_count"]
    job = msgspec.convert(assignment["job"], Job)

    def stream(name: str) -> np.random.Generator:
        return seeded_stream(job.seed, name)

    pools = build_pools(job, stream)
    schedule = plan_schedule(job, stream)
    times = schedule.times_us[index::count]
    measured_from = int(np.searchsorted(times, job.warmup_us))
    config = DriverConfig(
        connections_start=job.connections_start,
        connections_max=job.connections_max,
        timeout_us=job.timeout_us,
        measured_from=measured_from,
        retries=job.retries,
        backoff_us=job.backoff_us,
        is_spread=job.is_spread,
    )
    driver = Driver(
        config,
        array("q", times.tobytes()),
        share_requests(pools, schedule, index, count),
        EpollNetwork(job.address, socket.AddressFamily(job.family)),
        now_us=now_us,
        cpu_us=process_cpu_us,
        on_progress=lambda begun, ended: _tell("progress", begun=begun, ended=ended),
    )
    del schedule
    driver.wait_connected(_CONNECT_TIMEOUT_US)
    _tell("ready")
    order = sys.stdin.readline()
    if not order:
        return  # the parent gave up
    gc.collect()
    gc.freeze()
    gc.disable()
    priority = take_priority(is_wanted=job.is_realtime)
    recording = driver.run(json.loads(order)["start_at_us"])
    _save(recording, assignment["results"])
    _tell(
        "done",
        cpu_us=recording.cpu_us,
        connections=recording.connections_opened,
        held=recording.held_count,
        distinct=sum(pool.distinct_count for pool in pools),
        measured_from=measured_from,
        priority=priority,
        status_counts=recording.status_counts,
    )


if __name__ == "__main__":
    main()
