"""Settings of every test run: property tests are deterministic, and only bugs make them fail, never a slow machine.

A failing example prints the `@reproduce_failure` line that replays it. Not here: fixtures; each room's tests make
their own fakes.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_LIVE = Path(__file__).parent / "live"

settings.register_profile(
    "penstock",
    deadline=None,  # nothing asserts on wall-clock speed
    derandomize=True,  # the same examples on every machine
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("penstock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/live, so that `make test ARGS='-m "not live"'` leaves real processes out."""
    for item in items:
        if _LIVE in item.path.parents:
            item.add_marker("live")
