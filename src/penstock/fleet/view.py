"""What the fleet looks like at one instant: frozen records that the status page and the metrics are written from.

Not here: how it came about (`head.py`), JSON (`status.py`), Prometheus text (`metrics.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics
from penstock.fleet.processes import ProcessUsage
from penstock.fleet.supervisor import Child
from penstock.wire.control import ModelEntry

__all__ = [
    "TENANTS_MAX",
    "FleetView",
    "GatewayView",
    "ModelView",
    "ProcessView",
    "ReplicaView",
    "view_gateway",
    "view_model",
]

# Of more tenants the heaviest are shown: each is a time series for whoever scrapes, and the rest add up to little.
TENANTS_MAX = 100


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One gateway. `report_age_us` is None before its first report."""

    name: str
    pid: int | None
    http: str
    state: str
    is_ready: bool
    report_age_us: int | None
    restarts: int
    reason: str
    exit_text: str


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica."""

    name: str
    pid: int | None
    address: str
    state: str
    restarts: int
    load_us: int
    reason: str
    exit_text: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model version. `spec` is None until a first replica has loaded it; `is_ready` is what all gateways found.

    `profiles` is what batches cost by length bucket, '' being the main one; empty until it is known.
    """

    name: str
    version: str
    state: str
    reason: str
    is_ready: bool
    spec: ModelSpec | None
    replicas: tuple[ReplicaView, ...]
    profiles: dict[str, CostProfile] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`name:version`, as statistics have it."""
        return f"{self.name}:{self.version}"

    @property
    def weights(self) -> dict[str, float]:
        """Share of device time by tenant; one that is not here has 1."""
        return {} if self.spec is None else dict(self.spec.weights)


def view_gateway(child: Child, *, is_ready: bool, report_age_us: int | None) -> GatewayView:
    """Return a gateway as it is now."""
    return GatewayView(
        name=child.name,
        pid=None if child.process is None else child.process.pid,
        http=child.address,
        state=child.state.value,
        is_ready=is_ready,
        report_age_us=report_age_us,
        restarts=child.restarts,
        reason=child.reason,
        exit_text=child.exit_text,
    )


def view_model(
    entry: ModelEntry, replicas: Iterable[Child], *, is_ready: bool, profiles: dict[str, CostProfile]
) -> ModelView:
    """Return a model as it is now."""
    return ModelView(
        name=entry.name,
        version=entry.version,
        state=entry.state,
        reason=entry.reason,
        is_ready=is_ready,
        spec=entry.spec,
        replicas=tuple(
            ReplicaView(
                name=child.name,
                pid=None if child.process is None else child.process.pid,
                address=child.address,
                state=child.state.value,
                restarts=child.restarts,
                load_us=child.load_us,
                reason=child.reason,
                exit_text=child.exit_text,
            )
            for child in replicas
        ),
        profiles=profiles,
    )


@dataclass(frozen=True, slots=True)
class ProcessView:
    """What one living process has used."""

    role: str
    name: str
    usage: ProcessUsage


@dataclass(frozen=True, slots=True)
class FleetView:
    """Everything. `statistics` is the sum over all gateways that ever were under this head."""

    version: str
    http: str
    uptime_us: int
    is_ready: bool
    is_draining: bool
    gateways: tuple[GatewayView, ...]
    models: tuple[ModelView, ...]
    processes: tuple[ProcessView, ...]
    statistics: GatewayStatistics
