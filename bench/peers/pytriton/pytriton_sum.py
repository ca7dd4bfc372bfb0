"""The row-sum model on PyTriton. Usage: pytriton_sum.py HTTP_PORT GRPC_PORT METRICS_PORT WORKSPACE."""

import sys
from pathlib import Path

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def row_sum(x):
    """Return `y`, float32, shape (batch, 1), for `x`, float32, shape (batch, 8)."""
    return {"y": x.sum(axis=1, keepdims=True)}


if __name__ == "__main__":
    http, grpc, metrics = (int(port) for port in sys.argv[1:4])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http,
        grpc_address="127.0.0.1",
        grpc_port=grpc,
        metrics_address="127.0.0.1",
        metrics_port=metrics,
    )
    with Triton(config=config, workspace=Path(sys.argv[4])) as triton:
        triton.bind(
            model_name="sum",
            infer_func=[row_sum, row_sum],
            inputs=[Tensor(name="x", dtype=np.float32, shape=(8,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(1,))],
            config=ModelConfig(max_batch_size=128, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            strict=False,
        )
        triton.serve()
