"""Admissions at their instants: what counts against a limit, and what does not although it looks like it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from penstock.core.limits import Level, Quota, RateLimit
from penstock.load.drills.admissions import (
    OUTCOMES,
    ClockDifference,
    Decisions,
    count_ideal,
    excess_of_answers,
    excess_of_decisions,
    measure_difference,
    read_decisions,
)
from penstock.wire.decisions import Decision, Definition, encode_line

LIMIT = RateLimit("drill", Level.GLOBAL, tokens=1_000, per_us=1_000_000, burst=5)
QUOTA = LIMIT.quota()
SAME = ClockDifference()


def make_decisions(rows: list[tuple[int, int, int, str]]) -> Decisions:
    """Return decisions: when known, when asked, when the authority decided, how; a token each."""
    table = np.array([(*row[:3], OUTCOMES.index(row[3])) for row in rows], dtype=np.int64).reshape(-1, 4)
    ones = np.ones(len(rows), dtype=np.int64)
    return Decisions(table[:, 0], table[:, 1], table[:, 2], 0 * ones, ones, table[:, 3])


def local(times_us: list[int]) -> Decisions:
    return make_decisions([(at_us, at_us, 0, "local") for at_us in times_us])


def test_a_log_is_read_whole(tmp_path: Path) -> None:
    """All decisions about the limit; definitions and other limits are passed over, torn lines counted."""
    file = tmp_path / "log"
    lines = [
        encode_line(Definition(1, 0, 7, LIMIT)),
        encode_line(Decision(20, 0, 7, "checked", {"drill": 2}, {}, asked_us=10, authority_us=15)),
        encode_line(Decision(21, 1, 8, "rejected", {"drill": 1, "other": 1}, {}, limit="drill")),
        encode_line(Decision(22, 1, 8, "local", {"other": 1}, {})),
        encode_line(Decision(23, 1, 8, "local", {"drill": 1}, {}))[:-20] + b"\n",
    ]
    file.write_bytes(b"".join(lines))
    found = read_decisions(file, "drill")
    assert (found.at_us.tolist(), found.since_us.tolist(), found.authority_us.tolist()) == ([20, 21], [10, 21], [15, 0])
    assert (found.gateway.tolist(), found.tokens.tolist()) == ([0, 1], [2, 1])
    assert (found.is_admitted.tolist(), found.torn_count) == ([True, False], 1)


@pytest.mark.parametrize("text", [None, b""])
def test_no_log_is_no_decision(tmp_path: Path, text: bytes | None) -> None:
    """Whoever has decided nothing has written nothing."""
    file = tmp_path / "log"
    if text is not None:
        file.write_bytes(text)
    assert len(read_decisions(file, "drill").at_us) == 0


@pytest.mark.parametrize(("more", "excess"), [([], 0), ([9_000], 1), ([0, 9_000], 2)])
def test_one_admission_over_the_bound_is_one_token(more: list[int], excess: int) -> None:
    """A burst and then what drains is on the bound exactly; each admission beyond it counts."""
    times = sorted([*[0] * 5, *range(1_000, 10_001, 1_000), *more])
    found = excess_of_decisions(local(times), QUOTA, SAME)
    assert found == pytest.approx(excess, abs=0.01)
    assert (found <= 0) is (excess == 0)


def test_the_authority_decides_between_question_and_answer() -> None:
    """Its instant by its own clock, put right, but never outside the call; what a gateway decides counts as known."""
    rows = [(200, 100, 1_150, "checked"), (200, 100, 9_000, "checked"), (200, 100, 1_050, "checked")]
    rows += [(200, 100, 0, "alone"), (300, 300, 0, "local")]
    instants = make_decisions(rows).instants_us(ClockDifference(ahead_us=1_000))
    assert instants.tolist() == [150, 200, 100, 200, 300]


def test_to_learn_late_is_no_excess() -> None:
    """A gateway that stood still learns of ten admissions at once; they were decided a millisecond apart."""
    rows = [(60_000, 0, 1_000 * i, "checked") for i in range(1, 11)]
    burst = [(i, i, 0, "local") for i in range(1, 6)]
    assert excess_of_decisions(make_decisions(burst + rows), QUOTA, SAME) <= 0
    unaware = [(at, since, 0, outcome) for at, since, _, outcome in burst + rows]
    assert excess_of_decisions(make_decisions(unaware), QUOTA, SAME) > 4


def test_doubt_about_clocks_is_no_excess() -> None:
    """Two instants may be further apart than they seem by what is not known of the clocks, and no more."""
    times = [0] * 5 + [900]
    checked = make_decisions([(at, at, at + 1, "checked") for at in times])
    assert excess_of_decisions(checked, QUOTA, ClockDifference(1, 100)) <= 0
    assert excess_of_decisions(checked, QUOTA, ClockDifference(1, 50)) > 0
    assert excess_of_decisions(local(times), QUOTA, ClockDifference(0, 1_000)) > 0


def test_the_quickest_look_tells_the_difference() -> None:
    """Of many looks at the other clock the one that took least counts, and half of what it took is the doubt."""
    ours, theirs = make_clocks()
    found = measure_difference(lambda: next(theirs), lambda: next(ours))
    assert (found.ahead_us, found.error_us) == (5_000, 2)


def make_clocks() -> tuple[Iterator[int], Iterator[int]]:
    """Return two clocks that are 5 ms apart; all looks but one take 100 µs and are lopsided."""
    looks = [(i * 1_000, 3 if i == 40 else 100) for i in range(100)]
    ours = iter([instant for at, took in looks for instant in (at, at + took)])
    theirs = iter([at + 5_000 + (1 if took == 3 else 90) for at, took in looks])
    return ours, theirs


def brute_excess(begins: list[int], ends: list[int], quota: Quota) -> float:
    """Return the worst of all windows from a beginning to an end, one by one."""
    token = quota.weight * quota.tick_us
    worst = 0
    for begin in begins:
        for end in ends:
            inside = sum(b >= begin and e <= end for b, e in zip(begins, ends, strict=True))
            worst = max(worst, inside * token - quota.drain * (end - begin)) if end >= begin else worst
    return (worst - quota.burst * token) / token


@pytest.mark.parametrize("seed", range(20))
def test_answers_count_in_windows_that_surely_hold_them(seed: int) -> None:
    """The quick way and all windows one by one find the same excess."""
    rng = np.random.default_rng(seed)
    begins = np.sort(rng.integers(0, 20_000, 40))
    ends = begins + rng.integers(0, 3_000, 40)
    expected = brute_excess(begins.tolist(), ends.tolist(), QUOTA)
    assert excess_of_answers(begins, ends, QUOTA) == pytest.approx(expected)


def test_slow_answers_excuse_only_themselves() -> None:
    """Six requests in and out at once are one too many, whatever else was under way for long."""
    quick = np.zeros(6, dtype=np.int64)
    slow_begin, slow_end = np.full(50, -5_000), np.full(50, 90_000)
    both = np.concatenate([quick, slow_begin]), np.concatenate([quick, slow_end])
    assert excess_of_answers(quick, quick, QUOTA) == 1
    assert excess_of_answers(*both, QUOTA) == 1
    assert excess_of_answers(slow_begin, slow_end, QUOTA) < 0


def test_an_ideal_bucket_lets_in_a_burst_and_the_rate() -> None:
    """Of more than enough requests in a second it admits burst + rate; of few all; of none none."""
    assert count_ideal(np.arange(0, 1_000_001, 100), QUOTA) == 5 + 1_000
    assert count_ideal(np.arange(0, 1_000_001, 2_000), QUOTA) == 501
    assert count_ideal(np.empty(0, dtype=np.int64), QUOTA) == 0
