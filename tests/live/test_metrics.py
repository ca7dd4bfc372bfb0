"""What the server counts equals what was sent, however many gateways shared it; and each answer tells its time."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.core.profiles import profiled_sizes
from tests.live.hazardous import RAISE
from tests.live.serving import PENSTOCK, Answer, Caller, Server, infer_body, open_server, wait_until

pytestmark = pytest.mark.live

HAZARDOUS = Path(__file__).with_name("hazardous.py")
CONNECTIONS = 16
REQUESTS, ROWS, INVALID, FAILED = 40, 3, 7, 5
TIMING = re.compile(
    r"^(queue;dur=\d+\.\d{3}, execute;dur=\d+\.\d{3}, batch;desc=\"\d+ rows, \w+\", )?total;dur=\d+\.\d{3}$"
)


@pytest.fixture(scope="module", params=[1, 2], ids=["one-gateway", "two-gateways"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that has answered a known number of `hazardous` requests, spread over all its gateways."""
    with open_server(HAZARDOUS, "--gateways", str(request.param)) as opened:
        with ExitStack() as stack:
            callers = [stack.enter_context(opened.caller()) for _ in range(CONNECTIONS)]
            send_known_requests(callers)
        wait_until(lambda: opened.metrics().value("nv_inference_request_success") == REQUESTS, "counted")
        wait_until(lambda: failures(opened) == INVALID + FAILED, "counted")
        yield opened


def send_known_requests(callers: list[Caller]) -> None:
    """Send right, malformed and failing requests in turn over all connections, each after the answer to the last."""
    right = infer_body("x", "FP32", [[1.0]] * ROWS)
    bodies = [right] * REQUESTS
    bodies += [infer_body("x", "INT64", [[1]])] * INVALID
    bodies += [infer_body("x", "FP32", [[RAISE]])] * FAILED
    statuses = [callers[k % CONNECTIONS].infer("hazardous", body).status for k, body in enumerate(bodies)]
    assert statuses == [200] * REQUESTS + [400] * INVALID + [500] * FAILED


def failures(server: Server) -> float:
    """Return how many failed requests the metrics show."""
    return server.metrics().value("nv_inference_request_failure", model="hazardous")


def test_triton_counters(server: Server) -> None:
    """Triton's counters count requests, rows, executions and failures by reason."""
    metrics = server.metrics()

    def value(name: str, **labels: str) -> float:
        return metrics.value(name, model="hazardous", version="1", **labels)

    assert value("nv_inference_request_success") == REQUESTS
    assert value("nv_inference_request_failure", reason="OTHER") == INVALID
    assert value("nv_inference_request_failure", reason="BACKEND") == FAILED
    assert value("nv_inference_request_failure", reason="REJECTED") == 0
    # One request was in flight at a time, so each of those that reached a replica was a batch of its own.
    assert value("nv_inference_exec_count") == REQUESTS + FAILED
    assert value("nv_inference_count") == REQUESTS * ROWS + FAILED
    assert value("nv_inference_request_duration_us") > value("nv_inference_compute_infer_duration_us") > 0
    assert value("nv_inference_pending_request_count") == 0


def test_own_histograms(server: Server) -> None:
    """Each step of a request's life, the queue and the batches were observed once for each request or batch."""
    metrics = server.metrics()
    reached = REQUESTS + FAILED
    for step in ("decode", "queue", "dispatch", "execute", "reply"):
        assert metrics.value("penstock_step_seconds_count", model="hazardous", step=step) == reached, step
    assert metrics.value("penstock_queue_wait_seconds_count", model="hazardous") == reached
    assert metrics.value("penstock_queue_wait_seconds_bucket", model="hazardous", le="+Inf") == reached
    assert metrics.value("penstock_batch_rows_count", model="hazardous") == reached
    assert metrics.value("penstock_batch_rows_sum", model="hazardous") == REQUESTS * ROWS + FAILED
    assert metrics.value("penstock_batch_closes_total", model="hazardous") == reached
    assert metrics.value("penstock_tenant_requests_total", model="hazardous", tenant="") == reached
    assert metrics.value("penstock_refusals_total", model="hazardous", reason="invalid") == INVALID


def test_http_counters(server: Server) -> None:
    """Responses are counted by status, parses one for each, connections as they come and go."""
    metrics = server.metrics()
    counted = {code: metrics.value("penstock_http_responses_total", code=str(code)) for code in (200, 400, 500)}
    assert counted == {200: REQUESTS, 400: INVALID, 500: FAILED}
    assert metrics.value("penstock_parse_seconds_count") == sum(counted.values())
    assert metrics.value("penstock_connections_accepted_total") == CONNECTIONS
    wait_until(lambda: server.metrics().value("penstock_connections") == 0, "all gone")


