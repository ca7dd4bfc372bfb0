"""Replaying a decision log: under the recorded limits what was, under changed ones what would have been."""

from collections.abc import Iterable
from random import Random

import pytest

from penstock.core.authority import Check, Checked, Demand
from penstock.core.errors import ConfigError
from penstock.core.limit_text import parse_limit
from penstock.core.limits import ConcurrencyLimit, Cost, Level, RateLimit, Unreachable
from penstock.policy.limit_book import LimitBook
from penstock.sim.limit_replay import ORDER_US, Fate, LimitReplay, Replayed
from penstock.wire.decisions import Decision, Definition, Line, Refund

S = 1_000_000
PER_USER = RateLimit("per-user", Level.USER, 10, S, 10)
TOKENS = RateLimit("tokens", Level.USER, 1, S, 100, cost=Cost.TOKENS)


def decide(at_us: int, outcome: str = "checked", *, user: str = "alice", gateway: int = 0, **more: object) -> Decision:
    fields: dict[str, object] = {"tenant": "acme", "user": user, "model": "m", "asked_us": 0, **more}
    limits = fields.pop("limits", {"per-user": 1})
    assert isinstance(limits, dict)
    keys = {name: f"penstock:{{acme}}:{name}:{user}" for name in limits}
    return Decision(at_us, gateway, 10 + gateway, outcome, limits, keys, **fields)  # type: ignore[arg-type]  # by name


def replay(lines: Iterable[Line], rules: Iterable[RateLimit] = (), **changes: str) -> Replayed:
    return replay_with(lines, rules, {name.replace("_", "-"): text for name, text in changes.items()})


def replay_with(lines: Iterable[Line], rules: Iterable[RateLimit], changes: dict[str, str]) -> Replayed:
    run = LimitReplay({rule.name: rule for rule in rules}, {name: parse_limit(text) for name, text in changes.items()})
    for line in lines:
        run.note(line)
    return run.finish()


def define(*limits: RateLimit | ConcurrencyLimit, gateway: int = 0) -> list[Line]:
    return [Definition(1, gateway, 10 + gateway, limit) for limit in limits]


def test_what_would_have_been() -> None:
    """Under a wider limit more are in, under a narrower one fewer, and each user's part of it is told."""
    lines: list[Line] = define(PER_USER)
    for number in range(20):
        is_in = number < 10
        lines.append(decide(S + number, "checked" if is_in else "rejected", limit="" if is_in else "per-user"))
    lines += [decide(S + number, user="bob") for number in range(5)]
    wider = replay(lines, per_user="10/s burst 15")
    assert wider.all == Fate(25, 15, 15, 20)
    assert wider.users == {("acme", "alice"): Fate(20, 10, 10, 15), ("acme", "bob"): Fate(5, 5, 5, 5)}
    (limit,) = wider.limits.values()
    assert (limit.before.burst, limit.after.burst) == (10, 15)
    assert (limit.requests, limit.rejected, limit.rejected_before, limit.rejected_after) == (25, 10, 10, 5)
    assert limit.excess_tokens == 0
    assert (round(limit.peak_before, 3), round(limit.peak_after, 3)) == (1.0, 1.0)
    narrower = replay(lines, per_user="10/s burst 2")
    assert narrower.all == Fate(25, 15, 15, 4)


def test_without_a_change_nothing_changes() -> None:
    """A log of exact decisions, replayed, is what was recorded, twice."""
    random, book, lines, now_us = Random(3), LimitBook("x", 1), define(PER_USER, TOKENS), S
    for _ in range(3_000):
        now_us += random.randrange(60_000)
        user, tokens = random.choice("abc"), random.randrange(1, 60)
        costs = {"per-user": 1, "tokens": tokens}
        demands = tuple(
            Demand(f"penstock:{{acme}}:{x.name}:{user}", x.quota(), costs[x.name]) for x in (PER_USER, TOKENS)
        )
        reply = book.run(Check(demands), now_us)
        assert isinstance(reply, Checked)
        is_in = reply.denied < 0
        limit = "" if is_in else ("per-user", "tokens")[reply.denied]
        lines.append(decide(now_us, "checked" if is_in else "rejected", user=user, limits=costs, limit=limit))
    found = replay(lines)
    assert found.all.recorded == found.all.before == found.all.after
    assert 0 < found.all.recorded < 3_000
    assert all(fate.recorded == fate.before == fate.after for fate in found.users.values())
    assert all(x.rejected == x.rejected_before == x.rejected_after for x in found.limits.values())
    assert all(x.excess_tokens == 0 and 0 < x.peak_before <= 1 for x in found.limits.values())


def test_lines_are_put_in_order() -> None:
    """Lines of several gateways that were written late are judged when they were asked, not when they were written."""
    lines = [decide(S + 100_000 * number, gateway=number % 2) for number in range(50)]
    definitions = define(PER_USER) + define(PER_USER, gateway=1)
    in_order = replay([*definitions, *lines], per_user="1/s burst 3")
    late = replay([*definitions, *lines[::2], *lines[1::2]], per_user="1/s burst 3")
    assert in_order == late
    assert in_order.late == 0
    very_late = replay([*definitions, *lines, decide(S + 3 * ORDER_US), decide(S + 1)])
    assert very_late.late == 1


