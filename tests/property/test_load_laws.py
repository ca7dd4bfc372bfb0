"""Laws of schedules, request pools, percentiles and the report."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.arrivals import parse_arrivals, plan_arrivals
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.load.driver import FAILURE_REASONS, LIMITED, SHED
from penstock.load.inputs import RequestPool, Target, build_request_pool
from penstock.load.reporting import Measurement, build_report, percentile_us
from penstock.load.verdict import over_slo_allowed

latencies = st.lists(st.integers(0, 10_000_000), min_size=1, max_size=300)


@given(
    st.sampled_from(
        ["poisson", "constant", "gamma:0.3", "gamma:6", "mmpp", "step:7,0.1,0.5", "diurnal:0.9,1", "trace:x"]
    ),
    st.floats(0.5, 20_000),
    st.integers(1, 2_000_000),
    st.integers(0, 2**32),
)
def test_schedules_are_sorted_and_inside(text: str, rate: float, duration_us: int, seed: int) -> None:
    """Every intended time lies in [0, duration) and none precedes the one before it."""
    trace = np.array([0, 5, 5, 300], dtype=np.int64)
    rng = np.random.default_rng(seed)
    times = plan_arrivals(parse_arrivals(text), rng, rate=rate, duration_us=duration_us, trace_us=trace)
    assert times.dtype == np.int64
    assert np.all(np.diff(times) >= 0)
    assert len(times) == 0 or (times[0] >= 0 and times[-1] < duration_us)


@given(st.integers(1, 12), st.integers(1, 12))
def test_a_pool_uses_every_pair_once_before_it_repeats(fragment_count: int, tail_count: int) -> None:
    """The first F * T requests all differ, and request F * T is request 0 again."""
    tails = [b"t%d" % i for i in range(tail_count)]
    pool = RequestPool([b"h%d " % i for i in range(tail_count)], [b"%02d" % i for i in range(fragment_count)], tails)
    requests = [pool.request(i) for i in range(pool.distinct_count)]
    assert len(set(requests)) == len(requests) == fragment_count * tail_count
    assert pool.request(pool.distinct_count) == requests[0]


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DATATYPES)), st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=3)),
        min_size=1,
        max_size=2,
    ),
    st.integers(0, 2**32),
)
def test_the_distinct_count_is_true(shapes: list[tuple[str, list[int]]], seed: int) -> None:
    """A pool really holds as many different requests as it claims (looking at up to 2,000 of them)."""
    inputs = [TensorSpec(f"x{i}", datatype, tuple(shape)) for i, (datatype, shape) in enumerate(shapes)]
    pool = build_request_pool(Target("h", 1, "", "m"), inputs, np.random.default_rng(seed))
    count = min(pool.distinct_count, 2_000)
    assert len({pool.request(i) for i in range(count)}) == count


@given(latencies, st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999, 1.0]))
def test_percentiles_are_numpys(values: list[int], ratio: float) -> None:
    """The percentile is numpy's inverted CDF: a value that occurred, exact, with no interpolation."""
    assert percentile_us(sorted(values), ratio) == np.percentile(values, ratio * 100, method="inverted_cdf")


@given(st.lists(st.integers(0, 200_000) | st.sampled_from([SHED, LIMITED, *FAILURE_REASONS]), max_size=300))
def test_the_report_conserves_requests(outcomes: list[int]) -> None:
    """Completed, shed, limited and failed add up to the plan; a held SLO means p95 of the answers held it."""
    count = len(outcomes)
    measurement = Measurement(
        latency_us=np.array(outcomes, dtype=np.int64),
        lateness_us=np.zeros(count, dtype=np.int64),
        duration_us=1_000_000,
        rate_target=1.0,
        slo_us=50_000,
        cpu_us=0,
        distinct_inputs=count,
        status_counts={},
    )
    report = build_report(measurement)
    assert sum(report[name] for name in ("completed", "shed", "limited", "failed")) == count
    if report["slo_held"]:
        assert report["latency_ms"]["p95"] <= report["slo_ms"]


@given(st.integers(90, 50_000), st.integers(0, 500))
def test_more_requests_allow_no_fewer_misses(requests: int, more: int) -> None:
    """The allowance never falls as the run grows, and stays below the miss ratio it certifies."""
    fewer, greater = over_slo_allowed(requests), over_slo_allowed(requests + more)
    assert fewer is not None
    assert greater is not None
    assert fewer <= greater <= (requests + more) * 0.05
