"""`GET /metrics`: the sum over all gateways in Prometheus text, under Triton's names and our own.

Triton's counters have no `_total` suffix, dashboards depend on that, and prometheus_client always adds one: so the
text is written here, by the format's rules. Not here: counting (`core/statistics.py`), summing (`ledger.py`).
Source: Prometheus text exposition format 0.0.4; Triton Inference Server "Metrics".
"""

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from penstock.core.statistics import Histogram, LimitStatistics, ModelStatistics, TenantStatistics
from penstock.fleet.limit_audit import AuditFinding
from penstock.fleet.view import TENANTS_MAX, FleetView, ModelView

__all__ = ["CONTENT_TYPE", "render_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Bucket k of a Histogram of durations holds values below 2^k µs. From 8 µs (a clock read and a cache miss) to 67 s
# (past every deadline), each twice the last; narrower and wider ones are counted in the first and in +Inf.
_DURATION_EXPONENTS = range(3, 27)
# Bucket k of a Histogram of row counts holds values up to 2^k - 1: 1 to 4095 rows.
_ROWS_EXPONENTS = range(1, 13)
# Bucket k of a Histogram of percentages holds values up to 2^k - 1; the one that reaches past 100 holds the rest.
_PERCENT_EDGES = (*((k, ((1 << k) - 1) / 100) for k in range(1, 7)), (7, 1.0))

_TRITON_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], int]], ...] = (
    ("nv_inference_request_success", "Successful inference requests.", lambda s: s.success),
    ("nv_inference_count", "Inferences performed (rows).", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Model executions performed (batches).", lambda s: s.execution_count),
    ("nv_inference_request_duration_us", "Cumulative request duration, µs.", lambda s: s.success_us),
    ("nv_inference_queue_duration_us", "Cumulative queue duration, µs.", lambda s: s.queue_us),
    ("nv_inference_compute_input_duration_us", "Cumulative input duration, µs.", lambda s: s.input_us),
    ("nv_inference_compute_infer_duration_us", "Cumulative inference duration, µs.", lambda s: s.execute_us),
    ("nv_inference_compute_output_duration_us", "Cumulative output duration, µs.", lambda s: s.output_us),
)
_OWN_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("penstock_retries_total", "Requests executed again because their replica died.", lambda s: s.retries),
    ("penstock_goodput_total", "Requests answered well, no later than their deadline.", lambda s: s.in_time),
    ("penstock_device_seconds_total", "Device time of executed batches.", lambda s: s.device_us / 1e6),
    ("penstock_wasted_device_seconds_total", "Device time spent for nothing.", lambda s: s.wasted_us / 1e6),
    ("penstock_replica_ejections_total", "Times a replica was taken out for slowness.", lambda s: s.ejections),
)
_TENANT_COUNTERS: tuple[tuple[str, str, Callable[[TenantStatistics], float]], ...] = (
    ("penstock_tenant_requests_total", "Requests of a tenant.", lambda t: t.requests),
    ("penstock_tenant_refused_total", "Requests of a tenant refused before execution.", lambda t: t.refused),
    ("penstock_tenant_device_seconds_total", "Device time of a tenant's requests.", lambda t: t.device_us / 1e6),
)
_LIMIT_OUTCOMES: tuple[tuple[str, Callable[[LimitStatistics], int]], ...] = (
    ("local", lambda s: s.local),
    ("checked", lambda s: s.checked),
    ("alone", lambda s: s.alone),
    ("rejected", lambda s: s.rejected),
)
_AUDIT_FAMILIES: tuple[tuple[str, str, Callable[[AuditFinding], float]], ...] = (
    (
        "penstock_limit_excess_max",
        "Tokens by which the worst window of a sampled bucket was over its bound; must be 0.",
        lambda found: found.excess_tokens,
    ),
    (
        "penstock_limit_under_delivery_ratio",
        "Share of what an ideal bucket would have admitted that was refused, of sampled buckets, of late.",
        lambda found: found.under_delivery_ratio,
    ),
    ("penstock_limit_audited_buckets", "Buckets that are sampled.", lambda found: found.buckets),
)
_TRITON_FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_REPLICA_STATES = ("waiting", "loading", "ready", "stopping")

