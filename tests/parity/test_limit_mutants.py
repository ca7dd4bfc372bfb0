"""Every guard of the limits is missed when it is gone: by a story that names it, and by seeds of the fleet simulation.

One line of the policy or of the Lua script is changed at a time. Not here: the stories (`limit_witnesses.py`), the
seeds (`tests/sim/limit_fleet.py`).
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from penstock.adapters import redis as redis_adapter
from penstock.adapters.clock import now_us
from penstock.core.authority import Operation, Reply
from penstock.policy import limit_book
from penstock.testing.redis_servers import RedisServer, manual_script
from tests.parity import limit_witnesses as stories
from tests.parity.limit_machine import Redis
from tests.parity.limit_witnesses import AUTHORITY, BORROWER, START_US, SUCCESSION, Authority, ForgetfulBook, Story
from tests.parity.mutants import Mutation, imported
from tests.sim.limit_fleet import judge, replay_command, simulate_seed


class _Guard(NamedTuple):
    """What is lost by a change, who tells of it, and a seed of the simulation that breaks by it, if one does."""

    mutation: Mutation
    story: Story
    seed: int | None = None


_TAKE = "            if now_us < self.until_us:\n                if self.tokens >= cost:"
GUARDS = {
    "monotonic time": _Guard(
        Mutation(
            "limiting",
            "now_us = max(now_us, bucket.at_us)",
            "bucket = replace(bucket, at_us=min(now_us, bucket.at_us))",
        ),
        stories.a_write_at_an_earlier_time_drains_nothing_twice,
    ),
    "floor under leases": _Guard(
        Mutation("limiting", "level=max(bucket.level - drained, floor)", "level=max(bucket.level - drained, 0)"),
        stories.what_is_lent_stays_in_the_bucket,
        73,
    ),
    "outstanding cap": _Guard(
        Mutation("limit_book", "min(remaining(bucket, quota), quota.lease_max - leased)", "remaining(bucket, quota)"),
        stories.no_more_is_lent_than_may_be,
        7,
    ),
    "exactly-once return": _Guard(
        Mutation("limit_book", "leases.pop(close.id, None)", "leases.get(close.id)"),
        stories.a_lease_is_returned_once,
        73,
    ),
    "return of what was lent at most": _Guard(
        Mutation("limit_book", "min(close.unused, lease.tokens)", "close.unused"),
        stories.a_return_is_no_more_than_was_lent,
    ),
    "no return after expiry": _Guard(
        Mutation("limit_book", "entry.leases.items() if x.until_us > at_us", "entry.leases.items()"),
        stories.a_lease_that_ran_out_has_nothing_to_return,
    ),
    "duplicate ask": _Guard(
        Mutation("limit_book", "known = leases.get(ask.id)", "known = None"),
        stories.an_ask_that_is_heard_twice_lends_once,
    ),
    "longest lease": _Guard(
        Mutation("limit_book", "min(ask.ttl_us, LEASE_US_MAX)", "ask.ttl_us"),
        stories.no_lease_is_longer_than_any_may_be,
    ),
    "exactly-once settle": _Guard(
        Mutation("limit_book", "del entry.holds[settle.hold]", "pass"),
        stories.a_charge_is_settled_once,
        107,
    ),
    "credit discount": _Guard(
        Mutation("limiting", "units -= quota.drain * min(max(ticks, 0), -(-units // quota.drain))", "pass"),
        stories.a_refund_is_what_has_not_drained,
        13,
    ),
    "whole tokens back": _Guard(
        Mutation(
            "limiting",
            "return replace(bucket, level=bucket.level - back * quota.weight), back",
            "return replace(bucket, level=bucket.level - max(min(units, bucket.level - floor), 0)), back",
        ),
        stories.a_refund_is_told_to_the_token,
    ),
    "no credit across a change": _Guard(
        Mutation("limit_book", "elif hold.since_us == bucket.since_us:", "else:"),
        stories.a_refund_from_before_a_change_of_limits_is_void,
    ),
    "change rounds up": _Guard(
        Mutation("limiting", "-(-bucket.level // bucket.weight) * quota", "(bucket.level // bucket.weight) * quota"),
        stories.a_change_of_limits_rounds_against_the_caller,
    ),
    "change waits for a tick": _Guard(
        Mutation("limiting", "-(-bucket.at_us // quota.tick_us) * quota.tick_us", "bucket.at_us"),
        stories.changing_limits_to_and_fro_drains_nothing_twice,
    ),
    "expiry rounding": _Guard(
        Mutation(
            "limiting",
            "ticks = -(-bucket.level // quota.drain)\n    full_us",
            "ticks = bucket.level // quota.drain\n    full_us",
        ),
        stories.a_key_is_kept_until_it_is_full,
    ),
    "expiry under leases": _Guard(
        Mutation("limiting", "if not bucket.leased:\n        return full_us", "if True:\n        return full_us"),
        stories.a_key_is_kept_while_anything_is_lent,
        67,
    ),
    "all or nothing": _Guard(
        Mutation(
            "limit_book",
            "        if denied < 0:\n            buckets = [charge",
            "        if True:\n            buckets = [charge",
        ),
        stories.a_rejection_charges_nobody,
    ),
    "hard start": _Guard(
        Mutation("limit_book", "level=quota.capacity", "level=0"),
        stories.a_hard_key_begins_empty_of_tokens,
        23,
    ),
    "hard wait": _Guard(
        Mutation("limit_book", "self._since_us + LEASE_US_MAX", "self._since_us"),
        stories.a_hard_key_waits_for_leases_of_before,
    ),
    "hard distrust": _Guard(
        Mutation("limit_book", "quota.is_hard and entry.bucket.epoch_us not in (0, self._since_us)", "False"),
        stories.a_hard_key_is_not_taken_over,
        49,
    ),
    "leases of before": _Guard(
        Mutation("limit_book", "entry = self._known(ask.key, quota)", "entry = self._entries.get(ask.key)"),
        stories.a_lease_of_before_is_void_under_hard,
    ),
    "deadline before send": _Guard(
        Mutation("leasing", "until_us = self._asked_at_us + self", "until_us = now_us + self"),
        stories.the_time_of_a_lease_counts_from_before_it_was_asked_for,
        101,
    ),
    "drift margin": _Guard(
        Mutation("leasing", "self._lease_us + -self._lease_us // _DRIFT", "self._lease_us"),
        stories.a_clock_may_be_slow_by_one_in_a_thousand,
    ),
    "expired tokens": _Guard(
        Mutation("leasing", _TAKE, _TAKE.replace("now_us < self.until_us", "self._id")),
        stories.tokens_that_ran_out_are_not_used,
        104,
    ),
    "give back into the same lease": _Guard(
        Mutation("leasing", "if until_us == self.until_us and now_us", "if now_us"),
        stories.tokens_go_back_only_where_they_came_from,
    ),
    "id reuse": _Guard(
        Mutation("leasing", "self._number += 1", "self._number = 1"),
        stories.no_two_leases_have_one_name,
        3,
    ),
    "one question per instant": _Guard(
        Mutation("leasing", "if held > self.low or now_us <= self._asked_at_us:", "if held > self.low:"),
        stories.no_two_leases_end_at_one_instant,
    ),
    "return of what is unused": _Guard(
        Mutation("leasing", "Close(self._id, self.tokens)", "Close(self._id, self.tokens + 1)"),
        stories.no_more_is_returned_than_is_left,
    ),
}


def tell(story: Story, book: ModuleType) -> None:
    """Tell a story to a copy of the policy, of which this is the `limit_book`."""
    if story in BORROWER:
        story(import_module(book.__name__.replace("limit_book", "leasing")))
    elif story in SUCCESSION:
        story(book.LimitBook("first", 1))
    else:
        story(ForgetfulBook(book.LimitBook("first", 1)))


@pytest.mark.parametrize("story", AUTHORITY + SUCCESSION + BORROWER, ids=lambda story: story.__name__)
def test_stories_hold(story: Story) -> None:
    """Each story is true of the policy as it is."""
    tell(story, limit_book)


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_is_gone_is_told_of(name: str) -> None:
    """Without the guard its story does not hold."""
    guard = GUARDS[name]
    with imported(guard.mutation, "policy.limit_book") as book:
        holds = True
        try:
            tell(guard.story, book)
        except AssertionError:
            holds = False
    assert not holds, f"{guard.story.__name__} holds without: {name}"


@pytest.mark.parametrize("name", [name for name, guard in GUARDS.items() if guard.seed is not None])
def test_a_guard_that_is_gone_lets_a_fleet_break_the_bound(name: str) -> None:
    """Without the guard the fleet of its seed admits too much or the authority breaks a promise; with it, neither."""
    guard = GUARDS[name]
    assert guard.seed is not None
    with imported(guard.mutation, "sim.limit_fleet") as fleet:
        complaints = judge(simulate_seed(guard.seed, fleet.simulate_limits))
    assert complaints, f"{name}: seed {guard.seed} does not show it; find another: {replay_command(guard.seed)}"
    assert not judge(simulate_seed(guard.seed))


class _LuaGuard(NamedTuple):
    """A change of one line of one part of the script, and the story that tells of it."""

    part: str
    text: str
    replacement: str
    story: Story


LUA_GUARDS = {
    "monotonic time": _LuaGuard(
        "bucket",
        "  if until_us <= bucket.at_us then\n",
        "  if until_us <= bucket.at_us then\n    bucket.at_us = until_us\n",
        stories.a_write_at_an_earlier_time_drains_nothing_twice,
    ),
    "floor under leases": _LuaGuard(
        "bucket",
        "max(level - drained, min(min(bucket.leased, burst) * bucket.weight, level))",
        "max(level - drained, 0)",
        stories.what_is_lent_stays_in_the_bucket,
    ),
    "outstanding cap": _LuaGuard(
        "lease",
        "min(remaining(bucket, quota), quota[LEASE_MAX] - leased)",
        "remaining(bucket, quota)",
        stories.no_more_is_lent_than_may_be,
    ),
    "exactly-once return": _LuaGuard("lease", "      dead[#dead + 1] = id\n", "", stories.a_lease_is_returned_once),
    "return of what was lent at most": _LuaGuard(
        "lease", "min(unused, lease.tokens)", "unused", stories.a_return_is_no_more_than_was_lent
    ),
    "no return after expiry": _LuaGuard(
        "lease", "if until_us > bucket.at_us then", "if true then", stories.a_lease_that_ran_out_has_nothing_to_return
    ),
    "duplicate ask": _LuaGuard(
        "lease", "if leases[id] then", "if false then", stories.an_ask_that_is_heard_twice_lends_once
    ),
    "longest lease": _LuaGuard(
        "lease", "min(ttl_us, LEASE_US_MAX)", "ttl_us", stories.no_lease_is_longer_than_any_may_be
    ),
    "exactly-once settle": _LuaGuard("settle", "redis.call('DEL', hold_key)", "", stories.a_charge_is_settled_once),
    "credit discount": _LuaGuard(
        "bucket",
        "units = units - drain * min(max(ticks, 0), ceil(units / drain))",
        "",
        stories.a_refund_is_what_has_not_drained,
    ),
    "whole tokens back": _LuaGuard(
        "bucket",
        "bucket.level = bucket.level - back * weight",
        "bucket.level = bucket.level - max(min(units, bucket.level - lent), 0)",
        stories.a_refund_is_told_to_the_token,
    ),
    "no credit across a change": _LuaGuard(
        "settle",
        "elseif since_us == bucket.since_us then",
        "else",
        stories.a_refund_from_before_a_change_of_limits_is_void,
    ),
    "change rounds up": _LuaGuard(
        "bucket",
        "ceil(bucket.level / bucket.weight) * weight",
        "floor(bucket.level / bucket.weight) * weight",
        stories.a_change_of_limits_rounds_against_the_caller,
    ),
    "change waits for a tick": _LuaGuard(
        "bucket",
        "ceil(bucket.at_us / tick_us) * tick_us",
        "bucket.at_us",
        stories.changing_limits_to_and_fro_drains_nothing_twice,
    ),
    "expiry rounding": _LuaGuard(
        "bucket",
        "local ticks, tick_us = ceil(bucket.level / quota[DRAIN])",
        "local ticks, tick_us = floor(bucket.level / quota[DRAIN])",
        stories.a_key_is_kept_until_it_is_full,
    ),
    "expiry under leases": _LuaGuard(
        "bucket", "if bucket.leased == 0 then", "if true then", stories.a_key_is_kept_while_anything_is_lent
    ),
    "all or nothing": _LuaGuard(
        "check", "if denied >= 0 then", "if denied == 0 then", stories.a_rejection_charges_nobody
    ),
}


class _RedisAuthority:
    """The script in a real Redis, one operation at a time."""

    def __init__(self, server: RedisServer, parts: dict[str, str]) -> None:
        self._redis = Redis(server, manual_script(lambda: START_US, **parts))

    def run(self, operation: Operation, now_us: int) -> Reply:
        reply = self._redis.run([operation], now_us)[0]
        assert not isinstance(reply, str), reply
        return reply

    def close(self) -> None:
        self._redis.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of our own."""
    with RedisServer(now_us) as started:
        yield started


def _holds(story: Story, server: RedisServer, parts: dict[str, str]) -> bool:
    authority: Authority = (own := _RedisAuthority(server, parts))
    try:
        story(authority)
    except AssertionError:
        return False
    finally:
        own.close()
    return True


@pytest.mark.parametrize("story", AUTHORITY, ids=lambda story: story.__name__)
def test_stories_hold_in_redis(story: Story, server: RedisServer) -> None:
    """Each story is true of the script as it is."""
    assert _holds(story, server, {})


@pytest.mark.parametrize("name", LUA_GUARDS)
def test_a_guard_that_is_gone_from_the_script_is_told_of(name: str, server: RedisServer) -> None:
    """Without the guard its story does not hold in Redis."""
    guard = LUA_GUARDS[name]
    source = (Path(redis_adapter.__file__).parent / f"{guard.part}.lua").read_text()
    count = source.count(guard.text)
    assert count == 1, f"{guard.part}.lua: expected {guard.text!r} once, got it {count} times"
    parts = {guard.part: source.replace(guard.text, guard.replacement)}
    assert not _holds(guard.story, server, parts), f"{guard.story.__name__} holds without: {name}"
