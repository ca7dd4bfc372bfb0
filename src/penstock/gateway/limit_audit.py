"""What a gateway tells of its decisions about limits: the head's audit of a sample of buckets, and the decision log.

    Limiter --observe--> PlanWatch --> Sample: what was asked for and admitted, by ms --(each report)--> the head
                                   --> DecisionLog: one line each, if it is on

Sampled are the buckets of all models and the global ones, which are few and hot, and of users' and tenants' the 64 of
least hash that this gateway has met: the same ones on every gateway. Not here: judging (`fleet/limit_audit.py`), the
log's lines (`wire/decisions.py`) and file (`decision_log.py`).
"""

from collections.abc import Sequence
from zlib import crc32

import msgspec

from penstock.core.limits import Level, Limit, RateLimit, Unreachable
from penstock.core.ports import Clock
from penstock.gateway.decision_log import DecisionLog
from penstock.gateway.limit_plans import Key, Plan
from penstock.gateway.limiter import KEY_LIMITS, Outcome
from penstock.policy.limit_naming import bucket_key
from penstock.wire.control import AuditBins
from penstock.wire.decisions import Decision, Definition, Refund, encode_line

__all__ = ["LimitWatch", "PlanWatch", "Sample", "measure_skew_us"]

# Users' and tenants' buckets that are sampled, and buckets of every level together.
SAMPLES_MAX = 64
SAMPLES_ALL_MAX = 320
# Ms of one bucket that are kept for a report. Reports go out twice a second; who could send none for 2 s drops some.
BINS_MAX = 2_000
# Limits that were written to the log, remembered: more than a configuration has, and all keys that a fleet may have.
DEFINED_MAX = 65_536


def measure_skew_us(clock_us: Clock, machine_us: Clock) -> int:
    """Return by how much one clock is ahead of another: by the look at both that was disturbed least of several."""
    looks = [(machine_us(), clock_us(), machine_us()) for _ in range(9)]
    before_us, at_us, _ = min(looks, key=lambda look: look[2] - look[0])
    return at_us - before_us