_Labels = dict[str, str]


@dataclass(slots=True)
class _Page:
    """The text so far. A family is begun once and its samples follow, as the format demands."""

    lines: list[str] = field(default_factory=list)

    def family(self, name: str, kind: str, description: str) -> None:
        """Begin a family of type `kind`."""
        escaped = description.replace("\\", "\\\\").replace("\n", "\\n")
        self.lines += [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]

    def sample(self, name: str, labels: _Labels, value: float) -> None:
        """Write one sample."""
        written = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        self.lines.append(f"{name}{{{written}}} {value}" if written else f"{name} {value}")

    def simple(self, name: str, kind: str, description: str, samples: Iterable[tuple[_Labels, float]]) -> None:
        """Write a family of counters or gauges whole."""
        self.family(name, kind, description)
        for labels, value in samples:
            self.sample(name, labels, value)

    def durations(self, name: str, labels: _Labels, histogram: Histogram) -> None:
        """Write a histogram of µs as one of seconds. Truncation to µs makes `< 2^k µs` exact as `le`."""
        edges = [(k, (1 << k) / 1_000_000) for k in _DURATION_EXPONENTS]
        self._histogram(name, labels, histogram, edges, histogram.total / 1_000_000)

    def rows(self, name: str, labels: _Labels, histogram: Histogram) -> None:
        """Write a histogram of row counts."""
        edges = [(k, (1 << k) - 1) for k in _ROWS_EXPONENTS]
        self._histogram(name, labels, histogram, edges, histogram.total)

    def ratios(self, name: str, labels: _Labels, histogram: Histogram) -> None:
        """Write a histogram of percentages as one of ratios, 0 to 1."""
        self._histogram(name, labels, histogram, _PERCENT_EDGES, histogram.total / 100)

    def _histogram(
        self, name: str, labels: _Labels, histogram: Histogram, edges: Iterable[tuple[int, float]], total: float
    ) -> None:
        for k, edge in edges:
            self.sample(f"{name}_bucket", {**labels, "le": f"{edge:.12g}"}, sum(histogram.counts[: k + 1]))
        self.sample(f"{name}_bucket", {**labels, "le": "+Inf"}, histogram.count)
        self.sample(f"{name}_sum", labels, total)
        self.sample(f"{name}_count", labels, histogram.count)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render_metrics(view: FleetView) -> str:
    """Return the fleet's metrics as Prometheus text. Cost: a few milliseconds for tens of models."""
    page = _Page()
    # Statistics outlive their model's entry in the catalogue: a counter, once shown, is shown for ever.
    known = dict.fromkeys((*(m.key for m in view.models), *view.statistics.models))
    models = [(_model_labels(key), view.statistics.models.get(key, ModelStatistics())) for key in known]
    _write_triton(page, models)
    _write_models(page, models)
    _write_tenants(page, models, {m.key: m for m in view.models})
    _write_costs(page, view)
    _write_gateways(page, view)
    _write_limits(page, view)
    _write_fleet(page, view)
    return "\n".join(page.lines) + "\n"


def _model_labels(key: str) -> _Labels:
    name, _, version = key.rpartition(":")
    return {"model": name, "version": version}


def _write_triton(page: _Page, models: list[tuple[_Labels, ModelStatistics]]) -> None:
    for name, description, read in _TRITON_COUNTERS:
        page.simple(name, "counter", description, ((labels, read(s)) for labels, s in models))
    page.simple(
        "nv_inference_request_failure",
        "counter",
        "Failed inference requests by reason.",
        (
            ({**labels, "reason": reason}, s.failures.get(reason, 0))
            for labels, s in models
            for reason in dict.fromkeys((*_TRITON_FAILURE_REASONS, *s.failures))
        ),
    )
    page.simple(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests waiting for execution.",
        ((labels, s.pending) for labels, s in models),
    )


