"""The inference codec, case by case: what each mistake is told, the raw form, shares of a batch, replies that lie."""

import json
import struct
from typing import Any

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.models import Batching, ModelSpec
from penstock.core.tensors import TensorSpec
from penstock.wire.frame import FrameError, FrameTensor
from penstock.wire.oip import InferenceCodec, InferenceRequest, encode_error
from penstock.wire.oip_elements import rows_of_bytes
from penstock.wire.oip_outputs import OutputTensor, check_outputs, output_tensors

SPEC = ModelSpec(
    name="m",
    inputs=(
        TensorSpec("x", "FP32", (-1, 2)),
        TensorSpec("n", "INT8", (-1, -1), optional=True),
        TensorSpec("t", "BYTES", (-1, 1), optional=True),
        TensorSpec("b", "BOOL", (-1, 1), optional=True),
        TensorSpec("h", "FP16", (-1, 1), optional=True),
    ),
    outputs=(TensorSpec("y", "FP32", (-1, 1)), TensorSpec("s", "BYTES", (-1, 2))),
    batching=Batching(size_max=4),
)
CODEC = InferenceCodec(SPEC)
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
DEEP = "[" * 100_000


def decode(document: Any, binary: bytes | None = None) -> InferenceRequest:
    """Decode a document, with binary data behind it if given."""
    head = json.dumps(document).encode()
    return CODEC.decode(head + (binary or b""), None if binary is None else len(head))


def one(name: str, datatype: str, shape: list[Any], **members: Any) -> dict[str, Any]:
    """Return a request of `x` and one more input."""
    return {"inputs": [X, {"name": name, "datatype": datatype, "shape": shape, **members}]}


