"""Judging decisions whose instants are known only to lie between sending and the answer.

A window counts an admission only if it was sent and answered within it: then the decision surely fell inside, and what
is too much here is too much whenever the decisions were made. So no limiter is accused wrongly; a slow one is accused
of less than it did. What should have been admitted is found by running a bucket, or a log, over the same attempts.

Not here: driving (`worker.py`), what each library claims (`catalogue.py`).
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_bucket", "count_log", "worst_excess", "worst_window"]

Instants = NDArray[np.int64]


def worst_excess(sent_us: Instants, answered_us: Instants, *, tokens: int, per_us: int, burst: int) -> float:
    """Return the most that any window holds beyond `burst + tokens / per_us * length`; at least minus the burst.

    Args:
        sent_us, answered_us: Of the admissions, one token each; the same order, any order.
        tokens, per_us, burst: The limit.
    """
    if not len(sent_us):
        return float(-burst)
    order = np.argsort(answered_us, kind="stable")
    sent, answered = sent_us[order], answered_us[order]
    allowed = answered * (tokens / per_us)
    worst = -float(burst)
    # A window that is worst begins when an admission was sent and ends when one was answered.
    for begin in np.unique(sent):
        inside = np.cumsum(sent >= begin)
        first = int(np.searchsorted(answered, begin))
        over = inside[first:] - (allowed[first:] - begin * (tokens / per_us))
        worst = max(worst, float(over.max()) - burst)
    return worst


def worst_window(sent_us: Instants, answered_us: Instants, *, length_us: int) -> int:
    """Return the most admissions that surely fell into one window of this length, its end not included."""
    if not len(sent_us):
        return 0
    order = np.argsort(answered_us, kind="stable")
    sent, answered = sent_us[order], answered_us[order]
    ends = np.searchsorted(answered, np.unique(sent) + length_us)
    begins = np.unique(sent)
    return max(int(np.count_nonzero(sent[:end] >= begin)) for begin, end in zip(begins, ends, strict=True))


def count_bucket(attempts_us: Instants, *, tokens: int, per_us: int, burst: int) -> int:
    """Return how many of the attempts, in order of time, a token bucket admits that starts full."""
    admitted = 0
    level, at_us = 0, 0  # in units of 1 / per_us tokens; `tokens` units drain each µs
    for now_us in np.sort(attempts_us).tolist():
        level = max(level - tokens * (now_us - at_us), 0)
        at_us = now_us
        if level + per_us <= burst * per_us:
            level += per_us
            admitted += 1
    return admitted


def count_log(attempts_us: Instants, *, limit: int, length_us: int) -> int:
    """Return how many of the attempts, in order of time, a log admits that allows `limit` in any window."""
    log: deque[int] = deque()
    admitted = 0
    for now_us in np.sort(attempts_us).tolist():
        while log and log[0] <= now_us - length_us:
            log.popleft()
        if len(log) < limit:
            log.append(now_us)
            admitted += 1
    return admitted
