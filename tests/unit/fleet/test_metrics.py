"""Metrics text: one reviewed page, and the laws any page obeys."""

import platform
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from penstock.core.limits import ConcurrencyLimit, Failover, Level, LimitSettings, RateLimit
from penstock.core.models import Batching, ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics, Histogram, LimitStatistics, ModelStatistics, TenantStatistics
from penstock.core.tensors import TensorSpec
from penstock.fleet.ledger import Ledger
from penstock.fleet.limit_audit import AuditFinding
from penstock.fleet.metrics import render_metrics
from penstock.fleet.processes import ProcessUsage
from penstock.fleet.view import FleetView, GatewayView, LimitView, ModelView, ProcessView, ReplicaView, view_limits

GOLDEN = """\
# HELP nv_inference_request_success Successful inference requests.
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="digits",version="1"} 7
# HELP nv_inference_count Inferences performed (rows).
# TYPE nv_inference_count counter
nv_inference_count{model="digits",version="1"} 12
# HELP nv_inference_exec_count Model executions performed (batches).
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="digits",version="1"} 3
# HELP nv_inference_request_duration_us Cumulative request duration, µs.
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{model="digits",version="1"} 700
# HELP nv_inference_queue_duration_us Cumulative queue duration, µs.
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="digits",version="1"} 100
# HELP nv_inference_compute_input_duration_us Cumulative input duration, µs.
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{model="digits",version="1"} 20
# HELP nv_inference_compute_infer_duration_us Cumulative inference duration, µs.
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{model="digits",version="1"} 300
# HELP nv_inference_compute_output_duration_us Cumulative output duration, µs.
# TYPE nv_inference_compute_output_duration_us counter
nv_inference_compute_output_duration_us{model="digits",version="1"} 40
# HELP nv_inference_request_failure Failed inference requests by reason.
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="digits",version="1",reason="REJECTED"} 2
nv_inference_request_failure{model="digits",version="1",reason="CANCELED"} 0
nv_inference_request_failure{model="digits",version="1",reason="BACKEND"} 0
nv_inference_request_failure{model="digits",version="1",reason="OTHER"} 0
# HELP nv_inference_pending_request_count Requests waiting for execution.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="digits",version="1"} 5
"""


def observe(*values: int) -> Histogram:
    """Return a histogram of these values."""
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    return histogram


STATISTICS = GatewayStatistics(
    models={
        "digits:1": ModelStatistics(
            success=7,
            success_us=700,
            failures={"REJECTED": 2},
            refusals={"queue_full": 2},
            queue_us=100,
            input_us=20,
            execute_us=300,
            output_us=40,
            inference_count=12,
            execution_count=3,
            closes={"full": 1, "idle": 2},
            retries=1,
            pending=5,
            batch_rows=observe(1, 4, 7),
            steps={"queue": observe(0, 1_023, 1_024, 100_000_000)},
            in_time=6,
            device_us=4_000_000,
            wasted_us=500_000,
            fill=observe(3, 50, 100),
            classes={"interactive": 8, "batch": 1},
            tenants={"a": TenantStatistics(5, 5, 0, 1_000_000), "b": TenantStatistics(4, 2, 2, 3_000_000)},
            limit=40,
            ejections=1,
        )
    },
    responses={200: 7, 503: 2},
    connections=3,
    connections_total=4,
    limits={"per-user": LimitStatistics(90, 10, 1, 5, 3)},
    limit_calls=9,
    limit_epochs=1,
)
PER_USER = RateLimit("per-user", Level.USER, 100, 1_000_000, 200)
PROFILE = CostProfile((1, 8), (1_500, 5_000))
REPLICA = ReplicaView("digits:1#0", 11, "unix:/r-0.sock", "ready", 2, 1_000, "", "")
VIEW = FleetView(
    version="1.2.3",
    http="127.0.0.1:8000",
    uptime_us=1_500_000,
    is_ready=True,
    is_draining=False,
    gateways=(GatewayView("gateway-0", 10, "127.0.0.1:8000", "ready", True, 1_000, 0, "", ""),),
    models=(ModelView("digits", "1", "READY", "", True, None, (REPLICA,), {"": PROFILE}),),
    processes=(ProcessView("head", "head", ProcessUsage(2_500_000, 4_096)),),
    statistics=STATISTICS,
    limits=view_limits(LimitSettings(limits=(PER_USER,)), STATISTICS, {"per-user": AuditFinding(2, 0, 75, 100)}),
)


