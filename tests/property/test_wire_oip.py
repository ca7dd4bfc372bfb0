"""Laws of the inference codec: every form of a request means the same bytes; anything else is InvalidInput."""

import json
import struct
from math import prod
from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.testing.strategies import (
    JSON_DATATYPES,
    InferenceExample,
    damaged,
    elements,
    hostile_bytes,
    inference_examples,
    model_specs,
)
from penstock.wire.oip import InferenceCodec, InferenceRequest
from penstock.wire.oip_elements import rows_of_bytes
from penstock.wire.oip_outputs import OutputTensor, check_outputs

BINARY_OUTPUT: dict[str, Any] = {"parameters": {"binary_data_output": True}}
HEADER_LENGTHS = st.one_of(st.none(), st.integers(-1, 400), st.just(2**63))


def facts(request: InferenceRequest) -> dict[str, Any]:
    """Return all that a request says, for comparison; payloads as bytes."""
    found = {name: getattr(request, name) for name in request.__struct_fields__}
    return found | {"payload": [bytes(piece) for piece in request.payload]}


def numpy_bytes(values: list[Any], datatype: str) -> bytes:
    """Encode elements with numpy, an oracle that shares no code with the codec."""
    if datatype == "BYTES":
        return b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in values)
    return np.array(values, DATATYPES[datatype].numpy).tobytes()


@given(inference_examples())
def test_flat_nested_and_binary_are_one_request(example: InferenceExample) -> None:
    """A request written flat, nested or in binary decodes to the same facts."""
    codec = InferenceCodec(example.spec)
    flat = facts(codec.decode(example.to_json(**BINARY_OUTPUT), None))
    assert facts(codec.decode(example.to_json(nested=True, **BINARY_OUTPUT), None)) == flat
    assert facts(codec.decode(*example.to_binary(**BINARY_OUTPUT))) == flat


@given(inference_examples())
def test_the_payload_is_what_numpy_would_write(example: InferenceExample) -> None:
    """Tensors come in the model's order, with the bytes numpy gives them and the row count of their shapes."""
    spec = example.spec
    request = InferenceCodec(spec).decode(example.to_json(**BINARY_OUTPUT), None)
    sent = [t for t in spec.inputs if t.name in example.shapes]
    first = 1 if spec.is_batched else 0
    assert request.tensors == tuple((t.name, t.datatype, example.shapes[t.name][first:]) for t in sent)
    expected = [numpy_bytes(example.values[t.name], t.datatype) for t in sent]
    assert [bytes(piece) for piece in request.payload] == expected
    assert request.nbytes == sum(map(len, expected))
    assert request.rows == (example.shapes[sent[0].name][0] if spec.is_batched else 1)


@given(inference_examples(datatypes=tuple(name for name in DATATYPES if name != "BYTES")), st.data())
def test_binary_data_passes_unchanged(example: InferenceExample, data: st.DataObject) -> None:
    """Any bits of a fixed-width tensor, NaN and infinities included, pass through as they are."""
    codec = InferenceCodec(example.spec)
    body, json_bytes = example.to_binary(**BINARY_OUTPUT)
    length = len(body) - json_bytes
    bits = data.draw(st.binary(min_size=length, max_size=length))
    request = codec.decode(body[:json_bytes] + bits, json_bytes)
    order = [t.name for t in example.spec.inputs if t.name in example.shapes]
    pieces = dict(zip(order, request.payload, strict=True))
    assert b"".join(bytes(pieces[name]) for name in example.shapes) == bits


@given(inference_examples(), st.sampled_from([0.0, 1.0, 0.5]))
def test_requests_that_differ_in_shape_or_parameters_never_share_a_batch(
    example: InferenceExample, value: float
) -> None:
    """Equal requests have equal signatures; another parameter, or one of another type, makes another."""
    codec = InferenceCodec(example.spec)

    def signature(parameters: dict[str, Any]) -> object:
        body = example.to_json(parameters={"binary_data_output": True, **parameters})
        return codec.decode(body, None).signature

    seen = [signature({}), signature({"k": value}), signature({"k": bool(value)}), signature({"j": value})]
    assert len(set(seen)) == 4
    assert signature({"k": value, "j": 1}) == signature({"j": 1, "k": value})
    assert signature({"priority": 1, "timeout": 5, "sequence_id": 3, "triton_x": 1}) == seen[0]


