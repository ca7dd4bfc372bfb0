"""Arrival processes: when each request is meant to be sent, decided before the run starts.

Pure: randomness comes in as a numpy generator, times are µs from the start of the run. Not here: sending (`driver.py`).
A schedule never looks at answers, so a slow server cannot slow the load down (an open loop).
Source: MMPP-2 moments, Fischer and Meier-Hellstern, "The Markov-modulated Poisson process cookbook", 1993.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

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
    "read_trace",
]

Times = NDArray[np.int64]

# Two-state MMPP, chosen so that the mean is the asked rate and a burst is plain to see: a fifth of the time at three
# times the rate, the rest at half of it; bursts last 0.5 s on average, calm spells 2 s.
MMPP_BURST_TIME_RATIO = 0.2
MMPP_BURST_RATE_RATIO = 3.0
MMPP_CYCLE_S = 2.5

_EXPECTED = "--arrivals: expected poisson, constant, gamma:CV, mmpp or trace:FILE"
_TIME_COLUMNS = ("timestamp", "time", "arrival", "arrived_at", "arrival_time", "ts")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Which arrival process: `poisson`, `constant`, `gamma` (with its `cv`), `mmpp` or `trace` (with its `path`)."""

    kind: str
    cv: float = 1.0
    path: str = ""

    def describe(self) -> str:
        """Return it as it would be typed after `--arrivals`."""
        if self.kind == "gamma":
            return f"gamma:{self.cv:g}"
        return f"trace:{self.path}" if self.kind == "trace" else self.kind


def parse_arrivals(text: str) -> Arrivals:
    """Read what follows `--arrivals`.

    Raises:
        ConfigError: It is none of the known processes, or its argument is missing or out of range.
    """
    kind, colon, argument = text.partition(":")
    if kind in ("poisson", "constant", "mmpp") and not colon:
        return Arrivals(kind)
    if kind == "trace" and argument:
        return Arrivals("trace", path=argument)
    if kind == "gamma":
        try:
            cv = float(argument)
        except ValueError:
            cv = 0.0
        if not 0.01 <= cv <= 100:
            raise ConfigError(
                f"--arrivals: expected gamma:CV with a coefficient of variation from 0.01 to 100, got {text!r}."
                " Use e.g. gamma:4; gamma:1 is poisson."
            )
        return Arrivals("gamma", cv=cv)
    raise ConfigError(f"{_EXPECTED}, got {text!r}. Use e.g. --arrivals gamma:4.")


def plan_arrivals(
    arrivals: Arrivals, rng: np.random.Generator, *, rate: float, duration_us: int, trace_us: Times | None = None
) -> Times:
    """Return the intended send times in [0, duration_us), sorted, µs.

    Args:
        arrivals: The process.
        rng: Consumed; the same generator state gives the same schedule.
        rate: Mean arrivals per second, > 0. How many fall into the duration is itself random but for `constant`.
        duration_us: Length of the schedule, µs, > 0.
        trace_us: For `trace`: what `read_trace` returned. It is stretched in time to the asked mean rate (never
            superposed, which would smooth its bursts away) and repeated when it is too short.
    """
    assert rate > 0
    assert duration_us > 0
    if arrivals.kind == "trace":
        assert trace_us is not None
        return _replay(trace_us, rate, duration_us)
    if arrivals.kind == "mmpp":
        return _mmpp(rng, rate, duration_us)
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


def _replay(trace_us: Times, rate: float, duration_us: int) -> Times:
    period_us = len(trace_us) * 1e6 / rate  # one pass of the trace at the asked rate, with a mean gap after the last
    span_us = int(trace_us[-1] - trace_us[0])
    once = (trace_us - trace_us[0]) * ((len(trace_us) - 1) * 1e6 / rate / span_us)
    passes = int(np.ceil(duration_us / period_us))
    times = (once[None, :] + (np.arange(passes) * period_us)[:, None]).ravel()
    kept: Times = times[times < duration_us].astype(np.int64)
    return kept


def read_trace(path: str) -> Times:
    """Read arrival times from a CSV file with a header, e.g. the Azure LLM inference traces.

    The time column is TIMESTAMP, time, arrival or the like, else the first; it holds ISO dates or seconds.

    Returns:
        Times in µs from the first, sorted; at least two, not all equal.

    Raises:
        ConfigError: The file cannot be read, or a time does not parse (the message names the line), or there are
            fewer than two distinct times.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as lines:
            rows = csv.reader(lines)
            header = [name.strip().lower() for name in next(rows, [])]
            column = next((header.index(name) for name in _TIME_COLUMNS if name in header), 0)
            times = [_parse_time(row, column, path, rows.line_num) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise ConfigError(f"--arrivals: expected a readable CSV file after trace:, got {path!r} ({fault}).") from fault
    found = np.sort(np.array(times, dtype=np.float64))
    if len(found) < 2 or found[-1] <= found[0]:
        raise ConfigError(
            f"--arrivals: expected a trace with at least two distinct times, got {len(found)} row(s) in {path!r}."
        )
    offsets: Times = np.rint((found - found[0]) * 1e6).astype(np.int64)
    return offsets


def _parse_time(row: list[str], column: int, path: str, line: int) -> float:
    text = row[column].strip() if column < len(row) else ""
    try:
        return float(text)
    except ValueError:
        pass  # not seconds; an ISO date, then
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--arrivals: expected seconds or an ISO date in column {column + 1} of {path!r} line {line}, got {text!r}."
        ) from None
    return (at.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001 -- only differences matter
