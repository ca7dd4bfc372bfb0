"""Tokens lent to a gateway in blocks, so that a hot key costs no network trip per request.

The authority debits a block when it lends it, keeps the level of the bucket at or above all that is lent, and takes
nothing back from a lease that ran out; a borrower counts its time from before it asked. Then, for any number of
gateways, crashes and lost messages, admitted(t1, t2) <= burst + rate * (t2 - t1): see docs/rate-limiting.md.

    cold --demand--> ask --granted--> lent --low--> ask again ...      cold keys: each request is checked, exactly

Pure. Not here: the bucket (`limiting.py`), the authority's half (`limit_book.py`), sending (`gateway/limiter.py`).
Source: leases, Gray & Cheriton 1989; the theorem and the floor are ours.
"""

from penstock.core.authority import Ask, Close, Granted
from penstock.core.limits import Quota

__all__ = ["DENIAL_US_MAX", "HOT_PER_S", "LEASE_US_MAX", "Borrower", "share_of_room"]

# No lease is longer: so long after a failover under `hard` an unknown lease may still be in use.
LEASE_US_MAX = 2_000_000
# What a lease should last at the demand seen, µs: at 10,000/s over four gateways a block of 250 tokens.
_BLOCK_US = 100_000
# The next is asked for when what is left lasts no longer than this, µs: a few round trips.
_LEAD_US = 20_000
# A borrower trusts its own clock to this much, 1 in 500: crystals drift by 1 in 10,000, NTP slews by 1 in 2,000.
_DRIFT = 500
# Below this many requests per second a key is cold: it is asked for each request, exactly.
HOT_PER_S = 20
# Demand is estimated anew after this long, µs, or so many requests in less: 32 tell a rate to within a fifth.
_RATE_US = 250_000
_RATE_US_MIN = 2_000
_RATE_REQUESTS = 32
# Near the rim a hot key is asked for at intervals, so that what trickles in is fetched in blocks: of up to this part of
# the time that fills the bucket when nothing is left in it, of none when a quarter of the burst is. At saturation the
# room of n gateways, each of which is lent one nth of it, settles at an eighth: none of what trickles in runs over.
_PAUSE_PART = 4
# At most so long, µs: a caller that is refused must not wait for tokens that are there.
_PAUSE_US_MAX = 50_000
# A denial is believed no longer than this, µs: something may have been given back.
DENIAL_US_MAX = 250_000
# When blocks are too small to serve a request, asking rests for so long, µs.
_REST_US = 250_000


