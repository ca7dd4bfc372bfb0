"""A whole fleet in memory, as the head sees it: one of everything that it can show."""

from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics, Histogram, LimitStatistics, ModelStatistics, TenantStatistics
from penstock.fleet.limit_audit import AuditFinding
from penstock.fleet.processes import ProcessUsage
from penstock.fleet.view import FleetView, GatewayView, LimitView, ModelView, ProcessView, ReplicaView

__all__ = ["full_view"]


def full_view() -> FleetView:
    """Return a fleet of which every family of metrics has a sample."""
    statistics = GatewayStatistics(
        models={
            "m:1": ModelStatistics(
                failures={"REJECTED": 1},
                refusals={"expired": 1},
                closes={"full": 1},
                steps={"queue": Histogram()},
                classes={"interactive": 1},
                tenants={"": TenantStatistics()},
            )
        },
        responses={200: 1},
        protocol_errors={"malformed": 1},
        timeouts={"idle": 1},
    )
    replica = ReplicaView("m:1#0", 2, "unix:/r", "ready", 0, 0, "", "")
    return FleetView(
        version="1",
        http="127.0.0.1:8000",
        uptime_us=1,
        is_ready=True,
        is_draining=False,
        gateways=(GatewayView("gateway-0", 1, "127.0.0.1:8000", "ready", True, 0, 0, "", ""),),
        models=(ModelView("m", "1", "READY", "", True, None, (replica,), {"": CostProfile((1,), (1,))}),),
        processes=(ProcessView("head", "head", ProcessUsage(1, 1)),),
        statistics=statistics,
        limits=(LimitView("per-user", "user", "100/s", LimitStatistics(), AuditFinding(), 0),),
    )
