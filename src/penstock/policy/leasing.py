"""Tokens lent to a gateway in blocks, so that a hot key costs no network trip per request.

The authority debits a block when it lends it, keeps the level of the bucket at or above all that is lent, and takes
nothing back from a lease that ran out; a borrower counts its time from before it asked. Then, for any number of
gateways, crashes and lost messages, admitted(t1, t2) <= burst + rate * (t2 - t1): see docs/rate-limiting.md.

    cold --demand--> ask --granted--> lent --low--> ask again ...      cold keys: each request is checked, exactly

Pure. Not here: the bucket (`limiting.py`), the authority's half (`limit_book.py`), sending (`gateway/limiter.py`).
Source: leases, Gray & Cheriton 1989; the theorem and the floor are ours.
"""

from collections import deque

from penstock.core.authority import Ask, Close
from penstock.core.limits import Quota

__all__ = ["LEASE_US_MAX", "Borrower", "share_of_room"]

# No lease is longer: so long after a failover under `hard` an unknown lease may still be in use.
LEASE_US_MAX = 2_000_000
# What a lease should last at the demand seen, µs: at 10,000/s over four gateways a block of 250 tokens.
_BLOCK_US = 100_000
# A borrower trusts its own clock to this much, 1 in 500: crystals drift by 1 in 10,000, NTP slews by 1 in 2,000.
_DRIFT = 500
# Below this many tokens per second a key is cold: it is asked for each request, exactly.
HOT_PER_S = 20
# Demand is estimated anew after at least this long, µs.
_RATE_US = 50_000
# After a denial a hot key is left alone for a quarter of the time that fills its bucket, so that what trickles in is
# fetched in blocks and none of it runs over; at most so long, µs.
_PAUSE_US_MAX = 50_000
# A denial is believed no longer than this, µs: something may have been given back.
_DENIAL_US_MAX = 250_000


