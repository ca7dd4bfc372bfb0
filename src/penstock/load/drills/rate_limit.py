"""The rate-limit drill: a limit holds exactly over several gateways, whatever happens to them and to who counts.

One limit for all callers, and more load than it lets in, sent to several gateways at once while something breaks. What
every gateway admitted is put into one order of time, and no window may hold more than burst + rate * its length.
Not here: finding that out (`admissions.py`), the faults (`limit_faults.py`), Redis (`limit_stores.py`).
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import redis

from penstock.core.arrivals import Times
from penstock.core.errors import ConfigError
from penstock.core.limit_text import LimitText, format_limit
from penstock.core.limits import Failover, Level, LimitSettings, RateLimit, Unreachable
from penstock.load.drills.admissions import (
    OUTCOMES,
    ClockDifference,
    Decisions,
    count_ideal,
    excess_of_answers,
    excess_of_decisions,
    measure_difference,
    read_decisions,
)
from penstock.load.drills.form import Drill, Findings, Rig
from penstock.load.drills.limit_faults import FAULTS, REDIS_FAULTS, SKEW_VARIABLE, Injector, Scene, skews_s
from penstock.load.drills.limit_stores import OWN, LimitStore, check_store, describe_store, open_store
from penstock.load.drills.loading import Tenant, Yield, apply_load
from penstock.load.drills.serving import DeviceModel, ServedFleet
from penstock.load.driver import LIMITED, SHED
from penstock.load.reporting import percentile_us

__all__ = ["RATE_LIMIT", "Evidence", "RateLimitCase", "judge", "make_rate_limit"]

# Quick and roomy: whoever the limit lets in is answered, so that answers count admissions.
DEVICE = DeviceModel("device", beta_ms=1.0, alpha_ms=0.01, size_max=64, slo_ms=500.0)
LIMIT = "drill"
DELIVERED_RATIO_MIN = 0.98
INSTANCES_MAX = 64
OFFERED_PER_S_MAX = 100_000
DURATION_S_MIN, DURATION_S_MAX = 1.0, 3_600.0
# Before the load a few requests, for so long: as a gateway must have been present to count on its share, and, under
# `hard`, until the bucket has become full of tokens (a lease's longest life, and then the burst drains).
_SETTLE_US, _SETTLE_US_MAX = 3_500_000, 30_000_000
_SETTLE_PER_S = 10.0
# Faults under which every request is still answered, in or not.
_HARMLESS = frozenset(("", "skew", "flush-scripts"))
# Faults after which whoever counts has lost what it knew.
_FORGETFUL = frozenset(("failover", "kill-head"))
# A gateway hands its log to the system every 20 ms (`gateway/decision_log.py`); more, as it may be waiting for a core.
_UNLOGGED_US = 50_000
_LOG = "decisions.jsonl"
# The longest that suits a gateway: here gateways, Redis and generator share the cores of one machine.
_DEADLINE_MS = 20
_RATE_LIMITED = 429
_URL_VARIABLE = "PENSTOCK_DRILL_REDIS_URL"
_LAG_US = LimitSettings().lag_us_max


@dataclass(frozen=True, slots=True)
class RateLimitCase:
    """What to try.

    Args:
        instances: Gateways.
        tokens, per_us, burst: The limit: requests per period, requests at once.
        offered_per_s: Load, requests per second.
        duration_s: Of the load.
        redis: URL, `own` for one of the drill's own, '' for the head to count.
        fault: One of `FAULTS`.
        failover, unreachable: Of the limit.

    Raises:
        ConfigError: A number is out of range, or fault and Redis do not go together; the message names the option.
    """

    instances: int = 4
    tokens: int = 1_000
    per_us: int = 1_000_000
    burst: int = 200
    offered_per_s: float = 5_000.0
    duration_s: float = 20.0
    redis: str = ""
    fault: str = ""
    failover: Failover = Failover.SOFT
    unreachable: Unreachable = Unreachable.CLOSED

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= INSTANCES_MAX:
            raise ConfigError(f"--instances: expected 1 to {INSTANCES_MAX}, got {self.instances}.")
        if not 1 <= self.offered_per_s <= OFFERED_PER_S_MAX:
            raise ConfigError(f"--offered: expected 1 to {OFFERED_PER_S_MAX} per second, got {self.offered_per_s:g}.")
        if not DURATION_S_MIN <= self.duration_s <= DURATION_S_MAX:
            raise ConfigError(
                f"--duration: expected {DURATION_S_MIN:g} to {DURATION_S_MAX:g} s, got {self.duration_s:g}."
            )
        if self.fault not in FAULTS:
            known = ", ".join(name for name in FAULTS if name)
            raise ConfigError(f"--fault: expected one of {known}, got {self.fault!r}.")
        if self.fault == "kill-head" and self.redis:
            raise ConfigError("--fault kill-head: expected no --redis, as then the head does not count.")
        check_store(self.redis, self.fault)
        try:
            self.limit()
        except ValueError as fault:
            raise ConfigError(f"--limit, --burst: {fault}") from fault

    def limit(self) -> RateLimit:
        """Return the limit. Raises ValueError if there can be none such."""
        return RateLimit(
            LIMIT,
            Level.GLOBAL,
            self.tokens,
            self.per_us,
            self.burst,
            failover=self.failover,
            unreachable=self.unreachable,
        )

    @property
    def rate_per_s(self) -> float:
        """Return what the limit lets in for ever."""
        return self.tokens * 1e6 / self.per_us

    @property
    def store(self) -> str:
        """Return which Redis is used: the one named, or one of our own if the fault needs one."""
        return self.redis or (OWN if self.fault in REDIS_FAULTS else "")

    @property
    def excess_max(self) -> float:
        """Return the excess that is within what is promised, tokens."""
        if self.fault in _FORGETFUL and self.failover is Failover.SOFT:
            return self.burst + self.rate_per_s * _LAG_US / 1e6
        return 0.0

    @property
    def settle_us(self) -> int:
        """Return how long to let the server be before the load."""
        if self.failover is Failover.SOFT:
            return _SETTLE_US
        return round(min(_SETTLE_US + self.burst / self.rate_per_s * 1e6, _SETTLE_US_MAX))

    def sections(self, prefix: str) -> str:
        """Return the configuration of the server, but for its model."""
        rate = format_limit(LimitText(self.tokens, self.per_us, self.burst))
        redis_section = f'[redis]\nurl = "env:{_URL_VARIABLE}"\nprefix = "{prefix}"\n' if self.store else ""
        return (
            f'[limits.{LIMIT}]\nlevel = "global"\nrate = "{rate}"\n'
            f'failover = "{self.failover}"\nunreachable = "{self.unreachable}"\n'
            f'[limiting]\ndeadline_ms = {_DEADLINE_MS}\ndecision_log = "{_LOG}"\n{redis_section}'
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run left behind.

    Args:
        run: What callers saw, in two phases: hardly any load, and the load.
        decisions: What gateways logged.
        difference: The authority's clock against ours.
        injected: How often the fault was injected.
        commands: Calls of scripts that Redis counted; None if nobody could tell.
    """

    run: Yield
    decisions: Decisions
    difference: ClockDifference = field(default_factory=ClockDifference)
    injected: int = 0
    commands: int | None = None


