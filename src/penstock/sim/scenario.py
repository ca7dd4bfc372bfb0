"""What is simulated, in full: the load, the fleet, the device, the overheads, the faults.

What is not stated costs no time. Frozen and plain, so that planners, benchmarks and tests build scenarios in code.
Not here: reading one from TOML and saying what is wrong with it (`cli/scenario.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from penstock.core.arrivals import Arrivals, Times
from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.policy.queueing import INTERACTIVE, RequestClass

__all__ = ["FAULT_KINDS", "DeviceModel", "Fault", "Overheads", "Scenario", "Service", "Source", "StreamFactory"]

FAULT_KINDS = ("replica_death", "slow_device", "gateway_stall")

# A stream of chance by name: the same name gives the same numbers again, different names independent ones.
StreamFactory = Callable[[str], np.random.Generator]

# Device time of one execution in µs, by its rows.
Service = Callable[[int, np.random.Generator], float]


@dataclass(frozen=True, slots=True)
class Source:
    """Who sends requests: either an open loop (`rate`) or a closed one (`clients`).

    Args:
        name: Unique; names its streams of chance.
        arrivals: Open loop: the arrival process.
        rate: Open loop: mean requests per second, > 0.
        trace_us: Open loop of kind `trace`: its times, µs, as `load.read_trace` returns them.
        clients: Closed loop: how many, each with at most one request outstanding. 0: an open loop.
        think_us: Closed loop: mean time between an answer and the next request, exponential, µs. 0: none.
        rows: Rows of a request, drawn uniformly from these.
        nbytes: Bytes of its inputs, for the queue's bound in bytes.
        tenant: Whom its device time is charged to.
        request_class: `INTERACTIVE` or `BATCH` of `policy/queueing.py`.
        deadline_us: Time that each request allows, µs; 0: the model's, by class.
        hit_ratio: Share of requests answered by a response cache in front of the queue, independently of each other:
            enough to see what a hit ratio saves; which keys hit is not simulated.
        retries: How often a request that was refused, in whatever way, is sent again.
        retry_after_us: How long a caller waits before that, µs; 0: as it was told, at most 100 ms. A client that gives
            a request up waits as long before it thinks of the next.
        patience_us: A caller that has waited so long for one try is gone, µs; 0: never.
    """

    name: str
    arrivals: Arrivals = field(default_factory=lambda: Arrivals("poisson"))
    rate: float = 0.0
    trace_us: Times | None = None
    clients: int = 0
    think_us: int = 0
    rows: tuple[int, ...] = (1,)
    nbytes: int = 0
    tenant: str = ""
    request_class: RequestClass = INTERACTIVE
    deadline_us: int = 0
    hit_ratio: float = 0.0
    retries: int = 0
    retry_after_us: int = 0
    patience_us: int = 0


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """How long executions take, in truth. The scheduler is told `profile` and must find out the rest.

    Args:
        profile: Typical device time by rows.
        speeds: How fast each replica is, in replica order, 1 as the profile says; replicas beyond them are 1.
        noise_ratio: Standard deviation of a lognormal factor of mean 1 on every execution.
        noise: Measured factors, one of which is drawn uniformly for each execution, instead of the lognormal.
        outlier_ratio: Share of executions that take `outlier_factor` times as long on top.
        outlier_factor: See there.
        service: Draws the device time itself in place of profile and noise, for queues known from theory.
    """

    profile: CostProfile
    speeds: tuple[float, ...] = ()
    noise_ratio: float = 0.0
    noise: tuple[float, ...] = ()
    outlier_ratio: float = 0.0
    outlier_factor: float = 1.0
    service: Service | None = None


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a request and a batch cost besides device time, µs.

    Args:
        request_us: From a caller's sending to the gateway's having read it. A delay: many overlap.
        gateway_us: CPU time of the gateway for one request, between reading and queueing. One at a time.
        reply_us: From a gateway's answer to the caller's having it. A delay.
        batch_us: From a gateway to a replica and back, beyond waiting and executing; half of it each way. A delay.
        replica_us: What the replica is busy for in each execution beyond device time. One at a time.
        jitter_us: How late a gateway's timer may fire, uniform from 0.
    """

    request_us: int = 0
    gateway_us: int = 0
    reply_us: int = 0
    batch_us: int = 0
    replica_us: int = 0
    jitter_us: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong from `at_us` for `duration_us`.

    Args:
        kind: One of `FAULT_KINDS`: a replica dies and is back after the duration; a replica takes `factor` times as
            long; a gateway stands still, while the world goes on.
        at_us: µs from the start of the run.
        duration_us: µs.
        index: Which replica, or which gateway.
        factor: Of `slow_device`.
    """

    kind: str
    at_us: int
    duration_us: int
    index: int = 0
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One model, its fleet and its load.

    Args:
        name: For people.
        sources: Who sends.
        device: What executes.
        duration_us: Measured time, µs, after the warm-up.
        warmup_us: Time before it, simulated and not measured, µs.
        seed: What `penstock simulate` seeds the streams with unless told otherwise; not read here.
        batching: When batches are closed.
        bounds: How much may wait in one gateway.
        slo_us: As in `ModelSpec`: 0 if none is stated.
        timeout_us: As in `ModelSpec`.
        weights: Fair share of each tenant; 1 for others.
        replicas: How many, >= 1.
        gateways: How many, >= 1; each has a scheduler of its own.
        overheads: What is paid besides device time.
        faults: What goes wrong.
    """

    name: str
    sources: tuple[Source, ...]
    device: DeviceModel
    duration_us: int
    warmup_us: int = 0
    seed: int = 1
    batching: Batching = field(default_factory=Batching)
    bounds: QueueBounds = field(default_factory=QueueBounds)
    slo_us: int = 0
    timeout_us: int = 30_000_000
    weights: tuple[tuple[str, float], ...] = ()
    replicas: int = 1
    gateways: int = 1
    overheads: Overheads = field(default_factory=Overheads)
    faults: tuple[Fault, ...] = ()

    def allowed_us(self, source: Source) -> int:
        """Return how long a request of `source` may take, µs: what it says, else what the model says for its class."""
        if source.deadline_us:
            return source.deadline_us
        return self.slo_us if self.slo_us and source.request_class == INTERACTIVE else self.timeout_us

    @property
    def end_us(self) -> int:
        """When the last request arrives at the latest, µs from the start of the run."""
        return self.warmup_us + self.duration_us

    @property
    def rate(self) -> float:
        """Mean requests per second of all open loops."""
        return sum(source.rate for source in self.sources if not source.clients)

    def at_rate(self, rate: float) -> "Scenario":
        """Return the same scenario with all open loops scaled so that together they send `rate` per second, > 0."""
        assert self.rate > 0
        factor = rate / self.rate
        return replace(self, sources=tuple(replace(source, rate=source.rate * factor) for source in self.sources))

    def with_policy(self, policy: str) -> "Scenario":
        """Return the same scenario under another policy of `POLICIES`."""
        return replace(self, batching=replace(self.batching, policy=policy))
