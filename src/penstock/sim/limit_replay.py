"""What if a limit were another? A decision log's requests run through one book under the recorded limits, one changed.

    lines --in order--> LimitBook, as recorded: "before"  }  admitted and rejected, by limit and by user;
                    `-> LimitBook, as changed:  "after"   }  how full the fullest bucket was

Each request is checked exactly, at the time it was asked for; leases and outages are left out, so "before" differs
from what was recorded by what those cost. Concurrency limits are not replayed: what they rejected is left out. Pure.
Not here: the log's lines (`wire/decisions.py`), files and tables (`cli/limits.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush

import msgspec

from penstock.core.authority import Check, Checked, Demand, Settle, Settled
from penstock.core.errors import ConfigError
from penstock.core.limit_text import LimitText
from penstock.core.limits import Cost, Failover, Quota, RateLimit, Unreachable
from penstock.policy.auditing import HazyWindowAudit, WindowAudit
from penstock.policy.limit_book import LimitBook
from penstock.wire.decisions import Decision, Definition, Line, Refund

__all__ = ["Fate", "LimitFate", "LimitReplay", "Replayed"]

# Lines are put in order over so long: a gateway that was silent for longer was killed.
ORDER_US = 10_000_000
# Who steps back by more than that was started on a machine that was.
RESTART_US = 3_600_000_000
# As long as gateways hold a charge that is still to be settled.
HOLD_US = 600_000_000
# So often, in requests, some keys that are as good as new are dropped from the books.
_TEND_EVERY = 10_000
_TEND_KEYS = 5_000


@dataclass(slots=True)
class Fate:
    """How many requests there were, and how many were in: as recorded, by the book before, by the book after."""

    requests: int = 0
    recorded: int = 0
    before: int = 0
    after: int = 0


@dataclass(slots=True)
class LimitFate:
    """What one limit did.

    Attributes:
        before, after: The limit as it was last defined, and as it is changed.
        requests: That were under it.
        rejected, rejected_before, rejected_after: By it, as recorded and in the books.
        excess_tokens: By which the worst window of any of its buckets was over its bound, as recorded.
        peak_before, peak_after: The part of its bound that the worst window of any of its buckets used up, 0-1.
    """

    before: RateLimit
    after: RateLimit
    requests: int = 0
    rejected: int = 0
    rejected_before: int = 0
    rejected_after: int = 0
    excess_tokens: int = 0
    peak_before: float = 0.0
    peak_after: float = 0.0


@dataclass(slots=True)
class Replayed:
    """What came of it.

    Attributes:
        all, users, limits: Of everybody, by (tenant, user), and by name.
        others: Requests that a limit rejected which is not replayed; they count nowhere else.
        late: Lines that came too late to be put in order.
        duration_us: From the first line to the last.
    """

    all: Fate = field(default_factory=Fate)
    users: dict[tuple[str, str], Fate] = field(default_factory=dict)
    limits: dict[str, LimitFate] = field(default_factory=dict)
    others: int = 0
    late: int = 0
    duration_us: int = 0


class _Book:
    """One set of rules, and what was admitted under it."""

    def __init__(self) -> None:
        self.book = LimitBook("replay", 1)
        self.windows: dict[tuple[str, str, Quota], WindowAudit] = {}  # by limit, bucket and quota

    def check(self, limits: Sequence[RateLimit], line: Decision, at_us: int) -> int:
        """Return the index of the limit in the way, -1 if there is none."""
        demands = [Demand(line.keys[x.name], _quota_of(x), line.limits[x.name], x.cost is Cost.TOKENS) for x in limits]
        for index, demand in enumerate(demands):
            if demand.cost > demand.quota.burst:
                return index
        reply = self.book.run(Check(tuple(demands), hold=line.hold, hold_us=HOLD_US if line.hold else 0), at_us)
        assert isinstance(reply, Checked)
        if reply.denied < 0:
            for limit, demand in zip(limits, demands, strict=True):
                self._observe(limit, demand.key, demand.cost, at_us)
        return reply.denied

    def settle(self, limit: RateLimit, line: Refund, at_us: int) -> None:
        """Correct what a request was charged, if it was let in here."""
        reply = self.book.run(Settle(line.key, _quota_of(limit), line.hold, line.actual), at_us)
        if isinstance(reply, Settled) and reply.given_back > 0:
            self._observe(limit, line.key, -reply.given_back, at_us)

    def _observe(self, limit: RateLimit, key: str, tokens: int, at_us: int) -> None:
        quota = _quota_of(limit)
        window = self.windows.get((limit.name, key, quota))
        if window is None:
            window = self.windows[limit.name, key, quota] = WindowAudit(quota)
        window.observe(at_us, tokens)

    def peak(self, name: str) -> float:
        """Return how much of its bound the worst window of any of a limit's buckets used up, 0-1."""
        return max(
            (window.filled_ratio for (limit, _, _), window in self.windows.items() if limit == name), default=0.0
        )


