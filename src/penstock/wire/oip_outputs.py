"""Output tensors of the Open Inference Protocol: a batch's outputs, checked, cut by request, as JSON or binary data.

Not here: requests (`oip.py`), inputs (`oip_inputs.py`).
"""

from math import prod
from typing import Any, NamedTuple, Protocol

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, format_shape
from penstock.wire.frame import FrameError, FrameTensor
from penstock.wire.oip_elements import BYTES_LENGTH, count_elements, encode_json, rows_of_bytes

__all__ = [
    "TOKENS_OUTPUT",
    "Choice",
    "OutputTensor",
    "ResponseCodec",
    "check_outputs",
    "count_tokens",
    "output_tensors",
]

# The output, INT64 and one number a row, in which a model says how many tokens it has read.
TOKENS_OUTPUT = "token_count"
# Shapes remembered per model: batch sizes times open output dimensions, which the model chooses, so bounded.
_SHAPES_MAX = 1_024


class OutputTensor(NamedTuple):
    """One output of a whole batch, as a replica sent it: the shape of one row, and all rows' bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


def count_tokens(outputs: list[OutputTensor], row: int, rows: int) -> int | None:
    """Return how many tokens a model has read of so many rows of a batch; None if it does not say."""
    for output in outputs:
        if output.name == TOKENS_OUTPUT and output.datatype == "INT64":
            return sum(output.data.cast("q")[row : row + rows])
    return None


class Choice(Protocol):
    """What a response must know of its request."""

    id: str
    outputs: tuple[tuple[str, bool], ...]
    binary_output: bool


class ResponseCodec:
    """Encodes responses of one model version."""

    def __init__(self, spec: ModelSpec) -> None:
        self._batched = spec.is_batched
        self._prefixes: dict[tuple[Any, ...], tuple[tuple[bytes, int], ...]] = {}
        # Most requests of a batch have as many rows as the one before.
        self._last_outputs: list[OutputTensor] | None = None
        self._last_rows = 0
        self._last_prefixes: tuple[tuple[bytes, int], ...] = ()
        self._head = b'{"model_name":' + encode_json(spec.name) + b',"model_version":' + encode_json(spec.version)

    def encode(
        self,
        request: Choice,
        outputs: list[OutputTensor],
        values: list[list[Any] | None],
        row: int,
        rows: int,
    ) -> tuple[bytes, int | None]:
        """Encode one request's share of a batch's outputs.

        Args:
            request: The request, for its id and its choice of outputs.
            outputs: The batch's outputs.
            values: One entry per output, None at first: decoded elements are kept here for the batch's other requests.
            row: First row of this request among the rows in `outputs`.
            rows: How many rows are its.

        Returns:
            The body, and the length of its JSON part if binary data follows it, else None. NaN and infinities, which
            JSON has no numbers for, are written as null; binary data keeps them.

        Raises:
            InvalidInput: An output asked for as JSON is not UTF-8 text. The caller must ask for binary data.
        """
        parts = [self._head]
        if request.id:
            parts += (b',"id":', encode_json(request.id))
        binary: list[memoryview] = []
        if not request.outputs and not request.binary_output:
            if outputs is not self._last_outputs or rows != self._last_rows:
                self._last_prefixes = self._json_prefixes(outputs, rows)
                self._last_outputs, self._last_rows = outputs, rows
            for i, (prefix, inner) in enumerate(self._last_prefixes):
                found = values[i]
                if found is None:
                    found = _elements(outputs[i], values, i)
                parts += (prefix, encode_json(found[row * inner : (row + rows) * inner]))
            parts.append(b"}")
        else:
            parts.append(b',"outputs":[')
            binary = self._encode_chosen(request, outputs, values, parts, row=row, rows=rows)
        parts.append(b"]}")
        document = b"".join(parts)
        if not binary:
            return document, None
        return b"".join([document, *binary]), len(document)

    def _json_prefixes(self, outputs: list[OutputTensor], rows: int) -> tuple[tuple[bytes, int], ...]:
        """For each output: all JSON between the one before it and its data, and its elements per row."""
        key = (rows, *[o.shape for o in outputs])
        prefixes = self._prefixes.get(key)
        if prefixes is None:
            # Bounded: a model with open output dimensions could otherwise grow this for ever.
            if len(self._prefixes) >= _SHAPES_MAX:
                self._prefixes.clear()
            prefixes = tuple(
                ((b"}," if i else b',"outputs":[') + self._describe(o, rows) + b',"data":', prod(o.shape))
                for i, o in enumerate(outputs)
            )
            self._prefixes[key] = prefixes
        return prefixes

    def _describe(self, output: OutputTensor, rows: int) -> bytes:
        shape = (rows, *output.shape) if self._batched else output.shape
        return encode_json({"name": output.name, "datatype": output.datatype, "shape": shape})[:-1]

    def _encode_chosen(
        self,
        request: Choice,
        outputs: list[OutputTensor],
        values: list[list[Any] | None],
        parts: list[bytes],
        *,
        row: int,
        rows: int,
    ) -> list[memoryview]:
        binary: list[memoryview] = []
        index = {o.name: i for i, o in enumerate(outputs)}
        chosen = request.outputs or tuple((o.name, request.binary_output) for o in outputs)
        for position, (name, as_binary) in enumerate(chosen):
            i = index[name]
            output = outputs[i]
            parts.append((b"," if position else b"") + self._describe(output, rows))
            if as_binary:
                piece = _rows_of(output, row, rows)
                binary.append(piece)
                parts.append(b',"parameters":{"binary_data_size":%d}}' % len(piece))
            else:
                inner = prod(output.shape)
                data = encode_json(_elements(output, values, i)[row * inner : (row + rows) * inner])
                parts += (b',"data":', data, b"}")
        return binary


def check_outputs(spec: ModelSpec, outputs: list[OutputTensor], rows: int) -> None:
    """Check that a reply holds what its model declares, before requests are given their share of it.

    Args:
        spec: The model's.
        outputs: The reply's.
        rows: Rows of the requests that did not fail; if 0, there is nothing to check.

    Raises:
        FrameError: The replica sent other tensors, or another number of rows. Its connection is useless.
    """
    if rows and len(outputs) != len(spec.outputs):
        raise FrameError(f"outputs: expected {[t.name for t in spec.outputs]}, got {[o.name for o in outputs]}")
    for tensor, output in zip(spec.outputs, outputs, strict=bool(rows)):
        declared = tensor.shape[1:] if spec.is_batched else tensor.shape
        fits = len(declared) == len(output.shape) and all(
            d == s or (d == -1 and s >= 0) for d, s in zip(declared, output.shape, strict=True)
        )
        if (tensor.name, tensor.datatype) != (output.name, output.datatype) or not fits:
            raise FrameError(
                f"output {tensor.name!r}: expected {tensor.datatype} {format_shape(declared)} a row,"
                f" got {output.name!r} {output.datatype} {format_shape(output.shape)}"
            )
        count = rows * prod(output.shape)
        itemsize = DATATYPES[output.datatype].itemsize
        expected, got, unit = count * itemsize, len(output.data), "bytes"
        if not itemsize:
            try:
                expected, got, unit = count, count_elements(output.data), "elements"
            except InvalidInput as error:
                raise FrameError(f"output {tensor.name!r}: {error}") from error
        if got != expected:
            raise FrameError(f"output {tensor.name!r}: expected {expected} {unit} for {rows} rows, got {got}")


def output_tensors(tensors: tuple[FrameTensor, ...], payload: memoryview) -> list[OutputTensor]:
    """Cut a reply's payload into its output tensors."""
    outputs: list[OutputTensor] = []
    at = 0
    for tensor in tensors:
        outputs.append(OutputTensor(tensor.name, tensor.datatype, tensor.shape, payload[at : at + tensor.nbytes]))
        at += tensor.nbytes
    return outputs


