"""The dice: named random streams, each reproducible from one seed and independent of the others.

Not here: what is drawn from them. Every other room is handed a generator.
Source: numpy `SeedSequence` (a sequence of integers as entropy), so that adding a stream moves no other.
"""

from zlib import crc32

import numpy as np

__all__ = ["seeded_stream"]


def seeded_stream(seed: int, name: str) -> np.random.Generator:
    """Return the random stream called `name` under `seed` (>= 0). Same arguments, same numbers, on any machine."""
    assert seed >= 0
    return np.random.default_rng([seed, crc32(name.encode())])