def share_of_room(room: int, holders: int) -> int:
    """Return the most that one of `holders` may borrow of `room` tokens: an even part, but one if there is one.

    Near the rim blocks so shrink to single tokens, and nobody's block starves the others.
    """
    return max(room // holders, min(room, 1))


class Borrower:
    """One gateway's end of one key: the tokens it was lent, how fast it uses them, when it should ask for more.

    Every instant it is given is read from one clock that never steps back, once for each call; an instant at which
    `take` succeeds is the instant of the admission.

    Args:
        key: The bucket's.
        quota: Its limit.
        holder: The borrower, unique over its life and for ever: ids of leases are made of it.
        lease_us: How long to borrow for, µs, at most `LEASE_US_MAX`.
        now_us: When it begins.

    Attributes:
        tokens: Lent and not used, good until `until_us`.
        low: A block this small is time to ask for the next.
        demand: Tokens asked for since the rate was last estimated; who takes a single token past `take` adds it here.
        rate_per_s: Demand as last estimated, tokens per second.
        denied_until_us: What is not lent here is not to be had before: refuse at once.
        stranded: Tokens that ran out unused, ever.
    """

    __slots__ = (
        "_asked_at_us",
        "_closes",
        "_holder",
        "_id",
        "_is_asking",
        "_is_scarce",
        "_leases",
        "_lease_us",
        "_number",
        "_pause_us",
        "_rate_at_us",
        "_requests_per_s",
        "_rest_until_us",
        "_surplus",
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
        self._leases: list[tuple[str, int, int]] = []  # lent and not begun: id, tokens, until
        self._closes: list[Close] = []
        self._number = 0
        self._asked_at_us = now_us - 1  # when the last question was sent
        self._is_asking = False  # it is under way
        self._want = 0
        self._is_scarce = False
        self._surplus = 0  # `demand` less the number of requests that it came from
        self._requests_per_s = 0.0
        self._rest_until_us = 0
        self._rate_at_us = now_us
        full_us = quota.capacity // quota.drain * quota.tick_us
        self._pause_us = min(full_us // _PAUSE_PART, _PAUSE_US_MAX)

    # -- using ---------------------------------------------------------------------------------------------------

    def take(self, cost: int, now_us: int) -> bool:
        """Take tokens from what is lent; return False, and change nothing but the demand, if they are not there."""
        self.note_demand(cost)
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

    def lends(self, cost: int, now_us: int) -> bool:
        """Return whether `take` would succeed."""
        if now_us < self.until_us and self.tokens >= cost:
            return True
        return bool(self._leases) and any(tokens >= cost and now_us < until_us for _, tokens, until_us in self._leases)

    def note_demand(self, cost: int) -> None:
        """A request came for so many tokens; `take` notes it by itself."""
        self.demand += cost
        self._surplus += cost - 1

    def give_back(self, cost: int, until_us: int, now_us: int) -> None:
        """Undo a `take` that came to nothing, if the lease it took from, good until `until_us`, is still in use.

        Into another lease they must not go: that one may be good for longer than the bucket remembers them. No two
        leases are good until the same instant.
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
        self._id, self.tokens, self.until_us = self._leases.pop(0) if self._leases else ("", 0, 0)

    # -- asking --------------------------------------------------------------------------------------------------

    @property
    def is_hot(self) -> bool:
        """True if asking for blocks is worth it."""
        return self._requests_per_s >= HOT_PER_S and self.quota.lease_max > 0

    def plan_ask(self, now_us: int) -> Ask | None:
        """Return the question to send now, if it is time: the key is hot, its block low, and none is under way.

        The caller sends it at once: the time of what is lent counts from `now_us`.
        """
        elapsed_us = now_us - self._rate_at_us
        if elapsed_us >= _RATE_US_MIN:
            requests = self.demand - self._surplus
            if requests >= _RATE_REQUESTS or elapsed_us >= _RATE_US:
                self._estimate(requests * 1e6 / elapsed_us, now_us)
        if self._is_asking or not self.is_hot or now_us < self.denied_until_us or now_us < self._rest_until_us:
            return None
        if self._id and not self._leases and (not self.tokens or now_us >= self.until_us):
            self._begin_next(now_us)
        held = self.tokens + sum(tokens for _, tokens, _ in self._leases) if now_us < self.until_us else 0
        if held > self.low or now_us <= self._asked_at_us:
            return None
        if self._is_scarce:
            # What is asked for meanwhile would cost a call each to be told the same. Undone by the answer.
            self.denied_until_us = now_us + self._pause_us
        return self._ask(max(round(self.rate_per_s * _BLOCK_US / 1e6), self._request_tokens()), now_us)

    def plan_return(self, now_us: int) -> Ask | None:
        """Return the question that gives everything back and borrows nothing, if there is anything to say.

        For a key that nobody uses any more, and a gateway that stops.
        """
        while self._leases or self._id:
            self._begin_next(now_us)
        if not self._closes or self._is_asking or now_us <= self._asked_at_us:
            return None
        return self._ask(0, now_us)

    def _ask(self, want: int, now_us: int) -> Ask:
        self._number += 1
        self._want = want
        self._asked_at_us = now_us
        self._is_asking = True
        closes, self._closes = tuple(self._closes), []
        return Ask(self.key, self.quota, self._holder, f"{self._holder}:{self._number}", want, self._lease_us, closes)

    def observe_grant(self, granted: Granted, now_us: int) -> None:
        """The authority has answered the question under way."""
        self._is_asking = False
        if not self._want:
            return
        tokens = granted.tokens
        # From before it was sent, and by more than our clock may be slow: over here before it is over there.
        until_us = self._asked_at_us + self._lease_us + -self._lease_us // _DRIFT
        if tokens and now_us < until_us:
            self._leases.append((f"{self._holder}:{self._number}", tokens, until_us))
            if not self._id or not self.tokens or now_us >= self.until_us:
                self._begin_next(now_us)
        elif tokens:
            self.stranded += tokens
        self.low = min(tokens // 2, round(self.rate_per_s * _LEAD_US / 1e6))
        pause_us = self._pause_us * (self.quota.burst - 4 * granted.remaining) // self.quota.burst
        self._is_scarce = tokens < self._want and pause_us > 0
        self.denied_until_us = now_us + pause_us if self._is_scarce else 0
        if not tokens and not granted.remaining:
            self.deny(granted.retry_after_us, now_us)
        elif not tokens:
            self._rest_until_us = now_us + _LEAD_US  # all that may be lent is lent
        elif tokens < self._request_tokens():
            self._rest_until_us = now_us + _REST_US  # of no use to a request

    def lose_grant(self) -> None:
        """No answer will come. What was lent, if it was, runs out there; what was returned, stays debited.

        The pause that the question began is over: that there is nothing to be had nobody has said.
        """
        self._is_asking = False
        if self._is_scarce:
            self.denied_until_us = 0

    def deny(self, retry_after_us: int, now_us: int) -> None:
        """The authority has no token: remember it for as long as that surely holds; if the key is hot, for a pause."""
        wait_us = min(retry_after_us, DENIAL_US_MAX)
        if self.is_hot:
            wait_us = max(wait_us, self._pause_us)
        self.denied_until_us = max(self.denied_until_us, now_us + wait_us)

    def _request_tokens(self) -> int:
        """Return what a request takes, on average, at least 1."""
        return max(round(self.rate_per_s / self._requests_per_s), 1) if self._requests_per_s else 1

    def _estimate(self, requests_per_s: float, now_us: int) -> None:
        elapsed_us = now_us - self._rate_at_us
        rate = self.demand * 1e6 / elapsed_us
        # Half the old, half the new: a key is hot, and cold again, within a second; after long silence nothing is old.
        old = 0.0 if elapsed_us > 4 * _RATE_US else 0.5
        self.rate_per_s = old * self.rate_per_s + (1 - old) * rate
        self._requests_per_s = old * self._requests_per_s + (1 - old) * requests_per_s
        self.demand = 0
        self._surplus = 0
        self._rate_at_us = now_us
