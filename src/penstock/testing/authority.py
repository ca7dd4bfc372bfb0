"""An authority over limits in memory: a book behind the port, for tests of whatever asks one.

Not here: the book (`policy/limit_book.py`), real authorities (`gateway/control.py`, `adapters/redis/`).
"""

from collections.abc import Callable, Sequence

from penstock.core.authority import Operation, Reply
from penstock.core.ports import Clock
from penstock.policy.limit_book import LimitBook

__all__ = ["BookAuthority"]


class BookAuthority:
    """Implements `LimitAuthority`.

    Args:
        now_us: The authority's clock.
        call_soon: Calls back later: when replies arrive.
        book: What it answers from; a new one if None.

    Attributes:
        is_down: It answers nothing: every reply is None.
        operations: All it was ever sent, oldest first.
        calls: How many calls they came in.
    """

    def __init__(
        self, now_us: Clock, call_soon: Callable[[Callable[[], None]], object], book: LimitBook | None = None
    ) -> None:
        self.book = LimitBook("book", 1) if book is None else book
        self.is_down = False
        self.operations: list[Operation] = []
        self.calls = 0
        self._now_us = now_us
        self._call_soon = call_soon

    def submit(self, operations: Sequence[Operation], on_replies: Callable[[Sequence[Reply | None]], None]) -> None:
        """See `LimitAuthority`. Operations are done when the replies arrive."""
        self.calls += 1
        self.operations += operations
        sent = tuple(operations)
        self._call_soon(lambda: on_replies(self._answer(sent)))

    def _answer(self, operations: Sequence[Operation]) -> list[Reply | None]:
        if self.is_down:
            return [None] * len(operations)
        now_us = self._now_us()
        return [self.book.run(operation, now_us) for operation in operations]
