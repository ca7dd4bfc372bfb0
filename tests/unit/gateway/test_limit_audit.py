"""What a gateway tells of its decisions: the audit gets tokens by ms and bucket, the log gets every decision."""

from collections.abc import Callable
from pathlib import Path

from penstock.core.limits import Cost, Level, LimitSettings, Principal, RateLimit, Unreachable
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.decision_log import DecisionLog
from penstock.gateway.limit_audit import BINS_MAX, SAMPLES_MAX, LimitWatch, measure_skew_us
from penstock.gateway.limiter import Limiter, Permit, Waiting
from penstock.testing.authority import BookAuthority
from penstock.wire.decisions import Decision, Definition, Refund, decode_line
from penstock.wire.ratelimit import Rejection

S = 1_000_000
ALICE = Principal(key_id="a", tenant="acme", user="alice")
PER_USER = RateLimit("per-user", Level.USER, 1_000, S, 100)


class Request:
    """A request that waits."""

    permit: Permit | None = None

    def proceed(self, rejection: Rejection | None, permit: Permit | None) -> None:
        self.permit = permit


class Gateway:
    """A limiter that is watched, and a book that answers 3 ms after it was asked; the book's clock is an hour ahead."""

    def __init__(self, *limits: RateLimit, log: Path | None = None, skew_us: int = 0) -> None:
        self.now_us = 50 * S
        self.soon: list[Callable[[], None]] = []
        self.timers: list[Callable[[], None]] = []
        file = None
        if log is not None:
            file = DecisionLog(log, call_later=lambda _, call: self.timers.append(call), warn=print)
        self.watch = LimitWatch("penstock", gateway=2, pid=77, log=file, skew_us=skew_us)
        self.authority = BookAuthority(lambda: self.now_us + 3_600 * S, self.soon.append)
        self.limiter = Limiter(
            LimitSettings(limits=limits),
            self.authority,
            holder="g",
            statistics=GatewayStatistics(),
            now_us=lambda: self.now_us + skew_us,
            call_soon=self.soon.append,
            observer=self.watch,
        )

    def ask(self, principal: Principal = ALICE, *, rows: int = 1, tokens: int = 1) -> Request:
        request = Request()
        plan = self.limiter.plan(principal, "m")
        assert plan is not None
        verdict = self.limiter.admit(plan, request, rows, tokens)
        if isinstance(verdict, Waiting):
            self.now_us += 3_000
        self.settle()
        return request

    def settle(self) -> None:
        while self.soon:
            self.soon.pop(0)()


def test_decisions_are_counted_by_bucket_and_ms() -> None:
    """The report has what was asked for and admitted in each ms, and since when the admitted may have been charged."""
    gateway = Gateway(RateLimit("per-user", Level.USER, 1, S, 2))
    for _ in range(3):
        gateway.ask()
    gateway.ask()  # the third denial is remembered: nobody is asked
    (report,) = gateway.watch.take_bins()
    assert (report.key, report.limit) == ("penstock:{acme}:per-user:alice", "per-user")
    assert report.quota == RateLimit("per-user", Level.USER, 1, S, 2).quota()
    assert report.bins == [(50_003, 1, 1, 3), (50_006, 1, 1, 3), (50_009, 2, 0, 0)]
    assert gateway.watch.take_bins() == (), "what was told is not told again"


def test_the_quick_way_is_watched_too() -> None:
    """Of requests admitted by lent tokens none escapes the audit."""
    gateway = Gateway(PER_USER)
    admitted = 0
    for _ in range(300):
        gateway.ask()
        gateway.now_us += 2_000
    (report,) = gateway.watch.take_bins()
    admitted = sum(admitted for _, _, admitted, _ in report.bins)
    assert sum(asked for _, asked, _, _ in report.bins) == 300
    assert gateway.limiter._statistics.limits["per-user"].local > 200
    assert admitted == 300


def test_times_are_the_machines_and_not_the_limiters() -> None:
    """A limiter whose clock is set wrong reports what one with a right clock does."""
    right, wrong = Gateway(PER_USER), Gateway(PER_USER, skew_us=3_600 * S)
    for gateway in (right, wrong):
        gateway.ask()
    assert right.watch.take_bins() == wrong.watch.take_bins()


def test_a_request_is_no_attempt_at_limits_that_did_not_decide_it() -> None:
    """What one limit rejects was not asked of the others, and what can never pass was asked of none."""
    gateway = Gateway(
        RateLimit("narrow", Level.USER, 1, S, 2, cost=Cost.ROWS), RateLimit("wide", Level.GLOBAL, 10, S, 10)
    )
    gateway.ask(rows=2)
    gateway.ask(rows=2)
    gateway.ask(rows=3)
    told = {report.limit: report.bins for report in gateway.watch.take_bins()}
    assert told == {"narrow": [(50_003, 2, 2, 3), (50_006, 2, 0, 0)], "wide": [(50_003, 1, 1, 3)]}


def test_what_an_open_limit_lets_in_uncounted_is_not_held_against_it() -> None:
    """While nobody counts, `open` admits everything by choice; `local_share` and `closed` must still keep the bound."""
    limit = RateLimit("open", Level.USER, 1, S, 1, unreachable=Unreachable.OPEN)
    gateway = Gateway(limit)
    gateway.authority.is_down = True
    gateway.ask()
    assert gateway.watch.take_bins() == ()


