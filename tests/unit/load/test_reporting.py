"""The report: conservation, what counts as a miss, and when a run is void."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from penstock.load.driver import CLOSED, LIMITED, SHED, TIMEOUT, UNSENT
from penstock.load.reporting import Measurement, bucket_latencies, build_report, find_invalid_reasons


def measure(latency_us: list[int], lateness_us: list[int] | None = None, **changes: int) -> Measurement:
    lateness = lateness_us if lateness_us is not None else [100] * len(latency_us)
    settings: dict[str, Any] = {
        "duration_us": 1_000_000,
        "slo_us": 50_000,
        "cpu_us": 5_000,
        "distinct_inputs": len(latency_us),
        **changes,
    }
    return Measurement(
        latency_us=np.array(latency_us, dtype=np.int64),
        lateness_us=np.array(lateness, dtype=np.int64),
        rate_target=1_000.0,
        status_counts={200: len(latency_us)},
        **settings,
    )


def test_every_request_is_counted_once() -> None:
    """Completed, shed, limited and failed add up to the plan, and each failure has its reason."""
    report = build_report(measure([1_000] * 90 + [SHED] * 3 + [LIMITED] * 2 + [TIMEOUT] * 3 + [CLOSED] * 2))
    assert [report[name] for name in ("completed", "shed", "limited", "failed", "planned")] == [90, 3, 2, 5, 100]
    assert sum(report["failures"].values()) == 5


def test_the_documented_keys_are_there() -> None:
    """Scripts depend on these keys."""
    report = build_report(measure([1_000] * 100))
    assert {"rate_target", "rate_achieved", "completed", "failed", "shed", "slo_attainment", "valid"} <= set(report)
    assert {"p50", "p95", "p99", "p999", "max"} <= set(report["latency_ms"])
    assert "p99" in report["generator_lateness_ms"]
    assert report["cpu_s"] == {"generator": 0.005}
    assert report["rate_achieved"] == 100.0


def test_a_lost_request_misses_the_slo() -> None:
    """Attainment counts shed and failed requests as misses, and the boundary itself as met."""
    report = build_report(measure([50_000] * 95 + [50_001] * 3 + [SHED, TIMEOUT]))
    assert report["slo_attainment"] == 0.95
    assert report["verdict"]["over_slo"] == 5


@pytest.mark.parametrize(
    ("latency_us", "is_held"),
    [
        ([1_000] * 1000, True),
        ([1_000] * 950 + [60_000] * 50, True),
        ([1_000] * 949 + [60_000] * 51, False),
        ([1_000] * 990 + [SHED] * 10, True),
        ([1_000] * 989 + [SHED] * 6 + [TIMEOUT] * 5, False),
        ([1_000] * 990 + [SHED] * 5 + [LIMITED] * 5, True),
        ([1_000] * 989 + [LIMITED] * 11, False),
        ([1_000] * 949 + [60_000] * 46 + [SHED] * 5, False),
        ([SHED] * 10, False),
        ([], False),
    ],
)
def test_when_the_slo_held(latency_us: list[int], is_held: bool) -> None:
    """It held if 95 % of all requests were answered well within it and at most 1 % were shed, limited or failed."""
    assert build_report(measure(latency_us))["slo_held"] is is_held


def test_a_late_generator_voids_the_run() -> None:
    """p99 lateness of 2 ms is valid, a microsecond more is not; a void run certifies nothing."""
    assert build_report(measure([1_000] * 1000, [0] * 989 + [2_000] * 11))["valid"]
    late = build_report(measure([1_000] * 1000, [0] * 989 + [2_001] * 11))
    assert not late["valid"]
    assert late["invalid_reasons"][0].startswith("late: expected")
    assert not late["verdict"]["certified"]


def test_a_short_run_is_void() -> None:
    """99.9 % of the plan sent is valid, one request fewer is not."""
    assert find_invalid_reasons(planned=10_000, sent=9_990, lateness_p99_us=0) == []
    assert find_invalid_reasons(planned=10_000, sent=9_989, lateness_p99_us=0)[0].startswith("short: expected")
    report = build_report(measure([1_000] * 998 + [UNSENT] * 2))
    assert (report["sent"], report["failed"], report["valid"]) == (998, 2, False)


def test_an_empty_run_is_void() -> None:
    """A schedule without requests says nothing about the server, and does not divide by zero."""
    report = build_report(measure([]))
    assert not report["valid"]
    assert report["latency_ms"]["p95"] is None
    assert bucket_latencies(np.array([SHED], dtype=np.int64)) == []


def test_the_distribution_keeps_every_answer() -> None:
    """Buckets are upper-inclusive, skip empty ends only, and their counts add up."""
    buckets = bucket_latencies(np.array([900, 1_000, 1_001, 9_000, TIMEOUT], dtype=np.int64))
    assert buckets == [(1.0, 2), (2.0, 1), (5.0, 0), (10.0, 1)]


def test_attempts_and_refusals_are_reported() -> None:
    """Every attempt counts, and refusals have percentiles of their own; without retries attempts are what was sent."""
    run = measure([1_000] * 8 + [SHED, UNSENT])
    assert build_report(run)["attempts"] == 9
    assert build_report(run)["refusal_ms"] == {"p50": None, "p99": None, "max": None}
    retried = replace(run, attempt_count=12, refusal_us=np.arange(1_000, 0, -10, dtype=np.int64))
    assert build_report(retried)["attempts"] == 12
    assert build_report(retried)["refusal_ms"] == {"p50": 0.5, "p99": 0.99, "max": 1.0}
