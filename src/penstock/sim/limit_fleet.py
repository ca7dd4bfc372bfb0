"""A fleet of gateways under rate limits in virtual time, with all that can go wrong between them and the authority.

The authority is the book that the head keeps, the gateways borrow as production does; every admission is audited at the
true time at which its tokens were taken. Not here: what happens in a scenario (`limit_scenario.py`), a gateway's flow
(`limit_gateway.py`).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np

from penstock.core.arrivals import plan_arrivals
from penstock.core.authority import Ask, Check, Checked, Granted, Operation, Reply, Settle, Settled
from penstock.core.limits import Quota
from penstock.policy.auditing import DeliveryAudit, WindowAudit
from penstock.policy.limit_book import LimitBook
from penstock.sim.events import NEVER_US, Action, Agenda
from penstock.sim.limit_gateway import LimitRequest, SimulatedLimiter
from penstock.sim.limit_link import Link
from penstock.sim.limit_scenario import LimitFault, LimitScenario
from penstock.sim.scenario import StreamFactory

__all__ = ["Admission", "LimitOutcome", "simulate_limits"]

# The authority's clock when the run begins, µs: far from 0, as a wall clock is.
_ORIGIN_US = 10**15


class Admission:
    """Tokens of a key that were taken at an instant. What is given back later counts as never taken."""

    __slots__ = ("at_us", "tokens")

    def __init__(self, at_us: int, tokens: int) -> None:
        self.at_us = at_us
        self.tokens = tokens


@dataclass(slots=True)
class LimitOutcome:
    """What came of a run.

    Attributes:
        quotas: Of every key.
        admissions: Of every key, in the order of true time.
        deliveries: Of keys that requests take alone: against an ideal bucket.
        losses: Of every key: tokens that failovers may have let in twice, as published for `soft` quotas.
        decisions, calls: Requests decided; calls that gateways sent to the authority.
        lent, used, returned: Tokens of leases: granted, taken from them, given back to the authority in time.
        broken: Promises of the authority that a reply broke, if any.
    """

    quotas: Mapping[str, Quota]
    admissions: dict[str, list[Admission]]
    deliveries: dict[str, DeliveryAudit]
    losses: dict[str, int]
    decisions: int = 0
    admitted: int = 0
    calls: int = 0
    lent: int = 0
    used: int = 0
    returned: int = 0
    broken: list[str] = field(default_factory=list)

    def audit(self) -> dict[str, WindowAudit]:
        """Return the audit of every key's admissions."""
        audits = {}
        for key, admissions in self.admissions.items():
            audits[key] = audit = WindowAudit(self.quotas[key])
            for admission in admissions:
                audit.observe(admission.at_us, admission.tokens)
        return audits

    @property
    def stranded_tokens(self) -> int:
        """Return the tokens that were lent and neither used nor returned: of grants lost, of gateways gone, run out."""
        return self.lent - self.used - self.returned

    def excess_tokens(self) -> dict[str, int]:
        """Return the keys whose worst window is over the bound and what failovers may have added, and by how much."""
        over = {key: audit.excess_tokens - self.losses[key] for key, audit in self.audit().items()}
        return {key: tokens for key, tokens in over.items() if tokens > 0}


