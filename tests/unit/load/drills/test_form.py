"""The form of a drill: a limit that is not kept, or a figure that could not be had, fails it."""

from collections.abc import Callable

import numpy as np
import pytest

from penstock.load.drills.form import Drill, Findings, Rig, run_drill


def make_rig(scale: float = 1.0) -> Rig:
    return Rig(
        ("serve",), ("generate",), lambda: 0, lambda _: np.random.default_rng(1), 5, scale, lambda _text, _done: None
    )


def report_of(find: Callable[[Findings], None]) -> dict[str, object]:
    """Return the report of a drill that finds this."""

    def run(rig: Rig) -> Findings:
        findings = Findings()
        find(findings)
        return findings

    return run_drill(Drill("d", "holds", "a fault", "emulated", 1.0, run), make_rig())


@pytest.mark.parametrize(
    ("measured", "at_least", "at_most"),
    [(5.0, True, True), (4.999, False, True), (5.001, True, False), (None, False, False)],
)
def test_limits_are_inclusive_and_nothing_fails(measured: float | None, at_least: bool, at_most: bool) -> None:
    """A limit is kept at the limit itself, not beyond it, and never by a figure that could not be had."""
    findings = Findings()
    findings.expect_at_least("a", 5, measured)
    findings.expect_at_most("b", 5, measured)
    assert [check.passed for check in findings.checks] == [at_least, at_most]
    assert [check.limit for check in findings.checks] == [">= 5", "<= 5"]


def test_a_drill_passes_if_every_check_does() -> None:
    """One failed check fails the drill, and so does a drill that checked nothing."""
    assert report_of(lambda findings: findings.expect_at_most("a", 1, 0))["passed"] is True
    assert report_of(lambda _: None)["passed"] is False

    def find_both(findings: Findings) -> None:
        findings.expect_at_most("a", 1, 0)
        findings.expect_at_most("b", 1, 2)

    assert report_of(find_both)["passed"] is False


def test_the_report_has_the_documented_keys() -> None:
    """A report can be read without knowing which drill it is of."""

    def find(findings: Findings) -> None:
        findings.note("x_ms", 1.23456)
        findings.note("y_ms", None)
        findings.expect_at_most("x, ms", 2, 1.23456)

    report = report_of(find)
    assert report == {
        "name": "d",
        "invariant": "holds",
        "fault": "a fault",
        "device": "emulated",
        "seed": 5,
        "duration_scale": 1.0,
        "figures": {"x_ms": 1.2346, "y_ms": None},
        "checks": [{"what": "x, ms", "limit": "<= 2", "measured": 1.2346, "passed": True}],
        "passed": True,
    }


def test_durations_are_scaled() -> None:
    """A rig makes every stated duration so many times as long, and none of them nothing."""
    assert make_rig(0.5).scale_us(4.0) == 2_000_000
    assert make_rig(0.01).scale_us(1e-9) == 1