def _rows_of(output: OutputTensor, row: int, rows: int) -> memoryview:
    itemsize = DATATYPES[output.datatype].itemsize
    inner = prod(output.shape)
    if itemsize:
        width = inner * itemsize
        return output.data[row * width : (row + rows) * width]
    start = end = at = 0
    for element in range((row + rows) * inner):
        if element == row * inner:
            start = at
        at += 4 + BYTES_LENGTH.unpack_from(output.data, at)[0]
    end = at
    return output.data[start:end]


def _elements(output: OutputTensor, values: list[list[Any] | None], index: int) -> list[Any]:
    """All elements of a batch's output, decoded once per batch and only if somebody wants them as JSON."""
    found = values[index]
    if found is None:
        if output.datatype == "BYTES":
            try:
                found = [element.decode() for element in rows_of_bytes(output.data)]
            except UnicodeDecodeError as error:
                raise InvalidInput(f"output {output.name!r} is not UTF-8 text; ask for it as binary data") from error
        elif output.datatype == "FP16":
            raise InvalidInput(f"output {output.name!r}: FP16 has no JSON form; ask for it as binary data")
        else:
            native: Any = output.data  # typeshed wants each of cast's formats spelt out
            found = native.cast(DATATYPES[output.datatype].code).tolist()
        values[index] = found
    return found
