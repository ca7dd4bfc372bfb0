"""The laws of an authority over limits, held by the book in memory and by the script in a real Redis alike.

Time is the test's own. Not here: random histories (`tests/parity/test_limits.py`), servers that fail
(`tests/live/test_redis_topologies.py`).
"""

from collections.abc import Iterator

import pytest

from penstock.adapters.clock import now_us
from penstock.core.authority import (
    Announce,
    Announced,
    Ask,
    Check,
    Checked,
    Close,
    Debit,
    Demand,
    Granted,
    Occupied,
    Occupy,
    Operation,
    Peek,
    Peeked,
    Settle,
    Settled,
    SlotDemand,
)
from penstock.core.limits import Level, Quota, RateLimit
from penstock.policy.leasing import LEASE_US_MAX
from penstock.testing.redis_servers import RedisServer
from tests.conformance.authorities import BookWorld, RedisWorld, World

KEY = "penstock:{acme}:per-user:alice"
OTHER = "penstock:{acme}:per-tenant:acme"
SLOTS = "penstock:{acme}:at-once:alice"
TTL_US = 1_000_000
HOLD_US = 60_000_000
# One token per 10 ms and 100 at once, half of them for lending.
QUOTA = Quota(drain=1, weight=10_000, tick_us=1, burst=100, lease_max=50)
HARD = Quota(drain=1, weight=10_000, tick_us=1, burst=100, lease_max=50, is_hard=True)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of our own."""
    with RedisServer(now_us) as started:
        yield started


@pytest.fixture(params=["book", "redis"])
def world(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[World]:
    """Each authority in turn, with nothing counted yet."""
    opened: World = BookWorld() if request.param == "book" else RedisWorld(server)
    with opened:
        yield opened


# -- asking ------------------------------------------------------------------------------------------------------------


def check(world: World, *demands: tuple[str, Quota, int], hold: str = "", hold_us: int = HOLD_US) -> Checked:
    """Take so many tokens of each bucket."""
    (reply,) = world.ask(Check(tuple(Demand(*demand) for demand in demands), (), "g1", hold, hold_us if hold else 0))
    assert isinstance(reply, Checked)
    return reply


def take(world: World, cost: int = 1, quota: Quota = QUOTA, hold: str = "") -> bool:
    """Take so many tokens of the one bucket; return whether they were there."""
    return check(world, (KEY, quota, cost), hold=hold).denied < 0


def borrow(world: World, lease: str, want: int, *closes: Close, holder: str = "g1", ttl_us: int = TTL_US) -> Granted:
    """Ask for a block of tokens."""
    (reply,) = world.ask(Ask(KEY, QUOTA, holder, lease, want, ttl_us, closes))
    assert isinstance(reply, Granted)
    return reply


def settle(world: World, hold: str, actual: int, quota: Quota = QUOTA) -> Settled:
    """Say what a held charge came to."""
    (reply,) = world.ask(Settle(KEY, quota, hold, actual))
    assert isinstance(reply, Settled)
    return reply


def peek(world: World, key: str = KEY, quota: Quota = QUOTA) -> Peeked:
    """Look at a bucket."""
    (reply,) = world.ask(Peek(key, quota))
    assert isinstance(reply, Peeked)
    return reply


def take_slot(world: World, holder: str, slots: int = 2, ttl_us: int = TTL_US) -> Checked:
    """Take one of `slots` places."""
    (reply,) = world.ask(Check((), (SlotDemand(SLOTS, slots, ttl_us),), holder))
    assert isinstance(reply, Checked)
    return reply


def occupy(world: World, holder: str, count: int, ttl_us: int = TTL_US) -> int:
    """Say how many places are in use; return how many all use."""
    (reply,) = world.ask(Occupy(SLOTS, holder, count, ttl_us))
    assert isinstance(reply, Occupied)
    return reply.taken


def announce(world: World, holder: str, ttl_us: int = TTL_US) -> Announced:
    """Say that a gateway is there."""
    (reply,) = world.ask(Announce("penstock:{-}:gateways:all", holder, ttl_us))
    assert isinstance(reply, Announced)
    return reply


# -- checks ------------------------------------------------------------------------------------------------------------


def test_burst_then_rate(world: World) -> None:
    """A new key holds its burst and not one more; afterwards tokens come one by one at the rate."""
    assert [take(world) for _ in range(101)] == [True] * 100 + [False]
    world.clock.advance_us(9_999)
    assert not take(world)
    world.clock.advance_us(1)
    assert take(world)
    assert not take(world)


def test_all_or_nothing(world: World) -> None:
    """What one limit rejects no other is charged for, whatever the order; the reply names who stood in the way."""
    small = Quota(1, 10_000, 1, 3)
    assert check(world, (KEY, QUOTA, 3), (OTHER, small, 3)).denied == -1
    first = check(world, (KEY, QUOTA, 1), (OTHER, small, 1))
    second = check(world, (OTHER, small, 1), (KEY, QUOTA, 1))
    assert (first.denied, first.remaining) == (1, (97, 0))
    assert (second.denied, second.remaining) == (0, (0, 97))
    assert (peek(world).remaining, peek(world, OTHER, small).remaining) == (97, 0)


def test_the_longest_wait_is_named(world: World) -> None:
    """Of several limits in the way the one to wait longest for is named, with its time."""
    slow = Quota(1, 70_000, 1, 5)
    check(world, (KEY, QUOTA, 100), (OTHER, slow, 5))
    reply = check(world, (KEY, QUOTA, 1), (OTHER, slow, 2))
    assert (reply.denied, reply.retry_after_us) == (1, 140_000)


@pytest.mark.parametrize(
    "limit",
    [
        RateLimit("a", Level.USER, tokens=100, per_us=1_000_000, burst=50),
        RateLimit("b", Level.USER, tokens=7, per_us=3_000_000, burst=10),
        RateLimit("c", Level.USER, tokens=10_000_000, per_us=60_000_000, burst=200_000),
        RateLimit("d", Level.USER, tokens=999_983, per_us=86_400_000_000, burst=99_991),
        RateLimit("e", Level.USER, tokens=1, per_us=31_536_000_000_000, burst=12),
        RateLimit("f", Level.USER, tokens=3, per_us=3_600_000_000, burst=900_000),
    ],
    ids=lambda limit: limit.name,
)
@pytest.mark.parametrize("cost", [1, 3])
def test_retry_after_is_exact(world: World, limit: RateLimit, cost: int) -> None:
    """Waiting as long as is said is enough, and one µs less is not: at every rate, in every tick."""
    quota = limit.quota()
    world.clock.advance_us(777)
    assert take(world, quota.burst, quota)
    world.clock.advance_us(1_234_567)
    assert take(world, peek(world, KEY, quota).remaining, quota)
    wait_us = check(world, (KEY, quota, cost)).retry_after_us
    assert wait_us > 0
    world.clock.advance_us(wait_us - 1)
    assert check(world, (KEY, quota, cost)).retry_after_us == 1
    world.clock.advance_us(1)
    assert take(world, cost, quota)


def test_rejection_changes_nothing(world: World) -> None:
    """However often one is rejected, everything is as if one had not asked."""
    take(world, 95)
    before = peek(world)
    for _ in range(20):
        assert not take(world, 6)
    assert peek(world) == before
    assert take(world, 5)


def test_a_check_of_nothing_passes(world: World) -> None:
    """Cost 0 fits into a bucket without tokens, and takes none."""
    take(world, 100)
    assert take(world, 0)
    assert peek(world).remaining == 0


def test_a_clock_that_steps_back_refills_nothing(world: World) -> None:
    """After a step back time has to come again before tokens do, and none come twice."""
    take(world, 100)
    world.clock.advance_us(50_000)
    assert take(world, 5)
    world.clock.step_us(-50_000)
    assert not take(world)
    world.clock.advance_us(50_000)
    assert not take(world)
    world.clock.advance_us(10_000)
    assert take(world)


def test_idle_keys_are_new_again(world: World) -> None:
    """When the bucket has had the time to fill it holds the burst, no sooner and no more."""
    take(world, 37)
    full_us = peek(world).full_after_us
    assert full_us == 370_000
    world.clock.advance_us(full_us - 1)
    assert not take(world, 100)
    world.clock.advance_us(1)
    assert take(world, 100)
    assert not take(world)


def test_one_turn_is_done_in_order(world: World) -> None:
    """Operations submitted together are done one after the other, each seeing what the one before did."""
    demand = Demand(KEY, QUOTA, 60)
    replies = world.ask(Check((demand,)), Peek(KEY, QUOTA), Check((demand,)), Debit(KEY, QUOTA, 10), Peek(KEY, QUOTA))
    left = [reply.remaining for reply in replies if isinstance(reply, Peeked | Settled)]
    assert left == [40, 30, 30]
    assert [reply.denied for reply in replies if isinstance(reply, Checked)] == [-1, 0]


def test_peek_takes_nothing(world: World) -> None:
    """Looking changes nothing, at a new key or a used one."""
    assert peek(world).remaining == 100
    take(world, 1)
    assert peek(world) == peek(world)
    assert peek(world).remaining == 99


def test_a_change_of_quota_keeps_the_backlog(world: World) -> None:
    """What was used stays used in tokens, rounded up; back and forth gives nothing away."""
    other = Quota(drain=3, weight=7_000_000, tick_us=1_000, burst=50)
    take(world, 40)
    world.clock.advance_us(5_000)
    assert peek(world, KEY, other).remaining == 10
    for _ in range(10):
        assert take(world, 0, other)
        assert take(world, 0, QUOTA)
    assert peek(world, KEY, QUOTA).remaining == 60


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_block_is_debited_when_lent(world: World) -> None:
    """What is lent is gone from the bucket at once, for everybody."""
    reply = borrow(world, "g1:1", 30)
    assert (reply.tokens, reply.remaining, reply.leased) == (30, 70, 30)
    assert take(world, 70)
    assert not take(world)


def test_a_block_is_an_even_part(world: World) -> None:
    """Nobody is lent more than an even part of what may be, by the number of holders; the last go one by one."""
    take(world, 40)
    assert borrow(world, "g1:1", 30).tokens == 30
    assert borrow(world, "g2:1", 1_000, holder="g2").tokens == 10
    take(world, 19)
    assert borrow(world, "g3:1", 1_000, holder="g3").tokens == 1
    reply = borrow(world, "g4:1", 1_000, holder="g4")
    assert (reply.tokens, reply.retry_after_us) == (0, 10_000)


def test_all_that_is_lent_is_capped(world: World) -> None:
    """Never are more than `lease_max` tokens out, however many ask."""
    tokens = [borrow(world, f"g{n}:1", 20, holder=f"g{n}").tokens for n in range(8)]
    assert sum(tokens) <= QUOTA.lease_max
    assert peek(world).leased == sum(tokens)


def test_lent_tokens_do_not_drain(world: World) -> None:
    """While a block is out the bucket keeps room for it: it is never full, however long ago it was lent."""
    borrow(world, "g1:1", 30)
    world.clock.advance_us(TTL_US - 1)
    assert peek(world).remaining == 70
    assert take(world, 70)
    assert not take(world)


def test_a_lease_that_ran_out_gives_nothing_back(world: World) -> None:
    """What it held drains like any charge, from when it ran out."""
    borrow(world, "g1:1", 30)
    world.clock.advance_us(TTL_US)
    assert (peek(world).remaining, peek(world).leased) == (70, 0)
    late = borrow(world, "g1:2", 0, Close("g1:1", 30))
    assert late.remaining == 70
    world.clock.advance_us(10_000)
    assert peek(world).remaining == 71


def test_no_lease_is_longer_than_the_longest(world: World) -> None:
    """Whatever is asked for, a block is out for `LEASE_US_MAX` at most."""
    borrow(world, "g1:1", 30, ttl_us=60_000_000)
    world.clock.advance_us(LEASE_US_MAX - 1)
    assert peek(world).leases == 1
    world.clock.advance_us(1)
    assert peek(world).leases == 0


def test_a_lease_is_returned_exactly_once(world: World) -> None:
    """Its unused tokens are there again, once, and never more than it had."""
    borrow(world, "g1:1", 30)
    take(world, 10)
    assert borrow(world, "g1:2", 0, Close("g1:1", 20)).remaining == 80
    assert borrow(world, "g1:3", 0, Close("g1:1", 20)).remaining == 80
    borrow(world, "g1:4", 10)
    assert borrow(world, "g1:5", 0, Close("g1:4", 1_000)).remaining == 80
    assert borrow(world, "g1:6", 0, Close("nobody's", 50)).remaining == 80


def test_the_same_question_twice_lends_once(world: World) -> None:
    """A question that is repeated has the same answer, and debits nothing more."""
    first = borrow(world, "g1:1", 30)
    again = borrow(world, "g1:1", 30)
    assert (
        (again.tokens, again.remaining, again.leased) == (first.tokens, first.remaining, first.leased) == (30, 70, 30)
    )


def test_a_short_lease_leaves_before_a_long_one(world: World) -> None:
    """When one of two runs out the other is still out, and is all that is."""
    borrow(world, "g1:1", 20, ttl_us=100_000)
    borrow(world, "g2:1", 15, holder="g2", ttl_us=900_000)
    world.clock.advance_us(100_000)
    assert (peek(world).leased, peek(world).leases) == (15, 1)
    assert borrow(world, "g3:1", 0, holder="g3").leased == 15


def test_windows_hold_with_leases(world: World) -> None:
    """Use of old blocks and of new tokens together stay within burst + rate * time, at the edge of a lease."""
    used = borrow(world, "g1:1", 50).tokens  # all used at the end of its time
    world.clock.advance_us(TTL_US - 1)
    while take(world):
        used += 1
    world.clock.advance_us(2)
    while take(world):
        used += 1
    assert used <= QUOTA.burst


# -- settling ----------------------------------------------------------------------------------------------------------


def test_a_hold_is_settled_once(world: World) -> None:
    """The first word counts; a second, or one about nothing, changes nothing."""
    take(world, 40, hold="h1")
    assert settle(world, "h1", 10).given_back == 30
    assert settle(world, "h1", 0).given_back == 0
    assert settle(world, "h2", 0).given_back == 0
    assert peek(world).remaining == 90


def test_what_has_drained_is_not_given_back(world: World) -> None:
    """Of a charge that was too large only what is still in the bucket comes back: more could be used twice."""
    take(world, 40, hold="h1")
    world.clock.advance_us(100_000)
    assert settle(world, "h1", 0).given_back == 30
    assert peek(world).remaining == 100


def test_more_than_was_held_is_a_debt(world: World) -> None:
    """What was used beyond the estimate is owed, at most a burst beyond the rim, and waited for."""
    take(world, 90, hold="h1")
    reply = settle(world, "h1", 150)
    assert (reply.given_back, reply.remaining) == (-60, 0)
    assert check(world, (KEY, QUOTA, 1)).retry_after_us == 510_000
    take(world, 0, hold="h2")
    world.clock.advance_us(510_000)
    assert take(world, 1, hold="h3")
    settle(world, "h3", 10**12)
    assert check(world, (KEY, QUOTA, 1)).retry_after_us == 1_010_000


def test_a_hold_that_ran_out_stays_as_charged(world: World) -> None:
    """After its time nobody can settle it any more."""
    check(world, (KEY, QUOTA, 40), hold="h1", hold_us=50_000)
    world.clock.advance_us(50_000)
    assert settle(world, "h1", 0).given_back == 0
    assert peek(world).remaining == 65


def test_each_bucket_of_a_hold_is_settled_by_itself(world: World) -> None:
    """One hold stands for its charge in every bucket of the check."""
    check(world, (KEY, QUOTA, 40), (OTHER, QUOTA, 40), hold="h1")
    settle(world, "h1", 5)
    assert (peek(world).remaining, peek(world, OTHER).remaining) == (95, 60)


def test_a_debit_fills_to_the_rim(world: World) -> None:
    """What was admitted elsewhere is taken as far as there is room."""
    assert world.ask(Debit(KEY, QUOTA, 30)) == [Settled(-30, 70, world.clock())]
    assert world.ask(Debit(KEY, QUOTA, 10**12)) == [Settled(-70, 0, world.clock())]
    assert world.ask(Debit(KEY, QUOTA, 1)) == [Settled(0, 0, world.clock())]


# -- slots and gateways ------------------------------------------------------------------------------------------------


def test_slots_are_bounded_over_holders(world: World) -> None:
    """So many and not one more, whoever asks; a slot that is given back is there again."""
    assert [take_slot(world, holder).denied for holder in ("g1", "g2", "g1")] == [-1, -1, 0]
    assert occupy(world, "g1", 0) == 1
    assert (take_slot(world, "g3").denied, take_slot(world, "g3").taken) == (-1, (2,))


def test_the_last_word_about_slots_counts(world: World) -> None:
    """A gateway that says how many it uses is believed, whatever was counted before."""
    take_slot(world, "g1", slots=9)
    assert occupy(world, "g1", 5) == 5
    assert occupy(world, "g2", 2) == 7
    assert occupy(world, "g1", 1) == 3


def test_slots_of_a_gateway_that_died_come_back(world: World) -> None:
    """After its time without a word its slots are free; those of others stay taken."""
    take_slot(world, "g1")
    take_slot(world, "g2")
    world.clock.advance_us(TTL_US - 1)
    assert take_slot(world, "g3").denied == 0
    occupy(world, "g2", 1)
    world.clock.advance_us(1)
    assert take_slot(world, "g3").denied == -1
    assert take_slot(world, "g3").denied == 0


def test_no_slot_means_no_charge(world: World) -> None:
    """Tokens and slots are one step: without a slot no token is taken, and without a token no slot."""
    demand, slot = Demand(KEY, QUOTA, 60), SlotDemand(SLOTS, 1, TTL_US)
    first, second = world.ask(Check((demand,), (slot,), "g1"), Check((Demand(KEY, QUOTA, 1),), (slot,), "g2"))
    assert isinstance(first, Checked)
    assert isinstance(second, Checked)
    assert (first.denied, second.denied, second.retry_after_us) == (-1, 1, 0)
    assert peek(world).remaining == 40
    occupy(world, "g1", 0)
    third, fourth = world.ask(Check((demand,), (slot,), "g1"), Occupy(SLOTS, "g3", 0, TTL_US))
    assert isinstance(third, Checked)
    assert (third.denied, fourth) == (0, Occupied(0, world.clock()))


def test_gateways_are_counted_while_they_say_so(world: World) -> None:
    """Each counts once, until its time is over; the epoch stays the same."""
    first = announce(world, "g1")
    world.clock.advance_us(400_000)
    assert [announce(world, holder).gateways for holder in ("g2", "g1", "g2")] == [2, 2, 2]
    world.clock.advance_us(TTL_US)
    last = announce(world, "g3")
    assert (last.gateways, last.epoch) == (1, first.epoch)


# -- losing everything -------------------------------------------------------------------------------------------------


def test_another_authority_has_another_epoch(world: World) -> None:
    """Who may have lost what was counted says so."""
    before = announce(world, "g1").epoch
    world.lose_everything()
    assert announce(world, "g1").epoch != before


def test_soft_begins_anew(world: World) -> None:
    """Under soft failover a bucket that was lost is a new one."""
    take(world, 100)
    world.lose_everything()
    assert take(world, 100)


def test_hard_gives_no_quota_twice(world: World) -> None:
    """Under hard failover a bucket begins without tokens, and fills only when no earlier lease can be in use."""
    assert not take(world, 1, HARD)
    world.clock.advance_us(LEASE_US_MAX + 1_000_000)
    assert take(world, 100, HARD)
    world.lose_everything()
    reply = check(world, (KEY, HARD, 1))
    assert (reply.denied, reply.retry_after_us) == (0, LEASE_US_MAX + 10_000)
    world.clock.advance_us(LEASE_US_MAX + 9_999)
    assert not take(world, 1, HARD)
    world.clock.advance_us(1)
    assert take(world, 1, HARD)
    assert not take(world, 1, HARD)


def test_every_operation_has_a_reply_of_its_kind(world: World) -> None:
    """Whatever is asked, the reply says the authority's time, and comes in the order of the questions."""
    operations: list[Operation] = [
        Check((Demand(KEY, QUOTA, 1),), (SlotDemand(SLOTS, 3, TTL_US),), "g1", "h", HOLD_US),
        Ask(KEY, QUOTA, "g1", "g1:1", 5, TTL_US),
        Settle(KEY, QUOTA, "h", 1),
        Debit(KEY, QUOTA, 1),
        Occupy(SLOTS, "g1", 1, TTL_US),
        Announce("penstock:{-}:gateways:all", "g1", TTL_US),
        Peek(KEY, QUOTA),
    ]
    replies = world.ask(*operations)
    assert [type(r) for r in replies] == [Checked, Granted, Settled, Settled, Occupied, Announced, Peeked]
    assert {reply.now_us for reply in replies} == {world.clock()}