@st.composite
def answered(draw: st.DrawFn) -> tuple[ModelSpec, list[OutputTensor], dict[str, list[Any]], int]:
    """Return a model, a batch's outputs as a replica sends them, their elements, and the batch's rows."""
    spec = draw(model_specs(datatypes=JSON_DATATYPES))
    rows = draw(st.integers(1, 4)) if spec.is_batched else 1
    outputs, values = [], {}
    for tensor in spec.outputs:
        declared = tensor.shape[1:] if spec.is_batched else tensor.shape
        shape = tuple(draw(st.integers(0, 3)) if d == -1 else d for d in declared)
        count = rows * prod(shape)
        values[tensor.name] = draw(st.lists(elements(tensor.datatype), min_size=count, max_size=count))
        data = memoryview(numpy_bytes(values[tensor.name], tensor.datatype))
        outputs.append(OutputTensor(tensor.name, tensor.datatype, shape, data))
    return spec, outputs, values, rows


def asking(*, binary: bool, names: list[str], request_id: str = "") -> InferenceRequest:
    """Return a request as far as its answer depends on it."""
    request = InferenceRequest()
    request.id = request_id
    request.outputs = tuple((name, binary) for name in names)
    request.binary_output = binary
    return request


def read_answer(body: bytes, json_bytes: int | None) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Read an answer with json and numpy, as a client would: the document, and each output's elements."""
    document = json.loads(body[:json_bytes])
    at = json_bytes or len(body)
    found: dict[str, list[Any]] = {}
    for output in document["outputs"]:
        if "data" in output:
            found[output["name"]] = output["data"]
            continue
        size = output["parameters"]["binary_data_size"]
        piece, at = body[at : at + size], at + size
        if output["datatype"] == "BYTES":
            found[output["name"]] = [element.decode() for element in rows_of_bytes(piece)]
        else:
            found[output["name"]] = np.frombuffer(piece, DATATYPES[output["datatype"]].numpy).tolist()
    assert at == len(body)
    return document, found


@given(answered(), st.booleans(), st.text(max_size=8), st.data())
def test_answers_say_what_the_replica_said(
    case: tuple[ModelSpec, list[OutputTensor], dict[str, list[Any]], int],
    binary: bool,
    request_id: str,
    data: st.DataObject,
) -> None:
    """JSON or binary, all outputs or some: each request of a batch gets its own rows' elements, exactly."""
    spec, outputs, values, rows = case
    check_outputs(spec, outputs, rows)
    codec = InferenceCodec(spec)
    row = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - row))
    names = data.draw(st.lists(st.sampled_from([o.name for o in outputs]), unique=True))
    request = asking(binary=binary, names=names, request_id=request_id)
    document, found = read_answer(*codec.encode(request, outputs, [None] * len(outputs), row, count))
    assert document["model_name"] == spec.name
    assert document["model_version"] == spec.version
    assert document.get("id", "") == request_id
    assert list(found) == (names or [o.name for o in outputs])
    for output in outputs:
        if output.name in found:
            inner = prod(output.shape)
            assert found[output.name] == values[output.name][row * inner : (row + count) * inner]
    shapes = {o["name"]: o["shape"] for o in document["outputs"]}
    batch = [count] if spec.is_batched else []
    assert all(shapes[o.name] == [*batch, *o.shape] for o in outputs if o.name in shapes)


@given(inference_examples(datatypes=("FP32", "FP64", "INT8", "BYTES")), st.data())
def test_a_damaged_request_is_invalid_input_at_worst(example: InferenceExample, data: st.DataObject) -> None:
    """No injury to a request, JSON or binary, and no header value raises anything but InvalidInput."""
    codec = InferenceCodec(example.spec)
    body, json_bytes = example.to_binary(id="x", outputs=[{"name": example.spec.outputs[0].name}], **BINARY_OUTPUT)
    refuse_or_decode(codec, data.draw(damaged(body)), json_bytes)
    refuse_or_decode(codec, body, data.draw(HEADER_LENGTHS))
    refuse_or_decode(codec, data.draw(damaged(example.to_json(nested=True))), None)


@given(model_specs(), hostile_bytes(), HEADER_LENGTHS)
def test_any_bytes_are_invalid_input_at_worst(spec: ModelSpec, noise: bytes, json_bytes: int | None) -> None:
    """Bytes that are no request, and raw ones of any length, raise nothing but InvalidInput."""
    codec = InferenceCodec(spec)
    refuse_or_decode(codec, noise, json_bytes)
    refuse_or_decode(codec, noise, 0)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(inference_examples(), st.data())
