"""Input tensors of the Open Inference Protocol: one declared input, from JSON or binary data to checked bytes.

Not here: whole requests (`oip.py`), outputs (`oip_outputs.py`).
"""

import struct
from math import prod
from typing import Any

import msgspec

from penstock.core.errors import InvalidInput
from penstock.core.tensors import DATATYPES, TensorSpec, format_shape
from penstock.wire.oip_elements import BYTES_LENGTH, count_elements, show, show_shape

__all__ = ["LIST_DECODERS", "InputCodec"]

# Shapes remembered per input. Callers choose open dimensions, so it must be bounded; batch sizes alone fit easily.
_SHAPES_MAX = 1_024
_any_decoder = msgspec.json.Decoder()
LIST_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    **{name: msgspec.json.Decoder(list[int]) for name in DATATYPES if "INT" in name},
    **{name: msgspec.json.Decoder(list[float]) for name in ("FP32", "FP64")},
    "BOOL": msgspec.json.Decoder(list[bool]),
    "BYTES": msgspec.json.Decoder(list[str]),
}


def _flatten(value: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    """Flatten nested lists that must have exactly `shape`."""
    flat: list[Any] = [value]
    for axis, length in enumerate(shape):
        following: list[Any] = []
        for item in flat:
            if not isinstance(item, list) or len(item) != length:
                got = f"a list of {len(item)}" if isinstance(item, list) else show(item)
                raise InvalidInput(
                    f"input {name!r}: expected {show(length)} elements along axis {axis}"
                    f" of shape {show_shape(shape)}, got {got}"
                )
            following += item
        flat = following
    return flat


def _pack(values: list[Any], datatype: str, name: str) -> bytes:
    if datatype == "BYTES":
        pieces: list[bytes] = []
        for text in values:
            encoded = text.encode()
            pieces += (BYTES_LENGTH.pack(len(encoded)), encoded)
        return b"".join(pieces)
    code = DATATYPES[datatype].code
    try:
        return struct.pack(f"<{len(values)}{code}", *values)
    except (struct.error, OverflowError) as error:
        index = next(i for i, value in enumerate(values) if not _fits(code, value))
        raise InvalidInput(
            f"input {name!r}: expected values that fit {datatype}, got {show(values[index])} at index {index}"
        ) from error


def _fits(code: str, value: float) -> bool:
    try:
        struct.pack(f"<{code}", value)
    except (struct.error, OverflowError):
        return False
    return True


class InputCodec:
    """Decodes one declared input."""

    __slots__ = ("_batched", "_counts", "_decode_list", "_itemsize", "datatype", "inner", "name", "spec", "tensor")

    def __init__(self, spec: TensorSpec, *, batched: bool) -> None:
        self.spec = spec
        self.name = spec.name
        self.datatype = spec.datatype
        self.inner = spec.shape[1:] if batched else spec.shape
        self._batched = batched
        self._itemsize = DATATYPES[spec.datatype].itemsize
        self._decode_list = LIST_DECODERS.get(spec.datatype)
        self._counts: dict[tuple[int, ...], int] = {}  # of shapes found right before
        fixed = -1 not in self.inner
        # The tensor's part of the signature, shared by all requests when the inner shape is fixed.
        self.tensor = (spec.name, spec.datatype, tuple(self.inner)) if fixed else None

    def check_shape(self, shape: tuple[int, ...]) -> int:
        """Check a request's shape against the declared one; return the number of elements."""
        count = self._counts.get(shape)
        if count is not None:
            return count
        declared = self.spec.shape
        if len(shape) != len(declared) or any(d not in (-1, s) for d, s in zip(declared, shape, strict=True)):
            raise InvalidInput(f"input {self.name!r}: expected shape {format_shape(declared)}, got {show_shape(shape)}")
        if min(shape, default=1) < 1:
            raise InvalidInput(f"input {self.name!r}: expected dimensions >= 1, got {show_shape(shape)}")
        if len(self._counts) >= _SHAPES_MAX:
            self._counts.clear()
        count = self._counts[shape] = prod(shape)
        return count

    def decode_json(self, data: msgspec.Raw, shape: tuple[int, ...], count: int) -> bytes:
        """Decode the `data` member, flat or nested, into the tensor's bytes."""
        if self._decode_list is None:
            raise InvalidInput(f"input {self.name!r}: {self.datatype} has no JSON form; send it as binary data")
        try:
            values = self._decode_list.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            values = self._decode_nested(data, shape, error)
        if len(values) != count:
            raise InvalidInput(
                f"input {self.name!r}: expected {show(count)} elements for shape {show_shape(shape)}, got {len(values)}"
            )
        return _pack(values, self.datatype, self.name)

    def _decode_nested(self, data: msgspec.Raw, shape: tuple[int, ...], flat_error: Exception) -> list[Any]:
        try:
            value = _any_decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"input {self.name!r}: {error}") from error
        if not (isinstance(value, list) and value and isinstance(value[0], list)):
            raise InvalidInput(f"input {self.name!r}: data: {flat_error}") from flat_error
        kind: Any = {"BOOL": bool, "BYTES": str, "FP32": float, "FP64": float}.get(self.datatype, int)
        try:
            return list(msgspec.convert(_flatten(value, shape, self.name), list[kind]))
        except msgspec.ValidationError as error:
            raise InvalidInput(f"input {self.name!r}: data, flattened: {error}") from error

    def check_binary(self, data: memoryview, shape: tuple[int, ...], count: int) -> memoryview:
        """Check raw bytes against the shape; return them."""
        if self._itemsize:
            if len(data) != count * self._itemsize:
                raise InvalidInput(
                    f"input {self.name!r}: expected {show(count * self._itemsize)} bytes for {self.datatype}"
                    f" {show_shape(shape)}, got {len(data)}"
                )
            return data
        try:
            got = count_elements(data)
        except InvalidInput as error:
            raise InvalidInput(f"input {self.name!r}: {error}") from error
        if got != count:
            raise InvalidInput(f"input {self.name!r}: expected {show(count)} BYTES elements, got {got}")
        return data
