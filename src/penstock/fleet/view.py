"""What the fleet looks like at one instant: frozen records that the status page and the metrics are written from.

Not here: how it came about (`head.py`), JSON (`status.py`), Prometheus text (`metrics.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock.core.limit_text import LimitText, format_limit
from penstock.core.limits import ConcurrencyLimit, Failover, Limit, LimitSettings
from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics, LimitStatistics
from penstock.fleet.limit_audit import AuditFinding
from penstock.fleet.processes import ProcessUsage
from penstock.fleet.supervisor import Child
from penstock.wire.control import ModelEntry

__all__ = [
    "TENANTS_MAX",
    "FleetView",
    "GatewayView",
    "LimitView",
    "ModelView",
    "ProcessView",
    "ReplicaView",
    "rule_of",
    "view_gateway",
    "view_limits",
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

    `profiles` is what batches cost by length bucket, '' being the main one; empty until it is known. `key_weights` is
    what API keys say their tenants weigh.
    """

    name: str
    version: str
    state: str
    reason: str
    is_ready: bool
    spec: ModelSpec | None
    replicas: tuple[ReplicaView, ...]
    profiles: dict[str, CostProfile] = field(default_factory=dict)
    key_weights: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`name:version`, as statistics have it."""
        return f"{self.name}:{self.version}"

    @property
    def weights(self) -> dict[str, float]:
        """Share of device time by tenant; one that is not here has 1."""
        return self.key_weights | ({} if self.spec is None else dict(self.spec.weights))


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
    entry: ModelEntry,
    replicas: Iterable[Child],
    *,
    is_ready: bool,
    profiles: dict[str, CostProfile],
    key_weights: dict[str, float],
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
        key_weights=key_weights,
    )


@dataclass(frozen=True, slots=True)
class LimitView:
    """One limit, all of its buckets together, or all limits that belong to single keys, which have no level and rule.

    `finding` is None of concurrency limits, which are not audited. `loss_tokens` is what one bucket may have admitted
    twice because writes were lost when the authority last became another; 0 if it never did.
    """

    name: str
    level: str
    rule: str
    statistics: LimitStatistics
    finding: AuditFinding | None
    loss_tokens: int


def view_limits(
    settings: LimitSettings, statistics: GatewayStatistics, findings: dict[str, AuditFinding]
) -> tuple[LimitView, ...]:
    """Return the limits as they are now: those of the configuration, then what else was counted."""
    limits = {limit.name: limit for limit in settings.limits}
    lag_us = settings.lag_us_max if statistics.limit_epochs else 0
    return tuple(
        LimitView(
            name=name,
            level="" if limit is None else limit.level.value,
            rule="" if limit is None else rule_of(limit),
            statistics=statistics.limits.get(name, LimitStatistics()),
            finding=None if isinstance(limit, ConcurrencyLimit) else findings.get(name, AuditFinding()),
            loss_tokens=_loss_of(limit, lag_us),
        )
        for name in dict.fromkeys((*limits, *statistics.limits, *findings))
        for limit in [limits.get(name)]
    )


def rule_of(limit: Limit) -> str:
    """Return what a limit allows, for people: `100/s burst 200`, `4 at once`."""
    if isinstance(limit, ConcurrencyLimit):
        return f"{limit.slots} at once"
    return format_limit(LimitText(limit.tokens, limit.per_us, limit.burst, limit.cost))


def _loss_of(limit: Limit | None, lag_us: int) -> int:
    """Return the tokens that went with the writes of the last `lag_us`, at most: 0 if none was lost."""
    if not lag_us or limit is None or isinstance(limit, ConcurrencyLimit) or limit.failover is Failover.HARD:
        return 0
    return limit.burst + -(-limit.tokens * lag_us // limit.per_us)


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
    limits: tuple[LimitView, ...] = ()
