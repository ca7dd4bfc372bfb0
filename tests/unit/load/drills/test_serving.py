"""Serving a drill's models: the configuration is one that `penstock serve` takes. The processes are tested live."""

from pathlib import Path

import pytest

from penstock.cli.config import load_config
from penstock.load.drills.serving import DeviceModel, write_config

MODEL = DeviceModel("m", beta_ms=10.0, alpha_ms=0.5, size_max=32, slo_ms=100.0)


def test_capacity_is_that_of_full_batches() -> None:
    """Rows per second of batches as large as allowed: 32 in 26 ms."""
    assert MODEL.rows_per_s_max == pytest.approx(32 / 0.026)
    assert MODEL.slo_us == 100_000


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    """The written file passes the checks of a user's file and says what the models say."""
    other = DeviceModel("n", beta_ms=1.0, alpha_ms=0.1, size_max=8, slo_ms=50.0, batching=', policy = "deadline"')
    write_config([MODEL, other], tmp_path / "penstock.toml")
    sources = load_config(tmp_path / "penstock.toml").sources
    assert [source.name for source in sources] == ["m", "n"]
    assert [source.options for source in sources] == [
        {"beta_ms": 10.0, "alpha_ms": 0.5},
        {"beta_ms": 1.0, "alpha_ms": 0.1},
    ]
    assert [source.overrides.slo_us for source in sources] == [100_000, 50_000]
    assert [source.overrides.size_max for source in sources] == [32, 8]
    assert sources[1].overrides.policy == "deadline"
