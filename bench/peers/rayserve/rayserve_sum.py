"""The row-sum model on Ray Serve. Usage: rayserve_sum.py PORT TEMPORARY_DIRECTORY."""

import signal
import sys

import numpy as np
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=2, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class RowSum:
    """Sums one row of eight numbers per request; `serve.batch` gathers requests into batches."""

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)
    async def predict(self, rows: list[list[float]]) -> list[list[float]]:
        """Return one row of one number for each row of eight."""
        sums: list[list[float]] = np.asarray(rows, dtype=np.float32).sum(axis=1, keepdims=True).tolist()
        return sums

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """Answer one HTTP request."""
        body = await request.json()
        return {"y": await self.predict(body["x"])}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    application = RowSum.bind()  # type: ignore[attr-defined]  # the decorator, unseen here, adds it
    serve.run(application, name="sum", route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