REFUSALS: list[tuple[str, Any, str]] = [
    ("not an object", [], "inference request: Expected `object`, got `array`"),
    ("no inputs", {}, "missing required field `inputs`"),
    ("empty inputs", {"inputs": []}, "inputs: expected ['x'], got []"),
    ("id of a wrong type", {"inputs": [X], "id": 7}, "Expected `str`, got `int` - at `$.id`"),
    ("input missing", {"inputs": [one("t", "BYTES", [1, 1], data=["a"])["inputs"][1]]}, "expected ['x'], got ['t']"),
    ("input twice", {"inputs": [X, X]}, "inputs: expected distinct names, got ['x', 'x']"),
    (
        "unknown input",
        one("z", "FP32", [1], data=[1]),
        "inputs: expected names among ['x', 'n', 't', 'b', 'h'], got 'z'",
    ),
    ("datatype", {"inputs": [X | {"datatype": "FP64"}]}, "input 'x': expected datatype FP32, got 'FP64'"),
    ("rank", {"inputs": [X | {"shape": [2]}]}, "input 'x': expected shape [-1,2], got [2]"),
    ("inner shape", {"inputs": [X | {"shape": [1, 3]}]}, "input 'x': expected shape [-1,2], got [1,3]"),
    ("empty batch", {"inputs": [X | {"shape": [0, 2]}]}, "input 'x': expected dimensions >= 1, got [0,2]"),
    (
        "shape of no integers",
        {"inputs": [X | {"shape": ["a"]}]},
        "Expected `int`, got `str` - at `$.inputs[0].shape[0]`",
    ),
    ("huge shape", {"inputs": [X | {"shape": [10**30, 2]}]}, "expected an integer of 101 bits elements for shape"),
    (
        "too many rows",
        {"inputs": [X | {"shape": [5, 2], "data": [1] * 10}]},
        "expected at most 4 rows in one request, got 5",
    ),
    ("rows differ", one("t", "BYTES", [2, 1], data=["a", "b"]), "input 't': expected 1 rows like 'x', got 2"),
    ("too few elements", {"inputs": [X | {"data": [1]}]}, "input 'x': expected 2 elements for shape [1,2], got 1"),
    (
        "no data",
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]},
        "expected 'data' or parameters.binary",
    ),
    ("data is null", {"inputs": [X | {"data": None}]}, "input 'x': data: Expected `array`, got `null`"),
    ("data of a wrong type", {"inputs": [X | {"data": ["1", 2]}]}, "Expected `float`, got `str` - at `$[0]`"),
    (
        "nested to another shape",
        {"inputs": [X | {"data": [[1], [2]]}]},
        "expected 1 elements along axis 0 of shape [1,2]",
    ),
    (
        "nested unevenly",
        {"inputs": [X | {"shape": [2, 2], "data": [[1, 2], [3]]}]},
        "along axis 1 of shape [2,2], got a list of 1",
    ),
    ("nested too deep", {"inputs": [X | {"data": [[[1, 2]]]}]}, "along axis 1 of shape [1,2], got a list of 1"),
    (
        "nested, wrong type",
        {"inputs": [X | {"data": [[1, True]]}]},
        "data, flattened: Expected `float`, got `bool` - at `$[1]`",
    ),
    ("null among numbers", {"inputs": [X | {"data": [1, None]}]}, "Expected `float`, got `null` - at `$[1]`"),
    ("past FP32", {"inputs": [X | {"data": [1, 1e39]}]}, "expected values that fit FP32, got 1e39 at index 1"),
    (
        "past INT8",
        one("n", "INT8", [1, 2], data=[1, 128]),
        "input 'n': expected values that fit INT8, got 128 at index 1",
    ),
    ("float for an integer", one("n", "INT8", [1, 1], data=[1.5]), "input 'n': data: Expected `int`, got `float`"),
    ("number for a boolean", one("b", "BOOL", [1, 1], data=[1]), "input 'b': data: Expected `bool`, got `int`"),
    ("number for text", one("t", "BYTES", [1, 1], data=[1]), "input 't': data: Expected `str`, got `int`"),
    ("FP16 as JSON", one("h", "FP16", [1, 1], data=[1]), "input 'h': FP16 has no JSON form; send it as binary data"),
    (
        "parameter null",
        {"inputs": [X], "parameters": {"k": None}},
        "parameters.'k': expected a string, number or boolean, got null",
    ),
    (
        "parameter nested",
        {"inputs": [X], "parameters": {"k": [1]}},
        "parameters.'k': expected a string, number or boolean, got a list",
    ),
    (
        "parameter too large",
        {"inputs": [X], "parameters": {"k": 2**64}},
        "'k': expected an integer of 64 bits, got an integer of 65 bits",
    ),
    (
        "parameters too long",
        {"inputs": [X], "parameters": {"k": "a" * 65_536}},
        "expected at most 65536 characters, got 65537",
    ),
    (
        "priority",
        {"inputs": [X], "parameters": {"priority": -1}},
        "parameters.priority: expected an integer between 0 and 255, got -1",
    ),
    (
        "timeout",
        {"inputs": [X], "parameters": {"timeout": 1.5}},
        "parameters.timeout: expected an integer between 0 and 600000000, got 1.5",
    ),
    ("timeout is true", {"inputs": [X], "parameters": {"timeout": True}}, "parameters.timeout: expected an integer"),
    (
        "binary_data_output",
        {"inputs": [X], "parameters": {"binary_data_output": 1}},
        "binary_data_output: expected true or false, got 1",
    ),
    (
        "unknown output",
        {"inputs": [X], "outputs": [{"name": "q"}]},
        "outputs: expected names among ['s', 'y'], got 'q'",
    ),
    (
        "output twice",
        {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]},
        "outputs: expected distinct names, got 'y' twice",
    ),
    (
        "binary_data",
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
        "output 'y': parameters.binary_data: expected true or false, got 'yes'",
    ),
    (
        "classification",
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
        "output 'y': expected no parameter 'classification': not offered",
    ),
    (
        "shared memory",
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
        "output 'y': expected no parameter 'shared_memory_region': not offered",
    ),
    (
        "binary size without header",
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]},
        "the Inference-Header-Content-Length header is missing",
    ),
]


