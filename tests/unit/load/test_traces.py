"""Reading traces: which column, which form of time, and what bad files get."""

from pathlib import Path

import pytest

from penstock.core.errors import ConfigError
from penstock.load.traces import read_trace


def test_times_are_offsets_from_the_first_in_iso_dates(tmp_path: Path) -> None:
    """ISO dates of any precision become µs from the first."""
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.0000000,1\n2023-11-16 18:17:04.0,1\n2023-11-16 18:17:07,1\n"
    )
    assert read_trace(str(path)).tolist() == [0, 1_000_000, 4_000_000]


def test_a_trace_in_seconds_needs_no_known_column(tmp_path: Path) -> None:
    """Without a known column name the first column counts, in seconds, in any order."""
    path = tmp_path / "trace.csv"
    path.write_text("when,what\n2.5,a\n0.5,b\n")
    assert read_trace(str(path)).tolist() == [0, 2_000_000]


@pytest.mark.parametrize("content", ["", "t\n", "t\n1\n", "t\n1\n1\n", "t\n1\nsoon\n", "a,timestamp\n1\n2\n"])
def test_a_useless_trace_is_refused(tmp_path: Path, content: str) -> None:
    """A trace without two distinct times, or with a time that does not parse, is refused by name."""
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"--arrivals: expected .*trace\.csv"):
        read_trace(str(path))


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    """A file that is not there is the operator's error."""
    with pytest.raises(ConfigError, match="readable"):
        read_trace(str(tmp_path / "none.csv"))