class LimitReplay:
    """See the module. Feed it every line, then `finish`.

    Args:
        rules: Limits that are taken for those of the same name in the log, as if they had been in force.
        changes: To what limits are changed, by name. They go on counting what they count.

    Raises:
        ConfigError: A changed limit cannot be counted.
    """

    def __init__(self, rules: Mapping[str, RateLimit], changes: Mapping[str, LimitText]) -> None:
        self._changes = dict(changes)
        self._rules = {name: _plain(limit) for name, limit in rules.items()}
        self._changed: dict[RateLimit, RateLimit] = {}
        for limit in self._rules.values():
            self._change(limit)
        self._defined: dict[tuple[int, int], dict[str, RateLimit]] = {}
        self._queue: list[tuple[int, int, Decision | Refund]] = []
        self._lines = 0
        self._newest_us = 0
        self._now_us = 0
        self._begin_us = -1
        self._before = _Book()
        self._after = _Book()
        self._recorded: dict[tuple[str, str], HazyWindowAudit] = {}  # by limit and bucket
        self._replayed = Replayed()

    def note(self, line: Line) -> None:
        """Take the next line of the log.

        Raises:
            ValueError: It does not fit to those before it.
            ConfigError: A changed limit cannot be counted.
        """
        if isinstance(line, Definition):
            if isinstance(line.defines, RateLimit):
                # Of several processes each may have been started with other limits.
                limit = _plain(line.defines)
                self._change(limit)
                self._defined.setdefault((line.gateway, line.pid), {})[limit.name] = limit
            return
        at_us = line.since_us if isinstance(line, Decision) else line.at_us
        if at_us < self._newest_us - RESTART_US:
            raise ValueError(
                f"expected times of one run of the machine, got one {(self._newest_us - at_us) / 1e6:,.0f} s before"
                " another; it was restarted in between: split the log there"
            )
        for name in line.limits if isinstance(line, Decision) else (line.limit,):
            self._rule_of(line, name)
        self._lines += 1
        heappush(self._queue, (at_us, self._lines, line))
        self._newest_us = max(self._newest_us, at_us)
        self._run_until(self._newest_us - ORDER_US)

    def finish(self) -> Replayed:
        """Return what came of all lines.

        Raises:
            ConfigError: A change names a limit that no request was under.
        """
        self._run_until(self._newest_us + 1)
        replayed = self._replayed
        for name in self._changes:
            if name not in replayed.limits:
                known = ", ".join(replayed.limits) or "none"
                raise ConfigError(f"--with: expected a limit that the log's requests are under ({known}), got {name!r}")
        for name, fate in replayed.limits.items():
            fate.peak_before, fate.peak_after = self._before.peak(name), self._after.peak(name)
            excesses = [audit.excess_tokens for (limit, _), audit in self._recorded.items() if limit == name]
            fate.excess_tokens = max(excesses, default=0)
        if self._begin_us >= 0:
            replayed.duration_us = self._now_us - self._begin_us
        return replayed

    # -- running -------------------------------------------------------------------------------------------------

    def _run_until(self, until_us: int) -> None:
        queue = self._queue
        while queue and queue[0][0] < until_us:
            at_us, _, line = heappop(queue)
            self._replayed.late += at_us < self._now_us
            self._now_us = max(self._now_us, at_us)
            if self._begin_us < 0:
                self._begin_us = at_us
            if isinstance(line, Refund):
                self._settle(line)
            elif line.limit and line.limit not in line.limits:
                self._replayed.others += 1
            else:
                self._run(line)

    def _run(self, line: Decision) -> None:
        replayed, now_us = self._replayed, self._now_us
        is_in = line.outcome != "rejected"
        limits = [self._rule_of(line, name) for name in line.limits]
        changed = [self._change(limit) for limit in limits]
        denied = self._before.check(limits, line, now_us)
        denied_after = self._after.check(changed, line, now_us)
        for index, (limit, after) in enumerate(zip(limits, changed, strict=True)):
            fate = replayed.limits.setdefault(limit.name, LimitFate(limit, after))
            fate.before, fate.after = limit, after
            fate.requests += 1
            fate.rejected += line.limit == limit.name
            fate.rejected_before += index == denied
            fate.rejected_after += index == denied_after
            # While nobody counts, an open limit admits everything by choice.
            if is_in and (line.outcome != "alone" or limit.unreachable is not Unreachable.OPEN):
                self._audit(limit, line.keys[limit.name], line.limits[limit.name], line.at_us, line.since_us)
        for fate_of in (replayed.all, replayed.users.setdefault((line.tenant, line.user), Fate())):
            fate_of.requests += 1
            fate_of.recorded += is_in
            fate_of.before += denied < 0
            fate_of.after += denied_after < 0
        if replayed.all.requests % _TEND_EVERY == 0:
            for book in (self._before, self._after):
                book.book.forget_idle(now_us, _TEND_KEYS)

    def _settle(self, line: Refund) -> None:
        limit = self._rule_of(line, line.limit)
        self._before.settle(limit, line, self._now_us)
        self._after.settle(self._change(limit), line, self._now_us)
        # What was not answered may have been given back whole.
        back = limit.burst if line.refund is None else max(line.refund, 0)
        self._audit(limit, line.key, -back, line.at_us, line.at_us)

    def _audit(self, limit: RateLimit, key: str, tokens: int, at_us: int, since_us: int) -> None:
        audit = self._recorded.get((limit.name, key))
        if audit is None:
            audit = self._recorded[limit.name, key] = HazyWindowAudit(_quota_of(limit))
        audit.observe(at_us, tokens, since_us)

    # -- rules ---------------------------------------------------------------------------------------------------

    def _rule_of(self, line: Decision | Refund, name: str) -> RateLimit:
        limit = self._rules.get(name) or self._defined.get((line.gateway, line.pid), {}).get(name)
        if limit is None:
            raise ValueError(
                f"expected limit {name!r} to be defined before its first decision: the beginning of the log is missing;"
                " give the configuration with --config"
            )
        return limit

    def _change(self, limit: RateLimit) -> RateLimit:
        text = self._changes.get(limit.name)
        if text is None:
            return limit
        changed = self._changed.get(limit)
        if changed is None:
            # Without a word the text means requests, and then what the limit counts.
            if text.cost not in (Cost.REQUESTS, limit.cost):
                raise ConfigError(
                    f"--with: {limit.name}: expected {limit.cost}, which the log's costs are in, got {text.cost}"
                )
            try:
                changed = msgspec.structs.replace(limit, tokens=text.tokens, per_us=text.per_us, burst=text.burst)
            except ValueError as error:
                raise ConfigError(f"--with: {limit.name}: {error}") from error
            self._changed[limit] = changed
        return changed


@lru_cache(1_024)
def _quota_of(limit: RateLimit) -> Quota:
    return limit.quota()


def _plain(limit: RateLimit) -> RateLimit:
    """Return the limit as one bucket that nothing was lost of."""
    return msgspec.structs.replace(limit, split=1, failover=Failover.SOFT)
