"""The emulated device."""

import math
from typing import Any

import numpy as np
import pytest

from examples.emulated import Emulated
from penstock.core.models import declaration_of


@pytest.mark.parametrize(
    ("beta_ms", "alpha_ms", "rows", "want_ms"), [(5.0, 0.1, 1, 5.1), (5, 0.5, 32, 21), (0, 0, 3, 0)]
)
def test_a_batch_takes_beta_plus_alpha_rows(beta_ms: float, alpha_ms: float, rows: int, want_ms: float) -> None:
    """One sleep of beta + alpha * rows ms for each batch; every row reports it; `y` is `x`."""
    slept_s: list[float] = []
    x = np.arange(rows, dtype=np.float32).reshape(-1, 1)
    result = Emulated(beta_ms=beta_ms, alpha_ms=alpha_ms, sleep=slept_s.append)(x=x)
    assert slept_s == [pytest.approx(want_ms / 1_000)]
    np.testing.assert_array_equal(result["y"], x)
    np.testing.assert_allclose(result["emulated_device_ms"], np.full((rows, 1), want_ms), rtol=1e-6)
    assert {r.dtype for r in result.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("option", ["beta_ms", "alpha_ms"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "5", True, None])
def test_bad_options_are_refused_by_name(option: str, value: Any) -> None:
    """A duration that is not a finite number >= 0 is refused, naming the option and what was got."""
    with pytest.raises(ValueError, match=f"{option}: expected a finite number of milliseconds >= 0, got "):
        Emulated(**{option: value})


def test_says_emulated_wherever_its_numbers_appear() -> None:
    """Name, platform, description and the name of the reported time all say emulated."""
    declaration = declaration_of(Emulated)
    assert declaration is not None
    spec = declaration.spec
    times = [t.name for t in spec.outputs if t.name.endswith("_ms")]
    assert times
    assert all("emulated" in said for said in (spec.name, spec.platform, spec.description, *times))