class _Authority:
    """The book on a clock of its own, with a replica that lags behind by so many operations."""

    def __init__(self, scenario: LimitScenario, outcome: LimitOutcome) -> None:
        self._outcome = outcome
        self._quotas = scenario.quotas
        self._back_us = 0
        self._epochs = 0
        self._holds: dict[tuple[str, str], Admission] = {}
        self._leases: dict[tuple[str, str], tuple[int, int]] = {}  # by key and id: tokens, until when they are good
        # Older than any run, so that keys under `hard` begin as others do.
        self._book = LimitBook("0", 1)
        self._lag = max((f.operations for f in scenario.faults if f.kind == "failover"), default=-1)
        self._replica = LimitBook("0", 1)
        self._log: deque[tuple[Operation, int, int]] = deque()  # with the clock and the true time

    def clock_us(self, now_us: int) -> int:
        return _ORIGIN_US + now_us - self._back_us

    def answer(self, operations: Sequence[Operation], now_us: int) -> list[Reply]:
        """Do what a call asks, at one instant."""
        clock_us = self.clock_us(now_us)
        replies = []
        for operation in operations:
            reply = self._book.run(operation, clock_us)
            self._note(operation, reply, now_us)
            replies.append(reply)
            if self._lag >= 0:
                self._log.append((operation, clock_us, now_us))
                self._replicate(self._lag)
        return replies

    def _replicate(self, lag: int) -> None:
        while len(self._log) > lag:
            operation, clock_us, _ = self._log.popleft()
            self._replica.run(operation, clock_us)

    def _note(self, operation: Operation, reply: Reply, now_us: int) -> None:
        outcome = self._outcome
        if isinstance(operation, Check) and isinstance(reply, Checked):
            if reply.denied < 0:
                for demand in operation.demands:
                    admission = Admission(now_us, demand.cost)
                    outcome.admissions[demand.key].append(admission)
                    if operation.hold:
                        self._holds[demand.key, operation.hold] = admission
        elif isinstance(operation, Settle) and isinstance(reply, Settled):
            held = self._holds.pop((operation.key, operation.hold), None)
            if held is not None:
                held.tokens -= max(reply.given_back, 0)
        elif isinstance(operation, Ask) and isinstance(reply, Granted):
            quota = operation.quota
            for close in operation.closes:
                tokens, until_us = self._leases.pop((operation.key, close.id), (0, 0))
                outcome.returned += min(close.unused, tokens) if reply.now_us < until_us else 0
            # One that is heard again by a successor which has not heard it is lent anew.
            known, _ = self._leases.get((operation.key, operation.id), (0, 0))
            if reply.tokens > known:
                self._leases[operation.key, operation.id] = (reply.tokens, reply.now_us + operation.ttl_us)
                outcome.lent += reply.tokens - known
            if reply.leased > quota.lease_max:
                outcome.broken.append(f"{now_us}: {reply.leased} lent of {operation.key}, at most {quota.lease_max}")
            if reply.remaining + reply.leased > quota.burst:
                outcome.broken.append(f"{now_us}: {reply.leased} lent of {operation.key} with {reply.remaining} left")

    def forget(self, now_us: int) -> None:
        self._book.forget_idle(self.clock_us(now_us))

    def step_back(self, now_us: int, fault: LimitFault) -> None:
        self._back_us += fault.duration_us

    def fail_over(self, now_us: int, fault: LimitFault) -> None:
        """Go on from a replica that the last operations have not reached, or from nothing."""
        self._epochs += 1
        clock_us = self.clock_us(now_us)
        lag_us = 0
        if fault.kind == "restart":
            self._book = LimitBook(str(self._epochs), clock_us)
        else:
            self._replicate(fault.operations)
            if self._log:
                lag_us = now_us - self._log[0][2]
            self._book = self._replica
            self._book.begin_epoch(str(self._epochs), clock_us)
        self._log.clear()
        if self._lag >= 0:
            self._replica = deepcopy(self._book)
        for key, quota in self._quotas.items():
            if not quota.is_hard:
                lost = quota.burst + ceil(quota.drain * lag_us / (quota.weight * quota.tick_us))
                self._outcome.losses[key] += lost


