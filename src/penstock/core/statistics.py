"""What each process counts, and how counts of several processes add up.

Counters only ever grow within one process, so the sum over processes (dead ones included) never falls. A histogram
has one bucket per power of two: cheap enough for the hot path (one `bit_length`, two additions), at most 2x wide.
Not here: Prometheus text (`fleet/metrics.py`), OIP statistics JSON (`wire/oip.py`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

__all__ = [
    "BUCKET_COUNT",
    "BatchStatistics",
    "GatewayStatistics",
    "Histogram",
    "LimitStatistics",
    "ModelStatistics",
    "TenantStatistics",
    "jain_index",
    "merge_statistics",
]

# The last bucket begins at 2^27 µs = 134 s, far past any deadline we would keep.
BUCKET_COUNT = 29


class Histogram(msgspec.Struct, array_like=True):
    """Counts of non-negative integers by power of two: `counts[k]` holds values of `(v).bit_length() == k`.

    So bucket 0 holds 0, bucket k holds 2^(k-1) .. 2^k - 1, and its upper edge is 2^k - 1; the last is open.
    """

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKET_COUNT)
    total: int = 0  # sum of the observed values

    def observe(self, value: int, times: int = 1) -> None:
        """Count `value` (>= 0) `times` times. Cost: under 0.2 µs."""
        k = value.bit_length()
        self.counts[k if k < BUCKET_COUNT else -1] += times
        self.total += value * times

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def quantile(self, q: float) -> int:
        """Return the upper edge of the bucket that holds quantile `q` (0-1); 0 if nothing was observed."""
        rank = q * self.count
        seen = 0
        for k, n in enumerate(self.counts):
            seen += n
            if n and seen >= rank:
                return (1 << k) - 1
        return 0

    def merge(self, other: "Histogram") -> None:
        """Add another histogram's counts to this one."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class BatchStatistics(msgspec.Struct, array_like=True):
    """Executions of one batch size (rows)."""

    count: int = 0
    input_us: int = 0
    execute_us: int = 0
    output_us: int = 0


class TenantStatistics(msgspec.Struct, array_like=True):
    """What one tenant asked of one model version, and what it got.

    Attributes:
        requests: Requests that ended, however they ended.
        success: Those answered 2xx.
        refused: Those refused before execution.
        device_us: Its share of the device time of executed batches, µs.
    """

    requests: int = 0
    success: int = 0
    refused: int = 0
    device_us: int = 0


class ModelStatistics(msgspec.Struct):
    """Counts of one model version in one gateway. Durations are sums in µs over requests unless a name says batch.

    Attributes:
        success: Requests answered 2xx.
        failures: Requests not answered 2xx, by Triton's reason: REJECTED (refused before execution, a passed
            deadline included), CANCELED (the client went away), BACKEND (the model or its replica failed), OTHER.
        refusals: The same refusals by our finer reason: queue_full, queue_bytes, expired, disconnected,
            replica_lost, draining, unavailable, invalid.
        inference_count: Rows executed; `execution_count`: batches executed. Their ratio is the average batch.
        closes: Batches by the reason they were closed: full, timeout, idle, alone.
        retries: Requests executed again because their replica died.
        pending: Requests waiting now (a gauge).
        in_time: Requests answered 2xx no later than their deadline: goodput, counted.
        device_us: Device time of all executed batches, µs.
        wasted_us: The part of it spent on requests whose answer was of no use: late, abandoned or failed, µs.
        fill: Rows of each batch in percent of `size_max`, 0 to 100.
        classes: Requests that ended, by class: interactive, batch.
        tenants: Requests and device time by tenant.
        limit: Requests that may be in the system at once (a gauge); 0 while no such limit is in force.
        ejections: Times a replica was taken out because it was slow.
    """

    success: int = 0
    success_us: int = 0
    failure_us: int = 0
    failures: dict[str, int] = msgspec.field(default_factory=dict)
    refusals: dict[str, int] = msgspec.field(default_factory=dict)
    queue_us: int = 0
    input_us: int = 0
    execute_us: int = 0
    output_us: int = 0
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0  # wall clock, ms since the epoch, 0 if never
    batches: dict[int, BatchStatistics] = msgspec.field(default_factory=dict)
    closes: dict[str, int] = msgspec.field(default_factory=dict)
    retries: int = 0
    pending: int = 0
    batch_rows: Histogram = msgspec.field(default_factory=Histogram)  # rows per batch
    # µs per request: decode, queue, dispatch, execute, reply
    steps: dict[str, Histogram] = msgspec.field(default_factory=dict)
    in_time: int = 0
    device_us: int = 0
    wasted_us: int = 0
    fill: Histogram = msgspec.field(default_factory=Histogram)
    classes: dict[str, int] = msgspec.field(default_factory=dict)
    tenants: dict[str, TenantStatistics] = msgspec.field(default_factory=dict)
    limit: int = 0
    ejections: int = 0

    def heaviest_tenants(self, count_max: int) -> list[tuple[str, TenantStatistics]]:
        """Return the tenants with the most device time, at most `count_max`, the heaviest first."""
        by_weight = sorted(self.tenants.items(), key=lambda item: (-item[1].device_us, -item[1].requests, item[0]))
        return by_weight[:count_max]

    def fairness(self, weights: Mapping[str, float]) -> float:
        """Return Jain's index over the tenants' device time, each by its weight (1 if it is not in `weights`)."""
        return jain_index(t.device_us / weights.get(name, 1.0) for name, t in self.tenants.items())


