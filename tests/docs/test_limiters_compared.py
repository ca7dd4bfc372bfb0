"""docs/limiters-compared.md shows what the bench of limiters found, as the bench itself prints it.

Not here: what holds for every page (`test_pages.py`, `test_reference.py`), how limiters are judged (`tests/property`).
"""

import pytest

from bench.limiters.catalogue import LIMITERS
from bench.limiters.tables import to_markdown
from scripts.render_figures import (
    LIMITER_REPORTS,
    MISSING,
    render_limiters,
    render_report,
    replace_reports,
)
from scripts.render_figures import (
    LIMITERS as PAGE,
)

CURE = "run: python scripts/render_figures.py"
JUDGED = {
    "attempts": 1_000,
    "admitted": 250,
    "excess": 0.0,
    "excess_claimed": 1.5,
    "most": 149,
    "delivered": 0.9912,
    "errors": 0,
    "error": "",
    "skipped": 0,
}
CLOCK = JUDGED | {"by_shifted": 25, "afterwards": JUDGED}
SPEED = {
    "per_s": 12_345,
    "rejected": 0,
    "errors": 0,
    "cpu_us": 40.0,
    "calls": 1.0,
    "commands": 2.0,
    "redis_cpu_us": 6.5,
}
ROW = {
    "name": "penstock, leased",
    "version": "1",
    "claim": "bucket",
    "bound": {"100/s burst 50": JUDGED},
    "pulses": JUDGED,
    "clock": {"ahead": CLOCK, "behind": CLOCK},
    "slow": JUDGED | {"seconds": 60.0},
    "speed": {"1": SPEED, "64": SPEED},
    "weight": {"cost": 4_000, "admitted": 101, "ms": 0.06, "redis_ms": 0.03, "keys": 1, "stored_bytes": 120},
    "refund": {
        "expected": 40,
        "settled": True,
        "left": 40,
        "negative": "cannot be asked for",
        "left_after_negative": 10,
    },
    "cancel": {
        "charged": [10, 10],
        "connections_grown": 0,
        "cancelled": 200,
        "cancelled_charged": 160,
        "wrong": 0,
        "errors": [],
    },
    "trouble": {"flushed": "admitted", "silent": "TimeoutError", "waited_us": 10_400},
}
RESULTS = {
    "redis": "7.0.15",
    "rows": [ROW, {"name": "x, y", "version": None, "claim": "window", "not_measured": "gone"}],
}


def test_the_figures_are_those_of_the_history() -> None:
    """The page is what scripts/render_figures.py makes of it and of bench/history.ndjson."""
    assert PAGE.read_text() == render_limiters(), CURE


def test_every_limiter_is_measured() -> None:
    """No figure is still to come, and every limiter of the catalogue has its row."""
    text = PAGE.read_text()
    assert MISSING not in text, f"run: make bench-limiters, then {CURE}"
    assert [name for name in LIMITERS if f"| {name} |" not in text] == []


def test_a_record_becomes_tables() -> None:
    """Each scenario has a table, and what could not be measured is said to be so."""
    lines = to_markdown(RESULTS)
    assert sum(line.startswith("### ") for line in lines) == 11
    assert "Not measured: x, y: gone" in lines
    assert "| penstock, leased | bucket | 149 | 1.5 | 0 | 250 of 1,000 | 99.1% | 0 |" in lines
    assert "| penstock, leased | admitted | TimeoutError | 10 |" in lines


def test_a_record_that_lacks_a_figure_is_named() -> None:
    """A record of an older form is an error that says what must be measured again."""
    (report,) = LIMITER_REPORTS
    machine = {"cpu": "A CPU", "mhz": "", "cores": 2, "kernel": "6.1", "python": "3.11.7"}
    record = {"bench": "limiters", "at": "2026-01-01", "commit": "abc", "machine": machine, "results": {}}
    with pytest.raises(ValueError, match="the newest limiters record"):
        render_report(report, record)


def test_without_a_record_the_page_says_so() -> None:
    """What is not measured is said to be, with the command that does it."""
    text = replace_reports("<!-- figure:limiters --><!-- /figure:limiters -->", {}, LIMITER_REPORTS)
    assert MISSING in text
    assert "make bench-limiters" in text
