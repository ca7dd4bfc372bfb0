"""The trace that the live gateway and the simulator are both put through, and when each request of it is sent.

Mixed rows, tenants, classes and deadlines; callers that hang up; a burst into overload; a replica that is slower than
the others and one that dies and comes back. Not here: either side that it is played to (`virtual_fleet.py`, `sim/`).
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from penstock.adapters.chance import seeded_stream
from penstock.core.arrivals import Arrivals, plan_arrivals
from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.policy.queueing import BATCH
from penstock.sim import DeviceModel, Fault, Overheads, Scenario, Source, StreamFactory

__all__ = ["CASES", "SEEDS", "Sending", "plan_sendings", "scenario_of", "stream_of"]

SEEDS = (1, 2, 3)
SIZE_MAX = 16
CASES: dict[str, Batching] = {
    "deadline-latency": Batching("deadline", "latency", SIZE_MAX),
    "deadline-throughput": Batching("deadline", "throughput", SIZE_MAX),
    "deadline-fair": Batching("deadline", "fair", SIZE_MAX),
    "size-or-timeout-eager": Batching("size_or_timeout", "latency", SIZE_MAX, wait_us_max=5_000),
    "size-or-timeout": Batching("size_or_timeout", "latency", SIZE_MAX, wait_us_max=5_000, eager=False),
    "adaptive": Batching("adaptive", "latency", SIZE_MAX),
}

# One row takes 3.4 ms, sixteen take 9.4 ms; three replicas carry 5,100 rows per second at best.
PROFILE = CostProfile.from_line(beta_us=3_000, alpha_us=400, size_max=SIZE_MAX)
# Every source sends at four times its rate for a fifth of the time: from 2,000 to 8,000 rows per second.
BURST = Arrivals("step", factor=4.0, from_s=0.6, to_s=0.9)
SLOW = Fault("slow_device", at_us=300_000, duration_us=180_000, index=1, factor=5.0)
DEATH = Fault("replica_death", at_us=1_100_000, duration_us=100_000, index=0)
_FLOAT_BYTES = 4


def _source(name: str, rate: float, rows: int, **terms: object) -> Source:
    return Source(name, BURST, rate, rows=(rows,), nbytes=_FLOAT_BYTES * rows, **terms)  # type: ignore[arg-type]  # fields by name, each of its own type


def scenario_of(case: str, *, gateways: int = 1) -> Scenario:
    """Return the trace as a scenario under one of `CASES`. With several gateways no replica dies."""
    return Scenario(
        case,
        sources=(
            _source("web", 500.0, 1),
            _source("acme", 100.0, 4, tenant="acme"),
            _source("strict", 150.0, 2, tenant="bolt", deadline_us=22_000),
            _source("impatient", 100.0, 1, tenant="bolt", patience_us=13_000),
            _source("bulk", 90.0, 8, tenant="acme", request_class=BATCH, deadline_us=400_000),
        ),
        device=DeviceModel(PROFILE, speeds=(1.0, 1.0, 0.8), noise=(0.9, 0.95, 1.0, 1.05, 1.2)),
        duration_us=1_900_000,
        batching=CASES[case],
        bounds=QueueBounds(requests_max=96),
        slo_us=50_000,
        timeout_us=1_000_000,
        weights=(("acme", 2.0),),
        replicas=3,
        gateways=gateways,
        overheads=Overheads(batch_us=301, replica_us=70),
        faults=(SLOW, DEATH) if gateways == 1 else (SLOW,),
    )


def stream_of(seed: int) -> StreamFactory:
    """Return chance by name under a seed."""
    return partial(seeded_stream, seed)


class Sending(NamedTuple):
    """One request of the trace; its index is its place in it."""

    at_us: int
    source: Source
    gateway: int


def plan_sendings(scenario: Scenario, stream: StreamFactory) -> list[Sending]:
    """Return what is sent when, in order: the same streams of chance as the simulator's give the same trace."""
    planned = [
        plan_arrivals(source.arrivals, stream(f"{source.name} arrivals"), rate=source.rate, duration_us=scenario.end_us)
        for source in scenario.sources
    ]
    at_us = np.concatenate(planned)
    sources = np.repeat(np.arange(len(planned)), [len(times) for times in planned])
    order = np.argsort(at_us, kind="stable")
    gateways = stream("gateways").integers(scenario.gateways, size=len(order))
    return [
        Sending(int(at_us[k]), scenario.sources[sources[k]], int(gateway))
        for k, gateway in zip(order, gateways, strict=True)
    ]
