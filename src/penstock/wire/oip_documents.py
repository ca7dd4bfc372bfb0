"""Open Inference Protocol v2 over HTTP: every document but inference itself, as JSON bytes.

Health, server and model metadata, model configuration, statistics, repository index. Configuration and statistics
have the fields of Triton's, because tritonclient and perf_analyzer read those; what has no meaning here is left out.
Not here: inference (`oip.py`), which model is ready (`gateway/`), how statistics add up (`core/statistics.py`).
Source: Open Inference Protocol v2; Triton's extensions model configuration, statistics and model repository.
"""

from typing import Any

import msgspec

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.statistics import BatchStatistics, ModelStatistics
from penstock.core.tensors import TensorSpec
from penstock.wire.control import ModelEntry
from penstock.wire.oip import PRIORITY_MAX

__all__ = [
    "EXTENSIONS",
    "decode_repository_index_request",
    "encode_health_live",
    "encode_health_ready",
    "encode_model_config",
    "encode_model_metadata",
    "encode_model_ready",
    "encode_model_statistics",
    "encode_repository_index",
    "encode_server_metadata",
]

# What is whole here, in Triton's order. Not `model_repository`: its index is served, its load and unload are not.
EXTENSIONS = ("schedule_policy", "model_configuration", "binary_tensor_data", "parameters", "statistics")

_encode_json = msgspec.json.Encoder().encode


class _IndexRequest(msgspec.Struct):
    ready: bool = False


_index_decoder = msgspec.json.Decoder(_IndexRequest)


def encode_health_live(*, live: bool) -> bytes:
    """Encode the body of `GET /v2/health/live`; clients may look at it or at the status only."""
    return _encode_json({"live": live})


def encode_health_ready(*, ready: bool) -> bytes:
    """Encode the body of `GET /v2/health/ready`; clients may look at it or at the status only."""
    return _encode_json({"ready": ready})


def encode_model_ready(name: str, *, ready: bool) -> bytes:
    """Encode the body of `GET /v2/models/{name}/ready`."""
    return _encode_json({"name": name, "ready": ready})


def encode_server_metadata(version: str) -> bytes:
    """Encode the body of `GET /v2`. `version` is the server's."""
    return _encode_json({"name": "penstock", "version": version, "extensions": EXTENSIONS})


def encode_model_metadata(spec: ModelSpec, versions: list[str]) -> bytes:
    """Encode the body of `GET /v2/models/{name}`. `versions` are those that can be asked for."""
    return _encode_json(
        {
            "name": spec.name,
            "versions": versions,
            "platform": spec.platform,
            "inputs": [_describe_tensor(t) for t in spec.inputs],
            "outputs": [_describe_tensor(t) for t in spec.outputs],
        }
    )


def _describe_tensor(tensor: TensorSpec) -> dict[str, Any]:
    described = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    # The protocol has no word for it; a client that builds a request from this document needs to know.
    return described | {"optional": True} if tensor.optional else described


def encode_model_config(spec: ModelSpec, *, replica_count: int = 1) -> bytes:
    """Encode the body of `GET /v2/models/{name}/config`: Triton's ModelConfig.

    Dimensions are without the batch dimension if the model is batched; `max_batch_size` is 0 if it is not.

    Args:
        spec: The model's.
        replica_count: How many replicas it has now.
    """
    batched = spec.is_batched
    config: dict[str, Any] = {
        "name": spec.name,
        "platform": spec.platform,
        "backend": spec.platform.rpartition("_")[2],  # `onnx_onnxruntime` is ONNX run by onnxruntime
        "version_policy": {"specific": {"versions": [int(spec.version)]}},
        "max_batch_size": spec.batching.size_max if batched else 0,
        "input": [
            _configure_tensor(t, batched=batched)
            | {"format": "FORMAT_NONE", "allow_ragged_batch": False, "optional": t.optional}
            for t in spec.inputs
        ],
        "output": [_configure_tensor(t, batched=batched) | {"label_filename": ""} for t in spec.outputs],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [{"name": spec.name, "kind": "KIND_AUTO", "count": replica_count, "gpus": []}],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": _scheduling_parameters(spec),
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
    }
    if batched:
        config["dynamic_batching"] = _configure_batching(spec)
    return _encode_json(config)


