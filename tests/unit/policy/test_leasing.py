"""A borrower by numbers: when it asks, for how much, when it rests, what it returns. Safety is in tests/property."""

import pytest

from penstock.core.authority import Ask, Close, Granted
from penstock.core.limits import Quota
from penstock.policy.leasing import DENIAL_US_MAX, HOT_PER_S, LEASE_US_MAX, Borrower, share_of_room

QUOTA = Quota(drain=1, weight=1_000, tick_us=1, burst=200, lease_max=100)
MS = 1_000
LEASE_US = 1_000_000


def borrower(requests: int = 0, cost: int = 1, over_us: int = 250 * MS, quota: Quota = QUOTA) -> Borrower:
    """Return a borrower that has seen so many requests so far, evenly, and is at `over_us` of its clock."""
    made = Borrower("key", quota, "g", LEASE_US, 0)
    for _ in range(requests):
        made.note_demand(cost)
    made.plan_ask(over_us - 1)  # estimates; what it asks for is lost
    made.lose_grant()
    return made


def asked(made: Borrower, now_us: int) -> Ask:
    """Return the question that it sends now."""
    ask = made.plan_ask(now_us)
    assert ask is not None
    return ask


def granted(tokens: int, remaining: int = 150, leased: int = 0, retry_after_us: int = 0) -> Granted:
    """Return an answer."""
    return Granted(tokens, remaining, leased, retry_after_us, 10**15)


@pytest.mark.parametrize(
    ("room", "holders", "expected"), [(0, 1, 0), (1, 4, 1), (3, 4, 1), (8, 4, 2), (100, 1, 100), (101, 2, 50)]
)
def test_shares_of_room(room: int, holders: int, expected: int) -> None:
    """An even part, but one token if there is one."""
    assert share_of_room(room, holders) == expected


def test_cold_keys_are_not_lent() -> None:
    """Below the rate from which on it pays, each request is checked."""
    assert borrower(round(HOT_PER_S * 0.25) - 1).plan_ask(250 * MS) is None
    assert not borrower().is_hot


def test_what_may_not_be_lent_is_never_asked_for() -> None:
    """A limit with a burst of a few tokens is always exact."""
    small = Quota(drain=1, weight=1_000, tick_us=1, burst=8)
    assert borrower(1_000, quota=small).plan_ask(250 * MS) is None


def test_a_block_is_a_tenth_of_a_second_of_demand() -> None:
    """The first estimate is half of what is seen, the next nearer; a busy key's is taken within milliseconds."""
    made = borrower(500)  # 2,000 per second
    assert asked(made, 250 * MS).want == 100
    made.lose_grant()
    for _ in range(32):
        made.note_demand(1)
    assert asked(made, 266 * MS).want == pytest.approx(150, abs=3)


def test_few_large_requests_are_cold() -> None:
    """It is requests that cost a call each, not tokens."""
    assert borrower(2, cost=100_000).plan_ask(250 * MS) is None


def test_blocks_that_serve_no_request_are_given_up() -> None:
    """Where a grant is less than a request takes, asking rests and requests are checked."""
    made = borrower(50, cost=30)
    asked(made, 250 * MS)
    made.observe_grant(granted(10), 251 * MS)
    assert not made.lends(30, 252 * MS)
    assert made.plan_ask(300 * MS) is None
    assert made.denied_until_us <= 252 * MS


def test_one_question_is_under_way_at_a_time() -> None:
    """The next is asked when the first is answered or lost, and the block is low."""
    made = borrower(500)
    asked(made, 250 * MS)
    assert made.plan_ask(251 * MS) is None
    made.observe_grant(granted(100), 252 * MS)
    assert made.plan_ask(253 * MS) is None
    while made.tokens > made.low:
        assert made.take(1, 254 * MS)
    assert made.low == 20  # 20 ms of 1,000 per second
    asked(made, 255 * MS)


def test_a_block_in_use_is_closed_when_the_next_begins() -> None:
    """The authority hears of it with the question after."""
    made = borrower(500)
    first = asked(made, 250 * MS)
    made.observe_grant(granted(10), 251 * MS)
    assert made.take(8, 252 * MS)
    second = asked(made, 253 * MS)
    made.observe_grant(granted(30), 254 * MS)
    assert made.take(5, 255 * MS)  # the 2 that are left do not suffice
    assert (second.closes, made.tokens) == ((), 25)
    back = made.plan_return(256 * MS)
    assert back is not None
    assert back.want == 0
    assert back.closes == (Close(first.id, 2), Close(second.id, 25))


