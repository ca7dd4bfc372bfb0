"""What each guard of the limits is for, as a short story that goes wrong without it.

Stories of an authority are told to the book and to the Lua script alike; those of a borrower and of a change of
authority to the copy of `policy` that a mutation has changed. Not here: the mutations (`test_limit_mutants.py`).
"""

from collections.abc import Callable
from typing import Any, Protocol

from penstock.core.authority import (
    Ask,
    Check,
    Checked,
    Close,
    Demand,
    Granted,
    Operation,
    Peek,
    Peeked,
    Reply,
    Settle,
    Settled,
)
from penstock.core.limits import Quota

__all__ = ["AUTHORITY", "BORROWER", "START_US", "SUCCESSION", "Authority", "ForgetfulBook", "Story"]

START_US = 1_800_000_000_000_000
KEY = "penstock:{acme}:per-user:alice"
OTHER = "penstock:{acme}:per-tenant:acme"
# A thousand tokens per second, one per ms; half of the hundred may be lent.
QUOTA = Quota(drain=1, weight=1_000, tick_us=1, burst=100, lease_max=50)
HARD = Quota(drain=1, weight=1_000, tick_us=1, burst=100, lease_max=50, is_hard=True)
# Five tokens per tick of 10 ms.
COARSE = Quota(drain=5, weight=1, tick_us=10_000, burst=100, lease_max=50)
MS = 1_000
LEASE_US = 1_000_000

Story = Callable[[Any], None]


class Authority(Protocol):
    """Who answers one operation at an instant."""

    def run(self, operation: Operation, now_us: int) -> Reply:
        """Do it."""
        ...


class ForgetfulBook:
    """A book that forgets all it may before each operation: nobody can tell.

    Args:
        book: A `LimitBook`.
    """

    def __init__(self, book: Any) -> None:
        self._book = book

    def run(self, operation: Operation, now_us: int) -> Reply:
        """Forget, then do it."""
        self._book.forget_idle(now_us)
        reply: Reply = self._book.run(operation, now_us)
        return reply


# -- shorthands ------------------------------------------------------------------------------------------------------


def _take(authority: Authority, now_us: int, cost: int, quota: Quota = QUOTA, hold: str = "") -> bool:
    reply = authority.run(Check((Demand(KEY, quota, cost),), (), "g", hold, 60_000_000 if hold else 0), now_us)
    assert isinstance(reply, Checked)
    return reply.denied < 0


def _ask(authority: Authority, now_us: int, number: int, want: int, *closes: Close, ttl_us: int = LEASE_US) -> Granted:
    reply = authority.run(Ask(KEY, QUOTA, "g", f"g:{number}", want, ttl_us, closes), now_us)
    assert isinstance(reply, Granted)
    return reply


def _left(authority: Authority, now_us: int, quota: Quota = QUOTA, key: str = KEY) -> int:
    reply = authority.run(Peek(key, quota), now_us)
    assert isinstance(reply, Peeked)
    return reply.remaining


def _settle(authority: Authority, now_us: int, hold: str, actual: int, quota: Quota = QUOTA) -> int:
    reply = authority.run(Settle(KEY, quota, hold, actual), now_us)
    assert isinstance(reply, Settled)
    return reply.given_back


# -- stories of an authority -----------------------------------------------------------------------------------------


def time_that_steps_back_and_on_again_refills_once(authority: Authority) -> None:
    """Of a bucket used up at 50 ms, 10 tokens are there at 60 ms, though the clock was at 0 in between."""
    assert _take(authority, START_US + 50 * MS, 100)
    assert not _take(authority, START_US, 1)
    authority.run(Ask(KEY, QUOTA, "g", "g:1", 0, LEASE_US, ()), START_US)
    _settle(authority, START_US, "none", 0)
    assert _left(authority, START_US + 60 * MS) == 10


def a_write_at_an_earlier_time_drains_nothing_twice(authority: Authority) -> None:
    """Clocks that go to and fro for a second in all let in what one second lets in."""
    assert _take(authority, START_US, 100)
    taken = 0
    for _ in range(5):
        taken += _take(authority, START_US + 10 * MS, 10)
        _take(authority, START_US, 0)
        _settle(authority, START_US, "none", 0)
    assert taken == 1


def what_is_lent_stays_in_the_bucket(authority: Authority) -> None:
    """While 40 tokens are lent there is room for 60 others, however long nobody comes."""
    assert _ask(authority, START_US, 1, 40).tokens == 40
    assert _left(authority, START_US + 900 * MS) == 60
    assert not _take(authority, START_US + 900 * MS, 61)


