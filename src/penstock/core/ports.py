"""The ports at which rooms meet: small Protocols, handed to constructors by the composition root."""

from collections.abc import Callable, Sequence
from typing import Protocol

from penstock.core.authority import Operation, Reply

__all__ = ["Clock", "LimitAuthority"]


class Clock(Protocol):
    """Monotonic time in integer microseconds, the same origin for all processes of one machine."""

    def __call__(self) -> int:
        """Return now, µs."""
        ...


class LimitAuthority(Protocol):
    """Who counts for all gateways: the head, or Redis. Never raises and never waits."""

    def submit(self, operations: Sequence[Operation], on_replies: Callable[[Sequence[Reply | None]], None]) -> None:
        """Send operations, in one round trip where they may travel together, each atomic by itself.

        Args:
            operations: Those of one turn of the event loop.
            on_replies: Called exactly once, later, with a reply for each, in order; None where none came in time:
                whether that operation was done is not known.
        """
        ...
