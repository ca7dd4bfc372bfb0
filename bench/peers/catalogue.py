"""The systems that are compared, each with how it is started, what is posted to it, and where its answer stands.

All serve one model: y is the sum of the eight numbers in a row of x. `README.md` says why each is configured so.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.history import ROOT

ROW = (0.25, 1.5, -2.0, 3.75, 4.5, 5.0, -6.25, 7.5)
ANSWER = 14.25  # the sum of ROW; each partial sum is exact in FP32, so the order of addition does not matter


@dataclass(frozen=True, slots=True)
class Place:
    """Where one server runs: its environment's `bin`, its files, a directory to litter, and free loopback ports."""

    bin: Path
    files: Path
    scratch: Path
    ports: tuple[int, int, int]

    @property
    def http(self) -> str:
        """Return the port that is measured, as text."""
        return str(self.ports[0])


@dataclass(frozen=True, slots=True)
class Peer:
    """One system under test.

    `answer` picks the number out of a decoded JSON answer; KeyError, IndexError or TypeError mean it is not there.
    """

    name: str
    package: str
    configuration: str
    path: str
    body: bytes
    answer: Callable[[Any], object]
    command: Callable[[Place], list[str]]
    environment: Callable[[Place], Mapping[str, str]] = lambda _: {}


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


_OIP_PATH = "/v2/models/sum/infer"
_OIP_BODY = _compact({"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": ROW}]})


def _oip_answer(document: Any) -> object:
    (output,) = (output for output in document["outputs"] if output["name"] == "y" and output["shape"] == [1, 1])
    return output["data"][0]


def _mlserver_environment(place: Place) -> dict[str, str]:
    return {
        "MLSERVER_DEBUG": "false",
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_HTTP_PORT": place.http,
        "MLSERVER_GRPC_PORT": str(place.ports[1]),
        "MLSERVER_METRICS_PORT": str(place.ports[2]),
    }


def _ray_environment(place: Place) -> dict[str, str]:
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(place.ports[1]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(place.ports[2]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


_ALL = (
    Peer(
        name="penstock",
        package="penstock",
        configuration="2 gateways, 1 replica",
        path=_OIP_PATH,
        body=_OIP_BODY,
        answer=_oip_answer,
        command=lambda place: [
            *(str(place.bin / "penstock"), "serve", str(ROOT / "examples" / "sum.py"), "--gateways", "2"),
            *("--http", f"127.0.0.1:{place.http}", "--admin", f"127.0.0.1:{place.ports[1]}"),
            *("--state", str(place.scratch / "state")),
        ],
    ),
    Peer(
        name="pytriton",
        package="nvidia-pytriton",
        configuration="2 instances, dynamic batcher 128, no queue delay",
        path=_OIP_PATH,
        body=_OIP_BODY,
        answer=_oip_answer,
        command=lambda place: [
            *(str(place.bin / "python"), str(place.files / "pytriton_sum.py")),
            *(str(port) for port in place.ports),
            str(place.scratch / "workspace"),
        ],
    ),
    Peer(
        name="rayserve",
        package="ray",
        configuration="HAProxy ingress, throughput mode, 2 replicas, batch 64 / 10 ms",
        path="/predict",
        body=_compact({"x": ROW}),
        answer=lambda document: document["y"][0],
        command=lambda place: [
            *(str(place.bin / "python"), str(place.files / "rayserve_sum.py")),
            *(place.http, str(place.scratch)),
        ],
        environment=_ray_environment,
    ),
    Peer(
        name="mlserver",
        package="mlserver",
        configuration="in-process (0 workers), no batching, httptools",
        path=_OIP_PATH,
        body=_OIP_BODY,
        answer=_oip_answer,
        command=lambda place: [str(place.bin / "mlserver"), "start", str(place.files)],
        environment=_mlserver_environment,
    ),
    Peer(
        name="bentoml",
        package="bentoml",
        configuration="2 workers, adaptive batching 64, uvloop, httptools",
        path="/predict",
        body=_compact({"x": [ROW]}),
        answer=lambda document: document[0][0],
        command=lambda place: [
            *(str(place.bin / "bentoml"), "serve", "bentoml_sum:RowSum", "--working-dir", str(place.files)),
            *("--host", "127.0.0.1", "--port", place.http),
        ],
        environment=lambda _: {"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        name="litserve",
        package="litserve",
        configuration="1 worker, 2 API servers, batch 64 / 1 ms, fast_queue",
        path="/predict",
        body=_compact({"x": ROW}),
        answer=lambda document: document["y"][0],
        command=lambda place: [str(place.bin / "python"), str(place.files / "litserve_sum.py"), place.http],
    ),
)

PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _ALL}