@pytest.mark.parametrize(("document", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_refusal_names_the_field_expected_and_got(document: Any, message: str) -> None:
    """Each mistake in a JSON request is the caller's, and the message says what to change."""
    with pytest.raises(InvalidInput) as refused:
        decode(document)
    assert message in refused.value.message
    assert refused.value.status == 400


BINARY_X = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
LIES: list[tuple[str, list[dict[str, Any]], bytes, str]] = [
    (
        "size below shape",
        [BINARY_X | {"parameters": {"binary_data_size": 4}}],
        bytes(4),
        "expected 8 bytes for FP32 [1,2], got 4",
    ),
    (
        "size past the body",
        [BINARY_X | {"parameters": {"binary_data_size": 8}}],
        bytes(7),
        "expected at most the 7 bytes left, got 8",
    ),
    (
        "size negative",
        [BINARY_X | {"parameters": {"binary_data_size": -8}}],
        bytes(8),
        "expected an integer >= 0, got -8",
    ),
    (
        "size is true",
        [BINARY_X | {"parameters": {"binary_data_size": True}}],
        b"\x01",
        "expected an integer >= 0, got true",
    ),
    ("size is huge", [BINARY_X | {"parameters": {"binary_data_size": 10**400}}], b"", "got an integer of 1329 bits"),
    (
        "size is nested",
        [BINARY_X | {"parameters": {"binary_data_size": [[]]}}],
        b"",
        "expected an integer >= 0, got a list",
    ),
    (
        "bytes left over",
        [BINARY_X | {"parameters": {"binary_data_size": 8}}],
        bytes(9),
        "expected 8 bytes after the JSON (sum of binary_data_size), got 9",
    ),
    (
        "both forms",
        [X | {"parameters": {"binary_data_size": 8}}],
        bytes(8),
        "expected either 'data' or binary_data_size, got both",
    ),
    ("neither form", [BINARY_X], bytes(8), "expected 'data' or parameters.binary_data_size, got neither"),
    ("data beside binary", [X], bytes(1), "binary data: expected 0 bytes after the JSON"),
]


@pytest.mark.parametrize(("inputs", "binary", "message"), [r[1:] for r in LIES], ids=[r[0] for r in LIES])
def test_lies_about_binary_data_are_refused(inputs: list[dict[str, Any]], binary: bytes, message: str) -> None:
    """Binary sizes that disagree with the shape or the body are refused, saying which bytes were expected."""
    with pytest.raises(InvalidInput) as refused:
        decode({"inputs": inputs}, binary)
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x05\x00\x00\x00abc", "input 't': expected 5 bytes at byte 4, got 3"),
        (b"\x01\x00", "input 't': expected a 4-byte length at byte 0, got 2 bytes"),
        (b"\x01\x00\x00\x00a\x00\x00\x00\x00", "input 't': expected 1 BYTES elements, got 2"),
        (b"", "input 't': expected 1 BYTES elements, got 0"),
    ],
)
def test_bytes_elements_that_lie_are_refused(data: bytes, message: str) -> None:
    """A BYTES tensor whose lengths run past its end, or give another count, is refused."""
    item = {"name": "t", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    with pytest.raises(InvalidInput) as refused:
        decode({"inputs": [X, item]}, data)
    assert message in refused.value.message


@pytest.mark.parametrize(("json_bytes", "got"), [(3, "3"), (-1, "-1"), (10**30, "an integer of 100 bits")])
def test_a_header_length_outside_the_body_is_refused(json_bytes: int, got: str) -> None:
    """Inference-Header-Content-Length must lie within the body."""
    with pytest.raises(InvalidInput) as refused:
        CODEC.decode(b"{}", json_bytes)
    message = refused.value.message
    assert message == f"Inference-Header-Content-Length: expected at most the body's 2 bytes, got {got}"


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        '{"inputs":' + DEEP,
        '{"unknown":' + DEEP,
        '{"parameters":{"a":' + DEEP,
        '{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":' + DEEP,
        '{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":' + "[" * 900 + "]" * 900 + "}]}",
        '{"unknown":' * 100_000,
    ],
    ids=["top", "inputs", "unknown", "parameters", "data", "data, closed", "objects"],
)
def test_deep_nesting_is_refused(body: str) -> None:
    """JSON nested past all reason is refused wherever it stands."""
    with pytest.raises(InvalidInput):
        CODEC.decode(body.encode(), None)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5_000, "NaN", "Infinity", "1e39", "01", "+1", "0x1"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    """Numbers past FP32, past every double, or not JSON at all never become infinity."""
    body = '{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,' + number + "]}]}"
    with pytest.raises(InvalidInput):
        CODEC.decode(body.encode(), None)


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", rb"\ud800", rb"\udc00\ud800", b"\x00", b"\n"])
def test_text_that_is_none_is_refused(text: bytes) -> None:
    """Invalid UTF-8, half surrogate pairs and control characters are refused, in data and in names."""
    data = b'{"name":"t","shape":[1,1],"datatype":"BYTES","data":["%b"]}' % text
    x = json.dumps(X).encode()
    for body in (b'{"inputs":[%b,%b]}' % (x, data), b'{"id":"%b","inputs":[%b]}' % (text, x)):
        with pytest.raises(InvalidInput):
            CODEC.decode(body, None)


