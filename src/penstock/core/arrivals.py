"""Arrival processes: when each request is meant to be sent, decided before the run starts.

Pure: randomness comes in as a numpy generator, times are µs from the start of the run. Not here: sending
(`load/driver.py`), simulating (`sim/workload.py`), reading a trace (`load/traces.py`).
A schedule never looks at answers, so a slow server cannot slow the load down (an open loop).
Source: MMPP-2 moments, Fischer and Meier-Hellstern, "The Markov-modulated Poisson process cookbook", 1993; thinning,
Lewis and Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", 1979.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.core.errors import ConfigError

__all__ = [
    "MMPP_BURST_RATE_RATIO",
    "MMPP_BURST_TIME_RATIO",
    "MMPP_CYCLE_S",
    "Arrivals",
    "Times",
    "parse_arrivals",
    "plan_arrivals",
]

Times = NDArray[np.int64]

# Two-state MMPP, chosen so that the mean is the asked rate and a burst is plain to see: a fifth of the time at three
# times the rate, the rest at half of it; bursts last 0.5 s on average, calm spells 2 s.
MMPP_BURST_TIME_RATIO = 0.2
MMPP_BURST_RATE_RATIO = 3.0
MMPP_CYCLE_S = 2.5

_EXPECTED = (
    "expected poisson, constant, gamma:CV, mmpp, step:FACTOR,FROM_S,TO_S, diurnal:AMPLITUDE,PERIOD_S or trace:FILE"
)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Which arrival process.

    Args:
        kind: `poisson`, `constant`, `gamma`, `mmpp`, `step`, `diurnal` or `trace`.
        cv: Of `gamma`: coefficient of variation of the gaps.
        path: Of `trace`: the file.
        factor: Of `step`: the rate is multiplied by it from `from_s` to `to_s`, a Poisson process otherwise.
        from_s, to_s: Of `step`: seconds from the start of the run.
        amplitude: Of `diurnal`: the rate swings by this share of its mean, 0 to 1, a sine that begins at the mean.
        period_s: Of `diurnal`: length of one swing.
    """

    kind: str
    cv: float = 1.0
    path: str = ""
    factor: float = 1.0
    from_s: float = 0.0
    to_s: float = 0.0
    amplitude: float = 0.0
    period_s: float = 86_400.0

    def describe(self) -> str:
        """Return it as it would be typed after `--arrivals`."""
        arguments = {
            "gamma": f":{self.cv:g}",
            "trace": f":{self.path}",
            "step": f":{self.factor:g},{self.from_s:g},{self.to_s:g}",
            "diurnal": f":{self.amplitude:g},{self.period_s:g}",
        }
        return self.kind + arguments.get(self.kind, "")


def parse_arrivals(text: str, where: str = "--arrivals") -> Arrivals:
    """Read an arrival process as typed.

    Args:
        text: E.g. `gamma:4`.
        where: What the message of an error begins with.

    Raises:
        ConfigError: It is none of the known processes, or its arguments are missing or out of range.
    """
    kind, colon, argument = text.partition(":")
    if kind in ("poisson", "constant", "mmpp") and not colon:
        return Arrivals(kind)
    if kind == "trace" and argument:
        return Arrivals("trace", path=argument)
    numbers = _numbers(argument)
    if kind == "gamma":
        if len(numbers) != 1 or not 0.01 <= numbers[0] <= 100:
            raise ConfigError(
                f"{where}: expected gamma:CV with a coefficient of variation from 0.01 to 100, got {text!r}."
                " Use e.g. gamma:4; gamma:1 is poisson."
            )
        return Arrivals("gamma", cv=numbers[0])
    if kind == "step":
        if len(numbers) != 3 or not (0 <= numbers[0] <= 1_000 and 0 <= numbers[1] < numbers[2]):
            raise ConfigError(
                f"{where}: expected step:FACTOR,FROM_S,TO_S with a factor from 0 to 1000 and FROM_S < TO_S,"
                f" got {text!r}. Use e.g. step:5,20,40."
            )
        return Arrivals("step", factor=numbers[0], from_s=numbers[1], to_s=numbers[2])
    if kind == "diurnal":
        if len(numbers) != 2 or not (0 <= numbers[0] <= 1 and numbers[1] > 0):
            raise ConfigError(
                f"{where}: expected diurnal:AMPLITUDE,PERIOD_S with an amplitude from 0 to 1 and a period > 0,"
                f" got {text!r}. Use e.g. diurnal:0.8,3600."
            )
        return Arrivals("diurnal", amplitude=numbers[0], period_s=numbers[1])
    raise ConfigError(f"{where}: {_EXPECTED}, got {text!r}. Use e.g. gamma:4.")


def _numbers(argument: str) -> list[float]:
    """Return finite numbers written with commas between them; none if any is not one."""
    try:
        numbers = [float(part) for part in argument.split(",")]
    except ValueError:
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []


