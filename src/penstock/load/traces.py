"""Reading a recorded trace: the arrival times of a CSV file.

Not here: replaying them at another rate (`core/arrivals.py`).
"""

import csv
from datetime import datetime
from pathlib import Path

import numpy as np

from penstock.core.arrivals import Times
from penstock.core.errors import ConfigError

__all__ = ["read_trace"]

_TIME_COLUMNS = ("timestamp", "time", "arrival", "arrived_at", "arrival_time", "ts")


def read_trace(path: str, where: str = "--arrivals") -> Times:
    """Read arrival times from a CSV file with a header, e.g. the Azure LLM inference traces.

    The time column is TIMESTAMP, time, arrival or the like, else the first; it holds ISO dates or seconds.

    Args:
        path: The file.
        where: What the message of an error begins with.

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
            times = [_parse_time(row, column, f"{path!r} line {rows.line_num}", where) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise ConfigError(f"{where}: expected a readable CSV file after trace:, got {path!r} ({fault}).") from fault
    found = np.sort(np.array(times, dtype=np.float64))
    if len(found) < 2 or found[-1] <= found[0]:
        raise ConfigError(
            f"{where}: expected a trace with at least two distinct times, got {len(found)} row(s) in {path!r}."
        )
    offsets: Times = np.rint((found - found[0]) * 1e6).astype(np.int64)
    return offsets


def _parse_time(row: list[str], column: int, line: str, where: str) -> float:
    text = row[column].strip() if column < len(row) else ""
    try:
        return float(text)
    except ValueError:
        pass  # not seconds; an ISO date, then
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{where}: expected seconds or an ISO date in column {column + 1} of {line}, got {text!r}."
        ) from None
    return (at.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001 -- only differences matter
