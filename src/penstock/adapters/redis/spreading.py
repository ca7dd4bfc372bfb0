"""A check of keys in several slots of a cluster, which no script can span: look, take in each, undo if one says no.

    look everywhere --all there--> take demands, held --all in--> take slots, one by one --all in--> admitted
          |                               |                             |
          +--one says no: rejected        +--------one says no----------+--> settle to 0 --> rejected

So a rejected request is charged by a sibling only if another got in between, and then what has not drained is given
back: this can only under-admit. A slot that was taken is corrected when its gateway next says how many it uses. Not
here: which server has a slot (`cluster.py`).
"""

from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from penstock.core.authority import Check, Checked, Operation, Reply, Settle, SlotDemand

__all__ = ["Spread"]

# Long enough for the answers of every part and the word to undo it; then the charge is final.
_HOLD_US = 5_000_000

_OnReplies = Callable[[Sequence[Reply | None]], None]


class Spread:
    """One such check.

    Args:
        check: Its demands and slots are of more than one slot.
        hold: An id for undoing it, if it has none of its own.
        slot_of: Slot of a key.
        send: Sends operations to a slot; calls back with their replies.
        answer: Called once.
    """

    def __init__(
        self,
        check: Check,
        hold: str,
        *,
        slot_of: Callable[[str], int],
        send: Callable[[int, Sequence[Operation], _OnReplies], None],
        answer: Callable[[Checked | None], None],
    ) -> None:
        self._check = check
        self._hold = check.hold or hold
        self._slot_of = slot_of
        self._send = send
        self._answer = answer
        self._parts: dict[int, list[int]] = {}
        for index, demand in enumerate(check.demands):
            self._parts.setdefault(slot_of(demand.key), []).append(index)
        self._open = 0
        self._is_lost = False
        self._denied = -1
        self._retry_after_us = 0
        self._remaining = [0] * len(check.demands)
        self._taken = [0] * len(check.slots)
        self._charged: list[int] = []  # demands that are, or may be
        self._now_us = 0

    def start(self) -> None:
        """Look, without taking: nothing fits into no slots."""
        check = self._check
        self._open = len(self._parts) + len(check.slots)
        for slot, indices in self._parts.items():
            demands = tuple(check.demands[i] for i in indices)
            look = Check(demands, (SlotDemand(demands[0].key, 0, 1),), check.holder)
            self._send(slot, [look], partial(self._observe_look, indices))
        for index, wanted in enumerate(check.slots):
            look = Check((), (SlotDemand(wanted.key, 0, 1),), check.holder)
            self._send(self._slot_of(wanted.key), [look], partial(self._observe_slots, index))

    def _observe_look(self, indices: Sequence[int], replies: Sequence[Reply | None]) -> None:
        reply = self._note(indices, replies[0])
        if reply is not None and reply.denied < len(indices):
            self._deny(indices[reply.denied], reply.retry_after_us)
        self._end_look()

    def _observe_slots(self, index: int, replies: Sequence[Reply | None]) -> None:
        reply = self._note((), replies[0])
        if reply is not None:
            self._taken[index] = reply.taken[0]
        self._end_look()

    def _end_look(self) -> None:
        self._open -= 1
        if self._open:
            return
        full = (i for i, wanted in enumerate(self._check.slots) if self._taken[i] >= wanted.slots)
        if self._denied < 0 and (index := next(full, -1)) >= 0:
            self._denied = len(self._check.demands) + index
        if self._is_lost or self._denied >= 0:
            self._finish()
        else:
            self._take_demands()

    def _take_demands(self) -> None:
        check = self._check
        self._open = len(self._parts)
        if not self._open:
            self._take_slot(0)
        for slot, indices in self._parts.items():
            held = tuple(replace(check.demands[i], is_held=True) for i in indices)
            part = Check(held, (), check.holder, self._hold, check.hold_us or _HOLD_US)
            self._send(slot, [part], partial(self._observe_demands, indices))

    def _observe_demands(self, indices: Sequence[int], replies: Sequence[Reply | None]) -> None:
        reply = self._note(indices, replies[0])
        if reply is not None and reply.denied >= 0:
            self._deny(indices[reply.denied], reply.retry_after_us)
        else:
            self._charged += indices  # or perhaps: to undo what was not done does nothing
        self._open -= 1
        if not self._open:
            self._take_slot(0)

    def _take_slot(self, index: int) -> None:
        """Take the slots from `index` on, if all went well so far; else, or then, answer."""
        if self._is_lost or self._denied >= 0 or index == len(self._check.slots):
            self._finish()
            return
        wanted = self._check.slots[index]
        take = Check((), (wanted,), self._check.holder)
        self._send(self._slot_of(wanted.key), [take], partial(self._observe_slot, index))

    def _observe_slot(self, index: int, replies: Sequence[Reply | None]) -> None:
        reply = self._note((), replies[0])
        if reply is not None:
            self._taken[index] = reply.taken[0]
            if reply.denied >= 0:
                self._denied = len(self._check.demands) + index
        self._take_slot(index + 1)

    def _note(self, indices: Sequence[int], reply: Reply | None) -> Checked | None:
        """Note what every reply says; without one the whole check has none."""
        if not isinstance(reply, Checked):
            self._is_lost = True
            return None
        self._now_us = max(self._now_us, reply.now_us)
        for index, left in zip(indices, reply.remaining, strict=True):
            self._remaining[index] = left
        return reply

    def _deny(self, index: int, retry_after_us: int) -> None:
        if self._denied < 0 or retry_after_us > self._retry_after_us:
            self._denied, self._retry_after_us = index, retry_after_us

    def _finish(self) -> None:
        is_undone = self._is_lost or self._denied >= 0
        for index in self._charged:
            demand = self._check.demands[index]
            if is_undone:
                self._settle(index, 0)
            elif self._check.hold and not demand.is_held:
                self._settle(index, demand.cost)  # it was held only to be undone
        if self._is_lost:
            self._answer(None)
            return
        self._answer(
            Checked(self._denied, self._retry_after_us, tuple(self._remaining), tuple(self._taken), self._now_us)
        )

    def _settle(self, index: int, actual: int) -> None:
        demand = self._check.demands[index]
        word = Settle(demand.key, demand.quota, self._hold, actual)
        self._send(self._slot_of(demand.key), [word], _ignore)


def _ignore(replies: Sequence[Reply | None]) -> None:
    """Nothing follows from the answer: see the module."""