def test_what_was_given_back_is_taken_off() -> None:
    """A settled charge counts less from when the authority was told; without an answer all of it may be back."""
    gateway = Gateway(RateLimit("tokens", Level.USER, 1, S, 100, cost=Cost.TOKENS))
    for is_down in (False, True):
        request = gateway.ask(tokens=40)
        assert request.permit is not None
        gateway.authority.is_down = is_down
        request.permit.end(10)
        gateway.settle()
    (report,) = gateway.watch.take_bins()
    assert report.bins == [(50_003, 40, 40 - 30, 3), (50_006, 40, 40 - 100, 3)]


def test_users_are_sampled_by_hash_and_the_same_everywhere() -> None:
    """Of many users the same ones are sampled by gateways that met them in any order, and always the shared buckets."""
    users = [Principal(key_id=f"k{number}", tenant="acme", user=f"u{number}") for number in range(300)]
    sampled = []
    for order in (users, users[::-1]):
        gateway = Gateway(PER_USER, RateLimit("all", Level.GLOBAL, 10**6, S, 10**6))
        for user in [*order, *order]:
            gateway.ask(user)
        gateway.watch.take_bins()
        for user in order:
            gateway.ask(user)
        sampled.append({report.key for report in gateway.watch.take_bins()})
    assert sampled[0] == sampled[1]
    assert len(sampled[0]) == SAMPLES_MAX + 1
    assert "penstock:{global}:all:all" in sampled[0]


def test_what_is_no_longer_sampled_is_forgotten() -> None:
    """A bucket that made way for one of smaller hash gathers nothing any more."""
    gateway = Gateway(PER_USER)
    users = [Principal(key_id=f"k{number}", tenant="acme", user=f"u{number}") for number in range(SAMPLES_MAX * 4)]
    for user in users:
        gateway.ask(user)
    evicted = [plan.watch for plan in gateway.limiter._plans.values() if plan is not None and plan.watch is not None]
    samples = [sample for watch in evicted for _, _, sample in watch._sampled if not sample.is_kept]  # type: ignore[attr-defined]  # ours
    assert samples
    before = [len(sample._report.bins) for sample in samples]
    for user in users:
        gateway.now_us += 2_000
        gateway.ask(user)
    assert [len(sample._report.bins) for sample in samples] == before


def test_parts_of_a_split_limit_are_one_bucket() -> None:
    """The whole limit is audited, by its own name, whichever of its parts a gateway took from."""
    limit = RateLimit("hot", Level.GLOBAL, 1_000, S, 100, split=4)
    gateway = Gateway(limit)
    gateway.ask()
    (report,) = gateway.watch.take_bins()
    assert report.key == "penstock:{global}:hot:all"
    assert report.quota.burst == 100


def test_a_report_that_nobody_takes_is_bounded() -> None:
    """A gateway that cannot report keeps no more than so much, and forgets rather than grows."""
    gateway = Gateway(RateLimit("all", Level.GLOBAL, 10**6, S, 10**6))
    for _ in range(BINS_MAX * 2 + 5):
        gateway.ask()
        gateway.now_us += 1_000
    (report,) = gateway.watch.take_bins()
    assert len(report.bins) <= BINS_MAX


def test_the_log_has_every_decision(tmp_path: Path) -> None:
    """With the log on each decision is a line: who, for what, at what cost, how, and when; limits are defined first."""
    tokens = RateLimit("tokens", Level.USER, 1, S, 100, cost=Cost.TOKENS)
    gateway = Gateway(tokens, log=tmp_path / "log", skew_us=7)
    request = gateway.ask(tokens=60)
    gateway.ask(tokens=60)
    assert request.permit is not None
    request.permit.end(10)
    gateway.settle()
    assert len(gateway.timers) == 1
    gateway.timers.pop()()
    lines = [decode_line(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    key = "penstock:{acme}:tokens:alice"
    who = {"tenant": "acme", "user": "alice", "key_id": "a", "model": "m"}
    at_us, hour_us = 50 * S, 3_600 * S
    assert lines == [
        Definition(at_us, 2, 77, tokens),
        Decision(
            at_us + 3_000,
            2,
            77,
            "checked",
            {"tokens": 60},
            {"tokens": key},
            **who,
            asked_us=at_us,
            authority_us=at_us + 3_000 + hour_us,
            hold="g:2",
        ),
        Decision(
            at_us + 6_000,
            2,
            77,
            "rejected",
            {"tokens": 60},
            {"tokens": key},
            **who,
            limit="tokens",
            asked_us=at_us + 3_000,
            authority_us=at_us + 6_000 + hour_us,
        ),
        Refund(at_us + 6_000, 2, 77, "g:2", "tokens", key, 10, 49),  # of the 50 too many one drained meanwhile
    ]


def test_the_log_defines_limits_of_keys_by_key(tmp_path: Path) -> None:
    """A limit that a key brought is defined with the key's id, once for each key."""
    own = RateLimit("key-a", Level.USER, 10, S, 10)
    alice = Principal(key_id="a", tenant="acme", user="alice", limits=(own,))
    gateway = Gateway(PER_USER, log=tmp_path / "log")
    for _ in range(2):
        gateway.ask(alice)
        gateway.limiter.forget()
    gateway.watch.close()
    lines = [decode_line(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [(x.defines.name, x.key_id) for x in lines if isinstance(x, Definition)] == [
        ("per-user", ""),
        ("key-a", "a"),
    ]
    assert [x.keys["key-a"] for x in lines if isinstance(x, Decision)] == ["penstock:{acme}:key-a:a"] * 2


def test_the_skew_is_the_difference_of_the_clocks() -> None:
    """Of several looks the least disturbed one counts."""
    times = iter(range(0, 1_000, 10))
    assert measure_skew_us(lambda: next(times) + 500, lambda: next(times)) == 510