@pytest.mark.parametrize("member", ["name", "datatype"])
def test_messages_do_not_echo_floods(member: str) -> None:
    """What a caller sent is quoted short, however long it was."""
    with pytest.raises(InvalidInput) as refused:
        decode({"inputs": [X | {member: "A" * 1_000_000}]})
    assert len(refused.value.message) < 300
    with pytest.raises(InvalidInput) as refused:
        decode({"inputs": [X | {"shape": [1] * 100_000}]})
    assert len(refused.value.message) < 300


def test_parameters_are_sorted_out() -> None:
    """Reserved parameters steer the server; the rest are the model's."""
    parameters = {"priority": 2, "timeout": 5_000, "sequence_id": 1, "triton_x": True, "k": "v", "n": 1, "f": False}
    request = decode({"id": "i", "inputs": [X], "parameters": parameters | {"binary_data_output": True}})
    assert (request.id, request.priority, request.timeout_us, request.binary_output) == ("i", 2, 5_000, True)
    assert request.parameters == {"k": "v", "n": 1, "f": False}


def test_outputs_take_the_requests_default() -> None:
    """`binary_data` of an output wins over `binary_data_output` of the request; without either it is JSON."""
    outputs = [{"name": "s"}, {"name": "y", "parameters": {"binary_data": False}}]
    chosen = decode({"inputs": [X], "outputs": outputs, "parameters": {"binary_data_output": True}}).outputs
    assert chosen == (("s", True), ("y", False))
    assert decode({"inputs": [X], "outputs": outputs}).outputs == (("s", False), ("y", False))
    assert decode({"inputs": [X], "outputs": []}).outputs == ()


