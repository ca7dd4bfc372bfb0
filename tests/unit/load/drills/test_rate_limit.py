"""The rate-limit drill's judgement on runs made up for it: the good one passes, each bad one fails its own check."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.cli.config import load_config
from penstock.core.errors import ConfigError
from penstock.core.limits import Failover, Unreachable
from penstock.load.drills.admissions import OUTCOMES, Decisions
from penstock.load.drills.form import Findings
from penstock.load.drills.limit_faults import FAULTS
from penstock.load.drills.loading import Yield
from penstock.load.drills.rate_limit import RATE_LIMIT, Evidence, RateLimitCase, judge, make_rate_limit
from penstock.load.driver import CLOSED, LIMITED
from tests.docs.pages import code_spans, read_page

CASE = RateLimitCase(instances=2, tokens=100, per_us=1_000_000, burst=10, offered_per_s=500, duration_s=2)
START_US = 3_000_000
WORST, ANSWERED, DELIVERED, GATEWAYS, UNLOGGED, FAILED, LATE = (
    "admitted in the worst window, over burst + rate x time",
    "answered in the worst window, over burst + rate x time",
    "admitted, of what one ideal bucket lets in",
    "gateways that decided",
    "answers without an admission in the log",
    "requests failed, neither answered nor refused",
    "generator lateness p99, ms",
)
INJECTED = "faults injected"


def good_evidence() -> Evidence:
    """Return a run of two seconds in which two gateways let in a burst and then one request in 10 ms."""
    intended = np.arange(START_US, START_US + 2_000_000, 2_000)
    is_in = np.zeros(len(intended), dtype=bool)
    is_in[:10] = True
    is_in[5::5] = True
    is_in[10:15] = False  # the burst's requests came 20 ms apart, so two of its tokens were there again
    latency = np.where(is_in, 5_000, LIMITED)
    refused = np.flatnonzero(~is_in)
    refusals = np.stack([refused, intended[refused] + 1_000, np.full(len(refused), 1_000), np.full(len(refused), 429)])
    run = Yield(
        intended_us=intended,
        due_us=intended,
        tenant=np.zeros(len(intended), dtype=np.uint8),
        latency_us=latency,
        attempt_us=latency,
        refusals=refusals.T,
        bounds_us=(0, START_US, START_US + 2_000_000),
        lateness_p99_us=100,
    )
    outcome = np.where(is_in, OUTCOMES.index("local"), OUTCOMES.index("rejected"))
    zeros = np.zeros(len(intended), dtype=np.int64)
    decisions = Decisions(
        intended + 500, intended + 500, zeros, np.arange(len(intended)) % 2, zeros + 1, outcome, torn_count=0
    )
    return Evidence(run, decisions, injected=1)


def judge_case(evidence: Evidence, **case: Any) -> tuple[list[str], Findings]:
    """Return what fails, and all findings."""
    findings = Findings()
    judge(replace(CASE, **case), evidence, findings)
    return [check.what for check in findings.checks if not check.passed], findings


def crowd(evidence: Evidence, count: int, *, answered: bool) -> Evidence:
    """Return the run with that many more let in at its end, all at once."""
    outcome, latency = evidence.decisions.outcome.copy(), evidence.run.latency_us.copy()
    chosen = np.flatnonzero(outcome == OUTCOMES.index("rejected"))[-count:]
    outcome[chosen] = OUTCOMES.index("checked")
    at_us = evidence.decisions.at_us.copy()
    at_us[chosen] = at_us[-1]
    if answered:
        latency[chosen] = 1_000
    return replace(
        evidence,
        decisions=replace(evidence.decisions, outcome=outcome, at_us=at_us),
        run=replace(evidence.run, latency_us=latency),
    )


def test_a_good_run_passes() -> None:
    """Nothing over the bound, almost all that is possible, every answer in the log."""
    failed, findings = judge_case(good_evidence())
    assert failed == []
    assert findings.figures["excess_max"] == 0
    assert 0.98 <= (findings.figures["delivered_ratio"] or 0) <= 1
    assert findings.figures["limited_p95_ms"] == 1
    assert findings.figures["answered_p95_ms"] == 5


def test_one_burst_too_many_fails() -> None:
    """Ten admissions more than drain at the end of the run are an excess, whoever was answered."""
    failed, findings = judge_case(crowd(good_evidence(), 20, answered=False))
    assert failed == [WORST]
    assert (findings.figures["excess_max"] or 0) >= 9


def test_what_callers_saw_is_judged_too() -> None:
    """Answers beyond the bound, that no log admits to, fail by themselves."""
    evidence = good_evidence()
    run = crowd(evidence, 200, answered=True).run
    assert judge_case(replace(evidence, run=run))[0] == [ANSWERED, UNLOGGED]


@pytest.mark.parametrize(
    ("fault", "failover", "is_in"),
    [
        ("failover", Failover.SOFT, True),
        ("failover", Failover.HARD, False),
        ("kill-head", Failover.SOFT, True),
        ("kill-head", Failover.HARD, False),
        ("kill", Failover.SOFT, False),
        ("restart-redis", Failover.SOFT, False),
    ],
)
def test_only_lost_counts_excuse_an_excess(fault: str, failover: Failover, is_in: bool) -> None:
    """Under `soft` a failover may cost burst + rate x lag; under `hard`, and by any other fault, nothing."""
    failed = judge_case(crowd(good_evidence(), 40, answered=False), fault=fault, failover=failover)[0]
    assert failed == ([] if is_in else [WORST])
    too_much = judge_case(crowd(good_evidence(), 200, answered=False), fault=fault, failover=failover)[0]
    assert too_much == [WORST]


def test_too_little_fails_but_for_a_fault() -> None:
    """Who admits hardly anything keeps every bound, and has not passed; with a fault it is told, not judged."""
    evidence = good_evidence()
    outcome = evidence.decisions.outcome.copy()
    outcome[100:] = OUTCOMES.index("rejected")
    latency = evidence.run.latency_us.copy()
    latency[100:] = LIMITED
    little = replace(
        evidence, decisions=replace(evidence.decisions, outcome=outcome), run=replace(evidence.run, latency_us=latency)
    )
    assert judge_case(little)[0] == [DELIVERED]
    assert judge_case(little, fault="pause")[0] == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"gateway": 0}, GATEWAYS),
        ({"lateness": 2_001}, LATE),
        ({"latency": CLOSED}, FAILED),
    ],
)
def test_each_other_flaw_fails_its_own_check(change: dict[str, int], what: str) -> None:
    """A gateway that decided nothing, a late generator, a request without any answer."""
    evidence = good_evidence()
    decisions, run = evidence.decisions, evidence.run
    if "gateway" in change:
        decisions = replace(decisions, gateway=np.zeros_like(decisions.gateway))
    if "latency" in change:
        latency = run.latency_us.copy()
        latency[-1] = change["latency"]
        run = replace(run, latency_us=latency)
    run = replace(run, lateness_p99_us=change.get("lateness", 100))
    assert judge_case(replace(evidence, decisions=decisions, run=run))[0] == [what]


def test_a_fault_that_never_came_fails() -> None:
    """A drill in which nothing was broken has shown nothing."""
    assert judge_case(replace(good_evidence(), injected=0), fault="pause")[0] == [INJECTED]


def test_a_killed_gateway_takes_a_few_lines_with_it() -> None:
    """What it had not written yet may be answered and not logged: so much for each kill, and without a kill nothing."""
    evidence = good_evidence()
    chosen = np.flatnonzero(evidence.decisions.is_admitted)[-12:]
    outcome = evidence.decisions.outcome.copy()
    outcome[chosen] = OUTCOMES.index("rejected")
    lost = replace(evidence, decisions=replace(evidence.decisions, outcome=outcome))
    assert judge_case(lost, fault="kill")[0] == []
    assert judge_case(lost, fault="pause")[0] == [UNLOGGED]
    assert judge_case(replace(lost, injected=0), fault="kill")[0] == [INJECTED, UNLOGGED]


def test_no_decision_at_all_fails() -> None:
    """A log that is not there is no log without an excess."""
    evidence = good_evidence()
    none = np.empty(0, dtype=np.int64)
    empty = replace(evidence, decisions=Decisions(none, none, none, none, none, none))
    assert set(judge_case(empty)[0]) == {WORST, DELIVERED, GATEWAYS, UNLOGGED}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"instances": 0}, "--instances: expected 1 to 64, got 0"),
        ({"offered_per_s": 0.0}, "--offered: expected 1 to 100000 per second, got 0"),
        ({"offered_per_s": float("nan")}, "--offered: expected 1 to 100000 per second, got nan"),
        ({"duration_s": 0.5}, "--duration: expected 1 to 3600 s, got 0.5"),
        ({"burst": 0}, "--limit, --burst: burst: expected at least 1, got 0"),
        ({"fault": "flood"}, "--fault: expected one of kill, pause"),
        ({"fault": "kill-head", "redis": "own"}, "--fault kill-head: expected no --redis"),
        ({"fault": "restart-redis", "redis": "redis://10.0.0.1"}, "--redis: expected one server on this machine"),
    ],
)
def test_a_case_that_cannot_be_is_refused(case: dict[str, Any], message: str) -> None:
    """The message names the option, what was expected and what was got."""
    with pytest.raises(ConfigError) as caught:
        RateLimitCase(**case)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        RateLimitCase(redis="own", failover=Failover.HARD, unreachable=Unreachable.OPEN),
        RateLimitCase(tokens=7, per_us=60_000_000, burst=3, fault="failover"),
    ],
)
def test_the_server_is_configured_with_the_case(
    case: RateLimitCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `penstock serve` reads is the limit of the case, and Redis by a variable, as its URL may hold a password."""
    file = tmp_path / "penstock.toml"
    file.write_text('[models.device]\npath = "device.py"\n' + case.sections("prefix"))
    (tmp_path / "device.py").touch()
    monkeypatch.setenv("PENSTOCK_DRILL_REDIS_URL", "redis://127.0.0.1:1")
    limits = load_config(file).limits
    assert limits.limits == (case.limit(),)
    assert (limits.redis.startswith("env:"), limits.prefix) == ((True, "prefix") if case.store else (False, "penstock"))
    assert Path(limits.decision_log).parent == tmp_path


def test_the_device_tells_what_is_tried() -> None:
    """The report says by how many gateways, with which limit, and who counts."""
    device = make_rate_limit(RateLimitCase(fault="failover", failover=Failover.HARD)).device
    assert device.startswith("emulated")
    assert "4 gateways, 5000/s offered to a limit of 1000/s burst 200" in device
    assert "three sentinels of the drill's own (hard, closed)" in device
    assert RATE_LIMIT.device.endswith("counted by the head (soft, closed)")


def test_every_figure_and_fault_is_documented() -> None:
    """docs/drills.md names each."""
    spans = set(code_spans(read_page("docs/drills.md")))
    _, findings = judge_case(good_evidence())
    assert set(findings.figures) <= spans
    assert {name for name in FAULTS if name} <= spans
