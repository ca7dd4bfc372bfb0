"""Admissions put at their instants and held against a limit: by what gateways logged, and by what callers saw.

An admission by lent tokens was decided when they were taken; one that the authority decided, at its instant, which lies
between question and answer. A gateway that stands still learns late, but that admits nothing twice. Callers know only
that a request was let in between sending it and its answer: a window counts those that certainly lie in it.
Not here: the arithmetic of a window (`policy/auditing.py`), limits on what is found (`rate_limit.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.core.arrivals import Times
from penstock.core.limits import Quota
from penstock.policy.auditing import DeliveryAudit, worst_excess
from penstock.wire.decisions import Decision, decode_line

__all__ = [
    "OUTCOMES",
    "REJECTED",
    "ClockDifference",
    "Decisions",
    "count_ideal",
    "excess_of_answers",
    "excess_of_decisions",
    "measure_difference",
    "read_decisions",
]

OUTCOMES = ("local", "checked", "alone", "rejected")
REJECTED = OUTCOMES.index("rejected")
# Gateways take their limiter's clock for the machine's by one look at both, in whole µs.
_ROUNDING_US = 2
_LOOKS = 100  # the quickest of so many is within 50 µs of the truth on loopback
# Answers compared with one another at once, 15 µs each: 20 s of 1,000 per second, and memory that fits a cache.
_ANSWERS_AT_ONCE = 25_000


@dataclass(frozen=True, slots=True)
class ClockDifference:
    """How far the authority's clock is ahead of ours, µs, and by how much that may be wrong either way."""

    ahead_us: int = 0
    error_us: int = 0


def measure_difference(read_theirs_us: Callable[[], int], now_us: Callable[[], int]) -> ClockDifference:
    """Return how far another clock is ahead, by the quickest of many looks at it."""
    best = ClockDifference(0, 1 << 62)
    for _ in range(_LOOKS):
        before_us = now_us()
        theirs_us = read_theirs_us()
        after_us = now_us()
        if (error_us := (after_us - before_us + 1) // 2) < best.error_us:
            best = ClockDifference(theirs_us - (before_us + after_us) // 2, error_us)
    return best


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions about one limit, in the order in which they were written. Arrays have one element for each.

    Args:
        at_us: When the gateway knew.
        since_us: The earliest instant at which it may have been decided.
        authority_us: When the authority decided, by its clock; 0 if the gateway did.
        gateway: Index of the gateway.
        tokens: What the request costs.
        outcome: Index into `OUTCOMES`.
        torn_count: Lines that are none, as a process leaves that is killed while it writes.
    """

    at_us: Times
    since_us: Times
    authority_us: Times
    gateway: NDArray[np.int64]
    tokens: NDArray[np.int64]
    outcome: NDArray[np.int64]
    torn_count: int = 0

    @property
    def is_admitted(self) -> NDArray[np.bool_]:
        """Return which were let in."""
        return np.not_equal(self.outcome, REJECTED)

    def instants_us(self, difference: ClockDifference) -> Times:
        """Return when each was decided, by our clock: an instant of the authority's never outside its call."""
        theirs_us = np.clip(self.authority_us - difference.ahead_us, self.since_us, self.at_us)
        return np.where(self.authority_us > 0, theirs_us, self.at_us)


def read_decisions(file: Path, limit: str) -> Decisions:
    """Return what a decision log says of one limit; nothing if there is no such file."""
    rows: list[tuple[int, int, int, int, int, int]] = []
    torn_count = 0
    for text in file.read_bytes().splitlines() if file.exists() else ():
        try:
            line = decode_line(text)
        except ValueError:
            torn_count += 1
            continue
        if isinstance(line, Decision) and limit in line.limits:
            outcome = OUTCOMES.index(line.outcome)
            rows.append((line.at_us, line.since_us, line.authority_us, line.gateway, line.limits[limit], outcome))
    table = np.array(rows, dtype=np.int64).reshape(-1, 6).T
    at_us, since_us, authority_us, gateway, tokens, outcomes = table
    return Decisions(at_us, since_us, authority_us, gateway, tokens, outcomes, torn_count)


def excess_of_decisions(decisions: Decisions, quota: Quota, difference: ClockDifference) -> float:
    """Return by how many tokens the worst of all windows is over the bound; less than 0 if none is.

    Two admissions may be further apart than it seems by as much as their clocks' difference is uncertain.
    """
    is_in = decisions.is_admitted
    at_us, tokens = decisions.instants_us(difference)[is_in], decisions.tokens[is_in]
    order = np.argsort(at_us, kind="stable")
    excess = worst_excess(zip(at_us[order].tolist(), tokens[order].tolist(), strict=True), quota)
    doubt_us = _ROUNDING_US + (difference.error_us if np.any(decisions.authority_us) else 0)
    return float(excess) - doubt_us * quota.drain / (quota.weight * quota.tick_us)


def excess_of_answers(begin_us: Times, end_us: Times, quota: Quota) -> float:
    """Return by how many requests the worst window is over the bound, counting those that certainly lie in it.

    Args:
        begin_us, end_us: Of each answered request, when it was sent and when its answer came. A cost of 1 each.
        quota: The limit's.
    """
    order = np.argsort(end_us, kind="stable")
    token = quota.weight * quota.tick_us
    worst = -quota.burst * token
    for first in range(0, len(order), _ANSWERS_AT_ONCE):
        piece = order[first : first + _ANSWERS_AT_ONCE]
        worst = max(worst, _worst_sum(begin_us[piece], end_us[piece], token, quota.drain) - quota.burst * token)
    return worst / token


def _worst_sum(begin_us: Times, end_us: Times, token: int, drain: int) -> int:
    """Return the most units that certainly came in a window, less what drained in it; `end_us` is sorted."""
    start_us = np.sort(begin_us)  # a worst window begins where something does
    ranks = np.searchsorted(start_us, begin_us, side="right")
    ends = np.searchsorted(start_us, end_us, side="right")
    origin_us = int(start_us[0])
    sums = (start_us - origin_us) * drain  # of the window from there to here, had it no end yet
    worst = 0
    for rank, end, at_us in zip(ranks.tolist(), ends.tolist(), end_us.tolist(), strict=True):
        sums[:rank] += token
        worst = max(worst, int(sums[:end].max()) - (at_us - origin_us) * drain)
    return worst


def count_ideal(at_us: Times, quota: Quota) -> int:
    """Return how many of the requests that come at these instants, each at the cost of 1, one ideal bucket lets in."""
    if len(at_us) == 0:
        return 0
    audit = DeliveryAudit(quota, int(at_us[0]))
    for instant_us in at_us.tolist():
        audit.observe(instant_us, 1, is_admitted=False)
    return audit.ideal_tokens
