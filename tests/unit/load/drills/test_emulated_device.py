"""The emulated device: what a batch takes, and that it computes nothing."""

import numpy as np
import pytest

from penstock.core.models import declaration_of
from penstock.load.drills.emulated_device import EmulatedDevice, describe


@pytest.mark.parametrize(("rows", "expected_s"), [(1, 0.021), (32, 0.052)])
def test_a_batch_takes_its_fixed_cost_and_that_of_its_rows(rows: int, expected_s: float) -> None:
    """One wait of beta + alpha * rows for the whole batch, and the inputs come back as they were."""
    waits: list[float] = []
    x = np.arange(rows, dtype=np.float32).reshape(rows, 1)
    outputs = EmulatedDevice(beta_ms=20.0, alpha_ms=1.0, wait=waits.append)(x)
    assert waits == [pytest.approx(expected_s)]
    assert outputs["y"] is x


def test_it_says_that_it_is_emulated() -> None:
    """Platform, description and reports call it emulated."""
    declaration = declaration_of(EmulatedDevice)
    assert declaration is not None
    assert declaration.spec.platform == "emulated"
    assert declaration.spec.description.startswith("emulated")
    assert describe(20, 0.5) == "emulated: a batch takes 20 ms and 0.5 ms for each row"
