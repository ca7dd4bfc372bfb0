"""Waiting, for commands that have no event loop. Not here: reading clocks (`clock.py`)."""

import time

__all__ = ["wait_us"]


def wait_us(duration_us: int) -> None:
    """Return after so many µs, at the earliest."""
    time.sleep(duration_us / 1e6)
