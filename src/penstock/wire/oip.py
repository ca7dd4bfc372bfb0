"""Open Inference Protocol v2 over HTTP: inference requests in, inference responses out.

`InferenceCodec` is built once per model version and does per request only what depends on the request. JSON tensors
may be flat or nested; the binary tensor extension is spoken both ways, the raw-binary form included.
Not here: one tensor's data (`oip_inputs.py`, `oip_outputs.py`), metadata and statistics documents
(`oip_documents.py`), HTTP itself (`gateway/`).
Source: Open Inference Protocol v2 and its binary tensor data extension (KServe, Triton).
"""

import struct
from math import prod
from typing import Any

import msgspec

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, format_shape
from penstock.wire.oip_elements import BYTES_LENGTH, encode_json, show, show_names
from penstock.wire.oip_forms import RequestForms
from penstock.wire.oip_inputs import LIST_DECODERS, InputCodec
from penstock.wire.oip_outputs import ResponseCodec

__all__ = [
    "PRIORITY_BATCH_MIN",
    "PRIORITY_MAX",
    "InferenceCodec",
    "InferenceRequest",
    "encode_error",
    "length_bucket",
]

_RESERVED_PREFIX = "triton_"
# Parameters that steer the server, not the model. sequence_* and headers have no meaning here and are not passed on.
_RESERVED = frozenset(
    {"priority", "timeout", "binary_data_output", "sequence_id", "sequence_start", "sequence_end", "headers"}
)
# Ten minutes: longer than any deadline a caller can mean; keeps the sum with a clock far inside 64 bits.
TIMEOUT_US_MAX = 600_000_000
# Triton lets each model say how many levels there are; here it is a byte of them, whatever the model.
PRIORITY_MAX = 255
# From this level on a request is of class batch. Level 1 is the most urgent, as for Triton, and 2 the usual one.
PRIORITY_BATCH_MIN = 3
# Keys and strings together, in characters: parameters travel in a frame's description, which is bounded (4 MiB).
PARAMETERS_CHARS_MAX = 65_536

_ABSENT = msgspec.Raw()


