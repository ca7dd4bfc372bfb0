"""The model that drills serve: an emulated device. A batch waits beta_ms + alpha_ms * rows and computes nothing.

Loaded by path, as a user's model is. So every number of a drill is of scheduling, and says nothing of any hardware.
"""

import select
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

import penstock

__all__ = ["EmulatedDevice", "describe"]

Column = npt.NDArray[np.float32]


def describe(beta_ms: float, alpha_ms: float) -> str:
    """Return the device in words, for reports."""
    return f"emulated: a batch takes {beta_ms:g} ms and {alpha_ms:g} ms for each row"


def wait_s(duration_s: float) -> None:
    """Wait as a device would keep its host waiting: to the microsecond, using no CPU time."""
    select.select((), (), (), duration_s)


@penstock.model(
    inputs=[penstock.Tensor("x", "FP32", (-1, 1))],
    outputs=[penstock.Tensor("y", "FP32", (-1, 1))],
    name="device",
    size_max=32,
    platform="emulated",
    description="emulated device: a batch takes beta_ms + alpha_ms * rows and computes nothing; y is x",
)
class EmulatedDevice:
    """A device whose only property is how long a batch takes.

    Args:
        beta_ms: What every batch costs, ms, >= 0.
        alpha_ms: What every row adds, ms, >= 0.
        wait: Waits so many seconds.
    """

    def __init__(self, *, beta_ms: float, alpha_ms: float, wait: Callable[[float], None] = wait_s) -> None:
        self._beta_ms = beta_ms
        self._alpha_ms = alpha_ms
        self._wait = wait

    def __call__(self, x: Column) -> dict[str, Column]:
        """Wait as long as the device would be busy, then return `x`, float32, shape (batch, 1), as `y`."""
        self._wait((self._beta_ms + self._alpha_ms * len(x)) / 1_000)
        return {"y": x}
