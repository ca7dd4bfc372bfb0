"""Laws of batch closing: three policies as tables, the formulas behind them by brute force, sizes that are learned."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest

from penstock.core.models import MODES, Batching
from penstock.policy.batching import (
    HOLD_PERIODS,
    AdaptiveSize,
    Close,
    CloseReason,
    QueueView,
    Wait,
    count_fitting,
    decide_close,
    plan_target,
)

CLASSIC = Batching("size_or_timeout", wait_us_max=1_000)
PATIENT = replace(CLASSIC, eager=False)
ADAPTIVE = Batching("adaptive")
LATENCY, THROUGHPUT, FAIR = (Batching("deadline", mode) for mode in ("latency", "throughput", "fair"))
QUEUED_US = 5_000
DUE_US = QUEUED_US + CLASSIC.wait_us_max
PERIOD_US = 300
HELD_US = QUEUED_US + round(HOLD_PERIODS * PERIOD_US)
# One row of three that are wanted waits, and the only replica that can take it is running something.
VIEW = QueueView(
    rows=1,
    is_alone=False,
    oldest_us=QUEUED_US,
    deadline_us=50_000,
    available=1,
    idle=0,
    target=3,
    period_us=PERIOD_US,
    latest_us=40_000,
    size_max=8,
    spaced_us=0,
    is_scarce=False,
    is_sole=False,
)


def seen(**changes: int) -> QueueView:
    """Return VIEW with changes."""
    return replace(VIEW, **changes)  # type: ignore[arg-type]  # every field is an int or a bool


@pytest.mark.parametrize("config", [CLASSIC, PATIENT, ADAPTIVE, LATENCY, THROUGHPUT, FAIR])
@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (seen(rows=8), CloseReason.FULL),
        (seen(rows=9), CloseReason.FULL),
        (seen(is_alone=True), CloseReason.ALONE),
        (seen(is_alone=True, rows=8), CloseReason.ALONE),
        (seen(size_max=1), CloseReason.FULL),
    ],
)
def test_what_cannot_grow_leaves_at_once(config: Batching, view: QueueView, reason: CloseReason) -> None:
    """A full batch, and one that nobody may join, leave at once under every policy and mode."""
    assert decide_close(config, view, now_us=QUEUED_US) == Close(reason)


@pytest.mark.parametrize(
    ("config", "view", "now_us", "expected"),
    [
        (CLASSIC, seen(idle=1), QUEUED_US, Close(CloseReason.IDLE)),
        (CLASSIC, seen(idle=1), DUE_US + 9, Close(CloseReason.IDLE)),
        (CLASSIC, seen(), QUEUED_US, Wait(DUE_US)),
        (CLASSIC, seen(), DUE_US - 1, Wait(DUE_US)),
        (CLASSIC, seen(), DUE_US, Close(CloseReason.TIMEOUT)),
        (PATIENT, seen(idle=1), QUEUED_US, Wait(DUE_US)),
        (PATIENT, seen(idle=1), DUE_US, Close(CloseReason.TIMEOUT)),
        (replace(CLASSIC, wait_us_max=0), seen(), QUEUED_US, Close(CloseReason.TIMEOUT)),
        (ADAPTIVE, seen(), QUEUED_US, Close(CloseReason.IDLE)),
        (ADAPTIVE, seen(idle=1), QUEUED_US, Close(CloseReason.IDLE)),
    ],
)
def test_size_or_timeout_and_adaptive(config: Batching, view: QueueView, now_us: int, expected: Close | Wait) -> None:
    """An eager policy takes what waits for an idle replica; else a batch waits `wait_us_max`; adaptive never waits."""
    assert decide_close(config, view, now_us=now_us) == expected


@pytest.mark.parametrize("config", [LATENCY, FAIR])
@pytest.mark.parametrize(
    ("view", "now_us", "expected"),
    [
        (seen(rows=3), QUEUED_US, Close(CloseReason.ENOUGH)),
        (seen(rows=7), QUEUED_US, Close(CloseReason.ENOUGH)),
        (seen(available=2), QUEUED_US, Close(CloseReason.IDLE)),
        (seen(is_sole=True), QUEUED_US, Close(CloseReason.IDLE)),
        (seen(available=2, is_scarce=True), QUEUED_US, Wait(HELD_US)),
        (seen(available=2, is_scarce=True, rows=3), QUEUED_US, Close(CloseReason.ENOUGH)),
        (seen(), QUEUED_US, Wait(HELD_US)),
        (seen(idle=1), QUEUED_US, Wait(HELD_US)),
        (seen(), HELD_US - 1, Wait(HELD_US)),
        (seen(), HELD_US, Close(CloseReason.HELD)),
        (seen(latest_us=QUEUED_US + 7), QUEUED_US, Wait(QUEUED_US + 7)),
        (seen(latest_us=QUEUED_US + 7), QUEUED_US + 7, Close(CloseReason.DEADLINE)),
        (seen(latest_us=0), QUEUED_US, Close(CloseReason.DEADLINE)),
        (seen(period_us=0), QUEUED_US, Close(CloseReason.HELD)),
    ],
)
def test_deadline_waits_only_where_it_pays(
    config: Batching, view: QueueView, now_us: int, expected: Close | Wait
) -> None:
    """A batch leaves when it is as large as the rate needs, a second replica is free, or waiting has cost enough."""
    assert decide_close(config, view, now_us=now_us) == expected


@pytest.mark.parametrize(
    ("view", "now_us", "expected"),
    [
        (seen(rows=3), QUEUED_US, Wait(HELD_US)),
        (seen(rows=3, available=2, idle=2), QUEUED_US, Wait(HELD_US)),
        (seen(rows=3), HELD_US, Close(CloseReason.HELD)),
        (seen(rows=3, latest_us=QUEUED_US), QUEUED_US, Close(CloseReason.DEADLINE)),
        (seen(rows=8), QUEUED_US, Close(CloseReason.FULL)),
    ],
)
def test_throughput_holds_on_for_full_batches(view: QueueView, now_us: int, expected: Close | Wait) -> None:
    """In mode `throughput` neither enough rows nor a second replica close a batch: only size and time do."""
    assert decide_close(THROUGHPUT, view, now_us=now_us) == expected


@pytest.mark.parametrize("config", [LATENCY, THROUGHPUT, FAIR])
@pytest.mark.parametrize(
    ("rows", "now_us", "expected"),
    [
        (9, QUEUED_US, Wait(QUEUED_US + 50)),
        (9, QUEUED_US + 49, Wait(QUEUED_US + 50)),
        (9, QUEUED_US + 50, Close(CloseReason.FULL)),
        (8, QUEUED_US, Close(CloseReason.FULL)),  # there is nothing more to spread out
    ],
)
def test_batches_of_a_backlog_are_spread_out(config: Batching, rows: int, now_us: int, expected: Close | Wait) -> None:
    """With more than a batch waiting the next one leaves only when it would not be bunched with the last."""
    assert decide_close(config, seen(rows=rows, spaced_us=QUEUED_US + 50), now_us=now_us) == expected


def test_a_wait_ends_and_not_before_it_says() -> None:
    """A Wait names an instant to come; asked again then a batch leaves, and one microsecond earlier none does."""
    configs = [CLASSIC, PATIENT, ADAPTIVE, *(Batching("deadline", mode) for mode in MODES)]
    waits = 0
    for config, rows, available, idle, period_us, latest_us in product(
        configs, (1, 3, 8), (1, 2), (0, 1), (0, 300, 70_000), (0, QUEUED_US + 1, 40_000)
    ):
        view = seen(rows=rows, available=available, idle=idle, period_us=period_us, latest_us=latest_us)
        decision = decide_close(config, view, now_us=QUEUED_US)
        if isinstance(decision, Wait):
            waits += 1
            assert decision.until_us is not None
            assert decision.until_us > QUEUED_US
            assert decide_close(config, view, now_us=decision.until_us - 1) == decision
            assert isinstance(decide_close(config, view, now_us=decision.until_us), Close)
    assert waits > 100


@pytest.mark.parametrize("rate", [0.0001, 0.001, 0.002, 0.005, 0.01])
@pytest.mark.parametrize("replicas", [0.5, 1.0, 2.0, 7.3])
@pytest.mark.parametrize(("alpha_us", "beta_us"), [(0.0, 2_000.0), (100.0, 2_000.0), (500.0, 10.0), (90.5, 333.3)])
def test_a_target_is_the_least_batch_that_keeps_up(
    rate: float, replicas: float, alpha_us: float, beta_us: float
) -> None:
    """The target is the least b with N·b / (β + α·b) >= λ, found by trying them all; size_max if there is none."""
    size_max = 64
    load, n = Fraction(rate), Fraction(replicas)
    keeping_up = [
        b for b in range(1, size_max + 1) if n * b >= load * (Fraction(beta_us) + Fraction(alpha_us) * b) * (1 - 10**-9)
    ]
    target, period_us = plan_target(rate=rate, alpha_us=alpha_us, beta_us=beta_us, replicas=replicas, size_max=size_max)
    assert target == (keeping_up[0] if keeping_up else size_max)
    assert 0 <= period_us <= target / rate + 1


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.0, (1, 0)),  # nothing arrives: nothing to wait for
        (0.001, (3, 2_222)),  # 0.001·2000 / (1 - 0.001·100) = 2.22 rows
        (0.005, (20, 4_000)),  # 0.005·2000 / (1 - 0.5) = 20 rows
        (0.009, (32, 3_556)),  # 180 rows would be needed: the largest batch
        (0.010, (32, 3_200)),  # a row takes as long as the next one to come: no batch keeps up
        (1.0, (32, 32)),
    ],
)
def test_targets_by_hand(rate: float, expected: tuple[int, int]) -> None:
    """With β = 2 ms, α = 0.1 ms and one replica the target and its period are those of the formula."""
    assert plan_target(rate=rate, alpha_us=100.0, beta_us=2_000.0, replicas=1.0, size_max=32) == expected


def test_a_target_rises_with_the_rate() -> None:
    """More arrivals never ask for smaller batches, more replicas never for larger ones."""
    by_rate = [
        plan_target(rate=k / 10_000, alpha_us=100.0, beta_us=2_000.0, replicas=1.0, size_max=32)[0] for k in range(200)
    ]
    by_replicas = [
        plan_target(rate=0.005, alpha_us=100.0, beta_us=2_000.0, replicas=k / 10, size_max=32)[0] for k in range(1, 90)
    ]
    assert by_rate == sorted(by_rate)
    assert by_replicas == sorted(by_replicas, reverse=True)
    assert (by_rate[0], by_rate[-1], by_replicas[0], by_replicas[-1]) == (1, 32, 32, 2)


@pytest.mark.parametrize("replicas", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("alpha_us", "beta_us"), [(100.0, 2_000.0), (1_000.0, 0.0), (7.5, 40.0)])
def test_count_fitting_is_the_largest_that_fits(replicas: float, alpha_us: float, beta_us: float) -> None:
    """The count is the largest b with ℓ(b)·(1 + 1/N) <= slack, found by trying them all; 1 if none, never less."""
    size_max = 32
    for slack_us in (-5, 0, 1, 63, 1_000, 2_050, 4_000, 4_100, 4_200, 9_999, 10**6):
        fitting = [
            b for b in range(1, size_max + 1) if (beta_us + alpha_us * b) * (1 + 1 / replicas) <= slack_us * (1 + 1e-12)
        ]
        counted = count_fitting(
            slack_us=slack_us, alpha_us=alpha_us, beta_us=beta_us, replicas=replicas, size_max=size_max
        )
        assert counted == (fitting[-1] if fitting else 1), slack_us


def test_count_fitting_needs_no_slope() -> None:
    """If rows cost nothing the largest batch fits as soon as any does."""
    assert count_fitting(slack_us=4_001, alpha_us=0.0, beta_us=2_000.0, replicas=1.0, size_max=32) == 32
    assert count_fitting(slack_us=3_999, alpha_us=0.0, beta_us=2_000.0, replicas=1.0, size_max=32) == 1


def test_less_than_one_replica_counts_as_one() -> None:
    """A share of a replica, as with several gateways, does not make a batch wait longer than behind one other."""
    halves, one = (
        count_fitting(slack_us=6_000, alpha_us=100.0, beta_us=2_000.0, replicas=n, size_max=32) for n in (0.5, 1.0)
    )
    assert halves == one == 10


def test_a_learned_size_grows_by_one_row() -> None:
    """Each full batch done in half the SLO adds a row, up to the largest; one that was not full proves nothing."""
    size = AdaptiveSize(4, slo_us=2_000)
    sizes = []
    for _ in range(5):
        size.observe(size.rows, 1_000)
        sizes.append(size.rows)
    assert sizes == [2, 3, 4, 4, 4]
    small = AdaptiveSize(4, slo_us=2_000)
    small.observe(1, 1_000)
    small.observe(1, 1_000)
    assert small.rows == 2


def test_a_learned_size_shrinks_by_a_tenth() -> None:
    """A batch that takes longer, full or not, takes a tenth off; the size never falls below one row."""
    size = AdaptiveSize(100, slo_us=2_000)
    for rows in range(1, 100):
        size.observe(rows, 1)
    sizes = [size.rows]
    for _ in range(60):
        size.observe(1, 1_001)
        sizes.append(size.rows)
    assert sizes[:4] == [100, 90, 81, 72]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_a_learned_size_finds_the_slo() -> None:
    """With ℓ(b) = 10·b and an SLO of 400 µs the size settles between 0.9·20 and 21 rows."""
    size = AdaptiveSize(64, slo_us=400)
    visited = []
    for _ in range(300):
        size.observe(size.rows, 10 * size.rows)
        visited.append(size.rows)
    assert set(visited[100:]) <= set(range(18, 22))
    assert len(set(visited[100:])) > 1


def test_without_an_slo_a_learned_size_only_grows() -> None:
    """No latency is too long if none was stated."""
    size = AdaptiveSize(3, slo_us=0)
    for _ in range(5):
        size.observe(size.rows, 10**9)
    assert size.rows == 3
