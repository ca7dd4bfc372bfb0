"""What came of a run, by phase: offered by intention, answered by the last attempt."""

import numpy as np
import pytest

from penstock.load.drills.form import Findings
from penstock.load.drills.loading import Yield, goodput_per_s, p95_us
from penstock.load.driver import SHED, TIMEOUT


def make_yield(
    rows: list[tuple[int, int, int, int]],
    *,
    bounds_us: tuple[int, ...] = (0, 1_000_000, 2_000_000),
    refusals: list[tuple[int, int, int, int]] | None = None,
    lateness_p99_us: int = 0,
) -> Yield:
    """Return a run of requests: intended, delay of the last attempt, tenant, latency from the intended time."""
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    intended, delay, tenant, latency = table.T
    return Yield(
        intended_us=intended,
        due_us=intended + delay,
        tenant=tenant.astype(np.uint8),
        latency_us=latency,
        attempt_us=np.where(latency >= 0, latency - delay, latency),
        refusals=np.array(refusals or [], dtype=np.int64).reshape(-1, 4),
        bounds_us=bounds_us,
        lateness_p99_us=lateness_p99_us,
    )


def test_a_retry_counts_where_it_was_due() -> None:
    """Offered load is by the intended time; what came of a request belongs to the phase of its last attempt."""
    run = make_yield([(900_000, 0, 0, 5_000), (950_000, 100_000, 0, 130_000), (1_500_000, 0, 1, SHED)])
    assert [run.offered_per_s(phase) for phase in (0, 1)] == [2, 1]
    assert [int(run.in_phase(phase).sum()) for phase in (0, 1)] == [1, 2]
    assert int(run.in_phase(1, tenant=0).sum()) == 1
    assert int(run.in_phase(1, skip_us=400_000).sum()) == 1
    assert run.offered_per_s(1, tenant=0) == 0


def test_goodput_is_answers_within_the_slo_of_their_attempt() -> None:
    """The SLO itself is within; refusals, failures and late answers are not; a retry has a clock of its own."""
    run = make_yield(
        [(0, 0, 0, 50_000), (1, 0, 0, 50_001), (2, 0, 0, SHED), (3, 0, 0, TIMEOUT), (4, 100_000, 0, 140_000)]
    )
    assert goodput_per_s(run, 0, 50_000) == 2
    assert goodput_per_s(run, 1, 50_000) == 0


def test_goodput_counts_where_the_answer_came() -> None:
    """An answer that comes after a step of the load belongs to the phase after it."""
    run = make_yield([(980_000, 0, 0, 19_999), (980_001, 0, 0, 19_999), (1_990_000, 0, 0, 10_000)])
    assert [goodput_per_s(run, phase, 50_000) for phase in (0, 1)] == [1, 1]


def test_a_lost_request_is_slower_than_any() -> None:
    """p95 is over all requests: with one in twenty lost it is the slowest answer, with more there is none."""
    assert p95_us(np.array([10] * 18 + [30, SHED])) == 30
    assert p95_us(np.array([10] * 17 + [30, SHED, TIMEOUT])) is None
    assert p95_us(np.array([], dtype=np.int64)) is None


def test_refusals_are_found_by_when_they_came() -> None:
    """The window is half open."""
    run = make_yield([(0, 0, 0, SHED)], refusals=[(0, 10, 5, 503), (0, 20, 5, 503), (0, 30, 5, 429)])
    assert run.refusals_between(10, 30)[:, 1].tolist() == [10, 20]


@pytest.mark.parametrize(("lateness_us", "passed"), [(2_000, True), (2_001, False)])
def test_a_late_generator_fails_the_drill(lateness_us: int, passed: bool) -> None:
    """The limit is that of `penstock bench`: a later generator measured itself."""
    findings = Findings()
    make_yield([], lateness_p99_us=lateness_us).check_generator(findings)
    assert [check.passed for check in findings.checks] == [passed]