class LimitStatistics(msgspec.Struct, array_like=True):
    """Decisions under one limit, all of its keys together.

    Attributes:
        local: Admitted by tokens lent to the gateway.
        checked: Admitted by the authority.
        alone: Admitted although the authority did not answer, as `unreachable` says.
        rejected: Rejected, by whomever.
        stranded: Tokens lent to the gateway that ran out unused.
    """

    local: int = 0
    checked: int = 0
    alone: int = 0
    rejected: int = 0
    stranded: int = 0


class GatewayStatistics(msgspec.Struct):
    """Counts of one gateway process.

    Attributes:
        models: By (name, version), written `name:version`.
        responses: HTTP responses by status code.
        connections: Open client connections now (a gauge).
        connections_total: Client connections ever accepted.
        protocol_errors: Connections closed for HTTP that could not be answered in good order, by reason.
        timeouts: Connections closed by the header, body or idle timeout, by which.
        parse: µs from the first byte of a request at hand to the last.
        limits: By the name of the limit.
        limit_calls: Calls to the authority over limits; one carries the operations of one turn of the event loop.
        limit_epochs: Times the authority came back as another: it may have lost what it knew.
    """

    models: dict[str, ModelStatistics] = msgspec.field(default_factory=dict)
    responses: dict[int, int] = msgspec.field(default_factory=dict)
    connections: int = 0
    connections_total: int = 0
    protocol_errors: dict[str, int] = msgspec.field(default_factory=dict)
    timeouts: dict[str, int] = msgspec.field(default_factory=dict)
    parse: Histogram = msgspec.field(default_factory=Histogram)
    limits: dict[str, LimitStatistics] = msgspec.field(default_factory=dict)
    limit_calls: int = 0
    limit_epochs: int = 0


_GAUGES = frozenset({"pending", "limit", "connections"})
_MAXIMA = frozenset({"last_inference_ms"})


def _merge(into: msgspec.Struct, other: msgspec.Struct, *, gauges: bool) -> None:
    for name in into.__struct_fields__:
        mine, theirs = getattr(into, name), getattr(other, name)
        if isinstance(mine, Histogram):
            mine.merge(theirs)
        elif isinstance(mine, dict):
            _merge_dict(mine, theirs, gauges=gauges)
        elif name in _MAXIMA:
            setattr(into, name, max(mine, theirs))
        elif gauges or name not in _GAUGES:
            setattr(into, name, mine + theirs)


def _merge_dict(into: dict[Any, Any], other: dict[Any, Any], *, gauges: bool) -> None:
    for key, value in other.items():
        if isinstance(value, int):
            into[key] = into.get(key, 0) + value
        elif isinstance(value, Histogram):
            into.setdefault(key, Histogram()).merge(value)
        else:
            _merge(into.setdefault(key, type(value)()), value, gauges=gauges)


def merge_statistics(alive: list[GatewayStatistics], dead: list[GatewayStatistics]) -> GatewayStatistics:
    """Add up all gateways. Of dead ones the counters count and the gauges do not."""
    total = GatewayStatistics()
    for statistics in alive:
        _merge(total, statistics, gauges=True)
    for statistics in dead:
        _merge(total, statistics, gauges=False)
    return total


def jain_index(shares: Iterable[float]) -> float:
    """Return how evenly something is shared out: from 1/n, where one of n has it all, to 1, where all have the same.

    Divide each share by its owner's weight first where weights differ. Fewer than two owners, or nothing shared out,
    is fair: 1.

    Args:
        shares: What each got, >= 0, in any unit.

    Source: R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource Allocation
    in Shared Computer Systems", DEC TR-301, 1984.
    """
    listed = list(shares)
    squares = sum(share * share for share in listed)
    if len(listed) < 2 or not squares:
        return 1.0
    return min(float(sum(listed)) ** 2 / (len(listed) * squares), 1.0)
