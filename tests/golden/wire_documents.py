"""The wire's documents for one made-up server; `python -m tests.golden.wire_documents` rewrites the reviewed files.

Each file in tests/golden/wire holds one document, indented for reading; the wire carries the same without spaces.
Not here: the comparison (`test_wire_documents.py`).
"""

import json
import struct
from pathlib import Path

from penstock.core.models import Batching, ModelSpec
from penstock.core.statistics import BatchStatistics, ModelStatistics
from penstock.core.tensors import TensorSpec
from penstock.wire import oip_documents, openai
from penstock.wire.control import ModelEntry
from penstock.wire.oip import InferenceCodec, encode_error
from penstock.wire.oip_outputs import OutputTensor

__all__ = ["REFRESH", "directory", "render", "wire_documents"]

REFRESH = ".venv/bin/python -m tests.golden.wire_documents"

DIGITS = ModelSpec(
    name="digits",
    inputs=(TensorSpec("pixels", "FP32", (-1, 64)), TensorSpec("hint", "BYTES", (-1, 1), optional=True)),
    outputs=(TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 10))),
    version="3",
    platform="onnx_onnxruntime",
    batching=Batching(size_max=32, wait_us_max=2_000),
)
STATISTICS = ModelStatistics(
    success=9,
    success_us=9_000,
    failures={"REJECTED": 1, "CANCELED": 2},
    failure_us=300,
    queue_us=900,
    input_us=90,
    execute_us=4_500,
    output_us=45,
    inference_count=12,
    execution_count=3,
    last_inference_ms=1_700_000_000_000,
    batches={8: BatchStatistics(1, 30, 1_500, 15), 2: BatchStatistics(2, 60, 3_000, 30)},
)
INDEX = [
    ModelEntry("digits", "3", "READY", "", DIGITS, ("unix:r-0.sock",)),
    ModelEntry("broken", "1", "UNAVAILABLE", "no such file: broken.onnx", None, ()),
]


def inference_answers() -> dict[str, bytes]:
    """Return answers to one request of two rows in a batch of three: JSON, and the JSON part of binary."""
    codec = InferenceCodec(DIGITS)
    x = {"name": "pixels", "shape": [2, 64], "datatype": "FP32", "data": [0] * 128}
    outputs = [
        OutputTensor("label", "INT64", (), memoryview(struct.pack("<3q", 7, 8, 9))),
        OutputTensor("probabilities", "FP32", (10,), memoryview(struct.pack("<30f", *[i / 8 for i in range(30)]))),
    ]
    answers = {}
    for name, members in (
        ("infer", {"id": "42"}),
        ("infer_binary", {"parameters": {"binary_data_output": True}}),
        ("infer_chosen", {"outputs": [{"name": "label"}]}),
    ):
        request = codec.decode(json.dumps({"inputs": [x], **members}).encode(), None)
        body, json_bytes = codec.encode(request, outputs, [None, None], 1, 2)
        answers[name] = body[:json_bytes]
    return answers


def wire_documents() -> dict[str, bytes]:
    """Return each document as the wire carries it, by the name of its file."""
    embeddings = [memoryview(struct.pack("<2f", 0.5, -1.0)), memoryview(struct.pack("<2f", 0.25, 0.0))]
    return {
        "server_metadata": oip_documents.encode_server_metadata("0.1.0"),
        "health_live": oip_documents.encode_health_live(live=True),
        "health_ready": oip_documents.encode_health_ready(ready=False),
        "model_ready": oip_documents.encode_model_ready("digits", ready=True),
        "model_metadata": oip_documents.encode_model_metadata(DIGITS, ["2", "3"]),
        "model_config": oip_documents.encode_model_config(DIGITS, replica_count=2),
        "model_statistics": oip_documents.encode_model_statistics([("digits", "3", STATISTICS)]),
        "repository_index": oip_documents.encode_repository_index(INDEX, ready_only=False),
        "error": encode_error("model 'digits': no version '9'"),
        **inference_answers(),
        "embeddings": openai.encode_embeddings_response("minilm", embeddings, as_base64=False, prompt_tokens=8),
        "embeddings_base64": openai.encode_embeddings_response("minilm", embeddings, as_base64=True, prompt_tokens=8),
        "openai_models": openai.encode_models(["digits", "minilm"], 1_700_000_000),
        "openai_model": openai.encode_model("minilm", 1_700_000_000),
        "openai_error": openai.encode_openai_error("no such model", 404, param="model", code="model_not_found"),
    }


def render(document: bytes) -> str:
    """Indent a document for reading, members in the order of the wire."""
    return json.dumps(json.loads(document), indent=2, ensure_ascii=False) + "\n"


def directory() -> Path:
    """Return where the reviewed files lie."""
    return Path(__file__).parent / "wire"


if __name__ == "__main__":
    directory().mkdir(exist_ok=True)
    for stale in directory().glob("*.json"):
        stale.unlink()
    for name, document in wire_documents().items():
        (directory() / f"{name}.json").write_text(render(document))