def read(view: FleetView) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Parse a page as Prometheus would: samples by name and labels."""
    families = text_string_to_metric_families(render_metrics(view))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(view: FleetView, name: str, /, **labels: str) -> float:
    """Return one sample's value. The parser gives Triton's counters the suffix that the text does not have."""
    samples = read(view)
    key = frozenset(labels.items())
    return samples[name, key] if (name, key) in samples else samples[f"{name}_total", key]


def test_triton_metrics_have_exactly_tritons_names() -> None:
    """The page begins with the reviewed text: Triton's names and labels, counters without a suffix."""
    assert render_metrics(VIEW).startswith(GOLDEN)


def test_the_possible_loss_is_published_once_the_authority_was_lost() -> None:
    """A soft limit may have admitted its burst and what came in within the lag twice; before, and others, nothing."""
    hard = RateLimit("hard", Level.USER, 100, 1_000_000, 200, failover=Failover.HARD)
    odd = RateLimit("odd", Level.USER, 1, 700_000, 1)
    settings = LimitSettings(limits=(PER_USER, hard, odd, ConcurrencyLimit("slots", Level.USER, 4)))
    for epochs, losses in ((0, [0, 0, 0, 0]), (3, [300, 0, 3, 0])):
        views = view_limits(settings, GatewayStatistics(limit_epochs=epochs), {})
        assert [view.loss_tokens for view in views] == losses


def test_limits_of_keys_are_shown_together() -> None:
    """What is counted under no limit of the configuration has no rule, and its excess is shown all the same."""
    statistics = GatewayStatistics(limits={"(key)": LimitStatistics(1)})
    views = view_limits(LimitSettings(limits=(PER_USER,)), statistics, {"(key)": AuditFinding(1, 7)})
    assert views[1] == LimitView("(key)", "", "", LimitStatistics(1), AuditFinding(1, 7), 0)
    assert value(replace(VIEW, limits=views), "penstock_limit_excess_max", limit="(key)") == 7


def test_our_metrics_say_what_the_view_says() -> None:
    """Each of our own families carries the view's number under its labels."""
    model = {"model": "digits", "version": "1"}
    expected = [
        ("penstock_batch_closes_total", {**model, "reason": "idle"}, 2),
        ("penstock_refusals_total", {**model, "reason": "queue_full"}, 2),
        ("penstock_retries_total", model, 1),
        ("penstock_goodput_total", model, 6),
        ("penstock_device_seconds_total", model, 4),
        ("penstock_wasted_device_seconds_total", model, 0.5),
        ("penstock_requests_by_class_total", {**model, "class": "batch"}, 1),
        ("penstock_concurrency_limit", model, 40),
        ("penstock_replica_ejections_total", model, 1),
        ("penstock_tenant_requests_total", {**model, "tenant": "a"}, 5),
        ("penstock_tenant_refused_total", {**model, "tenant": "b"}, 2),
        ("penstock_tenant_device_seconds_total", {**model, "tenant": "b"}, 3),
        ("penstock_fairness_jain_ratio", model, 0.8),
        ("penstock_batch_cost_seconds", {**model, "bucket": "", "rows": "8"}, 0.005),
        ("penstock_batch_cost_alpha_seconds", {**model, "bucket": ""}, 0.0005),
        ("penstock_batch_cost_beta_seconds", {**model, "bucket": ""}, 0.001),
        ("penstock_http_responses_total", {"code": "503"}, 2),
        ("penstock_connections", {}, 3),
        ("penstock_connections_accepted_total", {}, 4),
        ("penstock_limit_decisions_total", {"limit": "per-user", "outcome": "local"}, 90),
        ("penstock_limit_decisions_total", {"limit": "per-user", "outcome": "rejected"}, 5),
        ("penstock_limit_stranded_tokens", {"limit": "per-user"}, 3),
        ("penstock_limit_excess_max", {"limit": "per-user"}, 0),
        ("penstock_limit_under_delivery_ratio", {"limit": "per-user"}, 0.25),
        ("penstock_limit_audited_buckets", {"limit": "per-user"}, 2),
        ("penstock_limit_failover_loss_tokens", {"limit": "per-user"}, 300),
        ("penstock_limit_calls_total", {}, 9),
        ("penstock_limit_epochs_total", {}, 1),
        ("penstock_replica_restarts_total", {**model, "replica": "digits:1#0"}, 2),
        ("penstock_replicas", {**model, "state": "ready"}, 1),
        ("penstock_replicas", {**model, "state": "loading"}, 0),
        ("penstock_ready", {}, 1),
        ("penstock_model_ready", model, 1),
        ("penstock_process_cpu_seconds_total", {"role": "head", "name": "head"}, 2.5),
        ("penstock_process_resident_bytes", {"role": "head", "name": "head"}, 4_096),
        ("penstock_uptime_seconds", {}, 1.5),
        ("penstock_build_info", {"version": "1.2.3", "python": platform.python_version()}, 1),
    ]
    assert [value(VIEW, name, **labels) for name, labels, _ in expected] == [number for _, _, number in expected]