def _write_models(page: _Page, models: list[tuple[_Labels, ModelStatistics]]) -> None:
    page.family("penstock_queue_wait_seconds", "histogram", "Time a request waited in a queue.")
    for labels, s in models:
        page.durations("penstock_queue_wait_seconds", labels, s.steps.get("queue", Histogram()))
    page.family("penstock_step_seconds", "histogram", "Time a request spent in each step.")
    for labels, s in models:
        for step, histogram in s.steps.items():
            page.durations("penstock_step_seconds", {**labels, "step": step}, histogram)
    page.family("penstock_batch_rows", "histogram", "Rows in a batch.")
    for labels, s in models:
        page.rows("penstock_batch_rows", labels, s.batch_rows)
    page.family("penstock_batch_fill_ratio", "histogram", "Rows in a batch by the most there may be.")
    for labels, s in models:
        page.ratios("penstock_batch_fill_ratio", labels, s.fill)
    by_reason: tuple[tuple[str, str, Callable[[ModelStatistics], dict[str, int]]], ...] = (
        ("penstock_batch_closes_total", "Batches by the reason they were closed.", lambda s: s.closes),
        ("penstock_refusals_total", "Requests refused, by reason.", lambda s: s.refusals),
    )
    for name, description, read in by_reason:
        samples = (({**labels, "reason": r}, n) for labels, s in models for r, n in read(s).items())
        page.simple(name, "counter", description, samples)
    for name, description, count in _OWN_COUNTERS:
        page.simple(name, "counter", description, ((labels, count(s)) for labels, s in models))
    page.simple(
        "penstock_requests_by_class_total",
        "counter",
        "Requests by class.",
        (({**labels, "class": c}, n) for labels, s in models for c, n in s.classes.items()),
    )
    page.simple(
        "penstock_concurrency_limit",
        "gauge",
        "Requests that may be in the system at once; 0 while no such limit is in force.",
        ((labels, s.limit) for labels, s in models),
    )


def _write_tenants(page: _Page, models: list[tuple[_Labels, ModelStatistics]], views: dict[str, ModelView]) -> None:
    shown = [(labels, name, t) for labels, s in models for name, t in s.heaviest_tenants(TENANTS_MAX)]
    for name, description, count in _TENANT_COUNTERS:
        samples = (({**labels, "tenant": tenant}, count(t)) for labels, tenant, t in shown)
        page.simple(name, "counter", description, samples)
    page.family("penstock_fairness_jain_ratio", "gauge", "Jain's index over the tenants' device time by weight.")
    for labels, s in models:
        view = views.get(f"{labels['model']}:{labels['version']}")
        page.sample("penstock_fairness_jain_ratio", labels, s.fairness({} if view is None else view.weights))


def _write_costs(page: _Page, view: FleetView) -> None:
    found = [({**_view_labels(m), "bucket": bucket}, p) for m in view.models for bucket, p in m.profiles.items()]
    page.simple(
        "penstock_batch_cost_seconds",
        "gauge",
        "Device time of a batch by its rows.",
        (
            ({**labels, "rows": str(rows)}, time_us / 1e6)
            for labels, profile in found
            for rows, time_us in zip(profile.rows, profile.times_us, strict=True)
        ),
    )
    page.simple(
        "penstock_batch_cost_alpha_seconds",
        "gauge",
        "Device time that a row adds to a batch.",
        ((labels, profile.alpha_us / 1e6) for labels, profile in found),
    )
    page.simple(
        "penstock_batch_cost_beta_seconds",
        "gauge",
        "Device time that any batch takes however small.",
        ((labels, profile.beta_us / 1e6) for labels, profile in found),
    )