class Sample:
    """What is told of one bucket: for each ms tokens asked for, tokens admitted, and since when they may be in.

    Args:
        report: What the next report will say; its bins are filled as they come.
        rank: By which of several it is the one to keep: the least.
    """

    __slots__ = ("_admitted", "_asked", "_at_ms", "_early_ms", "_report", "is_kept", "rank")

    def __init__(self, report: AuditBins, rank: int) -> None:
        self._report = report
        self.rank = rank
        self.is_kept = True
        self._at_ms = 0
        self._asked = self._admitted = self._early_ms = 0

    def note(self, asked: int, admitted: int, at_us: int, since_us: int) -> None:
        """Note tokens that were asked for and admitted at some time from `since_us` to `at_us`.

        Args:
            asked: By requests that were let in or that this bucket rejected.
            admitted: Tokens taken; less than 0: given back.
            at_us, since_us: µs, by the machine's clock.
        """
        at_ms = at_us // 1_000
        if at_ms != self._at_ms:
            self._close_bin()
            self._at_ms = at_ms
        self._asked += asked
        self._admitted += admitted
        if since_us != at_us:
            self._early_ms = max(self._early_ms, at_ms - since_us // 1_000)

    def _close_bin(self) -> None:
        if self._asked or self._admitted:
            bins = self._report.bins
            if len(bins) >= BINS_MAX:
                bins.clear()  # nobody took them: what the audit does not hear of can hide an excess, but not feign one
            bins.append((self._at_ms, self._asked, self._admitted, self._early_ms))
            self._asked = self._admitted = self._early_ms = 0

    def take(self) -> AuditBins | None:
        """Return what there is to report, and begin anew; None if there is nothing."""
        self._close_bin()
        report = self._report
        if not report.bins:
            return None
        self._report = AuditBins(report.key, report.limit, report.quota, [])
        return report


class PlanWatch:
    """Is told of the decisions about one plan's requests: implements the limiter's `Watch`.

    Args:
        watch: The gateway's.
        plan: Whose requests.
        samples: Of each of the plan's keys; None of those that are not sampled.
    """

    __slots__ = ("_keys", "_names", "_plan", "_sampled", "_watch")

    def __init__(self, watch: "LimitWatch", plan: Plan, samples: Sequence[Sample | None]) -> None:
        self._watch = watch
        self._plan = plan
        self._names = [key.limit.name for key in plan.keys]
        self._keys = {key.limit.name: watch.name_key(plan, key.limit) for key in plan.keys}
        self._sampled = [(index, key, x) for index, (key, x) in enumerate(zip(plan.keys, samples, strict=True)) if x]

    def observe(
        self,
        costs: Sequence[int],
        outcome: str,
        limit: str,
        at_us: int,
        asked_us: int = 0,
        authority_us: int = 0,
        hold: str = "",
    ) -> None:
        """See `limit_plans.Watch`."""
        watch = self._watch
        at_us -= watch.skew_us
        if asked_us:
            asked_us -= watch.skew_us
        for index, key, sample in self._sampled:
            if not sample.is_kept:
                continue
            cost = costs[index]
            if limit:
                # One that can never pass asked for nothing that anybody could have.
                if limit == key.limit.name and cost <= key.quota.burst:
                    sample.note(cost, 0, at_us, at_us)
            elif outcome != Outcome.ALONE or key.limit.unreachable is not Unreachable.OPEN:
                sample.note(cost, cost, at_us, asked_us or at_us)
        if watch.log is not None:
            principal = self._plan.principal
            decision = Decision(
                at_us,
                watch.gateway,
                watch.pid,
                outcome,
                dict(zip(self._names, costs, strict=True)),
                self._keys,
                limit,
                principal.tenant,
                principal.user,
                principal.key_id,
                self._plan.model,
                asked_us,
                authority_us,
                hold,
            )
            watch.log.write(encode_line(decision))

    def settle(self, key: Key, hold: str, actual: int, given_back: int | None, at_us: int) -> None:
        """See `limit_plans.Watch`."""
        watch = self._watch
        at_us -= watch.skew_us
        for _, other, sample in self._sampled:
            if other.limit is key.limit and sample.is_kept:
                # If nobody says how much was given back it may have been all that was charged, at most the burst. A
                # charge that grew is no admission.
                back = key.quota.burst if given_back is None else max(given_back, 0)
                sample.note(0, -back, at_us, at_us)
        if watch.log is not None:
            name = key.limit.name
            refund = Refund(at_us, watch.gateway, watch.pid, hold, name, self._keys[name], actual, given_back)
            watch.log.write(encode_line(refund))


class LimitWatch:
    """Implements the limiter's `Observer`.

    Args:
        prefix: Of all keys.
        gateway, pid: Which gateway this is.
        log: The decision log; None if it is off.
        skew_us: By how much the limiter's clock is ahead of the machine's.
    """

    def __init__(
        self, prefix: str, *, gateway: int = 0, pid: int = 0, log: DecisionLog | None = None, skew_us: int = 0
    ) -> None:
        self.gateway = gateway
        self.pid = pid
        self.log = log
        self.skew_us = skew_us
        self._prefix = prefix
        self._samples: dict[str, Sample] = {}
        self._ranked: dict[str, Sample] = {}  # of them those of users and tenants
        self._worst_rank = 0  # the greatest of theirs
        self._defined: set[tuple[str, str]] = set()

    def watch(self, plan: Plan, now_us: int) -> PlanWatch | None:
        """See `limiter.Observer`."""
        samples = [self._sample(plan, key) for key in plan.keys]
        if self.log is not None:
            limits: list[Limit] = [key.limit for key in plan.keys]
            limits += [slot.limit for slot in plan.slots]
            for limit in limits:
                self._define(plan, limit, now_us - self.skew_us)
        return PlanWatch(self, plan, samples) if self.log is not None or any(samples) else None

    def take_bins(self) -> tuple[AuditBins, ...]:
        """Return what happened to sampled buckets since the last call."""
        taken = [sample.take() for sample in self._samples.values()]
        return tuple([bins for bins in taken if bins is not None])

    def close(self) -> None:
        """Write what is left of the log."""
        if self.log is not None:
            self.log.close()

    # -- sampling ------------------------------------------------------------------------------------------------

    def _sample(self, plan: Plan, key: Key) -> Sample | None:
        """Return the sample of a bucket; None if it is not watched."""
        name = self.name_key(plan, key.limit)
        sample = self._samples.get(name)
        if sample is not None:
            return sample
        if len(self._samples) >= SAMPLES_ALL_MAX:
            return None
        rank = crc32(name.encode())
        is_ranked = key.limit.level in (Level.USER, Level.TENANT)
        if is_ranked and len(self._ranked) >= SAMPLES_MAX:
            if self._worst_rank <= rank:
                return None
            worst = max(self._ranked, key=lambda name: self._ranked[name].rank)
            self._ranked.pop(worst).is_kept = False
            del self._samples[worst]
        label = KEY_LIMITS if key.limit in plan.principal.limits else key.limit.name
        # The parts of a split limit together keep to the whole.
        quota = msgspec.structs.replace(key.limit, split=1).quota()
        sample = self._samples[name] = Sample(AuditBins(name, label, quota, []), rank)
        if is_ranked:
            self._ranked[name] = sample
            self._worst_rank = max(other.rank for other in self._ranked.values())
        return sample

    def name_key(self, plan: Plan, limit: RateLimit) -> str:
        """Return the name of the bucket in which a limit counts a plan's requests; all parts of one have the same."""
        return bucket_key(self._prefix, limit, plan.principal, plan.model)

    def _define(self, plan: Plan, limit: Limit, at_us: int) -> None:
        """Write a limit to the log, once."""
        assert self.log is not None
        key_id = plan.principal.key_id if limit in plan.principal.limits else ""
        if (limit.name, key_id) in self._defined:
            return
        if len(self._defined) >= DEFINED_MAX:
            self._defined.clear()
        self._defined.add((limit.name, key_id))
        self.log.write(encode_line(Definition(at_us, self.gateway, self.pid, limit, key_id)))
