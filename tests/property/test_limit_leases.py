"""Laws of lending, against borrowers of ill will and against the one that gateways use.

The first machine uses lent tokens whenever an authority's word allows it, returns what it likes and repeats itself: no
window may be over the bound. The second holds `Borrower` to that word. Not here: whole fleets (`tests/sim/`).
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.core.authority import Ask, Check, Checked, Close, Demand, Granted, Peek, Peeked, Settle, Settled
from penstock.core.limits import Quota
from penstock.policy.auditing import worst_excess
from penstock.policy.leasing import LEASE_US_MAX, Borrower
from penstock.policy.limit_book import LimitBook
from tests.property.test_limits import quotas

START_US = 1_800_000_000_000_003
KEY = "key"
GAPS_US = st.one_of(st.integers(0, 50), st.integers(0, 20_000), st.integers(0, 400_000))
HOLDERS = st.sampled_from(["a", "b", "c"])
FATES = st.sampled_from(["answered", "answered", "answered", "unanswered", "unheard"])


class _Lease:
    """What a borrower of ill will knows of a lease.

    Args:
        left: Tokens it may use.
        until_us: Until this true instant.
    """

    def __init__(self, left: int, until_us: int) -> None:
        self.left = left
        self.until_us = until_us


class IllWill(RuleBasedStateMachine):
    """One key, and borrowers who take every token at the worst instant."""

    @initialize(quota=quotas())
    def begin(self, quota: Quota) -> None:
        self.quota = quota
        self.book = LimitBook("only", 1)
        self.now_us = START_US
        self.back_us = 0
        self.leases: dict[str, _Lease] = {}
        self.closed: list[Close] = []
        self.asked: list[Ask] = []
        self.admissions: list[list[int]] = []
        self.held: dict[str, list[int]] = {}

    def clock_us(self) -> int:
        return self.now_us - self.back_us

    # -- time ----------------------------------------------------------------------------------------------------

    @rule(gap_us=GAPS_US, step_us=st.sampled_from([0, 0, 0, 1, 300_000]))
    def pass_time(self, gap_us: int, step_us: int) -> None:
        """The authority's clock may be set back meanwhile, and it may forget what is as good as new."""
        self.now_us += gap_us
        self.back_us += step_us
        self.book.forget_idle(self.clock_us())

    # -- asking --------------------------------------------------------------------------------------------------

    @rule(cost=st.one_of(st.just(60), st.integers(0, 60)), is_held=st.booleans())
    def check(self, cost: int, is_held: bool) -> None:
        cost = min(cost, self.quota.burst)
        hold = f"hold-{len(self.admissions)}" if is_held else ""
        check = Check((Demand(KEY, self.quota, cost),), (), "a", hold, 10_000_000)
        reply = self.book.run(check, self.clock_us())
        assert isinstance(reply, Checked)
        if reply.denied < 0:
            self.admissions.append([self.now_us, cost])
            if is_held:
                self.held[hold] = self.admissions[-1]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), actual=st.one_of(st.just(0), st.integers(0, 60)))
    def settle(self, data: st.DataObject, actual: int) -> None:
        hold = data.draw(st.sampled_from(sorted(self.held)))
        admission = self.held.pop(hold)
        settle = Settle(KEY, self.quota, hold, min(actual, admission[1]))
        reply = self.book.run(settle, self.clock_us())
        assert isinstance(reply, Settled)
        assert reply.given_back <= admission[1]
        admission[1] -= reply.given_back
        self.book.run(settle, self.clock_us())
        self.rush()

    @rule(data=st.data(), holder=HOLDERS, want=st.integers(0, 60), ttl_us=st.integers(1, LEASE_US_MAX))
    def ask(self, data: st.DataObject, holder: str, want: int, ttl_us: int) -> None:
        closes = []
        for name in data.draw(
            st.lists(st.sampled_from(sorted(self.leases)), unique=True) if self.leases else st.just([])
        ):
            lease = self.leases.pop(name)
            closes.append(Close(name, lease.left))
        if self.closed:
            closes += data.draw(st.lists(st.sampled_from(self.closed), max_size=2))
        self.closed += closes
        name = f"{holder}:{len(self.asked)}"
        ask = Ask(KEY, self.quota, holder, name, want, ttl_us, tuple(closes))
        self.asked.append(ask)
        reply = self.run_ask(ask)
        if reply.tokens:
            self.leases[name] = _Lease(reply.tokens, self.now_us + ttl_us)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A question is heard again: what it lends now, nobody knows of."""
        self.run_ask(data.draw(st.sampled_from(self.asked)))

    def run_ask(self, ask: Ask) -> Granted:
        reply = self.book.run(ask, self.clock_us())
        assert isinstance(reply, Granted)
        assert reply.tokens <= ask.want
        return reply

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), tokens=st.integers(1, 60))
    def use(self, data: st.DataObject, tokens: int) -> None:
        lease = self.leases[data.draw(st.sampled_from(sorted(self.leases)))]
        tokens = min(tokens, lease.left)
        if self.now_us < lease.until_us and tokens:
            lease.left -= tokens
            self.admissions.append([self.now_us, tokens])

    @rule()
    def rush(self) -> None:
        """Everybody comes at once."""
        for lease in self.leases.values():
            if self.now_us < lease.until_us and lease.left:
                self.admissions.append([self.now_us, lease.left])
                lease.left = 0
        reply = self.book.run(Peek(KEY, self.quota), self.clock_us())
        assert isinstance(reply, Peeked)
        self.check(reply.remaining, is_held=False)

    # -- laws ----------------------------------------------------------------------------------------------------

    @invariant()
    def lent_tokens_are_in_the_bucket(self) -> None:
        if not hasattr(self, "book"):
            return
        reply = self.book.run(Peek(KEY, self.quota), self.clock_us())
        assert isinstance(reply, Peeked)
        assert reply.leased <= self.quota.lease_max
        assert reply.remaining + reply.leased <= self.quota.burst

    @invariant()
    def no_window_is_over_the_bound(self) -> None:
        if hasattr(self, "book"):
            assert worst_excess([(at_us, tokens) for at_us, tokens in self.admissions], self.quota) <= 0


class GoodWill(RuleBasedStateMachine):
    """A `Borrower` with a clock that drifts, an authority, and a network that may lose answers."""

    @initialize(drift_ppm=st.sampled_from([-1_000, 0, 1_000]), lease_us=st.sampled_from([5_000, 100_000, LEASE_US_MAX]))
    def begin(self, drift_ppm: int, lease_us: int) -> None:
        self.quota = Quota(1, 1_000, 1, 50, 25)
        self.book = LimitBook("only", 1)
        self.drift_ppm = drift_ppm
        self.now_us = START_US
        self.borrower = Borrower(KEY, self.quota, "a", lease_us, self.clock_us())
        self.lease_us = lease_us
        self.lent: dict[str, int] = {}
        self.until_us: dict[str, int] = {}
        self.used: dict[str, int] = {}
        self.taken: list[tuple[str, int, int]] = []
        self.now_us += 50_000
        self.borrow(100, 100, "answered")

    def clock_us(self) -> int:
        elapsed_us = self.now_us - START_US
        return 77_000_000 + elapsed_us + elapsed_us * self.drift_ppm // 1_000_000

    @rule(gap_us=GAPS_US)
    def pass_time(self, gap_us: int) -> None:
        self.now_us += gap_us

    @rule(before_us=st.integers(-1_000, 3_000))
    def pass_until_a_lease_ends(self, before_us: int) -> None:
        """Until about when the authority writes it off."""
        ends = [until_us - before_us for until_us in self.until_us.values() if until_us - before_us > self.now_us]
        self.now_us = min(ends, default=self.now_us)

    @rule(cost=st.integers(1, 4), times=st.integers(1, 40))
    def take(self, cost: int, times: int) -> None:
        borrower: Any = self.borrower
        for _ in range(times):
            lends = borrower.lends(cost, self.clock_us())
            assert borrower.take(cost, self.clock_us()) == lends
            if lends:
                name = borrower._id
                self.used[name] += cost
                self.taken.append((name, cost, borrower.until_us))
                assert self.used[name] <= self.lent[name], "more than was lent"
                assert self.now_us < self.until_us[name], "after the authority may have written it off"

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        borrower: Any = self.borrower
        name, cost, until_us = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        before = borrower.tokens
        borrower.give_back(cost, until_us, self.clock_us())
        if borrower.tokens != before:
            assert borrower._id == name, "into another lease"
            self.used[name] -= cost

    def converse(self, ask: Ask | None, there_us: int, back_us: int, fate: str) -> None:
        """Let a question be heard after a while, and be answered after another, unless it is lost on the way."""
        if ask is None:
            return
        for close in ask.closes:
            assert close.unused <= self.lent[close.id] - self.used[close.id], "more than is unused"
            self.taken = [taken for taken in self.taken if taken[0] != close.id]
        assert ask.id not in self.lent, "an id is used again"
        self.now_us += there_us
        self.lent[ask.id] = self.used[ask.id] = 0
        reply: Granted | None = None
        if fate != "unheard":
            heard = self.book.run(ask, self.now_us)
            assert isinstance(heard, Granted)
            reply = heard
            self.lent[ask.id] = reply.tokens
            self.until_us[ask.id] = self.now_us + ask.ttl_us
        self.take(1, back_us % 5)
        self.now_us += back_us
        if fate == "answered" and reply is not None:
            self.borrower.observe_grant(reply, self.clock_us())
        else:
            self.borrower.lose_grant()

    @rule(there_us=GAPS_US, back_us=GAPS_US, fate=FATES)
    def borrow(self, there_us: int, back_us: int, fate: str) -> None:
        for _ in range(40):  # the key stays hot
            self.borrower.note_demand(1)
        self.converse(self.borrower.plan_ask(self.clock_us()), there_us, back_us, fate)

    @rule(there_us=GAPS_US, back_us=GAPS_US, fate=FATES)
    def leave(self, there_us: int, back_us: int, fate: str) -> None:
        self.converse(self.borrower.plan_return(self.clock_us()), there_us, back_us, fate)

    @rule(retry_after_us=st.integers(0, 20_000))
    def deny(self, retry_after_us: int) -> None:
        self.borrower.deny(retry_after_us, self.clock_us())

    @invariant()
    def is_sane(self) -> None:
        if not hasattr(self, "borrower"):
            return
        borrower = self.borrower
        assert borrower.tokens >= 0
        assert borrower.stranded >= 0
        assert borrower.demand >= 0
        assert borrower.rate_per_s >= 0
        assert borrower.denied_until_us <= self.clock_us() + 250_000


TestIllWill = IllWill.TestCase
TestIllWill.settings = settings(max_examples=300, stateful_step_count=40)
TestGoodWill = GoodWill.TestCase
TestGoodWill.settings = settings(max_examples=150, stateful_step_count=40)