def _run(case: RateLimitCase, rig: Rig) -> Findings:
    findings = Findings()
    rig.show("starting a server", 0.0)
    prefix = f"penstock-drill-{os.getpid()}-{rig.now_us()}"
    with ExitStack() as stack:
        store = stack.enter_context(open_store(case.store, case.fault, rig.now_us))
        fleet = ServedFleet(
            rig.serve_command,
            [DEVICE],
            rig.now_us,
            gateways=case.instances,
            sections=lambda _: case.sections(prefix),
            environment=_environment(case, store),
        )
        stack.enter_context(fleet)
        evidence = _apply(case, rig, fleet, store)
    judge(case, evidence, findings)
    return findings


def _environment(case: RateLimitCase, store: LimitStore | None) -> Mapping[str, str]:
    found = {} if store is None else {_URL_VARIABLE: store.url}
    return {**found, SKEW_VARIABLE: skews_s(case.instances)} if case.fault == "skew" else found


def _apply(case: RateLimitCase, rig: Rig, fleet: ServedFleet, store: LimitStore | None) -> Evidence:
    """Apply load and fault to a running server; return what came of it."""
    load_us = rig.scale_us(case.duration_s)
    difference = ClockDifference() if store is None else measure_difference(partial(_read_clock_us, store), rig.now_us)
    commands = _count_commands(store)
    scene = Scene(fleet, store, case.instances, load_us)
    text = f"rate limit, fault {case.fault or 'none'}"
    with closing(Injector(case.fault, scene)) as injector:
        begin_us = rig.now_us() + case.settle_us

        def show(done: float) -> None:
            if rig.now_us() >= begin_us and done < 1:
                injector.tend(rig.now_us())
            rig.show(text, done)

        tenants = [Tenant("", (min(_SETTLE_PER_S, case.rate_per_s / 10), case.offered_per_s))]
        run = apply_load(rig, fleet.http, DEVICE.name, tenants, [case.settle_us, load_us], is_spread=True, show=show)
    fleet.wait_reports()  # and so for the gateways' last lines
    called = None if commands is None or case.fault in REDIS_FAULTS else (_count_commands(store) or 0) - commands
    return Evidence(run, read_decisions(fleet.folder / _LOG, LIMIT), difference, scene.injected, called)


