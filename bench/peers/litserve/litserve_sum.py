"""The row-sum model on LitServe. Usage: litserve_sum.py PORT."""

import sys

import litserve
import numpy as np


class RowSum(litserve.LitAPI):
    """Sums one row of eight numbers per request; LitServe gathers requests into batches."""

    def setup(self, device):
        """Load nothing: the model has no weights."""

    def decode_request(self, request):
        """Return float32, shape (8,)."""
        return np.asarray(request["x"], dtype=np.float32)

    def batch(self, inputs):
        """Return float32, shape (batch, 8)."""
        return np.stack(inputs)

    def predict(self, x):
        """Return float32, shape (batch, 1)."""
        return x.sum(axis=-1, keepdims=True)

    def unbatch(self, output):
        """Give each request its own row."""
        return list(output)

    def encode_response(self, output):
        """Return what becomes the JSON answer."""
        return {"y": output.tolist()}


if __name__ == "__main__":
    api = RowSum(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=2,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
