"""The row-sum model on MLServer; `model-settings.json` beside it names this class."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class RowSum(MLModel):
    """Sums the rows of each request."""

    async def load(self) -> bool:
        """Load nothing: the model has no weights."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer `y`, float32, shape (n, 1), for `x`, float32, shape (n, 8)."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = x.sum(axis=1, keepdims=True)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
