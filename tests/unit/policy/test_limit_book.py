"""The book operation by operation: what is answered, what is kept, what is forgotten."""

import pytest

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
    Peek,
    Peeked,
    Settle,
    Settled,
    SlotDemand,
)
from penstock.core.limits import Quota
from penstock.policy.limit_book import LimitBook

QUOTA = Quota(drain=1, weight=1_000, tick_us=1, burst=100, lease_max=50)
HARD = Quota(drain=1, weight=1_000, tick_us=1, burst=100, lease_max=50, is_hard=True)
NOW = 10_000_000
MS = 1_000


def book() -> LimitBook:
    """Return a book that has counted for ever."""
    return LimitBook("first", 1)


def check(cost: int, key: str = "a", **others: object) -> Check:
    """Return a check of one bucket."""
    return Check((Demand(key, QUOTA, cost),), **others)  # type: ignore[arg-type]  # fields by name


def ask(holder: str, want: int, *closes: Close, number: int = 1, ttl_us: int = 1_000_000) -> Ask:
    """Return a question for a block."""
    return Ask("a", QUOTA, holder, f"{holder}:{number}", want, ttl_us, closes)


def test_checks_answer_with_what_is_left() -> None:
    """Admitted or not, the caller learns how much there is, and when to come back."""
    limits = book()
    assert limits.run(check(60), NOW) == Checked(-1, 0, (40,), (), NOW)
    assert limits.run(check(60), NOW) == Checked(0, 20 * MS, (40,), (), NOW)


def test_of_several_in_the_way_the_slowest_is_named() -> None:
    """Who waits for that one has waited for the others."""
    limits = book()
    slow = Quota(drain=1, weight=10_000, tick_us=1, burst=100)
    limits.run(Check((Demand("a", QUOTA, 100), Demand("b", slow, 100))), NOW)
    reply = limits.run(Check((Demand("a", QUOTA, 5), Demand("b", slow, 1))), NOW)
    assert reply == Checked(1, 10 * MS, (0, 0), (), NOW)


def test_slots_are_taken_with_the_tokens_or_not_at_all() -> None:
    """Where no slot is free no token is taken, and the slot is named after all buckets."""
    limits = book()
    slot = SlotDemand("slots", 1, 5_000_000)
    assert limits.run(check(1, slots=(slot,), holder="g"), NOW) == Checked(-1, 0, (99,), (1,), NOW)
    assert limits.run(check(1, slots=(slot,), holder="h"), NOW) == Checked(1, 0, (99,), (1,), NOW)
    assert limits.run(Occupy("slots", "g", 0, 5_000_000), NOW) == Occupied(0, NOW)
    assert limits.run(check(1, slots=(slot,), holder="h"), NOW) == Checked(-1, 0, (98,), (1,), NOW)


def test_slots_of_a_gateway_that_died_come_free() -> None:
    """It stopped saying so, and after `ttl_us` it is as if it had ended."""
    limits = book()
    limits.run(Occupy("slots", "g", 3, 5_000_000), NOW)
    assert limits.run(Occupy("slots", "h", 1, 5_000_000), NOW + 4_999_999) == Occupied(4, NOW + 4_999_999)
    assert limits.run(Occupy("slots", "h", 1, 5_000_000), NOW + 5_000_000) == Occupied(1, NOW + 5_000_000)


@pytest.mark.parametrize(
    ("want", "others", "expected"),
    [(10, 0, 10), (100, 0, 50), (100, 1, 0), (20, 1, 0)],
)
def test_blocks_are_an_even_share_of_what_may_be_lent(want: int, others: int, expected: int) -> None:
    """One alone may borrow all that may be lent; then there is nothing for the next."""
    limits = book()
    for k in range(others):
        limits.run(ask(f"other-{k}", 100), NOW)
    reply = limits.run(ask("g", want), NOW)
    assert isinstance(reply, Granted)
    assert reply.tokens == expected


def test_shares_shrink_to_single_tokens() -> None:
    """The nearer to the rim, the smaller the blocks; the last token is lent by itself."""
    limits = book()
    limits.run(ask("other", 1), NOW)
    limits.run(check(90), NOW)
    tokens = []
    for number in range(1, 8):
        reply = limits.run(ask("g", 100, number=number), NOW)
        assert isinstance(reply, Granted)
        tokens.append(reply.tokens)
    assert tokens == [4, 2, 1, 1, 1, 0, 0]


def test_a_block_that_is_not_there_says_when_one_token_will_be() -> None:
    """Asking before is useless."""
    limits = book()
    limits.run(check(100), NOW)
    assert limits.run(ask("g", 10), NOW) == Granted(0, 0, 0, MS, NOW)


def test_closing_and_borrowing_are_one_step() -> None:
    """What is returned may be lent again at once."""
    limits = book()
    limits.run(ask("g", 40), NOW)
    assert limits.run(ask("g", 50, Close("g:1", 15), number=2), NOW) == Granted(50, 25, 50, 0, NOW)


