"""Calls to the authority over limits: all that one turn of the event loop wants to ask, in one round trip.

What is said of slots travels apart, one call at a time: a number of slots in use is only right if it arrives in order.
Not here: what is asked and what follows from the answers (`limiter.py`), transport (`control.py`, `adapters/redis/`).
"""

from collections.abc import Callable, Sequence
from functools import partial

from penstock.core.authority import Occupy, Operation, Reply
from penstock.core.ports import Clock, LimitAuthority
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.limit_plans import SlotKey
from penstock.policy.outage import Outage

__all__ = ["Handler", "LimitCalls", "ignore"]

# Called with the answer, None if there was none, and now.
Handler = Callable[[Reply | None, int], None]


class _Call:
    """Operations of one call, and who hears their answers."""

    __slots__ = ("handlers", "operations")

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.handlers: list[Handler] = []


class LimitCalls:
    """One gateway's line to the authority.

    Args:
        authority: Who answers.
        holder: The gateway, as the slots it uses are counted.
        statistics: Counts the calls.
        now_us: The limiter's clock.
        call_soon: Calls back at the end of this turn of the event loop.

    Attributes:
        outage: Whether the authority is out of reach.
    """

    def __init__(
        self,
        authority: LimitAuthority,
        *,
        holder: str,
        statistics: GatewayStatistics,
        now_us: Clock,
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self.outage = Outage()
        self._authority = authority
        self._holder = holder
        self._statistics = statistics
        self._now_us = now_us
        self._call_soon = call_soon
        self._next = _Call()
        self._next_slots = _Call()
        self._unsaid: dict[SlotKey, None] = {}
        self._is_slot_call_under_way = False
        self._is_flush_due = False

    def send(self, operation: Operation, handler: Handler) -> None:
        """Send an operation with the others of this turn."""
        self._next.operations.append(operation)
        self._next.handlers.append(handler)
        self._flush_soon()

    def send_slots(self, operation: Operation, handler: Handler) -> None:
        """Send an operation that takes slots, when no other such call is under way."""
        self._next_slots.operations.append(operation)
        self._next_slots.handlers.append(handler)
        self._flush_soon()

    def say_slots(self, slot: SlotKey) -> None:
        """Tell how many slots are in use now; ahead of what asks for some in the same call."""
        self._unsaid[slot] = None
        self._flush_soon()

    def flush(self) -> None:
        """Send what there is."""
        self._is_flush_due = False
        if not self._is_slot_call_under_way:
            self._call_about_slots()
        if self._next.operations:
            call, self._next = self._next, _Call()
            self._submit(call, partial(self._replied, call.handlers))

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._call_soon(self.flush)

    def _call_about_slots(self) -> None:
        call = self._next_slots
        now_us = self._now_us()
        for slot in self._unsaid:
            slot.said_us = now_us
            call.operations.insert(0, Occupy(slot.key, self._holder, slot.count, slot.limit.ttl_us))
            call.handlers.insert(0, ignore)
        self._unsaid.clear()
        if call.operations:
            self._next_slots = _Call()
            self._is_slot_call_under_way = True
            self._submit(call, partial(self._slots_replied, call.handlers))

    def _submit(self, call: _Call, on_replies: Callable[[Sequence[Reply | None]], None]) -> None:
        self._statistics.limit_calls += 1
        self._authority.submit(call.operations, on_replies)

    def _slots_replied(self, handlers: list[Handler], replies: Sequence[Reply | None]) -> None:
        self._is_slot_call_under_way = False
        self._replied(handlers, replies)
        if self._next_slots.operations or self._unsaid:
            self._flush_soon()

    def _replied(self, handlers: list[Handler], replies: Sequence[Reply | None]) -> None:
        now_us = self._now_us()
        if any(reply is not None for reply in replies):
            self.outage.note_answer(now_us)
        else:
            self.outage.note_silence(now_us)
        for handler, reply in zip(handlers, replies, strict=True):
            handler(reply, now_us)


def ignore(reply: Reply | None, now_us: int) -> None:
    """Nothing follows from the answer."""
