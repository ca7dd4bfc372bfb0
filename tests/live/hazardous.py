"""A model for live tests: doubles `x`, unless `x` asks for one of the ways in which a model can fail."""

import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import penstock

__all__ = ["DIE", "HANG", "RAISE", "WRONG_DTYPE", "WRONG_SHAPE", "Hazardous"]

DIE, HANG, RAISE, WRONG_DTYPE, WRONG_SHAPE = 10_001.0, 10_002.0, 10_003.0, 10_004.0, 10_005.0
HANG_S = 3_600.0

Float32 = npt.NDArray[np.float32]


def wait_out(duration_s: float) -> None:
    """Take that long, without using the processor."""
    if duration_s > 0:
        time.sleep(duration_s)


@penstock.model(
    name="hazardous",
    inputs=[penstock.Tensor("x", "FP32", (-1, 1))],
    outputs=[penstock.Tensor("y", "FP32", (-1, 1))],
    size_max=16,
)
class Hazardous:
    """See the module. A negative `x` takes `-x` seconds; every batch takes `pause_ms`.

    With a `journal` each batch's values are written to that file before they are run, one per line.
    """

    def __init__(self, journal: str = "", pause_ms: float = 0.0) -> None:
        self._journal = Path(journal) if journal else None
        self._pause_s = pause_ms / 1_000

    def __call__(self, x: Float32) -> npt.NDArray[np.floating]:
        """Return float32, shape (batch, 1), for float32 of that shape."""
        if self._journal is not None:
            with self._journal.open("a") as journal:
                journal.writelines(f"{value:g}\n" for value in x[:, 0])
        if (x == DIE).any():
            os._exit(3)
        if (x == HANG).any():
            wait_out(HANG_S)
        if (x == RAISE).any():
            raise RuntimeError("asked to raise")
        wait_out(max(self._pause_s, -float(x.min())))
        if (x == WRONG_DTYPE).any():
            return x.astype(np.float64)
        if (x == WRONG_SHAPE).any():
            return x.repeat(2, axis=1)
        return x * np.float32(2)
