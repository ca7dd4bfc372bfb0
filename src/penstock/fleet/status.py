"""The answer to `GET /api/status`: the fleet for people and scripts, as plain JSON values.

Durations are milliseconds or seconds here, as the key says: this is the edge. Not here: HTTP (`admin.py`).
"""

from typing import Any

from penstock.core.profiles import CostProfile
from penstock.core.statistics import Histogram, ModelStatistics, TenantStatistics
from penstock.fleet.view import TENANTS_MAX, FleetView, GatewayView, LimitView, ModelView, ReplicaView

__all__ = ["to_status"]


def to_status(view: FleetView) -> dict[str, Any]:
    """Return the status document."""
    return {
        "version": view.version,
        "http": f"http://{view.http}",
        "uptime_s": view.uptime_us / 1_000_000,
        "ready": view.is_ready,
        "draining": view.is_draining,
        "gateways": [_gateway(g) for g in view.gateways],
        "models": [_model(m, view.statistics.models.get(m.key, ModelStatistics())) for m in view.models],
        "limits": [_limit(v) for v in view.limits],
        "limit_calls": view.statistics.limit_calls,
        "limit_epochs": view.statistics.limit_epochs,
    }


def _gateway(gateway: GatewayView) -> dict[str, Any]:
    age_us = gateway.report_age_us
    return {
        "name": gateway.name,
        "pid": gateway.pid,
        "http": gateway.http,
        "state": gateway.state,
        "ready": gateway.is_ready,
        "report_age_s": None if age_us is None else age_us / 1_000_000,
        "restarts": gateway.restarts,
        "reason": gateway.reason,
        "last_exit": gateway.exit_text,
    }


def _model(model: ModelView, statistics: ModelStatistics) -> dict[str, Any]:
    spec = model.spec
    batching = None
    if spec is not None:
        batching = {
            "policy": spec.batching.policy,
            "mode": spec.batching.mode,
            "size_max": spec.batching.size_max,
            "wait_ms_max": spec.batching.wait_us_max / 1_000,
        }
    return {
        "name": model.name,
        "version": model.version,
        "state": model.state,
        "reason": model.reason,
        "ready": model.is_ready,
        "platform": None if spec is None else spec.platform,
        "slo_ms": None if spec is None or not spec.slo_us else spec.slo_us / 1_000,
        "batching": batching,
        "profile": {bucket: _profile(profile) for bucket, profile in model.profiles.items()},
        "replicas": [_replica(r) for r in model.replicas],
        "tenants": {name: _tenant(t) for name, t in statistics.heaviest_tenants(TENANTS_MAX)},
        "statistics": _summarise(statistics, model.weights),
    }


def _limit(limit: LimitView) -> dict[str, Any]:
    found = limit.finding
    return {
        "name": limit.name,
        "level": limit.level,
        "rule": limit.rule,
        "local": limit.statistics.local,
        "checked": limit.statistics.checked,
        "alone": limit.statistics.alone,
        "rejected": limit.statistics.rejected,
        "stranded_tokens": limit.statistics.stranded,
        "audited_buckets": 0 if found is None else found.buckets,
        "excess_max": None if found is None else found.excess_tokens,
        "under_delivery_ratio": None if found is None else found.under_delivery_ratio,
        "failover_loss_tokens": limit.loss_tokens,
    }


def _profile(profile: CostProfile) -> dict[str, Any]:
    return {
        "rows": list(profile.rows),
        "times_us": list(profile.times_us),
        "alpha_us": profile.alpha_us,
        "beta_us": profile.beta_us,
    }


def _tenant(tenant: TenantStatistics) -> dict[str, Any]:
    return {
        "requests": tenant.requests,
        "success": tenant.success,
        "refused": tenant.refused,
        "device_us": tenant.device_us,
    }


def _replica(replica: ReplicaView) -> dict[str, Any]:
    return {
        "name": replica.name,
        "pid": replica.pid,
        "address": replica.address,
        "state": replica.state,
        "restarts": replica.restarts,
        "load_ms": replica.load_us / 1_000,
        "reason": replica.reason,
        "last_exit": replica.exit_text,
    }


def _summarise(statistics: ModelStatistics, weights: dict[str, float]) -> dict[str, Any]:
    failed = sum(statistics.failures.values())
    requests = statistics.success + failed
    queue = statistics.steps.get("queue", Histogram())
    executions = statistics.execution_count
    return {
        "requests": requests,
        "failures": failed,
        "failures_by_reason": statistics.failures,
        "refusals_by_reason": statistics.refusals,
        "requests_by_class": statistics.classes,
        "goodput": statistics.in_time,
        "goodput_ratio": statistics.in_time / requests if requests else 1.0,
        "device_us": statistics.device_us,
        "wasted_us": statistics.wasted_us,
        "wasted_ratio": statistics.wasted_us / statistics.device_us if statistics.device_us else 0.0,
        "fairness_jain_ratio": statistics.fairness(weights),
        "concurrency_limit": statistics.limit,
        "ejections": statistics.ejections,
        "pending": statistics.pending,
        "retries": statistics.retries,
        "batch_rows_average": statistics.inference_count / executions if executions else 0.0,
        "batch_closes": statistics.closes,
        # Upper edges of power-of-two buckets: the true value is at most this, and more than half of it.
        "queue_us": {"p50": queue.quantile(0.50), "p95": queue.quantile(0.95)},
    }