class _Node:
    """A gateway: its lives, its clock, its calls under way. What reaches it while it is paused, waits."""

    def __init__(self, index: int, run: "_Run") -> None:
        self._index = index
        self._run = run
        drifts = run.scenario.drifts_ppm
        self._drift_ppm = drifts[index] if drifts else 0
        # Clocks of different machines have nothing to do with each other.
        self._offset_us = (index * 7_919 + 1) * 1_000_000
        self._life = 0
        self._is_up = True
        self._paused_until_us = 0
        self._calls: dict[int, list[Any]] = {}
        self._call_count = 0
        self._is_flush_due = False
        self._now_us = 0
        self._limiter = self._begin(0)

    def clock_us(self, now_us: int) -> int:
        return self._offset_us + now_us + now_us * self._drift_ppm // 1_000_000

    def _begin(self, now_us: int) -> SimulatedLimiter:
        self._life += 1
        scenario = self._run.scenario
        return SimulatedLimiter(
            f"g{self._index}.{self._life}",
            dict(scenario.quotas),
            scenario.lease_us,
            ledger=self,
            send=self._send,
            now_us=self.clock_us(now_us),
        )

    # -- what happens to it --------------------------------------------------------------------------------------

    def _is_reached(self, now_us: int, action: Action, argument: tuple[int, Any]) -> bool:
        """Return whether an event of one of its lives happens now; one that is paused away happens later."""
        if argument[0] != self._life or not self._is_up:
            return False
        if now_us < self._paused_until_us:
            self._run.agenda.add(self._paused_until_us, action, argument)
            return False
        self._now_us = now_us
        self._flush_soon()
        return True

    def arrive(self, now_us: int, argument: Any) -> None:
        """A request has been read off the wire: (source, what it will cost or None)."""
        self.decide(now_us, (self._life, argument))

    def decide(self, now_us: int, argument: Any) -> None:
        if self._is_reached(now_us, self.decide, argument):
            source, settles = argument[1]
            of = self._run.scenario.sources[source]
            self._limiter.submit(LimitRequest(of.demands, settles, of.service_us), self.clock_us(now_us))

    def receive(self, now_us: int, argument: Any) -> None:
        """The answer to a call has come, or its deadline: replies, or None for all."""
        if self._is_reached(now_us, self.receive, argument):
            call, replies = argument[1]
            handlers = self._calls.pop(call, ())
            clock_us = self.clock_us(now_us)
            for k, handler in enumerate(handlers):
                handler(None if replies is None else replies[k], clock_us)

    def settle(self, now_us: int, argument: Any) -> None:
        if self._is_reached(now_us, self.settle, argument):
            self._limiter.settle(argument[1], self.clock_us(now_us))

    def tend(self, now_us: int, argument: Any) -> None:
        if self._is_reached(now_us, self.tend, argument):
            self._limiter.tend(self.clock_us(now_us))
            scenario = self._run.scenario
            if now_us < scenario.duration_us + 2 * scenario.tend_us:
                self._run.agenda.add(now_us + scenario.tend_us, self.tend, argument)

    def pause(self, now_us: int, fault: LimitFault) -> None:
        self._paused_until_us = max(self._paused_until_us, now_us + fault.duration_us)

    def crash(self, now_us: int, fault: LimitFault) -> None:
        self._is_up = False
        self._calls.clear()
        self._run.agenda.add(now_us + fault.duration_us, self.restart, self._life)

    def restart(self, now_us: int, life: int) -> None:
        if life == self._life:
            self._is_up = True
            self._is_flush_due = False
            self._paused_until_us = 0
            self._limiter = self._begin(now_us)
            self._run.agenda.add(now_us, self.tend, (self._life, None))

    # -- what it does --------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._run.agenda.add(self._now_us, self._flush, self._life)

    def _flush(self, now_us: int, life: int) -> None:
        if life == self._life:
            self._is_flush_due = False
            if self._is_up:
                self._limiter.flush()

    def _send(self, operations: list[Operation], handlers: list[Any]) -> None:
        run, now_us = self._run, self._now_us
        run.outcome.calls += 1
        self._call_count += 1
        call = self._call_count
        self._calls[call] = handlers
        run.link.carry(now_us, run.answer, (self, self._life, call, operations))
        run.agenda.add(now_us + run.scenario.deadline_us, self.receive, (self._life, (call, None)))

    def took(self, key: str, tokens: int) -> Admission:
        """See `LimitLedger`."""
        outcome = self._run.outcome
        outcome.used += tokens
        admission = Admission(self._now_us, tokens)
        outcome.admissions[key].append(admission)
        return admission

    def gave_back(self, admission: Admission) -> None:
        """See `LimitLedger`."""
        self._run.outcome.used -= admission.tokens
        admission.tokens = 0

    def answered(self, request: LimitRequest, *, is_admitted: bool) -> None:
        """See `LimitLedger`."""
        run = self._run
        run.outcome.decisions += 1
        if is_admitted:
            run.outcome.admitted += 1
            if request.settles is not None:
                run.agenda.add(self._now_us + request.service_us, self.settle, (self._life, request))
        if len(request.demands) == 1 and request.settles is None:
            key, tokens = request.demands[0]
            run.outcome.deliveries[key].observe(_ORIGIN_US + self._now_us, tokens, is_admitted=is_admitted)


