"""The fairness drill's judgement on runs made up for it."""

import numpy as np
import pytest

from penstock.load.drills.fairness import FAIRNESS, SHARED, judge_shares, judge_victim
from penstock.load.drills.form import Findings
from penstock.load.drills.loading import Yield
from penstock.load.driver import SHED
from tests.docs.pages import code_spans, read_page

BOUNDS_US = (0, 1_000_000, 2_000_000, 3_000_000, 4_000_000)


def make_run(victim_joined: list[int], bounds_us: tuple[int, ...] = BOUNDS_US) -> Yield:
    """Return a run of a victim that is answered in 50 ms alone and otherwise as said, and an aggressor refused."""
    alone = [(1_000_000 + i * 1_000, 0, 50_000) for i in range(100)]
    joined = [(3_000_000 + i * 1_000, 0, latency) for i, latency in enumerate(victim_joined)]
    other = [(3_000_000 + i * 100, 1, SHED) for i in range(1_000)]
    times, tenant, latency = np.array(sorted(alone + joined + other), dtype=np.int64).T
    return Yield(
        intended_us=times,
        due_us=times,
        tenant=tenant.astype(np.uint8),
        latency_us=latency,
        attempt_us=latency,
        refusals=np.zeros((0, 4), dtype=np.int64),
        bounds_us=bounds_us,
        lateness_p99_us=0,
    )


@pytest.mark.parametrize(
    ("victim_joined", "passed"),
    [
        ([60_000] * 100, True),
        ([60_001] * 100, False),
        ([60_000] * 95 + [200_000] * 5, True),
        ([60_000] * 94 + [200_000] * 6, False),
        ([50_000] * 94 + [SHED] * 6, False),
    ],
)
def test_the_victim_keeps_its_p95(victim_joined: list[int], passed: bool) -> None:
    """1.2 times its p95 alone passes and more does not; a victim that is refused has not been served quickly."""
    findings = Findings()
    judge_victim(make_run(victim_joined), findings)
    assert findings.checks[0].passed is passed
    assert findings.figures["victim_alone_p95_ms"] == 50
    assert findings.figures["aggressor_joined_offered_per_s"] == 1_000


@pytest.mark.parametrize(
    ("device_us", "passed"),
    [
        ([5_000_000.0, 5_000_000.0], True),
        ([5_000_000.0, 6_500_000.0], True),
        ([5_000_000.0, 7_000_000.0], False),
        ([8_000_000.0, 1_000_000.0], False),
        ([5_000_000.0, 0.0], False),
        ([5_000_000.0, None], False),
        ([None, None], False),
    ],
)
def test_shares_are_equal_or_the_check_fails(device_us: list[float | None], passed: bool) -> None:
    """Jain's index of 0.98 allows about a third more; a tenant that got nothing, or is not known, fails it."""
    findings = Findings()
    judge_shares(make_run([], bounds_us=(0, 4_000_000)), device_us, findings)
    assert findings.checks[0].passed is passed


def test_the_device_leaves_the_victim_a_chance() -> None:
    """A full batch takes at most a tenth longer than one row, so that batching with others alone breaks no limit."""
    assert (SHARED.beta_ms + SHARED.alpha_ms * SHARED.size_max) / (SHARED.beta_ms + SHARED.alpha_ms) <= 1.1
    assert FAIRNESS.device.startswith("emulated")


def test_every_figure_is_documented() -> None:
    """docs/drills.md names each figure."""
    findings = Findings()
    judge_victim(make_run([50_000] * 100), findings)
    judge_shares(make_run([], bounds_us=(0, 4_000_000)), [1.0, 1.0], findings)
    assert set(findings.figures) <= set(code_spans(read_page("docs/drills.md")))