def no_more_is_lent_than_may_be(authority: Authority) -> None:
    """Half the burst may be lent to all together, and is never exceeded, whoever asks."""
    lent = [authority.run(Ask(KEY, QUOTA, f"g{k}", f"g{k}:1", 100, LEASE_US, ()), START_US) for k in range(9)]
    assert sum(grant.tokens for grant in lent if isinstance(grant, Granted)) == QUOTA.lease_max


def a_lease_is_returned_once(authority: Authority) -> None:
    """What was returned is not there a second time."""
    _ask(authority, START_US, 1, 30)
    _ask(authority, START_US, 2, 10)
    assert _take(authority, START_US, 60)
    _ask(authority, START_US, 3, 0, Close("g:1", 30))
    _ask(authority, START_US, 4, 0, Close("g:1", 30))
    assert _left(authority, START_US) == 30


def a_return_is_no_more_than_was_lent(authority: Authority) -> None:
    """Who says that more is left of a lease than it ever had gets back what it had."""
    _ask(authority, START_US, 1, 10)
    assert _take(authority, START_US, 50)
    _ask(authority, START_US, 2, 0, Close("g:1", 40))
    assert _left(authority, START_US) == 50


def a_lease_that_ran_out_has_nothing_to_return(authority: Authority) -> None:
    """It may have been used to its last token: what it was lent has drained as if it had been."""
    _ask(authority, START_US, 1, 20, ttl_us=500 * MS)
    _ask(authority, START_US, 2, 20)
    assert _take(authority, START_US + 700 * MS, 60)
    _ask(authority, START_US + 700 * MS, 3, 0, Close("g:1", 20))
    assert _left(authority, START_US + 700 * MS) == 0


def an_ask_that_is_heard_twice_lends_once(authority: Authority) -> None:
    """The second answer is as the first, and nothing more is debited."""
    first = _ask(authority, START_US, 1, 10)
    again = _ask(authority, START_US, 1, 10)
    assert (first.tokens, again.tokens, again.leased) == (10, 10, 10)
    assert _left(authority, START_US) == 90


def no_lease_is_longer_than_any_may_be(authority: Authority) -> None:
    """After the longest time a lease may have, the bucket is empty of it, whatever was asked for."""
    _ask(authority, START_US, 1, 40, ttl_us=3_600_000_000)
    assert _left(authority, START_US + 2_000_000 + 40 * MS) == 100


def a_charge_is_settled_once(authority: Authority) -> None:
    """The refund of a charge is given back the first time it is said."""
    assert _take(authority, START_US, 50, hold="h")
    assert _take(authority, START_US, 50)
    assert _settle(authority, START_US, "h", 10) == 40
    assert _settle(authority, START_US, "h", 10) == 0
    assert _left(authority, START_US) == 40


def a_refund_is_what_has_not_drained(authority: Authority) -> None:
    """Of 50 tokens charged 20 ms ago 20 have been let in again: at most 30 come back."""
    assert _take(authority, START_US, 50, hold="h")
    assert _take(authority, START_US + 20 * MS, 70)
    assert _settle(authority, START_US + 20 * MS, "h", 0) == 30
    assert _left(authority, START_US + 20 * MS) == 30


def a_refund_is_told_to_the_token(authority: Authority) -> None:
    """What is given back is whole tokens, as many as are told."""
    assert _take(authority, START_US, 50, hold="h")
    assert _take(authority, START_US, 50)
    assert _settle(authority, START_US + 500, "h", 0) == 49
    assert _left(authority, START_US + 500) == 49
    assert _left(authority, START_US + 1_000) == 50


def a_refund_from_before_a_change_of_limits_is_void(authority: Authority) -> None:
    """What drained under a quick limit does not come back under a slow one."""
    slow = Quota(drain=1, weight=1_000_000_000, tick_us=1, burst=100)
    assert _take(authority, START_US, 100, hold="h")
    assert _take(authority, START_US + 100 * MS, 100, slow)
    assert _settle(authority, START_US + 100 * MS, "h", 0, slow) == 0
    assert _left(authority, START_US + 100 * MS, slow) == 0


def a_change_of_limits_rounds_against_the_caller(authority: Authority) -> None:
    """Half a token in the bucket is a whole one under the next quota."""
    other = Quota(drain=1, weight=10, tick_us=1_000, burst=100)
    assert _take(authority, START_US, 100)
    assert _left(authority, START_US + 500, other) == 0