def test_time_is_when_it_was_asked() -> None:
    """What the authority decided is charged at the instant it was asked."""
    lines = [*define(PER_USER), *(decide(5 * S, asked_us=S + number * S // 10) for number in range(30))]
    assert replay(lines, per_user="10/s burst 1").all.after == 30
    assert replay(lines).duration_us == 29 * S // 10


def test_an_excess_in_the_record_is_told() -> None:
    """If more was admitted than the limit allowed, the log shows by how much."""
    lines = [*define(PER_USER), *(decide(S, "local") for _ in range(13))]
    assert replay(lines).limits["per-user"].excess_tokens == 3
    limit = RateLimit("per-user", Level.USER, 10, S, 10, unreachable=Unreachable.OPEN)
    uncounted = [*define(limit), *(decide(S, "alone") for _ in range(13))]
    assert replay(uncounted).limits["per-user"].excess_tokens == 0, "an open limit admits while nobody counts"


def test_what_was_settled_is_settled_again() -> None:
    """A refund makes room in each book that admitted the request, and in none that did not."""
    key = "penstock:{acme}:tokens:alice"
    lines: list[Line] = [
        *define(TOKENS),
        decide(S, limits={"tokens": 80}, hold="h1"),
        Refund(S + 10, 0, 10, "h1", "tokens", key, 10, 69),
        decide(S + 20, limits={"tokens": 80}, hold="h2"),
    ]
    assert replay(lines).all == Fate(2, 2, 2, 2)
    assert replay(lines, tokens="1/s burst 70").all.after == 0
    assert replay([*lines[:2], lines[3]]).all.before == 1
    assert replay(lines).limits["tokens"].excess_tokens == 0


def test_what_concurrency_limits_rejected_is_left_out() -> None:
    """Nobody knows what would have become of them: they are counted apart."""
    slots = ConcurrencyLimit("slots", Level.USER, 1)
    lines = [*define(PER_USER, slots), decide(S), decide(S, "rejected", limit="slots")]
    found = replay(lines)
    assert (found.all.requests, found.others) == (1, 1)


def test_each_process_has_the_limits_it_was_started_with() -> None:
    """After a restart with another limit, requests are judged by the one their gateway defined."""
    wider = RateLimit("per-user", Level.USER, 10, S, 20)
    lines = [*define(PER_USER), *define(wider, gateway=1)]
    lines += [decide(S) for _ in range(12)]
    lines += [decide(9 * S, gateway=1) for _ in range(22)]
    assert replay(lines).all.before == 10 + 20


def test_limits_of_the_configuration_replace_the_recorded() -> None:
    """Rules that are given hold as if they had been in force."""
    lines = [decide(S) for _ in range(12)]
    assert replay(lines, rules=(PER_USER,)).all.before == 10
    assert replay([*define(PER_USER), *lines], rules=(RateLimit("per-user", Level.USER, 10, S, 4),)).all.before == 4


def test_what_can_never_pass_does_not() -> None:
    """A request that costs more than the changed burst is rejected by that limit."""
    lines = [*define(TOKENS), decide(S, limits={"tokens": 80})]
    found = replay(lines, tokens="1 tokens/s burst 50")
    assert (found.all.before, found.all.after) == (1, 0)
    assert found.limits["tokens"].rejected_after == 1


@pytest.mark.parametrize(
    ("lines", "changes", "expected"),
    [
        (
            [],
            {"per-user": "1/s"},
            r"--with: expected a limit that the log's requests are under \(none\), got 'per-user'",
        ),
        ([*define(PER_USER), decide(S)], {"x": "1/s"}, r"requests are under \(per-user\), got 'x'"),
        (define(PER_USER), {"per-user": "1 rows/s"}, "--with: per-user: expected requests, .* got rows"),
        (define(PER_USER), {"per-user": "999999999989/366d burst 1000000000000"}, "--with: per-user: .* below 2"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(lines: list[Line], changes: dict[str, str], expected: str) -> None:
    """Unknown limits, other costs and numbers that cannot be counted are the operator's to correct."""
    with pytest.raises(ConfigError, match=expected):
        replay_with(lines, (), changes)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([decide(S)], "expected limit 'per-user' to be defined before its first decision.*--config"),
        ([Refund(S, 0, 10, "h", "tokens", "k", 1)], "expected limit 'tokens' to be defined"),
        ([*define(PER_USER), decide(9_000 * S), decide(S)], "8,999 s before another; it was restarted in between"),
    ],
)
def test_lines_that_do_not_fit_together_are_refused(lines: list[Line], expected: str) -> None:
    """A log whose beginning is missing, or that spans two runs of the machine, says what to do."""
    with pytest.raises(ValueError, match=expected):
        replay(lines)
