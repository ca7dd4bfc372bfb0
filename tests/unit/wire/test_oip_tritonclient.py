"""tritonclient's own encoder and decoder against the inference codec, without a server between them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.wire.oip import InferenceCodec, InferenceRequest
from penstock.wire.oip_outputs import OutputTensor

ARRAYS: dict[str, npt.NDArray[Any]] = {
    "BOOL": np.array([[True, False], [False, True]]),
    **{name: np.array([[0, 1], [2, 100]], DATATYPES[name].numpy) for name in DATATYPES if "INT" in name},
    "FP16": np.array([[0.5, -1.0], [65_504.0, 0.0]], "<f2"),
    "FP32": np.array([[0.1, -1e38], [3.4e38, 1e-45]], "<f4"),
    "FP64": np.array([[0.1, -1e308], [1.7e308, 5e-324]], "<f8"),
    "BYTES": np.array([["a", ""], ["é", "long" * 50]], object),
}
NAMES = {name.lower(): name for name in ARRAYS}
EVERYTHING = ModelSpec(
    "everything",
    tuple(TensorSpec(name, datatype, (-1, 2), optional=True) for name, datatype in NAMES.items()),
    tuple(TensorSpec(name, datatype, (-1, 2)) for name, datatype in NAMES.items()),
)
CODEC = InferenceCodec(EVERYTHING)


def inputs(names: list[str], *, binary: bool) -> list[InferInput]:
    """Return tritonclient's inputs of these names."""
    found = []
    for name in names:
        item = InferInput(name, [2, 2], NAMES[name])
        item.set_data_from_numpy(ARRAYS[NAMES[name]], binary_data=binary)
        found.append(item)
    return found


def outputs_of(request: InferenceRequest) -> list[OutputTensor]:
    """Answer a request of all inputs with those inputs, in the second and third row of a batch of three."""
    found = []
    for (name, datatype, shape), piece in zip(request.tensors, request.payload, strict=True):
        before = (b"\x01\0\0\0x" if datatype == "BYTES" else bytes(DATATYPES[datatype].itemsize)) * 2
        found.append(OutputTensor(name, datatype, shape, memoryview(before + bytes(piece))))
    return found


FORMS = [(name, binary) for name in NAMES for binary in (True, False) if binary or name != "fp16"]


@pytest.mark.parametrize(("name", "binary"), FORMS)
def test_each_datatype_arrives_as_numpy_has_it(name: str, binary: bool) -> None:
    """What tritonclient encodes, as binary or as JSON, decodes to the array's own bytes."""
    body, json_bytes = InferenceServerClient.generate_request_body(inputs([name], binary=binary))
    request = CODEC.decode(body, json_bytes)
    array = ARRAYS[NAMES[name]]
    expected = array.tobytes()
    if name == "bytes":
        pieces = [text.encode() for text in array.flat]
        expected = b"".join(len(p).to_bytes(4, "little") + p for p in pieces)
    assert bytes(request.payload[0]) == expected
    assert (request.rows, request.binary_output) == (2, True)


def test_binary_answers_are_read_by_tritonclient() -> None:
    """Every datatype comes back through tritonclient as the array that was sent, from within a batch."""
    body, json_bytes = InferenceServerClient.generate_request_body(inputs(list(NAMES), binary=True), request_id="7")
    request = CODEC.decode(body, json_bytes)
    outputs = outputs_of(request)
    answer, header_length = CODEC.encode(request, outputs, [None] * len(outputs), 1, 2)
    assert header_length is not None
    result = InferenceServerClient.parse_response_body(answer, header_length=header_length)
    assert result.get_response()["id"] == "7"
    for name, datatype in NAMES.items():
        found = result.as_numpy(name)
        if datatype == "BYTES":
            found = np.array([[element.decode() for element in row] for row in found], object)
        np.testing.assert_array_equal(found, ARRAYS[datatype])


def test_json_answers_are_read_by_tritonclient() -> None:
    """Outputs asked for as JSON come back as the arrays sent, and a mix of JSON and binary as well."""
    names = [name for name in NAMES if name != "fp16"]
    for binary in ([False] * len(names), [i % 2 == 0 for i in range(len(names))]):
        chosen = [InferRequestedOutput(n, binary_data=b) for n, b in zip(names, binary, strict=True)]
        body, json_bytes = InferenceServerClient.generate_request_body(inputs(list(NAMES), binary=True), chosen)
        request = CODEC.decode(body, json_bytes)
        assert request.outputs == tuple(zip(names, binary, strict=True))
        outputs = outputs_of(request)
        answer, header_length = CODEC.encode(request, outputs, [None] * len(outputs), 1, 2)
        assert (header_length is None) == (not any(binary))
        result = InferenceServerClient.parse_response_body(answer, header_length=header_length)
        for name, is_binary in zip(names, binary, strict=True):
            found = result.as_numpy(name)
            if name == "bytes" and is_binary:
                found = np.array([[element.decode() for element in row] for row in found], object)
            np.testing.assert_array_equal(found, ARRAYS[NAMES[name]])


def test_tritonclients_parameters_are_understood() -> None:
    """Priority, timeout and parameters of one's own arrive where they belong."""
    body, json_bytes = InferenceServerClient.generate_request_body(
        inputs(["fp32"], binary=True),
        [InferRequestedOutput("fp32")],
        request_id="r",
        priority=1,
        timeout=5_000,
        parameters={"temperature": 0.5},
    )
    request = CODEC.decode(body, json_bytes)
    assert (request.id, request.priority, request.timeout_us) == ("r", 1, 5_000)
    assert request.parameters == {"temperature": 0.5}
    assert request.outputs == (("fp32", True),)


def test_extensions_not_offered_are_refused_as_tritonclient_sends_them() -> None:
    """A classification or shared memory asked for through tritonclient is refused, not ignored."""
    classes = InferRequestedOutput("fp32", class_count=2)
    shared = InferRequestedOutput("fp32")
    shared.set_shared_memory("region", 16)
    for output, extension in ((classes, "classification"), (shared, "shared_memory_region")):
        body, json_bytes = InferenceServerClient.generate_request_body(inputs(["fp32"], binary=True), [output])
        with pytest.raises(InvalidInput, match=f"expected no parameter '{extension}'"):
            CODEC.decode(body, json_bytes)
