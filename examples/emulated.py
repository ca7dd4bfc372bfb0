"""An emulated device: a batch takes beta_ms + alpha_ms * rows, asleep, so scheduling can be studied without a GPU.

Every number it yields is named or described as emulated. It computes nothing: `y` is `x`.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

import penstock

Column = npt.NDArray[np.float32]


@penstock.model(
    inputs=[penstock.Tensor("x", "FP32", (-1, 1))],
    outputs=[penstock.Tensor("y", "FP32", (-1, 1)), penstock.Tensor("emulated_device_ms", "FP32", (-1, 1))],
    size_max=64,
    platform="emulated",
    description="emulated device: a batch sleeps beta_ms + alpha_ms * rows and computes nothing; y is x",
)
class Emulated:
    """A device whose only property is how long a batch takes.

    Args:
        beta_ms: What every batch costs, ms, >= 0.
        alpha_ms: What every row adds, ms, >= 0.
        sleep: Waits that many seconds; for tests.

    Raises:
        ValueError: An option is not a finite number >= 0. Fix the model's `options`.
    """

    def __init__(
        self, *, beta_ms: float = 5.0, alpha_ms: float = 0.1, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        for name, value in (("beta_ms", beta_ms), ("alpha_ms", alpha_ms)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}: expected a finite number of milliseconds >= 0, got {value!r}")
        self._beta_ms = beta_ms
        self._alpha_ms = alpha_ms
        self._sleep = sleep

    def __call__(self, x: Column) -> dict[str, Column]:
        """Sleep as long as the device would be busy, then return `x` as `y` beside the emulated time.

        Args:
            x: float32, shape (batch, 1).

        Returns:
            `y` and `emulated_device_ms`, both float32, shape (batch, 1). The time is the whole batch's, in every row.
        """
        device_ms = self._beta_ms + self._alpha_ms * len(x)
        self._sleep(device_ms / 1_000)
        return {"y": x, "emulated_device_ms": np.full((len(x), 1), device_ms, np.float32)}