def test_any_json_in_any_member_is_invalid_input_at_worst(example: InferenceExample, data: st.DataObject) -> None:
    """Whatever JSON stands where a member should, nothing but InvalidInput is raised."""
    body, json_bytes = example.to_binary(outputs=[{"name": example.spec.outputs[0].name}], **BINARY_OUTPUT)
    document = json.loads(body[:json_bytes])
    places = [
        (document, data.draw(st.sampled_from(["id", "inputs", "outputs", "parameters"]))),
        (document["inputs"][0], data.draw(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]))),
        (document["inputs"][0]["parameters"], data.draw(st.sampled_from(["binary_data_size", "x"]))),
        (document["outputs"][0], data.draw(st.sampled_from(["name", "parameters"]))),
        (document["parameters"], data.draw(st.sampled_from(["priority", "timeout", "binary_data_output", "x"]))),
    ]
    target, member = data.draw(st.sampled_from(places))
    target[member] = data.draw(_JSON)
    head = json.dumps(document).encode()
    refuse_or_decode(InferenceCodec(example.spec), head + body[json_bytes:], len(head))


def refuse_or_decode(codec: InferenceCodec, body: bytes, json_bytes: int | None) -> None:
    """Decode; a refusal must be short, and what is accepted must be consistent and fit a frame."""
    message = ""
    request = None
    try:
        request = codec.decode(body, json_bytes)
    except InvalidInput as error:
        message = error.message
    if request is None:
        assert 0 < len(message.encode()) < 2_000
        return
    assert request.nbytes == sum(map(len, request.payload))
    msgspec.msgpack.encode(request.parameters)
    hash(request.signature)
    for (_, datatype, shape), piece in zip(request.tensors, request.payload, strict=True):
        count = prod(shape) * request.rows
        width = DATATYPES[datatype].itemsize
        assert (len(piece) == count * width) if width else (len(rows_of_bytes(piece)) == count)


@given(st.lists(st.binary(max_size=16)), st.data())
def test_bytes_elements_round_trip(pieces: list[bytes], data: st.DataObject) -> None:
    """BYTES elements come back as they were packed, and damage raises nothing but InvalidInput."""
    packed = b"".join(struct.pack("<I", len(p)) + p for p in pieces)
    assert rows_of_bytes(packed) == pieces
    try:
        rows_of_bytes(data.draw(damaged(packed)))
    except InvalidInput:
        pass


SINGLE = {
    datatype: ModelSpec("m", (TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))
    for datatype in ("INT8", "FP32", "BOOL", "BYTES")
}
# The same data in two ways each; then some that no datatype, or not all, can take.
ARRAYS = {"BOOL": ["[true,false]", "[false, true]"], "BYTES": ['["a","b"]', '["b" ,"a"]']}
ODD_ARRAYS = ["[1]", "[1,2,3]", "[[0,1]]", "[ 1 , 300]", "[1e39,0.5]", "[null,true]"]
DECOYS = ['"data":DATA,', '"\\"data":DATA,', '"d\\u0061ta":DATA,', '"parameters":{"data":1},', ""]


@st.composite
def look_alikes(draw: st.DrawFn) -> tuple[ModelSpec, list[bytes]]:
    """Return a model and JSON requests that are hard to tell apart: other numbers, decoys called `data`, damage."""
    datatype = draw(st.sampled_from(sorted(SINGLE)))
    arrays = ARRAYS.get(datatype, ["[0,1]", "[1,0]"])
    outside, before, after = (draw(st.sampled_from(DECOYS)) for _ in range(3))
    key = draw(st.sampled_from(['"data"', '"data" ', '"d\\u0061ta"']))
    bodies = []
    for values in [arrays[0], arrays[0], arrays[1], draw(st.sampled_from(ODD_ARRAYS))]:
        item = f'{{"name":"x",{before}"shape":[1,2],{key}:{values},{after}"datatype":"{datatype}"}}'
        decoy = draw(st.sampled_from(arrays))
        bodies.append(f'{{{outside}"inputs":[{item}]}}'.replace("DATA", decoy).encode())
    bodies += [draw(damaged(body)) for body in bodies]
    return SINGLE[datatype], draw(st.permutations(bodies)) + bodies


@settings(max_examples=500)  # what tells two bodies apart is rare
@given(look_alikes())
def test_a_codec_with_a_memory_decodes_like_one_without(case: tuple[ModelSpec, list[bytes]]) -> None:
    """What a codec decoded before never changes what it makes of the next request, or what it says is wrong with it."""
    spec, bodies = case
    seasoned = InferenceCodec(spec)
    for body in bodies:
        outcomes: list[Any] = []
        for codec in (seasoned, InferenceCodec(spec)):
            try:
                outcomes.append(facts(codec.decode(body, None)))
            except InvalidInput as error:
                outcomes.append(error.message)
        assert outcomes[0] == outcomes[1]