def test_a_bucket_counts_what_is_below_its_edge() -> None:
    """1023 µs is under le=0.001024 s, 1024 µs is not; what no bucket holds is in +Inf; rows are counted up to le."""
    model = {"model": "digits", "version": "1"}
    waits = [value(VIEW, "penstock_queue_wait_seconds_bucket", **model, le=le) for le in ("8e-06", "0.001024", "+Inf")]
    assert waits == [1, 2, 4]
    assert value(VIEW, "penstock_queue_wait_seconds_count", **model) == 4
    assert value(VIEW, "penstock_queue_wait_seconds_sum", **model) == 100.002047
    rows = [value(VIEW, "penstock_batch_rows_bucket", **model, le=le) for le in ("1", "3", "7")]
    assert rows == [1, 1, 3]
    fills = [value(VIEW, "penstock_batch_fill_ratio_bucket", **model, le=le) for le in ("0.01", "0.03", "0.63", "1")]
    assert fills == [0, 1, 2, 3]
    assert value(VIEW, "penstock_batch_fill_ratio_sum", **model) == 1.53


def test_buckets_never_fall_along_a_histogram() -> None:
    """The buckets of a histogram are cumulative and end in its count."""
    for name in (
        "penstock_queue_wait_seconds",
        "penstock_step_seconds",
        "penstock_batch_rows",
        "penstock_batch_fill_ratio",
        "penstock_parse_seconds",
    ):
        lines = [x for x in render_metrics(VIEW).splitlines() if x.startswith(f"{name}_bucket")]
        counts = [int(x.rpartition(" ")[2]) for x in lines]
        assert counts == sorted(counts)
        assert len(counts) > 7


def test_a_family_is_written_once() -> None:
    """However many models there are, each name has one HELP, one TYPE, and no sample twice."""
    models = {f"m{n}:1": STATISTICS.models["digits:1"] for n in range(3)}
    lines = render_metrics(replace(VIEW, statistics=GatewayStatistics(models=models))).splitlines()
    heads = [x.split(" ")[:3] for x in lines if x.startswith("#")]
    samples = [x.rpartition(" ")[0] for x in lines if not x.startswith("#")]
    assert len({tuple(h) for h in heads}) == len(heads)
    assert len(set(samples)) == len(samples)


def test_label_values_are_escaped() -> None:
    """Quotes, backslashes and line ends in a label come back as they were."""
    name = 'a"b\\c\nd'
    statistics = GatewayStatistics(models={f"{name}:1": ModelStatistics(success=1)})
    assert (
        value(replace(VIEW, models=(), statistics=statistics), "nv_inference_request_success", model=name, version="1")
        == 1
    )


def test_a_model_without_requests_is_shown_with_zeros() -> None:
    """A counter exists before its first event, so that its first increase can be seen."""
    view = replace(VIEW, statistics=GatewayStatistics())
    assert value(view, "nv_inference_request_success", model="digits", version="1") == 0


def test_fairness_is_by_the_weights_of_the_spec() -> None:
    """Tenants that got device time as their weights say were treated fairly."""
    spec = ModelSpec(
        "digits",
        (TensorSpec("x", "FP32", (-1,)),),
        (TensorSpec("y", "FP32", (-1,)),),
        batching=Batching(mode="fair"),
        weights=(("b", 3.0),),
    )
    view = replace(VIEW, models=(replace(VIEW.models[0], spec=spec),))
    assert value(view, "penstock_fairness_jain_ratio", model="digits", version="1") == 1


def test_of_many_tenants_the_heaviest_are_shown() -> None:
    """However many tenants there are, a scrape gets a hundred series of each kind: those with most device time."""
    tenants = {f"t{n}": TenantStatistics(device_us=n) for n in range(250)}
    view = replace(VIEW, statistics=GatewayStatistics(models={"digits:1": ModelStatistics(tenants=tenants)}))
    shown = {dict(labels)["tenant"] for name, labels in read(view) if name == "penstock_tenant_requests_total"}
    assert shown == {f"t{n}" for n in range(150, 250)}


def test_sums_never_fall_when_gateways_die() -> None:
    """Over reports, deaths and successors, every counter of the total only grows; a dead gateway's gauges are gone."""
    ledger = Ledger()
    seen = []

    def look() -> None:
        total = ledger.total()
        seen.append((total.responses.get(200, 0), total.connections_total, total.parse.count))

    for life in range(3):
        for count in (5, 9):
            ledger.record(
                (life, 0),
                GatewayStatistics(
                    responses={200: count}, connections=1, connections_total=count, parse=observe(*range(count))
                ),
            )
            look()
        ledger.close((life, 0))
        ledger.close((life, 0))
        look()
    assert seen == sorted(seen)
    assert seen[-1] == (27, 27, 27)
    assert ledger.total().connections == 0