def test_nothing_to_return_is_nothing_to_say() -> None:
    """A borrower that has nothing, or whose question is under way, keeps quiet."""
    made = borrower(500)
    assert made.plan_return(249 * MS) is None
    asked(made, 250 * MS)
    made.observe_grant(granted(10), 251 * MS)
    assert made.plan_return(252 * MS) is not None
    assert made.plan_return(253 * MS) is None


def test_tokens_that_ran_out_are_stranded() -> None:
    """They are counted, and not returned: the authority has written them off."""
    made = borrower(500)
    asked(made, 250 * MS)
    made.observe_grant(granted(10), 251 * MS)
    assert made.take(3, 252 * MS)
    assert not made.take(1, 250 * MS + LEASE_US)
    assert made.stranded == 7
    assert made.plan_return(251 * MS + LEASE_US) is None


def test_a_take_that_came_to_nothing_is_undone_in_time() -> None:
    """While its lease is in use the tokens are there again; later they are stranded."""
    made = borrower(500)
    asked(made, 250 * MS)
    made.observe_grant(granted(10), 251 * MS)
    assert made.take(4, 252 * MS)
    until_us = made.until_us
    made.give_back(4, until_us, 253 * MS)
    assert (made.tokens, made.stranded) == (10, 0)
    assert made.take(4, 254 * MS)
    made.give_back(4, until_us, until_us)
    assert (made.tokens, made.stranded) == (6, 4)


@pytest.mark.parametrize(
    ("tokens", "remaining", "pause_ms"),
    [(100, 0, 0), (10, 0, 50), (10, 25, 25), (10, 50, 0), (10, 150, 0)],
)
def test_near_the_rim_it_pauses(tokens: int, remaining: int, pause_ms: int) -> None:
    """The less is left in the bucket the longer, if it got less than it wanted; then nothing is asked for at all."""
    made = borrower(500)
    asked(made, 250 * MS)
    made.observe_grant(granted(tokens, remaining), 251 * MS)
    assert max(made.denied_until_us - 251 * MS, 0) == pause_ms * MS
    assert made.take(tokens, 252 * MS)  # what is lent is used all the same
    if pause_ms:
        assert made.plan_ask(251 * MS + pause_ms * MS - 1) is None
        asked(made, 251 * MS + pause_ms * MS)
        assert made.denied_until_us > 251 * MS + pause_ms * MS  # until the answer


def test_where_all_is_lent_to_others_requests_are_checked() -> None:
    """The bucket has room, only no block: asking rests for a moment and nobody is refused."""
    made = borrower(500)
    asked(made, 250 * MS)
    made.observe_grant(granted(0, remaining=100, leased=100), 251 * MS)
    assert made.denied_until_us <= 251 * MS
    assert made.plan_ask(260 * MS) is None
    asked(made, 271 * MS)


@pytest.mark.parametrize(("retry_after_us", "expected_us"), [(10, 10), (10**9, DENIAL_US_MAX)])
def test_a_cold_key_believes_a_denial(retry_after_us: int, expected_us: int) -> None:
    """As long as it surely holds, and no longer than something may have been given back."""
    made = borrower()
    made.deny(retry_after_us, 250 * MS)
    assert made.denied_until_us == 250 * MS + expected_us


def test_a_hot_key_pauses_after_a_denial() -> None:
    """What trickles in is fetched in blocks; an earlier denial does not shorten a later one."""
    made = borrower(500)
    made.deny(10, 250 * MS)
    assert made.denied_until_us == 300 * MS
    made.deny(200 * MS, 250 * MS)
    made.deny(10, 250 * MS)
    assert made.denied_until_us == 450 * MS


def test_a_key_cools_down() -> None:
    """After a second without requests nothing of the old rate is left."""
    made = borrower(500)
    assert made.is_hot
    assert made.plan_ask(3_000 * MS) is None
    assert not made.is_hot
    assert made.rate_per_s == 0


def test_no_lease_is_asked_for_longer_than_any_may_be() -> None:
    """A borrower that counted on more would use tokens that the authority has forgotten."""
    with pytest.raises(AssertionError):
        Borrower("key", QUOTA, "g", LEASE_US_MAX + 1, 0)