def test_statistics_are_the_same_counts(server: Server) -> None:
    """`/v2/models/stats`, whichever gateway is asked, agrees with the metrics."""
    for _ in range(4):
        with server.caller() as caller:
            (stats,) = caller.call("GET", "/v2/models/stats").json()["model_stats"]
            same = caller.call("GET", "/v2/models/hazardous/versions/1/stats").json()["model_stats"]
        assert same == [stats]
        assert (stats["name"], stats["version"]) == ("hazardous", "1")
        assert stats["inference_count"] == REQUESTS * ROWS + FAILED
        assert stats["execution_count"] == REQUESTS + FAILED
        assert stats["inference_stats"]["success"]["count"] == REQUESTS
        assert stats["inference_stats"]["fail"]["count"] == INVALID + FAILED
        assert stats["inference_stats"]["compute_infer"]["ns"] > 0
        assert {b["batch_size"]: b["compute_infer"]["count"] for b in stats["batch_stats"]} == {
            1: FAILED,
            ROWS: REQUESTS,
        }


def test_status_tells_the_same(server: Server) -> None:
    """`/api/status` shows the same totals for people."""
    statistics = server.model("hazardous")["statistics"]
    assert statistics["requests"] == REQUESTS + INVALID + FAILED
    assert statistics["failures"] == INVALID + FAILED
    assert statistics["pending"] == 0


def test_models_says_what_batches_cost(quickstart: Server) -> None:
    """`penstock models show` reads the profile that a replica measured: no batch is faster than its device sleeps."""
    command = [str(PENSTOCK), "models", "show", "emulated", "--json", "--url", quickstart.admin]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    profile = shown["profile"][""]
    assert profile["rows"] == list(profiled_sizes(64))
    assert all(t >= 5_000 + 100 * rows for rows, t in zip(profile["rows"], profile["times_us"], strict=True))
    assert quickstart.metrics().value("penstock_batch_cost_seconds", model="emulated", rows="1") >= 0.0051


def timing_of(answer: Answer) -> dict[str, float]:
    """Return the durations in `Server-Timing`, ms; fail unless it has the documented form."""
    timing = answer.headers["server-timing"]
    assert TIMING.match(timing), timing
    return {part.split(";")[0]: float(part.partition("dur=")[2] or 0) for part in timing.split(", ") if "dur=" in part}


def test_every_inference_response_tells_its_time(server: Server) -> None:
    """Server-Timing is on answers, on errors of the caller and of the model, with parts that fit in the total."""
    with server.caller() as caller:
        answer = caller.infer("hazardous", infer_body("x", "FP32", [[-0.05]]))
        assert answer.status == 200
        timing = timing_of(answer)
        assert timing["execute"] >= 50
        assert timing["queue"] + timing["execute"] <= timing["total"]
        for body, status in (
            (b"{", 400),
            (infer_body("y", "FP32", [[1]]), 400),
            (infer_body("x", "FP32", [[1, 2]]), 400),
            (infer_body("x", "FP32", [[RAISE]]), 500),
            (infer_body("x", "FP32", [[-0.3]], parameters={"timeout": 1}), 504),
        ):
            answer = caller.infer("hazardous", body)
            assert answer.status == status
            assert timing_of(answer)["total"] >= 0


def test_embeddings_tell_their_time(quickstart: Server) -> None:
    """OpenAI's route is an inference too."""
    with quickstart.caller() as caller:
        answer = caller.call("POST", "/v1/embeddings", b'{"model": "minilm", "input": "hello"}')
        assert answer.status == 200
        assert timing_of(answer)["total"] > 0


def test_a_scrape_is_prometheus_text(quickstart: Server) -> None:
    """Every sample belongs to a family that was announced before it, and no sample is given twice."""
    announced: set[str] = set()
    seen: set[str] = set()
    for line in quickstart.get_admin("/metrics").decode().splitlines():
        if line.startswith("# TYPE "):
            announced.add(line.split()[2])
        elif not line.startswith("#"):
            sample = line.rpartition(" ")[0]
            name = sample.partition("{")[0]
            assert announced & {
                name,
                name.removesuffix("_bucket"),
                name.removesuffix("_sum"),
                name.removesuffix("_count"),
            }
            assert sample not in seen
            seen.add(sample)
    assert {m["name"] for m in quickstart.status()["models"]} == {"digits", "minilm", "sum", "emulated"}
