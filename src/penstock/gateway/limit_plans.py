"""What a limiter knows: which limits a caller's requests for a model are under, and what is known of each bucket here.

Not here: deciding and asking (`limiter.py`), tokens lent to this gateway (`policy/leasing.py`), names of keys
(`policy/limit_naming.py`).
"""

from collections.abc import Sequence
from typing import Protocol

from penstock.core.authority import Check
from penstock.core.limits import ConcurrencyLimit, Cost, Limit, Principal, Quota, RateLimit
from penstock.core.statistics import LimitStatistics
from penstock.policy.leasing import DENIAL_US_MAX, Borrower
from penstock.policy.limiting import Bucket, advance, charge, fits, start_bucket, wait_us
from penstock.wire.ratelimit import encode_state

__all__ = ["Key", "Plan", "SlotKey", "Watch"]

# The rate limit headers of a caller are written anew at most this often, µs: pipelined answers share them.
_HEADERS_US = 10_000


class Key:
    """One bucket, as this gateway knows it.

    Attributes:
        remaining: Tokens in it, beyond those lent to us, when the authority last said so.
        denied_until_us, denied_cost: Until then so many tokens surely are not there.
        share: Our share of it while the authority is unreachable; None while it is not.
        counts: Of its limit, for all keys of it together.
        check: What asks for one token of it alone; None until it was asked.
        other: The next of the sub-buckets of a limit that is split; they form a ring. None if it is not.
    """

    __slots__ = (
        "_share_quota",
        "_untold",
        "borrower",
        "check",
        "counts",
        "denied_cost",
        "denied_until_us",
        "idle_demand",
        "key",
        "limit",
        "other",
        "quota",
        "remaining",
        "share",
        "stranded",
    )

    def __init__(self, key: str, limit: RateLimit, borrower: Borrower, counts: LimitStatistics) -> None:
        self.key = key
        self.limit = limit
        self.quota = borrower.quota
        self.borrower = borrower
        self.counts = counts
        self.check: Check | None = None
        self.other: Key | None = None
        self.remaining = self.quota.burst
        self.denied_until_us = 0
        self.denied_cost = 0
        self.share: Bucket | None = None
        self._untold = 0  # tokens that our share has admitted and the authority was not told of
        self.idle_demand = -1
        self.stranded = 0  # of what the borrower says is stranded: counted already
        self._share_quota: Quota | None = None

    def denial_us(self, cost: int, now_us: int) -> int:
        """Return how long the tokens are surely not to be had, µs; 0 if they may be."""
        borrower = self.borrower
        if borrower.lends(cost, now_us):
            return 0
        if now_us < self.denied_until_us and cost >= self.denied_cost:
            return self.denied_until_us - now_us
        if now_us < borrower.denied_until_us and borrower.is_hot:
            return borrower.denied_until_us - now_us
        return 0

    def note_denial(self, cost: int, retry_after_us: int, now_us: int) -> None:
        """The authority said no."""
        self.borrower.deny(retry_after_us, now_us)
        self.denied_until_us = now_us + min(retry_after_us, DENIAL_US_MAX)
        self.denied_cost = cost

    def count_stranded(self) -> None:
        """Count the tokens that ran out unused since the last call."""
        self.counts.stranded += self.borrower.stranded - self.stranded
        self.stranded = self.borrower.stranded

    def take_share(self, cost: int, gateways: int, now_us: int) -> int:
        """Take tokens from our share of the limit while nobody can be asked; return 0, or how long to wait, µs.

        It starts empty: what the authority let in just before is unknown here.

        Args:
            cost: Tokens.
            gateways: By how many the limit is divided; 0 if that is not known, and then there is no share.
            now_us: Clock.
        """
        if not 1 <= gateways * self.limit.split <= self.limit.burst:
            return 1_000_000
        quota = self._share_quota = self.limit.quota(gateways)
        if self.share is None:
            self.share = start_bucket(quota, now_us, level=quota.capacity)
            self._untold = 0
        share = self.share = advance(self.share, quota, now_us)
        if cost > quota.burst:
            return 1_000_000
        if not fits(share, quota, cost):
            return wait_us(share, quota, cost, now_us)
        self.share = charge(share, quota, cost)
        self._untold += cost
        return 0

    def untold(self, now_us: int) -> tuple[int, int]:
        """Return the tokens that our share has admitted and nobody was told of, and how many to tell of.

        The authority's bucket has drained meanwhile, and that time is used up by as much as shares have admitted; but
        what is older than a full share takes to drain matters to no window any more.
        """
        if self.share is None or self._share_quota is None:
            return 0, 0
        quota = self._share_quota
        self.share = advance(self.share, quota, now_us)
        return self._untold, min(self._untold, -(-self.share.level // quota.weight))

    def note_told(self, admitted: int) -> None:
        """The authority knows of so many tokens that our share has admitted."""
        self._untold = max(self._untold - admitted, 0)  # the share may have been opened anew since

    def state(self) -> tuple[RateLimit, int, int]:
        """Return the limit, the tokens left as far as is known here, and in how many s all are if nobody takes any."""
        left = min(self.remaining + self.borrower.tokens, self.limit.burst)
        full_us = (self.limit.burst - left) * self.limit.per_us // self.limit.tokens
        return self.limit, left, -(-full_us // 1_000_000)


class SlotKey:
    """Requests in progress under one concurrency limit, as this gateway knows them.

    Attributes:
        count: Our own.
        taken: Everybody's, when the authority last said so.
        said_us: When it was last told how many.
        counts: Of its limit, for all keys of it together.
    """

    __slots__ = ("count", "counts", "key", "limit", "said_us", "taken")

    def __init__(self, key: str, limit: ConcurrencyLimit, counts: LimitStatistics) -> None:
        self.key = key
        self.limit = limit
        self.counts = counts
        self.count = 0
        self.taken = 0
        self.said_us = 0


class Watch(Protocol):
    """Is told of the decisions about one plan's requests: the audit, and the decision log.

    Times are the limiter's clock, and an admission is charged between when it was asked for and when it was known.
    """

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
        """A request that costs so much of each key is decided.

        Args:
            costs: Of each of the plan's keys.
            outcome: A `limiter.Outcome`.
            limit: What rejected it, or ''.
            at_us: When that was known.
            asked_us: When the authority was asked; 0 if it was not.
            authority_us: When it decided, by its own clock; 0 if it did not.
            hold: Under which its charges will be settled, or ''.
        """
        ...

    def settle(self, key: Key, hold: str, actual: int, given_back: int | None, at_us: int) -> None:
        """What an admitted request cost in the end was told to the authority.

        Args:
            key: What was corrected.
            hold: Of its decision.
            actual: Tokens.
            given_back: Tokens; None if there was no answer.
            at_us: When it was told.
        """
        ...


class Plan:
    """The limits that one caller's requests for one model are under.

    Attributes:
        principal, model: Whose, and for which.
        keys: Buckets, each with what a request takes from it.
        slots: Concurrency limits.
        ones: What a request takes from each of them, if that is always 1; else empty.
        quick: The same buckets, if it is, and there are no slots: what lent tokens may decide without more ado.
        watch: Whom to tell of each decision; None for nobody.
        is_settled: True if a cost is known only afterwards.
    """

    __slots__ = (
        "_headers",
        "_headers_at_us",
        "_state",
        "is_settled",
        "keys",
        "model",
        "ones",
        "principal",
        "quick",
        "slots",
        "watch",
    )

    def __init__(self, principal: Principal, model: str, keys: Sequence[Key], slots: Sequence[SlotKey]) -> None:
        self.principal = principal
        self.model = model
        self.keys = tuple(keys)
        self.slots = tuple(slots)
        is_flat = all(key.limit.cost is Cost.REQUESTS for key in keys)
        self.ones = (1,) * len(keys) if is_flat else ()
        self.quick = self.keys if is_flat and not slots else ()
        self.watch: Watch | None = None
        self.is_settled = any(key.limit.cost is Cost.TOKENS for key in keys)
        self._headers = b""
        self._state: tuple[Limit, int, int] | None = None  # what they say
        self._headers_at_us = -_HEADERS_US

    def costs(self, rows: int, tokens: int) -> Sequence[int]:
        """Return what a request takes from each of `keys`."""
        return self.ones or [
            1 if key.limit.cost is Cost.REQUESTS else rows if key.limit.cost is Cost.ROWS else tokens
            for key in self.keys
        ]

    def note_change(self) -> None:
        """The authority has said how much is left: the next answer says so too."""
        self._headers_at_us = -_HEADERS_US

    def headers(self, now_us: int) -> bytes:
        """Return the header lines that tell a caller how much is left of the tightest limit.

        Of one, and not what it is: that is told with each 429. The policies of three limits are as long as an answer.
        """
        if now_us - self._headers_at_us >= _HEADERS_US:
            self._headers_at_us = now_us
            states: list[tuple[Limit, int, int]] = [key.state() for key in self.keys]
            states += [(slot.limit, slot.limit.slots - slot.taken, 0) for slot in self.slots]
            tightest = min(states, key=_left_ratio)
            if tightest != self._state:
                self._state = tightest
                self._headers = encode_state([tightest])
        return self._headers


def _left_ratio(state: tuple[Limit, int, int]) -> float:
    limit, left, _ = state
    return left / (limit.burst if isinstance(limit, RateLimit) else limit.slots)
