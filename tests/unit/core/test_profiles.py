"""Laws of cost profiles: exact at measured sizes, linear between, never falling; what was written wrong is named."""

from itertools import pairwise

import pytest

from penstock.core.errors import ConfigError
from penstock.core.profiles import CostProfile, profiled_sizes

PROFILE = CostProfile((1, 2, 4, 8), (100, 140, 240, 400))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, 100), (2, 140), (3, 190), (4, 240), (5, 280), (6, 320), (7, 360), (8, 400), (9, 440), (16, 720), (0, 60)],
)
def test_time_is_linear_between_sizes(rows: int, expected: int) -> None:
    """ℓ(b) is what was measured, between two sizes on the line through them, beyond on the last one."""
    assert PROFILE.time_us(rows) == expected


def test_one_size_speaks_for_all() -> None:
    """Measured at one size only, every batch takes the same."""
    profile = CostProfile((1,), (70,))
    assert [profile.time_us(b) for b in (1, 2, 100)] == [70, 70, 70]
    assert (profile.alpha_us, profile.beta_us) == (0.0, 70.0)


def test_time_never_falls() -> None:
    """A larger batch never takes less."""
    assert all(PROFILE.time_us(b) <= PROFILE.time_us(c) for b, c in pairwise(range(100)))


@pytest.mark.parametrize("size_max", [1, 2, 3, 8, 31, 32, 33, 100])
def test_a_line_is_kept(size_max: int) -> None:
    """The profile of β + α·b gives β + α·b at every size, and α and β back."""
    profile = CostProfile.from_line(beta_us=2_000, alpha_us=50, size_max=size_max)
    assert [profile.time_us(b) for b in range(1, size_max + 1)] == [2_000 + 50 * b for b in range(1, size_max + 1)]
    assert (profile.alpha_us, profile.beta_us) == ((50.0, 2_000.0) if size_max > 1 else (0.0, 2_050.0))
    profile.check("profile")


def test_what_a_batch_costs_is_never_negative() -> None:
    """A device whose time grows faster than its rows has β 0, not less."""
    assert CostProfile((1, 2, 4), (10, 40, 160)).beta_us == 0.0


@pytest.mark.parametrize(
    ("times_us", "expected"),
    [
        ([100, 90, 200], (100, 100, 200)),
        ([0, 0, 0], (1, 1, 1)),
        ([300, 200, 100], (300, 300, 300)),
        ([1, 2, 3], (1, 2, 3)),
    ],
)
def test_measurements_are_made_monotone(times_us: list[int], expected: tuple[int, ...]) -> None:
    """The least profile that never falls and is nowhere below what was measured, nor below 1 µs."""
    profile = CostProfile.from_measurements([1, 2, 4], times_us)
    assert profile == CostProfile((1, 2, 4), expected)
    profile.check("profile")


@pytest.mark.parametrize(
    ("size_max", "expected"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (1, 2, 4)),
        (5, (1, 2, 4, 5)),
        (32, (1, 2, 4, 8, 16, 32)),
        (33, (1, 2, 4, 8, 16, 32, 33)),
    ],
)
def test_sizes_worth_measuring(size_max: int, expected: tuple[int, ...]) -> None:
    """Powers of two and the largest batch itself, each once."""
    assert profiled_sizes(size_max) == expected


@pytest.mark.parametrize(
    ("rows", "times_us", "field", "got"),
    [
        ((), (), "device:", "0 sizes and 0 times"),
        ((1, 2), (100,), "device:", "2 sizes and 1 times"),
        ((2, 4), (100, 200), "device.rows:", "[2, 4]"),
        ((1, 4, 2), (100, 200, 300), "device.rows:", "[1, 4, 2]"),
        ((1, 2, 2), (100, 200, 300), "device.rows:", "[1, 2, 2]"),
        ((1, 2), (0, 200), "device.times_us:", "got 0"),
        ((1, 2, 4), (100, 300, 200), "device.times_us:", "300 µs at 2 rows and 200 at 4"),
    ],
)
def test_what_was_written_wrong_is_named(
    rows: tuple[int, ...], times_us: tuple[int, ...], field: str, got: str
) -> None:
    """A wrong profile is refused by the name of its field, with what was expected and what was got."""
    with pytest.raises(ConfigError) as caught:
        CostProfile(rows, times_us).check("device")
    message = str(caught.value)
    assert message.startswith(field)
    assert "expected" in message
    assert got in message


def test_a_sound_profile_passes() -> None:
    """Sizes from 1 upwards with times that do not fall, equal ones included, are a profile."""
    PROFILE.check("device")
    CostProfile((1, 2), (5, 5)).check("device")
