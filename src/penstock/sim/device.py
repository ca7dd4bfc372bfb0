"""A device: how long each execution takes, in truth.

Time = ℓ(rows) / speed × noise × slowness of the moment. Not here: the replica that uses it (`fleet.py`).
"""

from collections.abc import Iterator

import numpy as np

from penstock.core.profiles import CostProfile
from penstock.sim.scenario import DeviceModel

__all__ = ["Device", "scale_profile"]

_CHUNK = 4_096  # factors drawn at once: drawing them one by one would cost more than simulating the batch


def scale_profile(profile: CostProfile, speed: float) -> CostProfile:
    """Return the profile of a device `speed` times as fast."""
    if speed == 1:
        return profile
    return CostProfile(profile.rows, tuple(max(round(time_us / speed), 1) for time_us in profile.times_us))


class Device:
    """One replica's device.

    Args:
        model: What all have in common.
        speed: How fast this one is.
        rng: Its own stream.

    Attributes:
        profile: Its typical times.
        slowness: Factor on all that starts from now on; 1 unless a fault says otherwise.
    """

    __slots__ = ("_factors", "_rng", "_service", "_times_us", "profile", "slowness")

    def __init__(self, model: DeviceModel, speed: float, rng: np.random.Generator) -> None:
        self.profile = scale_profile(model.profile, speed)
        self.slowness = 1.0
        self._service = model.service
        self._rng = rng
        self._times_us: dict[int, int] = {}
        is_noisy = bool(model.noise_ratio or model.noise or model.outlier_ratio)
        self._factors = _draw_factors(model, rng) if is_noisy else None

    def draw_us(self, rows: int) -> int:
        """Return the device time of an execution of `rows` rows that starts now, µs, >= 1."""
        if self._service is not None:
            time = self._service(rows, self._rng)
        else:
            time_us = self._times_us.get(rows)
            if time_us is None:
                time_us = self._times_us[rows] = self.profile.time_us(rows)
            time = float(time_us)
            if self._factors is not None:
                time *= next(self._factors)
        return max(round(time * self.slowness), 1)


def _draw_factors(model: DeviceModel, rng: np.random.Generator) -> Iterator[float]:
    """Yield the noise of one execution after another: mean 1 but for outliers."""
    # A lognormal of mean 1 and standard deviation s has sigma² = ln(1 + s²) and mu = -sigma²/2.
    sigma = float(np.sqrt(np.log1p(model.noise_ratio**2)))
    measured = np.array(model.noise)
    while True:
        factors = rng.choice(measured, _CHUNK) if len(measured) else rng.lognormal(-(sigma**2) / 2, sigma, _CHUNK)
        if model.outlier_ratio:
            factors = np.where(rng.random(_CHUNK) < model.outlier_ratio, factors * model.outlier_factor, factors)
        yield from factors.tolist()