def _read_clock_us(store: LimitStore) -> int:
    seconds, microseconds = store.ask("TIME")
    return int(seconds) * 1_000_000 + int(microseconds)


def _count_commands(store: LimitStore | None) -> int | None:
    """Return how many scripts Redis has been asked to run, ever; what they do inside is no command of a gateway's."""
    with suppress(redis.RedisError, KeyError, TypeError):
        counts = {} if store is None else store.ask("INFO", "commandstats")
        found = [counts[f"cmdstat_{name}"]["calls"] for name in ("evalsha", "eval") if f"cmdstat_{name}" in counts]
        return sum(map(int, found)) if store is not None else None
    return None


def judge(case: RateLimitCase, evidence: Evidence, findings: Findings) -> None:
    """Add figures and checks of one run. What is counted is of the load's time, what is bounded of the whole run."""
    quota = case.limit().quota()
    run, decisions = evidence.run, evidence.decisions
    is_any = bool(np.any(decisions.is_admitted))
    excess = max(excess_of_decisions(decisions, quota, evidence.difference), 0.0) if is_any else None
    good = run.latency_us >= 0
    # A request is sent when the generator comes to it, not before it was intended: the widest that it can be.
    answered = excess_of_answers(run.intended_us[good], run.intended_us[good] + run.latency_us[good], quota)
    findings.note("excess_max", excess)
    findings.note("excess_answered_max", max(answered, 0.0))
    ideal = count_ideal(run.intended_us[run.in_phase(1)], quota)
    admitted = _note_decisions(evidence, findings)
    delivered = admitted / ideal if ideal else None
    findings.note("delivered_ratio", delivered)
    findings.note("ideal_count", ideal)
    findings.note("faults_count", evidence.injected)
    _note_answers(run, findings)
    findings.expect_at_most("admitted in the worst window, over burst + rate x time", case.excess_max, excess)
    findings.expect_at_most("answered in the worst window, over burst + rate x time", case.excess_max, answered)
    if not case.fault:
        findings.expect_at_least("admitted, of what one ideal bucket lets in", DELIVERED_RATIO_MIN, delivered)
    findings.expect_at_least("gateways that decided", case.instances, len(np.unique(decisions.gateway)))
    if case.fault not in ("", "skew"):
        findings.expect_at_least("faults injected", 1, evidence.injected)
    unlogged_max = 0.0
    if case.fault == "kill":
        unlogged_max = evidence.injected * (case.burst + case.rate_per_s * _UNLOGGED_US / 1e6)
    unlogged = int(good.sum()) - int(np.count_nonzero(decisions.is_admitted))
    findings.expect_at_most("answers without an admission in the log", unlogged_max, unlogged)
    if case.fault in _HARMLESS:
        findings.expect_at_most("requests failed, neither answered nor refused", 0, _count_failed(run))
    run.check_generator(findings)


