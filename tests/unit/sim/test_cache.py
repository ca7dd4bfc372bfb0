"""The stand-in for a response cache: a hit ratio, nothing more."""

import numpy as np

from penstock.sim.cache import draw_hits


def test_hits_come_as_often_as_stated() -> None:
    """The share of hits is within 4 standard errors of the ratio."""
    hits = draw_hits(0.3, 40_000, np.random.default_rng(1))
    assert abs(hits.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 40_000)


def test_no_cache_costs_no_chance() -> None:
    """At a ratio of 0 nothing hits and the stream is left as it was; at 1 everything hits."""
    rng = np.random.default_rng(1)
    assert not draw_hits(0.0, 10, rng).any()
    assert rng.random() == np.random.default_rng(1).random()
    assert draw_hits(1.0, 10, rng).all()
