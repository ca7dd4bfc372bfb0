"""The protocol's documents where they decide something; their whole text is in tests/golden."""

import json

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.models import Batching, ModelSpec
from penstock.core.statistics import BatchStatistics, ModelStatistics
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.wire.control import ModelEntry
from penstock.wire.oip_documents import (
    decode_repository_index_request,
    encode_model_config,
    encode_model_statistics,
    encode_repository_index,
    encode_server_metadata,
)

# Triton's names (model_config.proto, enum DataType); BYTES is the one that differs.
TYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]


@pytest.mark.parametrize(
    ("body", "ready"), [(b"", False), (b"{}", False), (b'{"ready":true}', True), (b'{"x":1}', False)]
)
def test_an_index_request_asks_for_all_unless_it_says_ready(body: bytes, ready: bool) -> None:
    """Only `ready: true` narrows the index."""
    assert decode_repository_index_request(body) is ready


@pytest.mark.parametrize("body", [b"[]", b'{"ready":1}', b"{", b"\xff", b'{"x":' + b"[" * 100_000])
def test_other_index_requests_are_refused(body: bytes) -> None:
    """A body that is no index request is the caller's mistake."""
    with pytest.raises(InvalidInput, match="repository index request: "):
        decode_repository_index_request(body)


def test_the_index_shows_what_is_not_ready_with_its_reason() -> None:
    """Every version is listed with state and reason; `ready_only` leaves the rest out."""
    entries = [
        ModelEntry("a", "1", "READY", "", None, ()),
        ModelEntry("b", "1", "LOADING", "", None, ()),
        ModelEntry("c", "2", "UNAVAILABLE", "no such file", None, ()),
    ]
    everything = json.loads(encode_repository_index(entries, ready_only=False))
    assert [e["state"] for e in everything] == ["READY", "LOADING", "UNAVAILABLE"]
    assert everything[2] == {"name": "c", "version": "2", "state": "UNAVAILABLE", "reason": "no such file"}
    assert json.loads(encode_repository_index(entries, ready_only=True)) == everything[:1]


def test_a_batched_model_has_dimensions_without_the_batch() -> None:
    """`max_batch_size` stands for the first dimension of a batched model, and for nothing in another."""
    batched = ModelSpec("m", (TensorSpec("x", "FP32", (-1, 8)),), (TensorSpec("y", "FP32", (-1,)),))
    config = json.loads(encode_model_config(batched))
    assert (config["max_batch_size"], config["input"][0]["dims"], config["output"][0]["dims"]) == (32, [8], [])
    whole = ModelSpec("m", (TensorSpec("x", "FP32", (3, -1)),), (TensorSpec("y", "FP32", (-1,)),))
    config = json.loads(encode_model_config(whole))
    assert (config["max_batch_size"], config["input"][0]["dims"], config["output"][0]["dims"]) == (0, [3, -1], [-1])
    assert "dynamic_batching" not in config


def test_the_configuration_says_how_batches_form() -> None:
    """Batching, deadline, queue bound and replicas of the spec appear in Triton's terms and units."""
    tensor = TensorSpec("x", "FP32", (-1, 8))
    batching = Batching("size_or_timeout", size_max=16, wait_us_max=500)
    spec = ModelSpec("m", (tensor,), (tensor,), platform="onnx_onnxruntime", batching=batching)
    config = json.loads(encode_model_config(spec, replica_count=3))
    assert config["dynamic_batching"]["preferred_batch_size"] == [16]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 500
    assert config["dynamic_batching"]["default_queue_policy"]["default_timeout_microseconds"] == 30_000_000
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 8_192
    assert config["instance_group"][0]["count"] == 3
    assert (config["platform"], config["backend"]) == ("onnx_onnxruntime", "onnxruntime")


@pytest.mark.parametrize(
    ("batching", "told", "delay_us"),
    [
        (Batching(), {"batching.policy": "deadline", "batching.mode": "latency"}, None),
        (Batching(mode="fair"), {"batching.policy": "deadline", "batching.mode": "fair"}, None),
        (Batching("adaptive"), {"batching.policy": "adaptive", "batching.mode": "latency"}, None),
        (
            Batching("size_or_timeout", wait_us_max=7, eager=False),
            {"batching.policy": "size_or_timeout", "batching.mode": "latency", "batching.eager": "false"},
            7,
        ),
    ],
)
def test_the_configuration_says_which_policy_is_in_force(
    batching: Batching, told: dict[str, str], delay_us: int | None
) -> None:
    """Only what the policy in force uses is told, a fixed delay and eagerness by one alone; and never the tenants."""
    tensor = TensorSpec("x", "FP32", (-1, 8))
    spec = ModelSpec("m", (tensor,), (tensor,), batching=batching, slo_us=12_500, weights=(("secret", 2.0),))
    config = json.loads(encode_model_config(spec))
    expected = {**told, "slo_ms": "12.5", "timeout_ms": "30000"}
    assert {key: value["string_value"] for key, value in config["parameters"].items()} == expected
    assert config["dynamic_batching"].get("max_queue_delay_microseconds") == delay_us
    assert config["dynamic_batching"]["default_queue_policy"]["default_timeout_microseconds"] == 12_500
    assert "secret" not in json.dumps(config)


def test_datatypes_have_tritons_names() -> None:
    """Every datatype is `TYPE_` and its name, but BYTES, which is a string."""
    inputs = tuple(TensorSpec(name, name, (-1,)) for name in DATATYPES)
    config = json.loads(encode_model_config(ModelSpec("m", inputs, inputs)))
    assert {t["name"]: t["data_type"] for t in config["input"]} == {n: f"TYPE_{n}" for n in TYPES} | {
        "BYTES": "TYPE_STRING"
    }


def test_statistics_are_in_nanoseconds() -> None:
    """Microseconds turn into nanoseconds, failures of all reasons add up, batch sizes come in order."""
    statistics = ModelStatistics(
        success=2,
        success_us=7,
        failures={"REJECTED": 1, "BACKEND": 2},
        failure_us=9,
        queue_us=3,
        batches={8: BatchStatistics(1, 2, 3, 4), 1: BatchStatistics(5, 6, 7, 8)},
    )
    (found,) = json.loads(encode_model_statistics([("m", "1", statistics)]))["model_stats"]
    assert found["inference_stats"]["success"] == {"count": 2, "ns": 7_000}
    assert found["inference_stats"]["fail"] == {"count": 3, "ns": 9_000}
    assert found["inference_stats"]["queue"] == {"count": 2, "ns": 3_000}
    assert [b["batch_size"] for b in found["batch_stats"]] == [1, 8]
    assert found["batch_stats"][1]["compute_infer"] == {"count": 1, "ns": 3_000}


def test_only_what_is_whole_is_claimed() -> None:
    """Shared memory, sequences, tracing, and a repository that can load are not claimed."""
    claimed = set(json.loads(encode_server_metadata("1"))["extensions"])
    assert claimed == {"schedule_policy", "model_configuration", "binary_tensor_data", "parameters", "statistics"}