def _note_decisions(evidence: Evidence, findings: Findings) -> int:
    """Note what gateways decided under load; return how many they let in."""
    run, decisions = evidence.run, evidence.decisions
    at_us = decisions.instants_us(evidence.difference) - run.start_at_us
    is_load = at_us >= run.bounds_us[1]
    admitted_us = np.sort(at_us[is_load & decisions.is_admitted])
    findings.note("admitted_count", len(admitted_us))
    for index, name in enumerate(OUTCOMES):
        findings.note(f"{name}_count", int(np.count_nonzero(is_load & (decisions.outcome == index))))
    findings.note("no_admission_max_ms", _longest_gap_ms(admitted_us, run))
    per_gateway = np.unique(decisions.gateway, return_counts=True)[1]
    count = len(at_us)
    findings.note("busiest_gateway_ratio", int(per_gateway.max()) / count if count else None)
    findings.note("torn_lines_count", decisions.torn_count)
    is_counted = evidence.commands is not None and count
    findings.note("redis_commands_per_decision", (evidence.commands or 0) / count if is_counted else None)
    findings.note("clock_error_us", evidence.difference.error_us)
    return len(admitted_us)


def _note_answers(run: Yield, findings: Findings) -> None:
    good = run.in_phase(1) & (run.latency_us >= 0)
    refusals = run.refusals[run.refusals[:, 1] >= run.bounds_us[1]]
    limited = refusals[refusals[:, 3] == _RATE_LIMITED]
    for name, count in (
        ("offered_count", np.count_nonzero(run.in_phase(1))),
        ("answered_count", np.count_nonzero(good)),
        ("limited_count", len(limited)),
        ("unavailable_count", len(refusals) - len(limited)),
        ("failed_count", _count_failed(run)),
    ):
        findings.note(name, int(count))
    findings.note("answered_p95_ms", _p95_ms(run.latency_us[good]))
    findings.note("limited_p95_ms", _p95_ms(limited[:, 2]))
    came_us = np.sort(np.concatenate([run.intended_us[good] + run.latency_us[good], refusals[:, 1]]))
    findings.note("no_answer_max_ms", _longest_gap_ms(came_us, run))


def _count_failed(run: Yield) -> int:
    return int(np.count_nonzero(~np.isin(run.latency_us, (SHED, LIMITED)) & (run.latency_us < 0)))


def _p95_ms(latency_us: Times) -> float | None:
    return percentile_us(np.sort(latency_us), 0.95) / 1e3 if len(latency_us) else None


def _longest_gap_ms(at_us: Times, run: Yield) -> float:
    """Return the longest time under load in which there was none of these."""
    inside_us = at_us[at_us < run.bounds_us[2]]
    return int(np.diff(np.concatenate([run.bounds_us[1:2], inside_us, run.bounds_us[2:3]])).max()) / 1e3


def make_rate_limit(case: RateLimitCase) -> Drill:
    """Return the drill that tries a case."""
    rate = format_limit(LimitText(case.tokens, case.per_us, case.burst))
    return Drill(
        name="rate-limit",
        invariant="In no window does the fleet admit more than burst + rate x time, however many gateways there are and"
        " whatever fails; and without a fault at least 98 % of what one ideal bucket would admit.",
        fault=FAULTS[case.fault],
        device=f"{DEVICE.describe()}; {case.instances} gateways, {case.offered_per_s:g}/s offered to a limit of {rate},"
        f" {describe_store(case.store, case.fault)} ({case.failover}, {case.unreachable})",
        duration_s=case.duration_s,
        run=partial(_run, case),
    )


RATE_LIMIT = make_rate_limit(RateLimitCase())