def changing_limits_to_and_fro_drains_nothing_twice(authority: Authority) -> None:
    """A gateway with ticks of 10 ms and one with ticks of 1 µs together let in no more than either."""
    fine = Quota(drain=1, weight=2_000, tick_us=1, burst=100)  # as fast as COARSE
    assert _take(authority, START_US, 100, fine)
    taken = 0
    for tick_us in range(START_US + 10 * MS, START_US + 110 * MS, 10 * MS):
        taken += sum(_take(authority, tick_us - 1, 1, fine) for _ in range(10))
        _take(authority, tick_us - 1, 0, COARSE)
        taken += sum(_take(authority, tick_us, 1, COARSE) for _ in range(10))
        _take(authority, tick_us, 0, fine)
    assert taken <= 50


def a_key_is_kept_until_it_is_full(authority: Authority) -> None:
    """Within the tick that drains the last of a bucket it is not full yet."""
    assert _take(authority, START_US, 3, COARSE)
    assert _left(authority, START_US + 9_999, COARSE) == 97
    assert _take(authority, START_US + 9_999, 97, COARSE)
    assert not _take(authority, START_US + 9_999, 1, COARSE)
    assert _left(authority, START_US + 10_000, COARSE) == 5


def a_key_is_kept_while_anything_is_lent(authority: Authority) -> None:
    """A lease outlives the time that fills its bucket, and its bucket must be there as long."""
    _ask(authority, START_US, 1, 20)
    assert _left(authority, START_US + 500 * MS) == 80


def a_rejection_charges_nobody(authority: Authority) -> None:
    """What one limit rejects, another does not count."""
    assert _take(authority, START_US, 100)
    both = Check((Demand(OTHER, QUOTA, 10), Demand(KEY, QUOTA, 1)))
    reply = authority.run(both, START_US)
    assert isinstance(reply, Checked)
    assert reply.denied == 1
    assert _left(authority, START_US, key=OTHER) == 100


# -- stories of a change of authority: told to a `LimitBook` ---------------------------------------------------------


def _hard_ask(book: Any, now_us: int, want: int, *closes: Close) -> Granted:
    reply: Granted = book.run(Ask(KEY, HARD, "g", f"g:{now_us}", want, LEASE_US, closes), now_us)
    return reply


def a_hard_key_begins_empty_of_tokens(book: Any) -> None:
    """What an earlier authority had let in is unknown: it may have been everything."""
    since_us = START_US + 1_000_000
    book.begin_epoch("next", since_us)
    assert not _take(book, since_us, 1, HARD)


def a_hard_key_waits_for_leases_of_before(book: Any) -> None:
    """Nothing drains before the last lease of an earlier authority has run out."""
    since_us = START_US + 1_000_000
    book.begin_epoch("next", since_us)
    assert not _take(book, since_us + 2_000_000, 1, HARD)
    assert _take(book, since_us + 2_001_000, 1, HARD)


def a_hard_key_is_not_taken_over(book: Any) -> None:
    """What a replica knows of a key may be old, whatever its clock says."""
    assert _take(book, START_US + 10_000_000, 1, HARD)
    since_us = START_US + 5_000_000  # the successor's clock is behind
    book.begin_epoch("next", since_us)
    assert not _take(book, since_us, 1, HARD)


def a_lease_of_before_is_void_under_hard(book: Any) -> None:
    """A return that an earlier authority has seen is not given back by its successor."""
    asked_us = START_US + 10_000_000
    assert _hard_ask(book, asked_us, 10).tokens == 10
    since_us = START_US + 5_000_000
    book.begin_epoch("next", since_us)
    assert _hard_ask(book, since_us, 0, Close(f"g:{asked_us}", 10)).remaining == 0


# -- stories of a borrower: told to the `leasing` module -------------------------------------------------------------


def _hot(leasing: Any, requests: int = 40) -> Any:
    """Return a borrower at 0.1 s of its clock, 400 requests per second into it."""
    borrower = leasing.Borrower(KEY, QUOTA, "g", LEASE_US, 0)
    for _ in range(requests):
        borrower.take(1, 0)
    return borrower


def _lend(borrower: Any, now_us: int, tokens: int, after_us: int = 0) -> Ask:
    """Let it ask, and be lent so many tokens some time later."""
    ask: Ask | None = borrower.plan_ask(now_us)
    assert ask is not None
    borrower.observe_grant(Granted(tokens, 100 - tokens, tokens, 0, START_US), now_us + after_us)
    return ask


