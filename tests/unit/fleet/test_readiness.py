"""Readiness is what gateways report, and silence is judged by the head's own waking time."""

from penstock.core.statistics import GatewayStatistics
from penstock.fleet.readiness import SILENCE_US_MAX, Readiness
from penstock.wire.control import GatewayReport


def report(ready: dict[str, bool], *, draining: bool = False) -> GatewayReport:
    """Return a report without counts."""
    return GatewayReport(GatewayStatistics(), ready, draining)


def test_a_gateway_is_ready_for_what_it_reported_last() -> None:
    """Ready means every model asked for was true in the newest report; unknown models and gateways are not."""
    readiness = Readiness()
    assert not readiness.is_ready("g", [])
    readiness.note("g", report({"a:1": True, "b:1": False}), now_us=5)
    assert readiness.is_ready("g", ["a:1"])
    assert not readiness.is_ready("g", ["a:1", "b:1"])
    assert not readiness.is_ready("g", ["c:1"])
    readiness.note("g", report({"a:1": False}), now_us=6)
    assert not readiness.is_ready("g", ["a:1"])
    readiness.forget("g")
    assert not readiness.is_ready("g", [])
    assert readiness.age_us("g", now_us=9) is None


def test_a_draining_gateway_is_not_ready() -> None:
    """A gateway that takes no more requests is not ready, whatever its models are."""
    readiness = Readiness()
    readiness.note("g", report({"a:1": True}, draining=True), now_us=0)
    assert not readiness.is_ready("g", ["a:1"])


def test_a_report_of_counters_alone_changes_no_readiness() -> None:
    """Reports without models refresh the age and leave ready what was ready."""
    readiness = Readiness()
    readiness.note("g", report({"a:1": True}), now_us=0)
    readiness.note("g", report({}), now_us=7)
    assert readiness.is_ready("g", ["a:1"])
    assert readiness.age_us("g", now_us=10) == 3


def test_a_silent_gateway_is_found_after_the_limit_and_not_before() -> None:
    """Exactly the limit is not silence, one microsecond more is; before the first report the hello counts."""
    readiness = Readiness()
    readiness.note("reports", report({}), now_us=1_000)
    hello = {"reports": 0, "mute": 1_000}
    for now_us in range(0, SILENCE_US_MAX, 1_000_000):
        assert readiness.find_silent(hello, now_us=now_us) == []
    assert readiness.find_silent(hello, now_us=SILENCE_US_MAX + 1_000) == []
    assert readiness.find_silent(hello, now_us=SILENCE_US_MAX + 1_001) == ["reports", "mute"]


def test_a_head_that_slept_blames_nobody() -> None:
    """After a pause of the head everyone gets the whole limit again."""
    readiness = Readiness()
    assert readiness.find_silent({"g": 0}, now_us=0) == []
    woke_us = 10 * SILENCE_US_MAX
    assert readiness.find_silent({"g": 0}, now_us=woke_us) == []
    for now_us in range(woke_us, woke_us + SILENCE_US_MAX, 1_000_000):
        assert readiness.find_silent({"g": 0}, now_us=now_us) == []
    assert readiness.find_silent({"g": 0}, now_us=woke_us + SILENCE_US_MAX + 1) == ["g"]
