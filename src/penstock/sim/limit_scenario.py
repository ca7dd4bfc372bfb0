"""What a simulation of a fleet under rate limits is given: the limits, the load, the network, the clocks, the faults.

Frozen and plain, so that tests build scenarios in code. Not here: what happens then (`limit_fleet.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.core.arrivals import Arrivals
from penstock.core.limits import Quota

__all__ = ["LIMIT_FAULT_KINDS", "LimitFault", "LimitNetwork", "LimitScenario", "LimitSource"]

LIMIT_FAULT_KINDS = ("pause", "crash", "clock_back", "failover", "restart")


@dataclass(frozen=True, slots=True)
class LimitSource:
    """Who sends requests.

    Args:
        demands: Key and tokens of each bucket that a request takes from; at least one.
        rate: Mean requests per second, to all gateways together.
        arrivals: How they come.
        shares: Of the requests, by gateway; () for equal ones.
        settled: If given, requests are checked and later settled, at a cost drawn evenly between these two.
        service_us: How long after it was admitted such a request is settled, µs.
    """

    demands: tuple[tuple[str, int], ...]
    rate: float
    arrivals: Arrivals = field(default_factory=lambda: Arrivals("poisson"))
    shares: tuple[float, ...] = ()
    settled: tuple[int, int] | None = None
    service_us: int = 0


@dataclass(frozen=True, slots=True)
class LimitNetwork:
    """How messages travel, either way: each by itself, so that they overtake each other.

    Args:
        delay_us: Least delay, µs; the mean of what comes on top of it, exponentially, is as much again.
        slow_ratio, slow_us: So many of them take up to so much longer, µs.
        loss_ratio, duplicate_ratio: Never arrive; arrive twice.
    """

    delay_us: int = 100
    slow_ratio: float = 0.0
    slow_us: int = 0
    loss_ratio: float = 0.0
    duplicate_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitFault:
    """What goes wrong.

    Args:
        kind: `pause` and `crash` (of the gateway `index`, for `duration_us`: one stops with its clock running on, the
            other begins anew under another name), `clock_back` (the authority's, by `duration_us`), `failover` (to a
            replica that `operations` have not reached), `restart` (of the authority, which forgets everything).
        at_us: When.
    """

    kind: str
    at_us: int
    index: int = 0
    duration_us: int = 0
    operations: int = 0


@dataclass(frozen=True, slots=True)
class LimitScenario:
    """One fleet and all that happens to it.

    Args:
        name: For people.
        quotas: Of each key.
        sources: The load.
        gateways: How many.
        duration_us: How long requests are sent, µs.
        lease_us, deadline_us: As `core.limits.LimitSettings`.
        network, faults: See there.
        drifts_ppm: By how much each gateway's clock runs fast, millionths; () for not at all.
        tend_us: How often gateways return what nobody asks for, µs.
        forget_us: How often the authority forgets keys that are as good as new, µs.
    """

    name: str
    quotas: Mapping[str, Quota]
    sources: tuple[LimitSource, ...]
    gateways: int
    duration_us: int
    lease_us: int = 1_000_000
    deadline_us: int = 10_000
    network: LimitNetwork = LimitNetwork()
    faults: tuple[LimitFault, ...] = ()
    drifts_ppm: tuple[int, ...] = ()
    tend_us: int = 250_000
    forget_us: int = 500_000
