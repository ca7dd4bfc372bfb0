"""The ports at which rooms meet: small Protocols, handed to constructors by the composition root."""

from typing import Protocol

__all__ = ["Clock"]


class Clock(Protocol):
    """Monotonic time in integer microseconds, the same origin for all processes of one machine."""

    def __call__(self) -> int:
        """Return now, µs."""
        ...