def _write_gateways(page: _Page, view: FleetView) -> None:
    s = view.statistics
    page.simple(
        "penstock_http_responses_total",
        "counter",
        "HTTP responses by status code.",
        (({"code": str(code)}, count) for code, count in sorted(s.responses.items())),
    )
    page.simple("penstock_connections", "gauge", "Open client connections.", [({}, s.connections)])
    page.simple(
        "penstock_connections_accepted_total", "counter", "Client connections accepted.", [({}, s.connections_total)]
    )
    page.simple(
        "penstock_protocol_errors_total",
        "counter",
        "Connections closed for broken HTTP, by reason.",
        (({"reason": reason}, count) for reason, count in s.protocol_errors.items()),
    )
    page.simple(
        "penstock_connection_timeouts_total",
        "counter",
        "Connections closed by a timeout, by which.",
        (({"timeout": which}, count) for which, count in s.timeouts.items()),
    )
    page.family("penstock_parse_seconds", "histogram", "Time to parse a request, from its first byte to its last.")
    page.durations("penstock_parse_seconds", {}, s.parse)


def _write_limits(page: _Page, view: FleetView) -> None:
    page.simple(
        "penstock_limit_decisions_total",
        "counter",
        "Decisions under a limit, by outcome.",
        (
            ({"limit": v.name, "outcome": outcome}, count(v.statistics))
            for v in view.limits
            for outcome, count in _LIMIT_OUTCOMES
        ),
    )
    rated = [(v, v.finding) for v in view.limits if v.finding is not None]
    page.simple(
        "penstock_limit_stranded_tokens",
        "counter",
        "Tokens lent to gateways that ran out unused.",
        (({"limit": v.name}, v.statistics.stranded) for v, _ in rated),
    )
    for name, description, read in _AUDIT_FAMILIES:
        page.simple(name, "gauge", description, (({"limit": v.name}, read(found)) for v, found in rated))
    page.simple(
        "penstock_limit_failover_loss_tokens",
        "gauge",
        "Tokens one bucket may have admitted twice when the authority became another; 0 if it never did.",
        (({"limit": v.name}, v.loss_tokens) for v, _ in rated),
    )
    s = view.statistics
    page.simple("penstock_limit_calls_total", "counter", "Calls to the authority over limits.", [({}, s.limit_calls)])
    page.simple(
        "penstock_limit_epochs_total",
        "counter",
        "Times a gateway found the authority to be another.",
        [({}, s.limit_epochs)],
    )


def _write_fleet(page: _Page, view: FleetView) -> None:
    replicas = [(_view_labels(m), r) for m in view.models for r in m.replicas]
    page.simple(
        "penstock_replica_restarts_total",
        "counter",
        "Times a replica was started again.",
        (({**labels, "replica": r.name}, r.restarts) for labels, r in replicas),
    )
    page.simple(
        "penstock_gateway_restarts_total",
        "counter",
        "Times a gateway was started again.",
        (({"gateway": g.name}, g.restarts) for g in view.gateways),
    )
    page.simple(
        "penstock_replicas",
        "gauge",
        "Replicas by state.",
        (
            ({**_view_labels(m), "state": state}, sum(r.state == state for r in m.replicas))
            for m in view.models
            for state in _REPLICA_STATES
        ),
    )
    page.simple("penstock_ready", "gauge", "1 if every model that should be is ready.", [({}, int(view.is_ready))])
    page.simple(
        "penstock_model_ready",
        "gauge",
        "1 if every gateway found the model ready.",
        ((_view_labels(m), int(m.is_ready)) for m in view.models),
    )
    page.simple(
        "penstock_process_cpu_seconds_total",
        "counter",
        "CPU time of a process, user and system.",
        (({"role": p.role, "name": p.name}, p.usage.cpu_us / 1_000_000) for p in view.processes),
    )
    page.simple(
        "penstock_process_resident_bytes",
        "gauge",
        "Resident memory of a process.",
        (({"role": p.role, "name": p.name}, p.usage.resident_bytes) for p in view.processes),
    )
    page.simple("penstock_uptime_seconds", "gauge", "Age of the head.", [({}, view.uptime_us / 1_000_000)])
    build = {"version": view.version, "python": platform.python_version()}
    page.simple("penstock_build_info", "gauge", "What is running; always 1.", [(build, 1)])


def _view_labels(model: ModelView) -> _Labels:
    return {"model": model.name, "version": model.version}