def test_asking_for_nothing_returns_only() -> None:
    """A gateway that stops borrows no more; on a key that nobody knows it leaves no trace."""
    limits = book()
    assert limits.run(ask("g", 0, Close("g:9", 5)), NOW) == Granted(0, 100, 0, 0, NOW)
    assert len(limits) == 0
    limits.run(ask("g", 40, number=2), NOW)
    assert limits.run(ask("g", 0, Close("g:2", 40), number=3), NOW) == Granted(0, 100, 0, 0, NOW)


def test_settling_more_than_was_held_is_owed() -> None:
    """The bucket is charged for the rest, beyond its rim if need be."""
    limits = book()
    limits.run(check(90, hold="h", hold_us=60_000_000), NOW)
    assert limits.run(Settle("a", QUOTA, "h", 130), NOW) == Settled(-40, 0, NOW)
    assert limits.run(check(1), NOW + 31 * MS) == Checked(-1, 0, (0,), (), NOW + 31 * MS)


def test_what_is_not_held_is_not_settled() -> None:
    """A demand whose cost is final, a hold that nobody knows and one whose time is over change nothing."""
    limits = book()
    limits.run(Check((Demand("a", QUOTA, 50, is_held=False),), (), "g", "h", 1_000), NOW)
    assert limits.run(Settle("a", QUOTA, "h", 0), NOW) == Settled(0, 50, NOW)
    limits.run(check(50, hold="late", hold_us=10 * MS), NOW)
    assert limits.run(Settle("a", QUOTA, "late", 0), NOW + 10 * MS) == Settled(0, 10, NOW + 10 * MS)


def test_debits_count_what_was_let_in_alone() -> None:
    """Up to the rim: what is beyond is not held against anybody."""
    limits = book()
    assert limits.run(Debit("a", QUOTA, 30), NOW) == Settled(-30, 70, NOW)
    assert limits.run(Debit("a", QUOTA, 300), NOW) == Settled(-70, 0, NOW)


def test_peeking_takes_nothing() -> None:
    """It says what is there, what is lent and when all of it will be back."""
    limits = book()
    assert limits.run(Peek("a", QUOTA), NOW) == Peeked(100, 0, 0, 0, NOW)
    limits.run(ask("g", 40), NOW)
    assert limits.run(Peek("a", QUOTA), NOW) == Peeked(60, 40, 1, 1_040 * MS, NOW)
    assert len(limits) == 1


def test_gateways_count_while_they_say_so() -> None:
    """Each is one, however often it says so; one that is silent is gone after `ttl_us`."""
    limits = book()
    assert limits.run(Announce("p", "g", 5_000_000), NOW) == Announced(1, "first", NOW)
    assert limits.run(Announce("p", "h", 5_000_000), NOW) == Announced(2, "first", NOW)
    assert limits.run(Announce("p", "h", 5_000_000), NOW + 5_000_000) == Announced(1, "first", NOW + 5_000_000)
    limits.begin_epoch("second", NOW)
    assert limits.run(Announce("p", "h", 5_000_000), NOW + 5_000_000) == Announced(1, "second", NOW + 5_000_000)


def test_keys_as_good_as_new_are_forgotten() -> None:
    """When the bucket is full of tokens again; not while a charge may still be settled."""
    limits = book()
    limits.run(check(10), NOW)
    limits.run(check(10, key="b", hold="h", hold_us=60_000_000), NOW)
    limits.run(Occupy("slots", "g", 1, 5_000), NOW)
    limits.forget_idle(NOW + 10 * MS - 1)
    assert len(limits) == 2
    limits.forget_idle(NOW + 10 * MS)
    assert len(limits) == 1
    limits.forget_idle(NOW + 60_000_000)
    assert len(limits) == 0


def test_forgetting_goes_through_all_keys_a_few_at_a_time() -> None:
    """Calls that look at ten keys each have looked at thirty after three."""
    limits = book()
    for k in range(30):
        limits.run(check(1, key=str(k)), NOW)
    later = NOW + 1_000_000
    sizes = []
    for _ in range(3):
        limits.forget_idle(later, 10)
        sizes.append(len(limits))
    assert sizes == [20, 10, 0]


def test_soft_keys_are_taken_over_and_hard_ones_are_not() -> None:
    """After a change of authority a soft key goes on with what is known, a hard one with nothing but patience."""
    limits = book()
    for quota, key in ((QUOTA, "soft"), (HARD, "hard")):
        limits.run(Check((Demand(key, quota, 30),)), NOW)
    limits.begin_epoch("second", NOW)
    assert limits.run(Peek("soft", QUOTA), NOW) == Peeked(70, 0, 0, 30 * MS, NOW)
    assert limits.run(Peek("hard", HARD), NOW) == Peeked(0, 0, 0, 2_100 * MS, NOW)
    later = NOW + 2_000_000 + 10 * MS
    assert limits.run(Peek("hard", HARD), later) == Peeked(10, 0, 0, 90 * MS, later)


def test_a_limit_that_becomes_hard_keeps_what_it_has_counted() -> None:
    """The authority is the same and has lost nothing."""
    limits = book()
    limits.run(Check((Demand("a", QUOTA, 30),)), NOW)
    assert limits.run(Peek("a", HARD), NOW) == Peeked(70, 0, 0, 30 * MS, NOW)
