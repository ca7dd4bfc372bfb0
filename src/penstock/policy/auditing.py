"""Rate limits audited: was there a window in which more was admitted than the limit says, and how much less than ideal?

Exact, incremental, a few integers per key: it runs in the simulator over every admission and in the head over those of
sampled keys. Admissions come in the order of time, each at the instant at which its tokens were taken: at the authority
for those it was asked for, at the gateway for lent ones. Not here: who collects them (`fleet/`).

Source: the greatest sum of a run, Kadane (Bentley, "Programming pearls", CACM 1984), less what drains between.
"""

from collections.abc import Iterable
from fractions import Fraction

from penstock.core.limits import Quota
from penstock.policy.limiting import advance, charge, fits, start_bucket

__all__ = ["DeliveryAudit", "HazyWindowAudit", "WindowAudit", "worst_excess"]


class WindowAudit:
    """The worst of all windows of one key, so far: admitted(t1, t2) - burst - rate * (t2 - t1), exactly.

    A bucket that drains by ticks lets go at their ends what it drains in all of each, so its bound is that of a window
    longer by all but one µs of a tick: for a tick of 1 µs exactly the above.

    Args:
        quota: The key's.
        slack_us: By how much two instants may be further apart than they are said to be: 0 if one clock took all.

    Attributes:
        windows: Ends of windows looked at, one per admission; each is compared with every beginning before it.
    """

    __slots__ = ("_at_us", "_bound", "_drain", "_level", "_worst", "_token", "windows")

    def __init__(self, quota: Quota, slack_us: int = 0) -> None:
        # `_drain` of these units leave per µs.
        self._token = quota.weight * quota.tick_us
        self._drain = quota.drain
        self._bound = quota.burst * self._token + quota.drain * (quota.tick_us - 1 + slack_us)
        self._level = 0  # the greatest sum of a run that ends here, less what drained meanwhile
        self._worst = 0
        self._at_us = 0
        self.windows = 0

    def observe(self, at_us: int, tokens: int) -> None:
        """Note an admission, or with less than 0 tokens what was given back of earlier ones.

        Args:
            at_us: Not before the last.
            tokens: Taken, or less than 0.
        """
        assert at_us >= self._at_us
        level = max(self._level - self._drain * (at_us - self._at_us), 0) + tokens * self._token
        self._level = level
        self._at_us = at_us
        self.windows += 1
        self._worst = max(self._worst, level)

    @property
    def excess(self) -> Fraction:
        """Tokens by which the worst window is over the bound; less than 0 if all were within it."""
        return Fraction(self._worst - self._bound, self._token)

    @property
    def excess_tokens(self) -> int:
        """Tokens by which the worst window is over the bound, rounded up; 0 if all were within it."""
        return max(-((self._bound - self._worst) // self._token), 0)

    @property
    def filled_ratio(self) -> float:
        """How much of the bound the worst window used up: 1.0 if it was met exactly."""
        return self._worst / self._bound


class HazyWindowAudit:
    """A `WindowAudit` of admissions of which only a span is known: each took place at some instant of it.

    A window counts only what certainly took place in it, so an excess that is found is there, and nothing that is
    merely late is taken for one. Of windows that begin together it follows the worst: some excesses it does not see.

    Args:
        quota: The key's.
    """

    __slots__ = ("_at_us", "_bound", "_drain", "_level", "_since_us", "_token", "_worst")

    def __init__(self, quota: Quota) -> None:
        self._token = quota.weight * quota.tick_us
        self._drain = quota.drain
        self._bound = quota.burst * self._token + quota.drain * (quota.tick_us - 1)
        self._level = 0  # of the window followed: what was admitted in it, less what drained
        self._since_us = 0  # when it begins
        self._at_us = 0
        self._worst = 0

    def observe(self, at_us: int, tokens: int, since_us: int) -> None:
        """Note an admission, or with less than 0 tokens what was given back of earlier ones.

        Args:
            at_us: The end of its span; one before the last noted counts as that.
            tokens: Taken, or less than 0.
            since_us: The beginning of its span. What was given back counts from the end on.
        """
        at_us = max(at_us, self._at_us)
        level = self._level - self._drain * (at_us - self._at_us) + tokens * self._token
        begin_us = self._since_us
        if tokens > 0:
            if since_us < begin_us:
                level -= self._drain * (begin_us - since_us)
                begin_us = since_us
            alone = tokens * self._token - self._drain * (at_us - since_us)
            if alone > level:
                level, begin_us = alone, since_us
        if level <= 0:
            level, begin_us = 0, at_us
        self._level, self._since_us, self._at_us = level, begin_us, at_us
        self._worst = max(self._worst, level)

    @property
    def excess_tokens(self) -> int:
        """Tokens by which the worst window seen is over the bound, rounded up; 0 if all were within it."""
        return max(-((self._bound - self._worst) // self._token), 0)


def worst_excess(admissions: Iterable[tuple[int, int]], quota: Quota) -> Fraction:
    """Return by how many tokens the worst window of a sequence is over the bound; less than 0 if none is. O(n).

    Args:
        admissions: When, µs, and how many tokens, in the order of time.
        quota: See `WindowAudit`.
    """
    audit = WindowAudit(quota)
    for at_us, tokens in admissions:
        audit.observe(at_us, tokens)
    return audit.excess


class DeliveryAudit:
    """What was admitted of one key's attempts, against what one ideal bucket that saw them all would have admitted.

    Args:
        quota: The key's.
        now_us: When it begins: the ideal bucket is full of tokens then.

    Attributes:
        ideal_tokens, delivered_tokens: By the ideal bucket, and in fact.
    """

    __slots__ = ("_bucket", "_quota", "delivered_tokens", "ideal_tokens")

    def __init__(self, quota: Quota, now_us: int) -> None:
        self._quota = quota
        self._bucket = start_bucket(quota, now_us)
        self.ideal_tokens = 0
        self.delivered_tokens = 0

    def observe(self, at_us: int, tokens: int, *, is_admitted: bool) -> None:
        """Note an attempt and what came of it.

        Args:
            at_us: When it was made; one that is before another already noted counts as made with it.
            tokens: What it asked for, >= 0.
            is_admitted: Whether it was let in.
        """
        self._bucket = bucket = advance(self._bucket, self._quota, at_us)
        if fits(bucket, self._quota, tokens):
            self._bucket = charge(bucket, self._quota, tokens)
            self.ideal_tokens += tokens
        if is_admitted:
            self.delivered_tokens += tokens

    @property
    def under_delivery_ratio(self) -> float:
        """The part of what could have been admitted that was refused; 0 if nothing was."""
        if not self.ideal_tokens:
            return 0.0
        return max(1 - self.delivered_tokens / self.ideal_tokens, 0.0)
