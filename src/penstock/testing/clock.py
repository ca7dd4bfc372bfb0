"""Time that stands still until it is told to move, for everything that takes its clock as an argument.

Not here: timers and connections on this time (`loop.py`).
"""

__all__ = ["ManualClock"]


class ManualClock:
    """A `Clock` that a test moves.

    Args:
        now_us: Where it starts, µs, > 0: zero often means "never" in what reads it.
    """

    def __init__(self, now_us: int = 1_000_000) -> None:
        assert now_us > 0
        self._now_us = now_us

    def __call__(self) -> int:
        """Return now, µs."""
        return self._now_us

    def advance_us(self, us: int) -> None:
        """Let `us` >= 0 microseconds pass. Nothing is called; a `ManualLoop` also fires its timers."""
        assert us >= 0
        self._now_us += us