def plan_arrivals(
    arrivals: Arrivals, rng: np.random.Generator, *, rate: float, duration_us: int, trace_us: Times | None = None
) -> Times:
    """Return the intended send times in [0, duration_us), sorted, µs.

    Args:
        arrivals: The process.
        rng: Consumed; the same generator state gives the same schedule.
        rate: Mean arrivals per second, > 0; of `step` the rate outside the step, of `diurnal` the mean of whole
            periods. How many fall into the duration is itself random but for `constant` and `trace`.
        duration_us: Length of the schedule, µs, > 0.
        trace_us: For `trace`: its arrival times, µs, sorted, at least two, not all equal. It is stretched in time to
            the asked mean rate (never superposed, which would smooth its bursts away) and repeated when it is too
            short.
    """
    assert rate > 0
    assert duration_us > 0
    if arrivals.kind == "trace":
        assert trace_us is not None
        return _replay(trace_us, rate, duration_us)
    if arrivals.kind == "mmpp":
        return _mmpp(rng, rate, duration_us)
    if arrivals.kind == "step":
        return _step(arrivals, rng, rate, duration_us)
    if arrivals.kind == "diurnal":
        return _diurnal(arrivals, rng, rate, duration_us)
    if arrivals.kind == "constant":
        count = int(np.ceil(rate * duration_us / 1e6 - 1e-9))
        return (np.arange(count) * (1e6 / rate)).astype(np.int64)
    if arrivals.kind == "gamma":
        shape = 1.0 / arrivals.cv**2
        return _renewal(lambda n: rng.gamma(shape, 1e6 / rate / shape, n), arrivals.cv, rate, duration_us)
    assert arrivals.kind == "poisson"
    return _renewal(lambda n: rng.exponential(1e6 / rate, n), 1.0, rate, duration_us)


def _renewal(draw_gaps: Callable[[int], NDArray[np.float64]], cv: float, rate: float, duration_us: int) -> Times:
    expected = rate * duration_us / 1e6
    chunk = int(expected + 4 * cv * np.sqrt(expected)) + 16
    times = np.cumsum(draw_gaps(chunk))
    while times[-1] < duration_us:
        times = np.concatenate([times, times[-1] + np.cumsum(draw_gaps(chunk))])
    return times[times < duration_us].astype(np.int64)


def _mmpp(rng: np.random.Generator, rate: float, duration_us: int) -> Times:
    calm_rate_ratio = (1 - MMPP_BURST_TIME_RATIO * MMPP_BURST_RATE_RATIO) / (1 - MMPP_BURST_TIME_RATIO)
    is_burst = bool(rng.random() < MMPP_BURST_TIME_RATIO)
    pieces: list[NDArray[np.float64]] = []
    at_us = 0.0
    while at_us < duration_us:
        time_ratio = MMPP_BURST_TIME_RATIO if is_burst else 1 - MMPP_BURST_TIME_RATIO
        dwell_us = rng.exponential(MMPP_CYCLE_S * 1e6 * time_ratio)
        mean = rate * (MMPP_BURST_RATE_RATIO if is_burst else calm_rate_ratio) * dwell_us / 1e6
        pieces.append(at_us + np.sort(rng.random(rng.poisson(mean))) * dwell_us)
        at_us += dwell_us
        is_burst = not is_burst
    times = np.concatenate(pieces)
    return times[times < duration_us].astype(np.int64)


def _step(arrivals: Arrivals, rng: np.random.Generator, rate: float, duration_us: int) -> Times:
    from_us, to_us = (min(round(at_s * 1e6), duration_us) for at_s in (arrivals.from_s, arrivals.to_s))
    pieces = [
        begin_us + np.sort(rng.random(rng.poisson(piece_rate * (end_us - begin_us) / 1e6))) * (end_us - begin_us)
        for begin_us, end_us, piece_rate in (
            (0, from_us, rate),
            (from_us, to_us, rate * arrivals.factor),
            (to_us, duration_us, rate),
        )
    ]
    times: Times = np.concatenate(pieces).astype(np.int64)
    return times


def _diurnal(arrivals: Arrivals, rng: np.random.Generator, rate: float, duration_us: int) -> Times:
    peak_ratio = 1 + arrivals.amplitude
    times = _renewal(lambda n: rng.exponential(1e6 / (rate * peak_ratio), n), 1.0, rate * peak_ratio, duration_us)
    rate_ratio = 1 + arrivals.amplitude * np.sin(times * (2 * np.pi / (arrivals.period_s * 1e6)))
    kept: Times = times[rng.random(len(times)) * peak_ratio < rate_ratio]
    return kept


def _replay(trace_us: Times, rate: float, duration_us: int) -> Times:
    period_us = len(trace_us) * 1e6 / rate  # one pass of the trace at the asked rate, with a mean gap after the last
    span_us = int(trace_us[-1] - trace_us[0])
    once = (trace_us - trace_us[0]) * ((len(trace_us) - 1) * 1e6 / rate / span_us)
    passes = int(np.ceil(duration_us / period_us))
    times = (once[None, :] + (np.arange(passes) * period_us)[:, None]).ravel()
    kept: Times = times[times < duration_us].astype(np.int64)
    return kept
