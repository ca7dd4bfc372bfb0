"""Dice for processes that do without numpy: a named stream of uniform numbers, reproducible from one seed.

Not here: distributions and vectors of them (`chance.py`).
"""

from collections.abc import Callable
from random import Random

__all__ = ["uniform_stream"]


def uniform_stream(seed: int, name: str) -> Callable[[], float]:
    """Return a function that draws uniformly from [0, 1): the stream called `name` under `seed` (>= 0)."""
    assert seed >= 0
    return Random(f"{seed} {name}").random