class _Run:
    """The parts of one run, put together."""

    def __init__(self, scenario: LimitScenario, stream: StreamFactory) -> None:
        self.scenario = scenario
        self.outcome = LimitOutcome(
            scenario.quotas,
            {key: [] for key in scenario.quotas},
            {key: DeliveryAudit(quota, _ORIGIN_US) for key, quota in scenario.quotas.items()},
            dict.fromkeys(scenario.quotas, 0),
        )
        self.agenda = Agenda()
        self.authority = _Authority(scenario, self.outcome)
        self.link = Link(scenario.network, self.agenda, stream("network"))
        self._nodes = [_Node(k, self) for k in range(scenario.gateways)]
        self._requests = _plan_requests(scenario, stream)
        for k, node in enumerate(self._nodes):
            self.agenda.add(scenario.tend_us * (k + 1) // scenario.gateways, node.tend, (1, None))
        for at_us in range(scenario.forget_us, scenario.duration_us, scenario.forget_us):
            self.agenda.add(at_us, self._forget)
        for fault in scenario.faults:
            self.agenda.add(fault.at_us, self._fault(fault), fault)

    def _fault(self, fault: LimitFault) -> Action:
        node = self._nodes[fault.index % len(self._nodes)]
        actions: dict[str, Action] = {
            "pause": node.pause,
            "crash": node.crash,
            "clock_back": self.authority.step_back,
            "failover": self.authority.fail_over,
            "restart": self.authority.fail_over,
        }
        return actions[fault.kind]

    def answer(self, now_us: int, argument: Any) -> None:
        """A call has reached the authority."""
        node, life, call, operations = argument
        replies = self.authority.answer(operations, now_us)
        self.link.carry(now_us, node.receive, (life, (call, replies)))

    def _forget(self, now_us: int, _: Any) -> None:
        self.authority.forget(now_us)

    def run(self) -> None:
        """Let everything happen."""
        agenda, nodes = self.agenda, self._nodes
        for at_us, gateway, source, settles in self._requests:
            while agenda.next_us <= at_us:
                agenda.run_instant(agenda.next_us)
            nodes[gateway].arrive(at_us, (source, settles))
        while agenda.next_us < NEVER_US:
            agenda.run_instant(agenda.next_us)


def _plan_requests(scenario: LimitScenario, stream: StreamFactory) -> list[tuple[int, int, int, int | None]]:
    """Return all requests in order: when, at which gateway, of which source, settled at what."""
    requests: list[tuple[int, int, int, int | None]] = []
    for k, source in enumerate(scenario.sources):
        rng = stream(f"source-{k}")
        times = plan_arrivals(source.arrivals, rng, rate=source.rate, duration_us=scenario.duration_us)
        shares = np.array(source.shares or (1.0,) * scenario.gateways)
        gateways = rng.choice(scenario.gateways, size=len(times), p=shares / shares.sum())
        settles: list[int | None] = [None] * len(times)
        if source.settled is not None:
            settles = rng.integers(source.settled[0], source.settled[1] + 1, size=len(times)).tolist()
        requests += zip(times.tolist(), gateways.tolist(), [k] * len(times), settles, strict=True)
    return sorted(requests, key=lambda r: r[0])


def simulate_limits(scenario: LimitScenario, stream: StreamFactory) -> LimitOutcome:
    """Simulate a fleet under limits.

    Args:
        scenario: What happens.
        stream: Chance by name: the same streams, the same run.

    Returns:
        What came of it. About 20 µs of real time for each request.
    """
    run = _Run(scenario, stream)
    run.run()
    return run.outcome
