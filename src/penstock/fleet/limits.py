"""The head as the authority over limits, for a fleet without Redis: answers gateways' calls from one book.

What it knows dies with it: a successor's book has a new epoch, and limits say what then (`core/limits.Failover`).
Not here: the book itself (`policy/limit_book.py`), the messages (`wire/control.py`).
"""

from collections.abc import Sequence

from penstock.core.authority import Operation, Reply
from penstock.core.ports import Clock
from penstock.policy.limit_book import LimitBook
from penstock.wire.control import LimitCall, LimitReplies

__all__ = ["LimitDesk"]

# Keys looked at per call of `tend`, each about a microsecond: gateways wait at most 2 ms behind it.
_KEYS_PER_TEND = 2_000


class LimitDesk:
    """See the module.

    Args:
        epoch: Differs from that of any head before.
        now_us: Monotonic clock, the same for successive heads on one boot of the machine.
    """

    def __init__(self, epoch: str, now_us: Clock) -> None:
        self._now_us = now_us
        self.book = LimitBook(epoch, now_us())

    def answer(self, call: LimitCall) -> LimitReplies:
        """Do the operations of a call, at one instant."""
        return LimitReplies(call.id, self.run(call.operations))

    def run(self, operations: Sequence[Operation]) -> tuple[Reply, ...]:
        """Do operations, at one instant."""
        now_us = self._now_us()
        run = self.book.run
        return tuple([run(operation, now_us) for operation in operations])

    def tend(self) -> None:
        """Call every second or so: forgets some of the keys that are as good as new."""
        self.book.forget_idle(self._now_us(), _KEYS_PER_TEND)