def share_of_room(room: int, holders: int) -> int:
    """Return the most that one of `holders` may borrow of `room` tokens: half of an even part, but one if there is one.

    Near the rim blocks so shrink to single tokens, and nobody's block starves the others.
    """
    return max(room // (2 * holders), min(room, 1))


class Borrower:
    """One gateway's end of one key: the tokens it was lent, how fast it uses them, when it should ask for more.

    Args:
        key: The bucket's.
        quota: Its limit.
        holder: The gateway, unique over its life.
        lease_us: How long to borrow for, µs, at most `LEASE_US_MAX`.
        now_us: When it begins.

    Attributes:
        tokens: Lent and not used, good until `until_us`.
        low: A block this small is time to ask for the next.
        demand: Tokens asked for since the rate was last estimated; whoever takes adds to it.
        rate_per_s: Demand as last estimated, tokens per second.
        denied_until_us: Asking before is useless: refuse at once.
        stranded: Tokens that ran out unused, ever.
    """

    __slots__ = (
        "_asked_at_us",
        "_block",
        "_closes",
        "_holder",
        "_id",
        "_leases",
        "_lease_us",
        "_number",
        "_rate_at_us",
        "_scale",
        "_want",
        "demand",
        "denied_until_us",
        "key",
        "low",
        "quota",
        "rate_per_s",
        "stranded",
        "tokens",
        "until_us",
    )

    def __init__(self, key: str, quota: Quota, holder: str, lease_us: int, now_us: int) -> None:
        assert 0 < lease_us <= LEASE_US_MAX
        self.key = key
        self.quota = quota
        self.tokens = 0
        self.until_us = 0
        self.low = 0
        self.demand = 0
        self.rate_per_s = 0.0
        self.denied_until_us = 0
        self.stranded = 0
        self._holder = holder
        self._lease_us = lease_us
        self._id = ""  # of the lease that `tokens` belong to; '' if none
        self._leases: deque[tuple[str, int, int]] = deque()  # lent and not begun: id, tokens, until
        self._closes: list[Close] = []
        self._number = 0
        self._asked_at_us = 0  # when the question under way was sent; 0 if none is
        self._want = 0
        self._block = 0
        self._scale = 1.0
        self._rate_at_us = now_us

    # -- using ---------------------------------------------------------------------------------------------------

    def take(self, cost: int, now_us: int) -> bool:
        """Take tokens from what is lent; return False, and change nothing but the demand, if they are not there."""
        self.demand += cost
        while True:
            if now_us < self.until_us:
                if self.tokens >= cost:
                    self.tokens -= cost
                    return True
                if not self._leases:
                    return False
            elif not self._id:
                return False
            self._begin_next(now_us)

    def give_back(self, cost: int, until_us: int, now_us: int) -> None:
        """Undo a `take` that came to nothing, if the lease it took from, good until `until_us`, is still in use.

        Into another lease they must not go: that one may be good for longer than the bucket remembers them.
        """
        if until_us == self.until_us and now_us < until_us:
            self.tokens += cost
        else:
            self.stranded += cost

    def _begin_next(self, now_us: int) -> None:
        """Close the block in use and begin the next, if there is one."""
        if self._id:
            if now_us < self.until_us:
                self._closes.append(Close(self._id, self.tokens))
            else:
                self.stranded += self.tokens  # the authority has written it off
        self._id, self.tokens, self.until_us = self._leases.popleft() if self._leases else ("", 0, 0)

    # -- asking --------------------------------------------------------------------------------------------------

    @property
    def is_hot(self) -> bool:
        """True if asking for blocks is worth it."""
        return self.rate_per_s >= HOT_PER_S and self.quota.lease_max > 0

    def plan_ask(self, now_us: int) -> Ask | None:
        """Return the question to send now, if it is time: the key is hot, its block low, and none is under way.

        The caller sends it at once: the time of what is lent counts from `now_us`.
        """
        if now_us - self._rate_at_us >= _RATE_US:
            self._estimate(now_us)
        if self._asked_at_us or not self.is_hot or now_us < self.denied_until_us:
            return None
        if self._id and not self._leases and (not self.tokens or now_us >= self.until_us):
            self._begin_next(now_us)
        held = self.tokens + sum(tokens for _, tokens, _ in self._leases) if now_us < self.until_us else 0
        if held > self.low:
            return None
        want = round(self.rate_per_s * _BLOCK_US / 1e6 * self._scale)
        return self._ask(max(want, 1), now_us)

    def plan_return(self, now_us: int) -> Ask | None:
        """Return the question that gives everything back and borrows nothing, if there is anything to say.

        For a key that nobody uses any more, and a gateway that stops.
        """
        while self._leases or self._id:
            self._begin_next(now_us)
        if not self._closes or self._asked_at_us:
            return None
        return self._ask(0, now_us)

    def _ask(self, want: int, now_us: int) -> Ask:
        self._number += 1
        self._want = want
        self._asked_at_us = now_us
        closes, self._closes = tuple(self._closes), []
        return Ask(self.key, self.quota, self._holder, f"{self._holder}:{self._number}", want, self._lease_us, closes)

    def observe_grant(self, tokens: int, retry_after_us: int, now_us: int) -> None:
        """The authority has answered the question under way."""
        asked_at_us, self._asked_at_us = self._asked_at_us, 0
        if not self._want:
            return
        # From before it was sent, and by less than our clock may be slow: over here before it is over there.
        until_us = asked_at_us + self._lease_us - self._lease_us // _DRIFT
        if tokens and now_us < until_us:
            self._leases.append((f"{self._holder}:{self._number}", tokens, until_us))
            if not self._id or not self.tokens or now_us >= self.until_us:
                self._begin_next(now_us)
        elif tokens:
            self.stranded += tokens
        self._block = tokens
        self.low = tokens // 2
        if tokens < self._want:
            self._scale = max(self._scale / 2, 1 / 64)
        else:
            self._scale = min(self._scale * 1.25, 1.0)
        if not tokens:
            self.deny(retry_after_us, now_us)

    def lose_grant(self) -> None:
        """No answer will come. What was lent, if it was, runs out there; what was returned, stays debited."""
        self._asked_at_us = 0

    def deny(self, retry_after_us: int, now_us: int) -> None:
        """The authority has no token: remember it for as long as that surely holds, or for a pause if the key is hot."""
        wait_us = min(retry_after_us, _DENIAL_US_MAX)
        if self.is_hot:
            quota = self.quota
            full_us = quota.capacity // quota.drain * quota.tick_us
            wait_us = max(wait_us, min(full_us // 4, _PAUSE_US_MAX))
        self.denied_until_us = max(self.denied_until_us, now_us + wait_us)

    def _estimate(self, now_us: int) -> None:
        elapsed_us = now_us - self._rate_at_us
        rate = self.demand * 1e6 / elapsed_us
        # Half the old, half the new: a key is hot, and cold again, within a few tenths of a second.
        self.rate_per_s = rate if elapsed_us > 10 * _RATE_US else (self.rate_per_s + rate) / 2
        self.demand = 0
        self._rate_at_us = now_us