class _Input(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: msgspec.Raw = _ABSENT
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class InferenceRequest(msgspec.Struct, eq=False, gc=False):
    """One decoded request.

    Attributes:
        id: The caller's, echoed in the response; '' if absent.
        rows: Length of the batch dimension; 1 for a model without one.
        signature: What must agree for requests to share a batch: tensors (without batch dimension) and parameters.
        tensors: (name, datatype, inner shape) for each input present, in the model's order.
        payload: The bytes of each of these tensors, row-major little-endian.
        nbytes: Length of the payload.
        parameters: Parameters for the model, without the reserved ones.
        priority: 0 if not given; from `PRIORITY_BATCH_MIN` on the request is of class batch.
        timeout_us: How long after its arrival the answer is of use; 0 if not given.
        outputs: For each requested output its name and whether it goes out as binary; empty means all.
        binary_output: Whether outputs go out as binary when none is listed.
    """

    id: str = ""
    rows: int = 1
    signature: object = None
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    payload: tuple[bytes | memoryview, ...] = ()
    nbytes: int = 0
    parameters: dict[str, Any] = {}
    priority: int = 0
    timeout_us: int = 0
    outputs: tuple[tuple[str, bool], ...] = ()
    binary_output: bool = False

    def with_payload(self, payload: bytes) -> "InferenceRequest":
        """Return the same request with other data of the same length."""
        # copy.copy finds the same method, but to look for it costs several times the copy; stubs leave it out.
        other: InferenceRequest = self.__copy__()  # type: ignore[attr-defined]  # msgspec gives it one
        other.payload = (payload,)
        return other


_request_decoder = msgspec.json.Decoder(_Request)
_NO_PARAMETERS: dict[str, Any] = {}


def encode_error(message: str) -> bytes:
    """Encode the protocol's error body, `{"error": message}`."""
    return encode_json({"error": message})


def length_bucket(nbytes: int) -> int:
    """Return the length bucket of a text of `nbytes` bytes: texts of one bucket differ in length by less than 2x.

    All texts under 64 bytes share the first bucket: below about 16 tokens a shorter text saves no time.
    """
    return max(nbytes.bit_length(), 6)


class InferenceCodec:
    """Decodes requests for one model version and encodes its responses."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._batched = spec.is_batched
        self._by_length = spec.task == "embedding"
        self._inputs = {t.name: InputCodec(t, batched=self._batched) for t in spec.inputs}
        self._order = {t.name: i for i, t in enumerate(spec.inputs)}
        self._required = frozenset(t.name for t in spec.inputs if not t.optional)
        self._outputs = {t.name: t for t in spec.outputs}
        self._outputs_without_json = [t.name for t in spec.outputs if t.datatype not in LIST_DECODERS]
        self._forms = RequestForms()
        self.encode = ResponseCodec(spec).encode
        self._solo = next(iter(self._inputs.values())) if len(self._inputs) == 1 else None

    def decode(self, body: bytes, json_bytes: int | None) -> InferenceRequest:
        """Decode one request.

        Args:
            body: The whole body, decompressed.
            json_bytes: Value of `Inference-Header-Content-Length`: how much of the body is JSON; None if absent,
                0 for a raw-binary request.

        Raises:
            InvalidInput: Anything the caller must change, naming the field, what was expected and what was got.
        """
        if json_bytes is None:
            found = self._forms.find(body)
            if found is not None:
                known: InferenceRequest = found[0]
                return known.with_payload(found[1])
        elif json_bytes == 0:
            return self._decode_raw(body)
        binary: memoryview | None = None
        document: bytes | memoryview = body
        if json_bytes is not None:
            if not 0 < json_bytes <= len(body):
                raise InvalidInput(
                    f"Inference-Header-Content-Length: expected at most the body's {len(body)} bytes,"
                    f" got {show(json_bytes)}"
                )
            binary = memoryview(body)[json_bytes:]
            document = memoryview(body)[:json_bytes]
        try:
            wire = _request_decoder.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"inference request: {error}") from error
        request = InferenceRequest()
        request.id = wire.id
        self._decode_parameters(request, wire.parameters)
        if wire.outputs:
            self._decode_outputs(request, wire.outputs)
        else:
            request.outputs = ()
            if self._outputs_without_json and not request.binary_output:
                self._refuse_json(self._outputs_without_json[0])
        self._decode_inputs(request, wire.inputs, binary)
        if json_bytes is None and len(wire.inputs) == 1 and not wire.id:
            self._remember_form(body, wire.inputs[0], request)
        return request

    def _remember_form(self, body: bytes, item: _Input, request: InferenceRequest) -> None:
        """Keep the form of a request whose one input came as a flat JSON array of numbers."""
        codec = self._inputs[item.name]
        code = DATATYPES[codec.datatype].code
        decoder = LIST_DECODERS.get(codec.datatype)
        if not code or decoder is None or self._by_length:
            return
        data = bytes(item.data)
        if data[1:].lstrip()[:1] != b"[":
            pack = struct.Struct(f"<{codec.check_shape(item.shape)}{code}")
            self._forms.remember(body, data, request.with_payload(b""), decoder, pack, _data_of)

    def _decode_parameters(self, request: InferenceRequest, parameters: dict[str, Any] | None) -> None:
        request.priority = request.timeout_us = 0
        request.binary_output = False
        request.parameters = _NO_PARAMETERS
        if not parameters:
            return
        request.priority = _integer(parameters, "priority", PRIORITY_MAX)
        request.timeout_us = _integer(parameters, "timeout", TIMEOUT_US_MAX)
        request.binary_output = _boolean(parameters, "binary_data_output")
        passed = {k: v for k, v in parameters.items() if k not in _RESERVED and not k.startswith(_RESERVED_PREFIX)}
        chars = 0
        for key, value in passed.items():
            if not isinstance(value, (str, int, float, bool)):
                raise InvalidInput(f"parameters.{show(key)}: expected a string, number or boolean, got {show(value)}")
            if isinstance(value, int) and not -(2**63) <= value < 2**64:
                raise InvalidInput(f"parameters.{show(key)}: expected an integer of 64 bits, got {show(value)}")
            chars += len(key) + (len(value) if isinstance(value, str) else 1)
        if chars > PARAMETERS_CHARS_MAX:
            raise InvalidInput(f"parameters: expected at most {PARAMETERS_CHARS_MAX} characters, got {chars}")
        if passed:
            request.parameters = passed

    def _decode_outputs(self, request: InferenceRequest, outputs: list[_Output]) -> None:
        chosen: dict[str, bool] = {}
        for output in outputs:
            name, parameters = output.name, output.parameters
            if name not in self._outputs:
                raise InvalidInput(f"outputs: expected names among {sorted(self._outputs)}, got {show(name)}")
            if name in chosen:
                raise InvalidInput(f"outputs: expected distinct names, got {name!r} twice")
            binary = request.binary_output
            if parameters:
                for extension in ("classification", "shared_memory_region"):
                    if parameters.get(extension):
                        raise InvalidInput(
                            f"output {name!r}: expected no parameter {extension!r}: not offered, see GET /v2"
                        )
                binary = _boolean(parameters, "binary_data", f"output {name!r}: ", default=binary)
            if not binary and name in self._outputs_without_json:
                self._refuse_json(name)
            chosen[name] = binary
        request.outputs = tuple(chosen.items())

    def _refuse_json(self, name: str) -> None:
        datatype = self._outputs[name].datatype
        raise InvalidInput(f"output {name!r}: {datatype} has no JSON form; ask for it with binary_data: true")

    def _decode_inputs(self, request: InferenceRequest, inputs: list[_Input], binary: memoryview | None) -> None:
        solo = self._solo
        binary_at = 0
        decoded: list[tuple[InputCodec, tuple[int, ...], bytes | memoryview]] = []
        for item in inputs:
            codec = solo if solo is not None and item.name == solo.name else self._inputs.get(item.name)
            if codec is None:
                raise InvalidInput(f"inputs: expected names among {list(self._inputs)}, got {show(item.name)}")
            if item.datatype != codec.datatype:
                raise InvalidInput(
                    f"input {item.name!r}: expected datatype {codec.datatype}, got {show(item.datatype)}"
                )
            count = codec.check_shape(item.shape)
            binary_bytes = item.parameters.get("binary_data_size") if item.parameters else None
            if binary_bytes is None:
                if item.data is _ABSENT:
                    raise InvalidInput(
                        f"input {item.name!r}: expected 'data' or parameters.binary_data_size, got neither"
                    )
                decoded.append((codec, item.shape, codec.decode_json(item.data, item.shape, count)))
                continue
            piece = _take_binary(item, binary, binary_at, binary_bytes)
            binary_at += binary_bytes
            decoded.append((codec, item.shape, codec.check_binary(piece, item.shape, count)))
        if binary is not None and binary_at != len(binary):
            raise InvalidInput(
                f"binary data: expected {binary_at} bytes after the JSON (sum of binary_data_size), got {len(binary)}"
            )
        if len(decoded) != 1 or solo is None:
            self._check_present([codec.name for codec, _, _ in decoded])
            decoded.sort(key=lambda d: self._order[d[0].name])
        self._finish(request, decoded)

    def _check_present(self, names: list[str]) -> None:
        if len(set(names)) != len(names):
            raise InvalidInput(f"inputs: expected distinct names, got {show_names(names)}")
        missing = self._required - set(names)
        if missing or not names:
            raise InvalidInput(
                f"inputs: expected {sorted(self._required) or sorted(self._inputs)}, got {sorted(names)}"
            )

    def _finish(
        self, request: InferenceRequest, decoded: list[tuple[InputCodec, tuple[int, ...], bytes | memoryview]]
    ) -> None:
        codec, shape, data = decoded[0]
        rows = shape[0] if self._batched else 1
        if rows > self.spec.batching.size_max and self._batched:
            raise InvalidInput(
                f"input {codec.name!r}: expected at most {self.spec.batching.size_max} rows in one request, got {rows}"
            )
        if len(decoded) == 1:
            tensor = codec.tensor or (codec.name, codec.datatype, tuple(shape[1:] if self._batched else shape))
            request.tensors = (tensor,)
            request.payload = (data,)
            request.nbytes = len(data)
        else:
            request.tensors = tuple(
                c.tensor or (c.name, c.datatype, tuple(s[1:] if self._batched else s)) for c, s, _ in decoded
            )
            request.payload = tuple(d for _, _, d in decoded)
            request.nbytes = sum(map(len, request.payload))
            for other, other_shape, _ in decoded:
                if self._batched and other_shape[0] != rows:
                    raise InvalidInput(
                        f"input {other.name!r}: expected {rows} rows like {codec.name!r}, got {other_shape[0]}"
                    )
        request.rows = rows
        request.signature = request.tensors
        if self._by_length:
            request.signature = (request.signature, length_bucket(request.nbytes // rows))
        if request.parameters:
            request.signature = (
                request.signature,
                tuple(sorted((k, type(v).__name__, v) for k, v in request.parameters.items())),
            )

    def _decode_raw(self, body: bytes) -> InferenceRequest:
        """The raw-binary form: no JSON, the whole body is the one input's data; outputs go back as binary."""
        codec = self._solo
        if codec is None:
            raise InvalidInput(
                f"raw binary request: expected a model with one input, {self.spec.name!r} has {len(self._inputs)}"
            )
        declared = codec.spec.shape
        data: bytes = body
        if codec.datatype == "BYTES":
            data = BYTES_LENGTH.pack(len(body)) + body
            shape = tuple(1 if d == -1 else d for d in declared)
        else:
            if declared.count(-1) > 1:
                raise InvalidInput(
                    f"raw binary request: expected at most one open dimension,"
                    f" {codec.name!r} has {format_shape(declared)}"
                )
            fixed = prod(d for d in declared if d != -1) * DATATYPES[codec.datatype].itemsize
            shape = tuple(len(body) // fixed if d == -1 else d for d in declared)
        request = InferenceRequest()
        request.id = ""
        self._decode_parameters(request, None)
        request.outputs = ()
        request.binary_output = True
        count = codec.check_shape(shape)
        self._finish(request, [(codec, shape, codec.check_binary(memoryview(data), shape, count))])
        return request


def _data_of(body: bytes) -> bytes:
    return bytes(_request_decoder.decode(body).inputs[0].data)


def _take_binary(item: _Input, binary: memoryview | None, at: int, nbytes: Any) -> memoryview:
    if binary is None:
        raise InvalidInput(
            f"input {item.name!r}: binary_data_size is given but the Inference-Header-Content-Length header is missing"
        )
    if item.data is not _ABSENT:
        raise InvalidInput(f"input {item.name!r}: expected either 'data' or binary_data_size, got both")
    if type(nbytes) is not int or nbytes < 0:
        raise InvalidInput(f"input {item.name!r}: binary_data_size: expected an integer >= 0, got {show(nbytes)}")
    if at + nbytes > len(binary):
        raise InvalidInput(
            f"input {item.name!r}: binary_data_size: expected at most the {len(binary) - at} bytes left,"
            f" got {show(nbytes)}"
        )
    return binary[at : at + nbytes]


def _integer(parameters: dict[str, Any], key: str, most: int) -> int:
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidInput(f"parameters.{key}: expected an integer between 0 and {most}, got {show(value)}")
    return value


def _boolean(parameters: dict[str, Any], key: str, where: str = "", *, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise InvalidInput(f"{where}parameters.{key}: expected true or false, got {show(value)}")
    return value
