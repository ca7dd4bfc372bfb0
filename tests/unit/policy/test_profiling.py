"""Laws of estimates: what recent executions took, by size; old ones forgotten, single bad ones not believed."""

from itertools import pairwise

import pytest

from penstock.core.profiles import CostProfile
from penstock.policy.profiling import AGE_US_MAX, REFRESH_EVERY, SAMPLES_MIN, SPREAD_MAX, WINDOW, ServiceEstimate

SIZE_MAX = 32
PROFILE = CostProfile.from_line(beta_us=1_000.0, alpha_us=100.0, size_max=SIZE_MAX)
SIZES = range(1, SIZE_MAX + 1)


def observed(
    times_us: list[int], *, rows: int = 8, from_us: int = 0, seed: CostProfile | None = PROFILE
) -> ServiceEstimate:
    """Return an estimate that has seen these executions, a millisecond apart, and has been made anew since."""
    estimate = ServiceEstimate(seed, SIZE_MAX)
    for k, time_us in enumerate(times_us):
        estimate.observe(rows, time_us, from_us + 1_000 * k)
    return estimate


def test_before_anything_ran_the_profile_speaks() -> None:
    """Typical time and tail are those measured at load until there are executions enough."""
    for estimate in (ServiceEstimate(PROFILE, SIZE_MAX), observed([9_999] * (SAMPLES_MIN - 1))):
        assert [estimate.time_us(b) for b in SIZES] == [PROFILE.time_us(b) for b in SIZES]
        assert [estimate.tail_us(b) for b in SIZES] == [PROFILE.time_us(b) for b in SIZES]
        assert (estimate.alpha_us, estimate.beta_us) == (PROFILE.alpha_us, PROFILE.beta_us)


def test_typical_is_the_median_and_tail_the_slowest() -> None:
    """Of a full window the typical time is its median, the tail its slowest execution."""
    times = [1_800 + 10 * k for k in range(WINDOW)]
    estimate = observed(times)
    assert estimate.time_us(8) == sorted(times)[WINDOW // 2]
    assert estimate.tail_us(8) == max(times)


def test_one_outlier_does_not_change_what_is_typical() -> None:
    """A single pause of the device moves the tail of its size and not what is typical of any."""
    calm, shaken = observed([1_800] * WINDOW), observed([1_800] * (WINDOW - 1) + [80_000])
    assert [shaken.time_us(b) for b in SIZES] == [calm.time_us(b) for b in SIZES]
    assert shaken.tail_us(8) == 80_000
    assert shaken.tail_us(4) < 2_000


def test_an_outlier_is_forgotten_with_its_window() -> None:
    """After as many executions as are remembered nothing is left of a pause."""
    estimate = observed([80_000] + [1_800] * (WINDOW + REFRESH_EVERY))
    assert estimate.tail_us(8) == estimate.time_us(8) == 1_800


@pytest.mark.parametrize("ratio", [0.25, 0.5, 2.0, 10.0])
def test_a_device_that_changes_is_followed(ratio: float) -> None:
    """A window after the device became slower or faster, every size is predicted to take accordingly."""
    estimate = observed([1_800] * WINDOW)
    for k in range(WINDOW + REFRESH_EVERY):
        estimate.observe(8, round(1_800 * ratio), 10**6 + k)
    for rows in SIZES:
        assert estimate.time_us(rows) == pytest.approx(PROFILE.time_us(rows) * ratio, rel=0.01)
        assert estimate.tail_us(rows) == pytest.approx(PROFILE.time_us(rows) * ratio, rel=0.01)
    assert estimate.alpha_us == pytest.approx(100 * ratio, rel=0.01)
    assert estimate.beta_us == pytest.approx(1_000 * ratio, rel=0.02)


def test_old_executions_are_forgotten() -> None:
    """What is older than the bound counts no more once there is something newer, however full its window."""
    estimate = observed([7_000] * WINDOW, rows=32)
    later_us = AGE_US_MAX + 1_000_000
    for k in range(REFRESH_EVERY):
        estimate.observe(8, 1_800, later_us + k)
    assert estimate.time_us(32) == PROFILE.time_us(32)
    assert estimate.tail_us(32) == PROFILE.time_us(32)


def test_sizes_between_are_counted_for_the_next_measured_one() -> None:
    """Executions of 5 to 7 rows correct the estimate of 8 by what they took over what the profile said of them."""
    for rows in (5, 6, 7):
        estimate = observed([PROFILE.time_us(rows) * 3] * WINDOW, rows=rows)
        assert estimate.time_us(8) == PROFILE.time_us(8) * 3


def test_batches_larger_than_any_measured_are_scaled_down() -> None:
    """An oversized request corrects the estimate of the largest size in proportion."""
    estimate = observed([PROFILE.time_us(64) * 2] * WINDOW, rows=64)
    assert estimate.time_us(32) == PROFILE.time_us(32) * 2


@pytest.mark.parametrize("order", [1, -1])
def test_a_larger_batch_is_never_predicted_to_be_faster(order: int) -> None:
    """Whatever is measured, estimates never fall with the size."""
    estimate = ServiceEstimate(PROFILE, SIZE_MAX)
    for k in range(200):
        rows = PROFILE.rows[::order][k % len(PROFILE.rows)]
        estimate.observe(rows, 1 + (7_919 * k * order) % 50_000, k)
        for b, c in pairwise(SIZES):
            assert estimate.time_us(b) <= estimate.time_us(c)
            assert estimate.tail_us(b) <= estimate.tail_us(c)
            assert estimate.time_us(b) <= estimate.tail_us(b)


def test_an_unmeasured_model_is_learned() -> None:
    """Without a profile nothing is predicted; after a few executions the estimate is usable and is what they took."""
    estimate = ServiceEstimate(None, SIZE_MAX)
    usable = []
    for k in range(SAMPLES_MIN):
        usable.append(estimate.is_usable)
        estimate.observe(8, 1_800, k)
    assert not any(usable)
    assert estimate.is_usable
    assert estimate.time_us(8) == 1_800


def test_an_unmeasured_model_learns_its_slope() -> None:
    """Executions of the smallest and the largest size give α and β; sizes between are somewhere between."""
    estimate = ServiceEstimate(None, SIZE_MAX)
    for k in range(2 * WINDOW):
        estimate.observe(1, 1_100, 2 * k)
        estimate.observe(32, 4_200, 2 * k + 1)
    assert (estimate.time_us(1), estimate.time_us(32)) == (1_100, 4_200)
    assert (estimate.alpha_us, estimate.beta_us) == (100.0, 1_000.0)
    assert 1_100 < estimate.time_us(16) < 4_200


def test_times_without_a_pattern_are_not_predicted() -> None:
    """If the slowest of a window takes many times the median nothing can be promised, until it has passed."""
    wild = observed([1_800] * (WINDOW - 1) + [round(1_800 * SPREAD_MAX) + 1])
    tame = observed([1_800] * (WINDOW - 1) + [round(1_800 * SPREAD_MAX)])
    assert not wild.is_usable
    assert tame.is_usable
    for k in range(WINDOW + REFRESH_EVERY):
        wild.observe(8, 1_800, 10**6 + k)
    assert wild.is_usable


def test_an_estimate_is_at_least_a_microsecond() -> None:
    """A device that reports no time at all divides nothing by zero."""
    estimate = observed([0] * WINDOW, rows=1)
    assert estimate.time_us(1) >= 1