def _configure_batching(spec: ModelSpec) -> dict[str, Any]:
    batching = spec.batching
    by_delay = batching.policy == "size_or_timeout"  # no other policy has a fixed delay to tell
    return {
        "preferred_batch_size": [batching.size_max],
        **({"max_queue_delay_microseconds": batching.wait_us_max} if by_delay else {}),
        "preserve_ordering": False,
        "priority_levels": PRIORITY_MAX,
        "default_priority_level": 1,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": spec.slo_us or spec.timeout_us,
            "allow_timeout_override": True,
            "max_queue_size": spec.queue.requests_max,
        },
    }


def _scheduling_parameters(spec: ModelSpec) -> dict[str, Any]:
    """What Triton has no field for, by the names it has in configuration. Not the weights: they name tenants."""
    batching = spec.batching
    told = {"batching.policy": batching.policy, "batching.mode": batching.mode}
    if batching.policy == "size_or_timeout":
        told["batching.eager"] = "true" if batching.eager else "false"
    if spec.slo_us:
        told["slo_ms"] = f"{spec.slo_us / 1_000:.12g}"
    told["timeout_ms"] = f"{spec.timeout_us / 1_000:.12g}"
    return {key: {"string_value": value} for key, value in told.items()}


def _configure_tensor(tensor: TensorSpec, *, batched: bool) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}",
        "dims": tensor.shape[1:] if batched else tensor.shape,
        "is_shape_tensor": False,
    }


def encode_model_statistics(entries: list[tuple[str, str, ModelStatistics]]) -> bytes:
    """Encode the body of `GET /v2/models/stats` and of one model's.

    Args:
        entries: Name, version and counts of each model version asked for. Durations turn from µs into ns.
    """
    return _encode_json({"model_stats": [_describe_statistics(*entry) for entry in entries]})


def _describe_statistics(name: str, version: str, statistics: ModelStatistics) -> dict[str, Any]:
    success = statistics.success
    return {
        "name": name,
        "version": version,
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {
            "success": _duration(success, statistics.success_us),
            "fail": _duration(sum(statistics.failures.values()), statistics.failure_us),
            "queue": _duration(success, statistics.queue_us),
            "compute_input": _duration(success, statistics.input_us),
            "compute_infer": _duration(success, statistics.execute_us),
            "compute_output": _duration(success, statistics.output_us),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "batch_stats": [_describe_batches(size, counts) for size, counts in sorted(statistics.batches.items())],
        "memory_usage": [],
    }


def _describe_batches(size: int, batches: BatchStatistics) -> dict[str, Any]:
    return {
        "batch_size": size,
        "compute_input": _duration(batches.count, batches.input_us),
        "compute_infer": _duration(batches.count, batches.execute_us),
        "compute_output": _duration(batches.count, batches.output_us),
    }


def _duration(count: int, total_us: int) -> dict[str, int]:
    return {"count": count, "ns": total_us * 1_000}


def encode_repository_index(entries: list[ModelEntry], *, ready_only: bool) -> bytes:
    """Encode the body of `POST /v2/repository/index`: every model version known, or only those that are ready."""
    return _encode_json(
        [
            {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
            for e in entries
            if e.state == "READY" or not ready_only
        ]
    )


def decode_repository_index_request(body: bytes) -> bool:
    """Decode the body of `POST /v2/repository/index`; return whether only ready models are asked for.

    An empty body asks for all.

    Raises:
        InvalidInput: Not `{"ready": true}` or `{"ready": false}`.
    """
    if not body:
        return False
    try:
        return _index_decoder.decode(body).ready
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"repository index request: {error}") from error
