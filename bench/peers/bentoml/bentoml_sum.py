"""The row-sum model on BentoML. Usage: bentoml serve bentoml_sum:RowSum."""

import bentoml
import numpy as np


@bentoml.service(
    workers=2,
    traffic={"timeout": 30},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class RowSum:
    """Sums rows; BentoML's dispatcher concatenates requests along the first axis."""

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return shape (batch, 1) for `x` of shape (batch, 8)."""
        y: np.ndarray = x.astype(np.float32).sum(axis=1, keepdims=True)
        return y
