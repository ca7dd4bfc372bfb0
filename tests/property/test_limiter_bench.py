"""How limiters are judged in `bench/limiters`: against every window, and against a bucket that is written otherwise."""

from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.limiters.bound import Instants, count_bucket, count_log, worst_excess, worst_window

# Sent at, and answered so much later, µs.
DECISIONS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=25)
TOKENS, PER_US, BURSTS = st.integers(1, 9), st.integers(1, 60), st.integers(1, 6)


def instants(decisions: list[tuple[int, int]]) -> tuple[Instants, Instants]:
    """Return when they were sent and answered."""
    sent = np.array([sent for sent, _ in decisions], dtype=np.int64)
    return sent, sent + np.array([late for _, late in decisions], dtype=np.int64)


def count_inside(decisions: list[tuple[int, int]], begin: int, end: int) -> int:
    """Return how many were surely decided from begin to end, both included."""
    return sum(begin <= sent and sent + late <= end for sent, late in decisions)


@given(DECISIONS, TOKENS, PER_US, BURSTS)
def test_the_worst_excess_is_that_of_the_worst_window(
    decisions: list[tuple[int, int]], tokens: int, per_us: int, burst: int
) -> None:
    """No window holds more beyond the limit than is reported, and one holds as much."""
    found = worst_excess(*instants(decisions), tokens=tokens, per_us=per_us, burst=burst)
    begins, ends = {sent for sent, _ in decisions}, {sent + late for sent, late in decisions}
    excesses = [
        count_inside(decisions, begin, end) - burst - Fraction(tokens * (end - begin), per_us)
        for begin, end in product(begins, ends)
        if begin <= end
    ]
    assert abs(found - max([Fraction(-burst), *excesses])) < 1e-6


@given(DECISIONS, st.integers(1, 80))
def test_the_worst_window_is_the_fullest(decisions: list[tuple[int, int]], length_us: int) -> None:
    """The fullest window of a length, its end not included, begins where something was sent."""
    found = worst_window(*instants(decisions), length_us=length_us)
    assert found == max((count_inside(decisions, sent, sent + length_us - 1) for sent, _ in decisions), default=0)


@given(st.lists(st.integers(0, 400), max_size=40), TOKENS, PER_US, BURSTS)
def test_the_reference_bucket_is_exact(attempts: list[int], tokens: int, per_us: int, burst: int) -> None:
    """It admits what a bucket of fractions of tokens does."""
    level, at, admitted = Fraction(burst), 0, 0
    for now in sorted(attempts):
        level = min(level + Fraction(tokens * (now - at), per_us), Fraction(burst))
        at = now
        if level >= 1:
            level -= 1
            admitted += 1
    assert count_bucket(np.array(attempts, dtype=np.int64), tokens=tokens, per_us=per_us, burst=burst) == admitted


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(1, 6), st.integers(1, 80))
def test_the_reference_log_is_greedy(attempts: list[int], limit: int, length_us: int) -> None:
    """An attempt gets in exactly if fewer than the limit got in during the window before it."""
    admitted: list[int] = []
    for now in sorted(attempts):
        if sum(now - length_us < earlier for earlier in admitted) < limit:
            admitted.append(now)
    assert count_log(np.array(attempts, dtype=np.int64), limit=limit, length_us=length_us) == len(admitted)
