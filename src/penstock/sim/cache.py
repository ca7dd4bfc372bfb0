"""A response cache as the queue behind it sees one: a share of the requests never arrive.

Each request hits with its source's probability, independently of all others. Not here: keys, capacity, eviction.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_hits"]


def draw_hits(hit_ratio: float, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which of `count` requests are answered by the cache; consumes nothing at a ratio of 0."""
    if not hit_ratio:
        return np.zeros(count, dtype=np.bool_)
    hits: NDArray[np.bool_] = rng.random(count) < hit_ratio
    return hits
