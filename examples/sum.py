"""The smallest model there is: the sum of eight numbers. Benchmarks of everything but the model run against it."""

import numpy as np
import numpy.typing as npt

import penstock


@penstock.model(
    inputs=[penstock.Tensor("x", "FP32", (-1, 8))],
    outputs=[penstock.Tensor("y", "FP32", (-1, 1))],
    size_max=256,
    description="y is the sum of the eight numbers in x",
)
class Sum:
    """Sums each row of `x`."""

    def __call__(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32, shape (batch, 1): the row sums of `x`, float32, shape (batch, 8)."""
        return np.add.reduce(x, axis=1, keepdims=True)
