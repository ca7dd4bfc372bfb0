"""The live audit of limits: did the gateways of this head, together, admit more than a limit allows, or much less?

    reports --> by bucket and ms, of all gateways together --2 s later, in order--> worst window, ideal bucket

Finds no excess that is not there; what was lost with a gateway it does not see. Gateways of other heads on the same
Redis are not among those it hears: `penstock drill rate-limit` sees all. Pure. Not here: what is sampled
(`gateway/limit_audit.py`), the arithmetic (`policy/auditing.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock.core.limits import Quota
from penstock.policy.auditing import HazyWindowAudit
from penstock.policy.limiting import advance, charge, remaining, start_bucket
from penstock.wire.control import AuditBins

__all__ = ["AuditFinding", "LimitAudit"]

# Gateways report every half second: four reports. What comes later is counted where the audit is by then.
HOLD_MS = 2_000
# A bucket is judged in portions of so much time, ms: each costs some microseconds for each ms in which it was used, and
# meanwhile gateways wait for the head's answers.
JUDGE_MS = 500
# Delivery is said of the last one to two of these, ms.
PERIOD_MS = 60_000
# A gateway samples at most 320; a fleet's differ only while it starts.
BUCKETS_MAX = 1_024


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """What the audit found under one limit.

    Args:
        buckets: How many are sampled.
        excess_tokens: By which the worst window of any was over its bound, ever; 0 if none was.
        delivered_tokens, ideal_tokens: In the last minute or two: admitted, and what an ideal bucket that sees the
            requests of all gateways at once would have admitted of them.
    """

    buckets: int = 0
    excess_tokens: int = 0
    delivered_tokens: int = 0
    ideal_tokens: int = 0

    @property
    def under_delivery_ratio(self) -> float:
        """The part of what could have been admitted that was refused, 0-1."""
        return max(1 - self.delivered_tokens / self.ideal_tokens, 0.0) if self.ideal_tokens else 0.0


@dataclass(slots=True)
class _Tally:
    """Of one limit: the worst excess of buckets that were forgotten, and delivery in this period and the last."""

    excess_tokens: int = 0
    delivered: list[int] = field(default_factory=lambda: [0, 0])
    ideal: list[int] = field(default_factory=lambda: [0, 0])


class _Audited:
    """One bucket."""

    __slots__ = ("heard_ms", "ideal", "judged_ms", "limit", "quota", "waiting", "window")

    def __init__(self, limit: str, quota: Quota, at_us: int) -> None:
        self.limit = limit
        self.quota = quota
        self.window = HazyWindowAudit(quota)
        # Without tokens at first: what was admitted before is not known here.
        self.ideal = start_bucket(quota, at_us, level=quota.capacity)
        self.waiting: dict[int, tuple[int, int, int]] = {}
        self.heard_ms = 0
        self.judged_ms = 0

    def note(self, bins: Iterable[tuple[int, int, int, int]]) -> None:
        for at_ms, asked, admitted, early_ms in bins:
            asked_so_far, admitted_so_far, early_so_far = self.waiting.get(at_ms, (0, 0, 0))
            self.waiting[at_ms] = (asked_so_far + asked, admitted_so_far + admitted, max(early_so_far, early_ms))
            self.heard_ms = max(self.heard_ms, at_ms)

    def advance(self, until_ms: int, tally: _Tally) -> None:
        """Judge what happened before `until_ms`."""
        self.judged_ms = until_ms
        for at_ms in sorted(ms for ms in self.waiting if ms < until_ms):
            asked, admitted, early_ms = self.waiting.pop(at_ms)
            at_us = (at_ms + 1) * 1_000
            self.window.observe(at_us, admitted, (at_ms - early_ms) * 1_000)
            self.ideal = advance(self.ideal, self.quota, at_us)
            ideal = min(asked, remaining(self.ideal, self.quota))
            self.ideal = charge(self.ideal, self.quota, ideal)
            tally.ideal[0] += ideal
            tally.delivered[0] += max(admitted, 0)


class LimitAudit:
    """See the module. Times are the machine's monotonic clock."""

    def __init__(self) -> None:
        self._audited: dict[str, _Audited] = {}
        self._tallies: dict[str, _Tally] = {}
        self._period = 0

    def note(self, reports: Iterable[AuditBins], now_us: int) -> None:
        """Take what a gateway reports, and judge what became due of the same buckets: a part of the work at a time."""
        until_ms = now_us // 1_000 - HOLD_MS
        for report in reports:
            if not report.bins:
                continue
            audited = self._audited.get(report.key)
            if audited is None or audited.quota != report.quota:
                # A limit that was changed is audited from then on.
                if audited is not None:
                    self._forget(report.key)
                elif len(self._audited) >= BUCKETS_MAX:
                    self._forget(min(self._audited, key=lambda key: self._audited[key].heard_ms))
                audited = self._audited[report.key] = _Audited(report.limit, report.quota, report.bins[0][0] * 1_000)
            audited.note(report.bins)
            if until_ms - audited.judged_ms >= JUDGE_MS:
                audited.advance(until_ms, self._tally(audited.limit))

    def advance(self, now_us: int) -> None:
        """Call every second or so: judges what happened up to two seconds ago."""
        now_ms = now_us // 1_000
        period = now_ms // PERIOD_MS
        if period != self._period:
            for tally in self._tallies.values():
                is_next = period == self._period + 1
                tally.delivered = [0, tally.delivered[0] if is_next else 0]
                tally.ideal = [0, tally.ideal[0] if is_next else 0]
            self._period = period
        for audited in self._audited.values():
            audited.advance(now_ms - HOLD_MS, self._tally(audited.limit))

    def findings(self) -> dict[str, AuditFinding]:
        """Return what was found, by the name of the limit."""
        buckets = dict.fromkeys(self._tallies, 0)
        excess = {limit: tally.excess_tokens for limit, tally in self._tallies.items()}
        for audited in self._audited.values():
            limit = audited.limit
            buckets[limit] = buckets.get(limit, 0) + 1
            excess[limit] = max(excess.get(limit, 0), audited.window.excess_tokens)
        return {
            limit: AuditFinding(count, excess[limit], sum(self._tally(limit).delivered), sum(self._tally(limit).ideal))
            for limit, count in buckets.items()
        }

    def _tally(self, limit: str) -> _Tally:
        return self._tallies.setdefault(limit, _Tally())

    def _forget(self, key: str) -> None:
        audited = self._audited.pop(key)
        tally = self._tally(audited.limit)
        audited.advance(audited.heard_ms + 1, tally)
        tally.excess_tokens = max(tally.excess_tokens, audited.window.excess_tokens)
