"""Devices: exactly the profile without noise; noise of the stated mean and spread; faults as factors."""

import numpy as np
import pytest

from penstock.core.profiles import CostProfile
from penstock.sim.device import Device, scale_profile
from penstock.sim.scenario import DeviceModel

PROFILE = CostProfile((1, 2, 4), (1_000, 1_500, 2_500))
DRAWS = 40_000


def device(speed: float = 1.0, seed: int = 1, **model: float) -> Device:
    """Return a device with a stream of its own."""
    return Device(DeviceModel(PROFILE, **model), speed, np.random.default_rng(seed))  # type: ignore[arg-type]  # fields by name, each of its own type


@pytest.mark.parametrize(("rows", "time_us"), [(1, 1_000), (2, 1_500), (3, 2_000), (4, 2_500), (6, 3_500)])
def test_a_device_without_noise_keeps_to_its_profile(rows: int, time_us: int) -> None:
    """Every draw is the profile's time, between and beyond its sizes, too."""
    assert {device().draw_us(rows) for _ in range(3)} == {time_us}


def test_speed_divides_times() -> None:
    """A device of speed 2 takes half as long, and says so in its own profile."""
    fast = device(speed=2.0)
    assert fast.draw_us(4) == 1_250
    assert fast.profile.times_us == (500, 750, 1_250)
    assert scale_profile(PROFILE, 1) is PROFILE


def test_slowness_multiplies_what_starts_from_now_on() -> None:
    """A fault's factor applies while it lasts."""
    faulty = device()
    faulty.slowness = 3.0
    assert faulty.draw_us(1) == 3_000
    faulty.slowness = 1.0
    assert faulty.draw_us(1) == 1_000


def test_noise_has_mean_one_and_the_stated_deviation() -> None:
    """Over many draws the mean is the profile's, the standard deviation its share, and no draw is below 1 µs."""
    noisy = device(noise_ratio=0.3)
    draws = np.array([noisy.draw_us(4) for _ in range(DRAWS)]) / 2_500
    assert abs(draws.mean() - 1) < 4 * 0.3 / np.sqrt(DRAWS)
    assert draws.std() == pytest.approx(0.3, rel=0.05)
    assert draws.min() > 0


def test_outliers_come_as_often_as_stated() -> None:
    """A share of the executions takes the factor longer, the others exactly the profile's time."""
    odd = device(outlier_ratio=0.02, outlier_factor=7.0)
    draws = np.array([odd.draw_us(1) for _ in range(DRAWS)])
    assert set(draws.tolist()) == {1_000, 7_000}
    assert abs((draws == 7_000).mean() - 0.02) < 4 * np.sqrt(0.02 / DRAWS)


def test_measured_noise_is_drawn_as_measured() -> None:
    """Only the factors that were measured occur, each about as often."""
    model = DeviceModel(PROFILE, noise=(0.9, 1.0, 1.5), noise_ratio=9.0)
    measured = Device(model, 1.0, np.random.default_rng(1))
    values, counts = np.unique([measured.draw_us(1) for _ in range(9_000)], return_counts=True)
    assert values.tolist() == [900, 1_000, 1_500]
    assert counts.min() > 2_800


def test_a_service_of_its_own_replaces_the_profile() -> None:
    """A service callable is asked with the rows; its answer is rounded up to 1 µs at least."""
    asked: list[int] = []

    def service(rows: int, rng: np.random.Generator) -> float:
        asked.append(rows)
        return 0.2

    model = DeviceModel(PROFILE, noise_ratio=0.5, service=service)
    assert Device(model, 1.0, np.random.default_rng(1)).draw_us(3) == 1
    assert asked == [3]


def test_the_stream_decides_the_noise() -> None:
    """The same stream gives the same times, another one others."""
    first, again, other = (device(noise_ratio=0.2, seed=seed) for seed in (1, 1, 2))
    times = [first.draw_us(1) for _ in range(20)]
    assert times == [again.draw_us(1) for _ in range(20)]
    assert times != [other.draw_us(1) for _ in range(20)]