def the_time_of_a_lease_counts_from_before_it_was_asked_for(leasing: Any) -> None:
    """An answer that took long leaves less of it."""
    borrower = _hot(leasing)
    _lend(borrower, 100 * MS, 10, after_us=400 * MS)
    assert borrower.take(1, 100 * MS + 990 * MS)
    assert not borrower.take(1, 100 * MS + LEASE_US)


def an_answer_after_its_time_is_of_no_use(leasing: Any) -> None:
    """Who was paused for as long as a lease lasts has nothing of it."""
    borrower = _hot(leasing)
    _lend(borrower, 100 * MS, 10, after_us=LEASE_US)
    assert not borrower.take(1, 100 * MS + LEASE_US)


def a_clock_may_be_slow_by_one_in_a_thousand(leasing: Any) -> None:
    """When the authority's clock has counted a lease to its end, a slow one has not: it is over here all the same."""
    borrower = _hot(leasing)
    _lend(borrower, 100 * MS, 10)
    assert not borrower.take(1, 100 * MS + LEASE_US * 999 // 1_000)


def tokens_that_ran_out_are_not_used(leasing: Any) -> None:
    """Not even if the next lease is there already."""
    borrower = _hot(leasing)
    _lend(borrower, 100 * MS, 10)
    assert borrower.take(1, 200 * MS)
    assert not borrower.take(1, 100 * MS + 2 * LEASE_US)


def tokens_go_back_only_where_they_came_from(leasing: Any) -> None:
    """A lease has no more than it was lent, if a request is undone that was served from the one before."""
    borrower = _hot(leasing)
    _lend(borrower, 100 * MS, 1)
    assert borrower.take(1, 150 * MS)
    until_us = borrower.until_us
    _lend(borrower, 200 * MS, 5)
    borrower.give_back(1, until_us, 250 * MS)
    assert sum(borrower.take(1, 300 * MS) for _ in range(10)) == 5


def no_two_leases_have_one_name(leasing: Any) -> None:
    """An authority takes an id that it knows for a question heard twice."""
    borrower = _hot(leasing)
    first = _lend(borrower, 100 * MS, 1)
    assert borrower.take(1, 150 * MS)
    assert _lend(borrower, 200 * MS, 5).id != first.id


def no_two_leases_end_at_one_instant(leasing: Any) -> None:
    """The instant tells which lease tokens came from."""
    borrower = _hot(leasing)
    _lend(borrower, 100 * MS, 1)
    assert borrower.take(1, 100 * MS)
    assert borrower.plan_ask(100 * MS) is None
    assert borrower.plan_ask(100 * MS + 1) is not None


def no_more_is_returned_than_is_left(leasing: Any) -> None:
    """A lease is closed with what nobody has used of it."""
    borrower = _hot(leasing)
    ask = _lend(borrower, 100 * MS, 10)
    assert borrower.take(4, 150 * MS)
    back = borrower.plan_return(200 * MS)
    assert back is not None
    assert back.closes == (Close(ask.id, 6),)


AUTHORITY: tuple[Story, ...] = (
    time_that_steps_back_and_on_again_refills_once,
    a_write_at_an_earlier_time_drains_nothing_twice,
    what_is_lent_stays_in_the_bucket,
    no_more_is_lent_than_may_be,
    a_lease_is_returned_once,
    a_return_is_no_more_than_was_lent,
    a_lease_that_ran_out_has_nothing_to_return,
    an_ask_that_is_heard_twice_lends_once,
    no_lease_is_longer_than_any_may_be,
    a_charge_is_settled_once,
    a_refund_is_what_has_not_drained,
    a_refund_is_told_to_the_token,
    a_refund_from_before_a_change_of_limits_is_void,
    a_change_of_limits_rounds_against_the_caller,
    changing_limits_to_and_fro_drains_nothing_twice,
    a_key_is_kept_until_it_is_full,
    a_key_is_kept_while_anything_is_lent,
    a_rejection_charges_nobody,
)
SUCCESSION: tuple[Story, ...] = (
    a_hard_key_begins_empty_of_tokens,
    a_hard_key_waits_for_leases_of_before,
    a_hard_key_is_not_taken_over,
    a_lease_of_before_is_void_under_hard,
)
BORROWER: tuple[Story, ...] = (
    the_time_of_a_lease_counts_from_before_it_was_asked_for,
    an_answer_after_its_time_is_of_no_use,
    a_clock_may_be_slow_by_one_in_a_thousand,
    tokens_that_ran_out_are_not_used,
    tokens_go_back_only_where_they_came_from,
    no_two_leases_have_one_name,
    no_two_leases_end_at_one_instant,
    no_more_is_returned_than_is_left,
)
