"""Checks over several slots: all or nobody, and what was taken in vain is given back. Each slot is a book here."""

from collections import deque
from collections.abc import Callable, Sequence

import pytest

from penstock.adapters.redis.spreading import Spread
from penstock.core.authority import Check, Checked, Demand, Operation, Peek, Peeked, Reply, Settle, SlotDemand
from penstock.core.limits import Quota
from penstock.policy.limit_book import LimitBook

USER, WHOLE = "p:{a}:user:u", "p:{g}:global:all"
QUOTA = Quota(1, 1_000_000, 1, 10)
_OnReplies = Callable[[Sequence[Reply | None]], None]


class Slots:
    """Books by slot, each message delivered when the test says so, or never.

    Attributes:
        dumb: Slots that do what they are asked, and whose answers are lost.
        sent: Every operation, oldest first.
    """

    def __init__(self) -> None:
        self.books: dict[int, LimitBook] = {}
        self.dumb: set[int] = set()
        self.sent: list[Operation] = []
        self.now_us = 1_000
        self._queue: deque[tuple[int, Sequence[Operation], _OnReplies]] = deque()
        self._spreads = 0

    def slot_of(self, key: str) -> int:
        """Return the slot: here, the letter of the hash tag."""
        return ord(key[3])

    def send(self, slot: int, operations: Sequence[Operation], answer: _OnReplies) -> None:
        """Put a message in line."""
        self.sent += operations
        self._queue.append((slot, operations, answer))

    def deliver(self) -> None:
        """Deliver the oldest message, and its answer."""
        slot, operations, answer = self._queue.popleft()
        replies = [self._book(slot).run(operation, self.now_us) for operation in operations]
        answer([None] * len(replies) if slot in self.dumb else replies)

    def _book(self, slot: int) -> LimitBook:
        return self.books.setdefault(slot, LimitBook(str(slot), 1))

    def start(self, check: Check) -> list[Checked | None]:
        """Start a check; its answer is put in the list that is returned."""
        told: list[Checked | None] = []
        self._spreads += 1
        Spread(check, f"s{self._spreads}", slot_of=self.slot_of, send=self.send, answer=told.append).start()
        return told

    def settle(self) -> None:
        """Deliver everything."""
        while self._queue:
            self.deliver()

    def ask(self, check: Check) -> Checked | None:
        """Carry out one check alone."""
        told = self.start(check)
        self.settle()
        (reply,) = told
        return reply

    def left(self, key: str) -> int:
        """Return the tokens left in a bucket."""
        reply = self._book(self.slot_of(key)).run(Peek(key, QUOTA), self.now_us)
        assert isinstance(reply, Peeked)
        return reply.remaining


def check_of(user: int, whole: int, *slots: SlotDemand, hold: str = "", is_held: bool = True) -> Check:
    """Return a check of a user's bucket and of the global one."""
    demands = (Demand(USER, QUOTA, user), Demand(WHOLE, QUOTA, whole, is_held))
    return Check(demands, slots, "g1", hold, 1_000_000 if hold else 0)


def test_all_are_charged_together() -> None:
    """What fits everywhere is taken everywhere, and the reply says what is left of each, in the check's order."""
    slots = Slots()
    reply = slots.ask(check_of(3, 4))
    assert reply == Checked(-1, 0, (7, 6), (), slots.now_us)
    assert (slots.left(USER), slots.left(WHOLE)) == (7, 6)


@pytest.mark.parametrize(("user", "whole", "denied"), [(6, 1, 0), (1, 6, 1), (6, 7, 1)])
def test_a_refusal_by_one_is_charged_by_none(user: int, whole: int, denied: int) -> None:
    """Nobody is charged who would have been, and of two refusals the one to wait longest for is told."""
    slots = Slots()
    slots.ask(check_of(5, 5))
    reply = slots.ask(check_of(user, whole))
    assert reply is not None
    assert reply.denied == denied
    assert reply.retry_after_us > 0
    assert (slots.left(USER), slots.left(WHOLE)) == (5, 5)
    assert not any(isinstance(operation, Settle) for operation in slots.sent)


def test_a_refusal_after_the_look_is_undone() -> None:
    """If another takes what was there a moment ago, what was taken meanwhile is given back."""
    slots = Slots()
    first = slots.start(check_of(2, 8))
    second = slots.start(check_of(2, 8))
    slots.settle()
    denied = [reply.denied for reply in (*first, *second) if reply is not None]
    assert sorted(denied) == [-1, 1]
    assert (slots.left(USER), slots.left(WHOLE)) == (8, 2)


def test_no_answer_from_one_is_none_and_undone() -> None:
    """If one slot is silent nobody knows what it did: the others are undone, and it is told to undo too."""
    slots = Slots()
    told = slots.start(check_of(3, 4))
    slots.deliver()
    slots.deliver()
    slots.dumb.add(slots.slot_of(WHOLE))
    slots.settle()
    assert told == [None]
    assert (slots.left(USER), slots.left(WHOLE)) == (10, 10)


def test_a_hold_goes_on_for_those_that_are_held() -> None:
    """What is settled later can be; what only was held to be undone is not."""
    slots = Slots()
    slots.ask(check_of(3, 4, hold="h", is_held=False))
    for key in (USER, WHOLE):
        book = slots.books[slots.slot_of(key)]
        book.run(Settle(key, QUOTA, "h", 0), slots.now_us)
    assert (slots.left(USER), slots.left(WHOLE)) == (10, 6)


def test_slots_are_taken_last_and_one_by_one() -> None:
    """A full slot is seen before anything is charged, and no slot is taken if another is full."""
    slots = Slots()
    many, few = SlotDemand("p:{a}:slots:u", 5, 1_000_000), SlotDemand("p:{g}:slots:all", 2, 1_000_000)
    replies = [slots.ask(check_of(1, 1, many, few)) for _ in range(3)]
    assert [(r.denied, r.taken) for r in replies if r is not None] == [(-1, (1, 1)), (-1, (2, 2)), (3, (2, 2))]
    assert (slots.left(USER), slots.left(WHOLE)) == (8, 8)


def test_slots_alone_may_be_spread() -> None:
    """A check without demands takes its slots all the same."""
    slots = Slots()
    demands = (SlotDemand("p:{a}:slots:u", 1, 1_000_000), SlotDemand("p:{g}:slots:all", 2, 1_000_000))
    first, second = (slots.ask(Check((), demands, "g1")) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.denied, first.taken, second.denied, second.taken) == (-1, (1, 1), 0, (1, 1))