def half(name: str) -> ModelSpec:
    """Return a model whose one output is FP16."""
    return ModelSpec(name, (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP16", (-1, 1)),))


@pytest.mark.parametrize("members", [{}, {"outputs": [{"name": "y"}]}])
def test_json_that_cannot_be_is_refused_before_the_model_runs(members: dict[str, Any]) -> None:
    """An FP16 output asked for as JSON is refused with the request; asked for as binary it is not."""
    codec = InferenceCodec(half("h"))
    with pytest.raises(InvalidInput, match="output 'y': FP16 has no JSON form; ask for it with binary_data: true"):
        codec.decode(json.dumps({"inputs": [X], **members}).encode(), None)
    codec.decode(json.dumps({"inputs": [X], "parameters": {"binary_data_output": True}, **members}).encode(), None)


RAW = [
    (TensorSpec("x", "FP32", (-1, 2)), bytes(24), (-1, 2), 3),
    (TensorSpec("x", "INT64", (4, -1)), bytes(64), (4, 2), 1),
    (TensorSpec("x", "BYTES", (-1, 1)), b"hello", (-1, 1), 1),
    (TensorSpec("x", "BYTES", (1,)), b"", (1,), 1),
]


@pytest.mark.parametrize(("tensor", "body", "shape", "rows"), RAW)
def test_raw_binary_requests(tensor: TensorSpec, body: bytes, shape: tuple[int, ...], rows: int) -> None:
    """A raw body is the whole tensor: the open dimension follows from its length, and the answer is binary."""
    spec = ModelSpec("m", (tensor,), (TensorSpec("y", "FP32", tensor.shape),))
    request = InferenceCodec(spec).decode(body, 0)
    assert (request.rows, request.binary_output) == (rows, True)
    assert request.tensors == (("x", tensor.datatype, shape[1:] if spec.is_batched else shape),)
    expected = body if tensor.datatype != "BYTES" else struct.pack("<I", len(body)) + body
    assert bytes(request.payload[0]) == expected


@pytest.mark.parametrize(
    ("inputs", "body", "message"),
    [
        ((TensorSpec("x", "FP32", (-1, 2)),), bytes(9), "input 'x': expected 8 bytes for FP32 [1,2], got 9"),
        ((TensorSpec("x", "FP32", (-1, 2)),), b"", "input 'x': expected dimensions >= 1, got [0,2]"),
        ((TensorSpec("x", "FP32", (-1, -1)),), bytes(8), "expected at most one open dimension, 'x' has [-1,-1]"),
        ((TensorSpec("x", "BYTES", (-1, 2)),), b"a", "input 'x': expected 2 BYTES elements, got 1"),
        (SPEC.inputs, bytes(8), "raw binary request: expected a model with one input, 'm' has 5"),
    ],
)
def test_raw_binary_refusals(inputs: tuple[TensorSpec, ...], body: bytes, message: str) -> None:
    """A raw body that cannot be the one tensor is refused, saying why."""
    with pytest.raises(InvalidInput) as refused:
        InferenceCodec(ModelSpec("m", inputs, SPEC.outputs)).decode(body, 0)
    assert message in refused.value.message


def strings(*texts: bytes) -> memoryview:
    """Return a BYTES payload."""
    return memoryview(b"".join(struct.pack("<I", len(t)) + t for t in texts))


def outputs() -> list[OutputTensor]:
    """Return the outputs of a batch of three rows."""
    return [
        OutputTensor("y", "FP32", (1,), memoryview(struct.pack("<3f", 0.5, 1.5, 2.5))),
        OutputTensor("s", "BYTES", (2,), strings(b"a", b"bb", b"", b"d", b"e", "é".encode())),
    ]


def test_elements_are_decoded_once_a_batch() -> None:
    """Requests of one batch share the decoded elements through `values`."""
    request = decode({"inputs": [X]})
    values: list[list[Any] | None] = [None, None]
    body, json_bytes = CODEC.encode(request, outputs(), values, 0, 1)
    assert json_bytes is None
    assert values == [[0.5, 1.5, 2.5], ["a", "bb", "", "d", "e", "é"]]
    values[0] = [9.0, 9.0, 9.0]
    again, _ = CODEC.encode(request, outputs(), values, 0, 1)
    assert again == body.replace(b"0.5", b"9.0")


def test_json_has_no_nan() -> None:
    """NaN and infinities are null in JSON and kept in binary."""
    bits = struct.pack("<2f", float("nan"), float("-inf"))
    spec = ModelSpec("m", (SPEC.inputs[0],), (TensorSpec("y", "FP32", (-1, 2)),))
    codec, batch = InferenceCodec(spec), [OutputTensor("y", "FP32", (2,), memoryview(bits))]
    as_json = codec.decode(json.dumps({"inputs": [X]}).encode(), None)
    as_binary = codec.decode(json.dumps({"inputs": [X], "parameters": {"binary_data_output": True}}).encode(), None)
    assert json.loads(codec.encode(as_json, batch, [None], 0, 1)[0])["outputs"][0]["data"] == [None, None]
    assert codec.encode(as_binary, batch, [None], 0, 1)[0].endswith(bits)


def test_text_outputs_must_be_text() -> None:
    """BYTES that are not UTF-8 have no JSON form: the caller is told to ask for binary."""
    batch = [outputs()[0], OutputTensor("s", "BYTES", (2,), strings(*[b"\xff"] * 6))]
    with pytest.raises(InvalidInput, match="output 's' is not UTF-8 text; ask for it as binary data"):
        CODEC.encode(decode({"inputs": [X]}), batch, [None, None], 0, 1)


def test_replies_are_cut_into_tensors() -> None:
    """A reply's payload is its tensors, one after the other."""
    tensors = (FrameTensor("y", "FP32", (1,), 4), FrameTensor("s", "BYTES", (1,), 6))
    found = output_tensors(tensors, memoryview(b"abcdefghij"))
    assert [(o.name, o.datatype, o.shape, bytes(o.data)) for o in found] == [
        ("y", "FP32", (1,), b"abcd"),
        ("s", "BYTES", (1,), b"efghij"),
    ]


Y, S = outputs()


@pytest.mark.parametrize(
    ("found", "rows", "message"),
    [
        ([Y], 3, r"outputs: expected \['y', 's'\], got \['y'\]"),
        ([S, Y], 3, r"output 'y': expected FP32 \[1\] a row, got 's' BYTES \[2\]"),
        ([Y._replace(datatype="FP64"), S], 3, "output 'y': expected FP32"),
        ([Y._replace(shape=(2,)), S], 3, r"output 'y': expected FP32 \[1\] a row, got 'y' FP32 \[2\]"),
        ([Y, S], 2, "output 'y': expected 8 bytes for 2 rows, got 12"),
        ([Y, S._replace(data=strings(b"a"))], 3, "output 's': expected 6 elements for 3 rows, got 1"),
        ([Y, S._replace(data=memoryview(b"\xff\xff\xff\xff"))], 3, "output 's': expected 4294967295 bytes at byte 4"),
    ],
)
def test_replies_that_lie_are_frame_errors(found: list[OutputTensor], rows: int, message: str) -> None:
    """Outputs other than the model declares, or of another number of rows, are refused before they are shared out."""
    with pytest.raises(FrameError, match=message):
        check_outputs(SPEC, found, rows)


def test_replies_that_do_not_lie_pass() -> None:
    """What the model declares passes, and so does a reply in which every request failed."""
    check_outputs(SPEC, outputs(), 3)
    check_outputs(SPEC, [], 0)


def test_errors_have_one_member() -> None:
    """The protocol's error body is an object with `error`."""
    assert json.loads(encode_error('a "quoted" é')) == {"error": 'a "quoted" é'}


def test_bytes_elements_are_copied_out() -> None:
    """Elements are bytes of their own, not views of the payload."""
    assert rows_of_bytes(strings(b"a", b"")) == [b"a", b""]
    assert rows_of_bytes(b"") == []


@pytest.mark.parametrize("packed", [b"\x02\0\0\0a", b"\x01\0\0", b"\xff\xff\xff\xff"])
def test_elements_that_run_past_the_end_are_refused(packed: bytes) -> None:
    """A length that promises more than there is never gives a shorter element."""
    with pytest.raises(InvalidInput, match=r"at byte [04], got "):
        rows_of_bytes(packed)


@pytest.mark.parametrize(
    "form",
    [
        '{"data":DECOY,"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
        '{"\\"data":DECOY,"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
        '{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":DECOY,"data":[1,2]}]}',
        '{"data":DECOY,"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","d\\u0061ta":[1,2]}]}',
    ],
)
def test_strangers_called_data_stay_strangers(form: str) -> None:
    """A codec that has seen a body does not take another member called `data` for the tensor in the next."""
    codec = InferenceCodec(SPEC)
    for decoy in ("[1,2]", "[3,4]"):
        request = codec.decode(form.replace("DECOY", decoy).encode(), None)
        assert bytes(request.payload[0]) == struct.pack("<2f", 1, 2)
