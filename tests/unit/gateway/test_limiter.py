"""The limiter against a book that answers at the end of each turn, or not at all; its clock is the test's."""

from collections.abc import Callable

import pytest

from penstock.core.authority import Ask, Check, Debit, Occupy, Settle
from penstock.core.limits import (
    ANONYMOUS,
    ConcurrencyLimit,
    Cost,
    Level,
    Limit,
    LimitSettings,
    Principal,
    RateLimit,
    Unreachable,
)
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.limiter import ANNOUNCE_US, SHARE_AFTER_US, Limiter, Permit, Waiting
from penstock.policy.auditing import WindowAudit
from penstock.testing.authority import BookAuthority
from penstock.wire.ratelimit import Rejection

S = 1_000_000
ALICE = Principal(key_id="a", tenant="acme", user="alice")
BOB = Principal(key_id="b", tenant="acme", user="bob")


class Request:
    """A request that waits."""

    def __init__(self) -> None:
        self.rejection: Rejection | None = None
        self.permit: Permit | None = None
        self.is_decided = False

    def proceed(self, rejection: Rejection | None, permit: Permit | None) -> None:
        assert not self.is_decided, "decided twice"
        self.is_decided, self.rejection, self.permit = True, rejection, permit


class Fleet:
    """Gateways' limiters over one desk."""

    def __init__(self, *limits: Limit, gateways: int = 1, **settings: object) -> None:
        self.now_us = 100 * S
        self.answers: list[Callable[[], None]] = []
        self.desk = BookAuthority(lambda: self.now_us, self.answers.append)
        self.soon: list[Callable[[], None]] = []
        self.statistics = GatewayStatistics()
        self.limiters = [
            Limiter(
                LimitSettings(limits=limits, **settings),  # type: ignore[arg-type]  # fields by name
                self.desk,
                holder=f"g{index}",
                statistics=self.statistics,
                now_us=lambda: self.now_us,
                call_soon=self.soon.append,
            )
            for index in range(gateways)
        ]

    def turn(self) -> None:
        """Run one turn of the loop."""
        soon = self.soon[:]
        self.soon.clear()
        for callback in soon:
            callback()

    def settle(self) -> None:
        """Run turns of the loop until nothing is under way."""
        while True:
            self.turn()
            answers = self.answers[:]
            self.answers.clear()
            for answer in answers:
                answer()
            if not answers and not self.soon:
                return

    def start(
        self, principal: Principal = ANONYMOUS, *, model: str = "m", rows: int = 1, tokens: int = 1, gateway: int = 0
    ) -> tuple[Request, Waiting | None]:
        limiter = self.limiters[gateway]
        request = Request()
        plan = limiter.plan(principal, model)
        if plan is None:
            request.is_decided = True
            return request, None
        verdict = limiter.admit(plan, request, rows, tokens)
        if isinstance(verdict, Waiting):
            return request, verdict
        request.is_decided, request.rejection = True, verdict
        return request, None

    def ask(
        self, principal: Principal = ANONYMOUS, *, model: str = "m", rows: int = 1, tokens: int = 1, gateway: int = 0
    ) -> Request:
        request, _ = self.start(principal, model=model, rows=rows, tokens=tokens, gateway=gateway)
        self.settle()
        assert request.is_decided
        return request

    def pass_time(self, us: int) -> None:
        """Let time pass, with the gateways' regular tending."""
        until_us = self.now_us + us
        while self.now_us < until_us:
            self.now_us = min(self.now_us + S // 4, until_us)
            for limiter in self.limiters:
                limiter.tend()
            self.settle()


def per_user(tokens: int = 10, burst: int = 10, **more: object) -> RateLimit:
    return RateLimit("per-user", Level.USER, tokens, S, burst, **more)  # type: ignore[arg-type]  # fields by name


def test_without_limits_nobody_is_asked() -> None:
    """A caller under no limit has no plan."""
    fleet = Fleet(per_user(models=("other",)))
    assert fleet.limiters[0].plan(ALICE, "m") is None


def test_burst_then_retry_after() -> None:
    """The burst passes, the next is told when to come back, and then it passes: exactly then."""
    fleet = Fleet(per_user(tokens=10, burst=3))
    assert [fleet.ask(ALICE).rejection for _ in range(3)] == [None] * 3
    rejection = fleet.ask(ALICE).rejection
    assert rejection is not None
    assert (rejection.status, rejection.limit, rejection.retry_after_us) == (429, "per-user", S // 10)
    assert b"retry-after-ms: 100\r\n" in rejection.headers
    fleet.now_us += S // 10 - 1
    assert fleet.ask(ALICE).rejection is not None
    fleet.now_us += 1
    assert fleet.ask(ALICE).rejection is None


def test_users_and_tenants_are_counted_apart_and_together() -> None:
    """One user's consumption is another's only under a limit of their tenant."""
    tenant = RateLimit("tenant", Level.TENANT, 10, S, 4)
    fleet = Fleet(per_user(burst=3), tenant)
    assert [fleet.ask(ALICE).rejection is None for _ in range(4)] == [True, True, True, False]
    assert fleet.ask(BOB).rejection is None
    refused = fleet.ask(BOB).rejection
    assert refused is not None
    assert refused.limit == "tenant"


def test_a_rejected_request_is_charged_by_no_limit() -> None:
    """What the tenant's limit rejects leaves the user's as it was."""
    fleet = Fleet(per_user(burst=5), RateLimit("tenant", Level.TENANT, 1, S, 1))
    fleet.ask(ALICE)
    assert fleet.ask(ALICE).rejection is not None
    checks = [o for o in fleet.desk.operations if isinstance(o, Check)]
    replies = fleet.desk.book.run(Check((checks[0].demands[0],)), fleet.now_us)
    assert replies.remaining == (3,)  # type: ignore[union-attr]  # 5, less the one that passed, less this


def test_cost_above_the_burst_is_for_ever() -> None:
    """More than the burst is a 400: no wait can help."""
    fleet = Fleet(per_user(burst=3, cost=Cost.ROWS))
    rejection = fleet.ask(ALICE, rows=4).rejection
    assert rejection is not None
    assert rejection.status == 400
    assert fleet.desk.calls == 0


def test_a_hot_key_is_decided_without_asking() -> None:
    """Under demand tokens are borrowed: far fewer calls than decisions, and all are admitted."""
    fleet = Fleet(per_user(tokens=20_000, burst=2_000))
    for _ in range(10_000):
        fleet.now_us += 100
        assert fleet.ask(ALICE).rejection is None
    counts = fleet.statistics.limits["per-user"]
    assert counts.local > 9_000
    assert fleet.desk.calls < 1_000


def test_several_hot_keys_are_decided_without_asking() -> None:
    """What is lent of every limit decides alone, and each limit counts every request once."""
    limits = [RateLimit(str(level), level, 20_000, S, 2_000) for level in (Level.USER, Level.TENANT, Level.GLOBAL)]
    fleet = Fleet(*limits)
    for _ in range(10_000):
        fleet.now_us += 100
        assert fleet.ask(ALICE).rejection is None
    for counts in fleet.statistics.limits.values():
        assert counts.local > 9_000
        assert counts.local + counts.checked == 10_000
    assert fleet.desk.calls < 1_000


@pytest.mark.parametrize("gateways", [1, 4])
def test_the_tightest_of_several_hot_keys_decides(gateways: int) -> None:
    """Where several limits are decided by what is lent, the one that is used up says no, and only it."""
    fleet = Fleet(
        per_user(tokens=20_000, burst=2_000), RateLimit("all", Level.GLOBAL, 1_000, S, 200), gateways=gateways
    )
    admitted = 0
    start_us = fleet.now_us
    for turn in range(10_000):
        fleet.now_us += 200
        admitted += fleet.ask(ALICE, gateway=turn % gateways).rejection is None
    allowed = 200 + (fleet.now_us - start_us) * 1_000 // S
    assert 0.95 * allowed <= admitted <= allowed
    counts = fleet.statistics.limits
    assert (counts["per-user"].rejected, counts["all"].rejected) == (0, 10_000 - admitted)


@pytest.mark.parametrize("gateways", [1, 4])
def test_any_number_of_gateways_share_one_bound(gateways: int) -> None:
    """At five times the limit, in each window no more than the bound passes, and almost all of it does."""
    fleet = Fleet(per_user(tokens=1_000, burst=200), gateways=gateways)
    admitted = 0
    start_us = fleet.now_us
    for turn in range(20_000):
        fleet.now_us += 200
        admitted += fleet.ask(ALICE, gateway=turn % gateways).rejection is None
        if turn % 1_250 == 0:
            for limiter in fleet.limiters:
                limiter.tend()
    allowed = 200 + (fleet.now_us - start_us) * 1_000 // S
    assert 0.98 * allowed <= admitted <= allowed


def test_lent_tokens_come_back_from_an_idle_gateway() -> None:
    """A key nobody uses any more has nothing lent after a moment."""
    fleet = Fleet(per_user(tokens=20_000, burst=2_000))
    for _ in range(2_000):
        fleet.now_us += 100
        fleet.ask(ALICE)
    fleet.pass_time(S)
    assert isinstance([o for o in fleet.desk.operations if isinstance(o, Ask)][-1].closes, tuple)
    last = [o for o in fleet.desk.operations if isinstance(o, Ask)][-1]
    assert last.want == 0


def test_tokens_are_settled_once() -> None:
    """A cost known afterwards corrects the charge: what was not used can be used at once."""
    fleet = Fleet(per_user(tokens=1, burst=100, cost=Cost.TOKENS))
    request = fleet.ask(ALICE, tokens=80)
    assert fleet.ask(ALICE, tokens=80).rejection is not None
    assert request.permit is not None
    request.permit.end(10)
    request.permit.end(10)
    fleet.settle()
    assert sum(isinstance(o, Settle) for o in fleet.desk.operations) == 1
    fleet.now_us += 250_000  # a denial is believed for so long
    assert fleet.ask(ALICE, tokens=80).rejection is None


def test_slots_are_taken_and_freed() -> None:
    """So many at once and no more; one that ends makes room."""
    fleet = Fleet(ConcurrencyLimit("two", Level.USER, 2))
    first, second = fleet.ask(ALICE), fleet.ask(ALICE)
    refused = fleet.ask(ALICE).rejection
    assert refused is not None
    assert (refused.status, refused.limit) == (429, "two")
    assert first.permit is not None
    first.permit.end(None)
    fleet.settle()
    assert fleet.ask(ALICE).rejection is None
    assert second.permit is not None


def test_slots_of_a_gateway_that_died_come_free() -> None:
    """Nobody repeats that they are in use, so after their time they are not."""
    fleet = Fleet(ConcurrencyLimit("two", Level.USER, 2, ttl_us=S), gateways=2)
    fleet.ask(ALICE, gateway=0)
    fleet.ask(ALICE, gateway=0)
    del fleet.limiters[0]
    assert fleet.ask(ALICE).rejection is not None
    fleet.pass_time(2 * S)
    assert fleet.ask(ALICE).rejection is None


def test_slots_in_use_are_kept_for_as_long_as_it_takes() -> None:
    """A request longer than the slots' time keeps its slot."""
    fleet = Fleet(ConcurrencyLimit("one", Level.USER, 1, ttl_us=S))
    fleet.ask(ALICE)
    fleet.pass_time(5 * S)
    assert fleet.ask(ALICE).rejection is not None


def test_a_client_that_left_gives_back_its_slot() -> None:
    """Who is gone before the answer holds nothing."""
    fleet = Fleet(ConcurrencyLimit("one", Level.USER, 1))
    request, waiting = fleet.start(ALICE)
    assert waiting is not None
    waiting.leave()
    fleet.settle()
    assert not request.is_decided
    assert fleet.ask(ALICE).rejection is None


@pytest.mark.parametrize(("policy", "status"), [(Unreachable.CLOSED, 503), (Unreachable.OPEN, None)])
def test_closed_and_open_without_an_authority(policy: Unreachable, status: int | None) -> None:
    """Unreachable: `closed` refuses with 503, `open` admits."""
    fleet = Fleet(per_user(unreachable=policy))
    fleet.desk.is_down = True
    rejection = fleet.ask(ALICE).rejection
    assert (None if rejection is None else rejection.status) == status


def test_shares_add_up_to_the_limit() -> None:
    """Unreachable: all shares together are the limit, and when it is over nothing was admitted twice."""
    fleet = Fleet(per_user(tokens=100, burst=40), gateways=2)
    fleet.pass_time(SHARE_AFTER_US + 2 * ANNOUNCE_US)
    fleet.desk.is_down = True
    audit = WindowAudit(per_user(tokens=100, burst=40).quota())
    start_us = fleet.now_us
    admitted = 0
    for turn in range(10_000):
        fleet.now_us += 1_000
        fleet.desk.is_down = turn < 3_000
        if turn % 250 == 0:
            for limiter in fleet.limiters:
                limiter.tend()
        if fleet.ask(ALICE, gateway=turn % 2).rejection is None:
            admitted += 1
            audit.observe(fleet.now_us, 1)
    assert audit.excess_tokens == 0
    assert admitted >= 0.9 * (fleet.now_us - start_us) * 100 // S
    assert fleet.statistics.limits["per-user"].alone > 400
    assert any(isinstance(o, Debit) for o in fleet.desk.operations)


def test_one_lost_answer_is_no_outage() -> None:
    """A call without an answer costs its own requests; nobody goes by a share beside others that ask."""
    fleet = Fleet(per_user(tokens=100, burst=40), gateways=2)
    fleet.pass_time(SHARE_AFTER_US + 2 * ANNOUNCE_US)
    fleet.desk.is_down = True
    rejection = fleet.ask(ALICE).rejection
    assert rejection is not None
    assert rejection.status == 503
    fleet.desk.is_down = False
    assert [fleet.ask(ALICE).rejection for _ in range(40)] == [None] * 40
    assert fleet.statistics.limits["per-user"].alone == 0


def test_a_gateway_nobody_has_counted_yet_has_no_share() -> None:
    """Just started, it may not divide a limit that others divide without it."""
    fleet = Fleet(per_user(tokens=100, burst=40))
    fleet.desk.is_down = True
    assert fleet.ask(ALICE).rejection is not None


def test_one_call_per_turn() -> None:
    """All that is to be asked in one turn of the event loop travels together."""
    fleet = Fleet(per_user())
    for index in range(50):
        fleet.start(Principal(key_id=str(index), tenant="acme", user=str(index)))
    fleet.settle()
    assert fleet.desk.calls == 1


def test_slots_are_told_in_order() -> None:
    """While one call about slots is under way no other is sent."""
    fleet = Fleet(ConcurrencyLimit("many", Level.USER, 10))
    for _ in range(3):
        fleet.start(ALICE)
        fleet.turn()
    assert fleet.desk.calls == 1
    fleet.settle()
    assert fleet.desk.calls == 2
    assert not any(isinstance(o, Occupy) for o in fleet.desk.operations)


@pytest.mark.parametrize("gateways", [1, 3])
def test_a_split_limit_is_one_limit(gateways: int) -> None:
    """Over sub-buckets in slots of their own the sum keeps the bound, and most of it is found by trying others."""
    fleet = Fleet(per_user(tokens=1_000, burst=400, split=4), gateways=gateways)
    admitted = 0
    start_us = fleet.now_us
    for turn in range(20_000):
        fleet.now_us += 200
        admitted += fleet.ask(ALICE, gateway=turn % gateways).rejection is None
    allowed = 400 + (fleet.now_us - start_us) * 1_000 // S
    assert 0.7 * allowed <= admitted <= allowed
    tags = {o.demands[0].key.split("}")[0] for o in fleet.desk.operations if isinstance(o, Check)}
    assert len(tags) == 4
