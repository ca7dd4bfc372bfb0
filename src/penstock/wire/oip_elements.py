"""BYTES tensors, and quoting what a caller sent: what inputs and outputs of the protocol share.

A BYTES element is a little-endian uint32 length and that many bytes (Open Inference Protocol v2).
"""

import struct
from typing import Any

import msgspec

from penstock.core.errors import InvalidInput

__all__ = [
    "BYTES_LENGTH",
    "count_elements",
    "encode_json",
    "rows_of_bytes",
    "show",
    "show_names",
    "show_shape",
]

BYTES_LENGTH = struct.Struct("<I")
_SHOWN_CHARS_MAX = 64  # of a caller's value in an error message
_SHOWN_DIMENSIONS_MAX = 16

encode_json = msgspec.json.Encoder().encode


def show(value: Any) -> str:
    """Quote what the caller sent in a message: short, whatever it is, and without recursion."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (int, float)):
        return encode_json(value).decode()
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return repr(value if len(value) <= _SHOWN_CHARS_MAX else value[: _SHOWN_CHARS_MAX - 3] + "...")


def show_shape(shape: tuple[int, ...]) -> str:
    """Quote a caller's shape in a message: short, however long it is."""
    shown = [show(d) for d in shape[:_SHOWN_DIMENSIONS_MAX]]
    return f"[{','.join(shown)}{',...' if len(shape) > _SHOWN_DIMENSIONS_MAX else ''}]"


def show_names(names: list[str]) -> str:
    """Quote a caller's names in a message: short, however many they are."""
    shown = [show(name) for name in names[:_SHOWN_DIMENSIONS_MAX]]
    return f"[{', '.join(shown)}{', ...' if len(names) > _SHOWN_DIMENSIONS_MAX else ''}]"


def rows_of_bytes(payload: bytes | memoryview) -> list[bytes]:
    """Split a BYTES payload into its elements.

    Raises:
        InvalidInput: A length prefix runs past the end.
    """
    view = memoryview(payload)
    elements: list[bytes] = []
    at, end = 0, len(view)
    while at < end:
        if at + 4 > end:
            raise InvalidInput(f"expected a 4-byte length at byte {at}, got {end - at} bytes")
        (nbytes,) = BYTES_LENGTH.unpack_from(view, at)
        at += 4
        if at + nbytes > end:
            raise InvalidInput(f"expected {nbytes} bytes at byte {at}, got {end - at}")
        elements.append(bytes(view[at : at + nbytes]))
        at += nbytes
    return elements


def count_elements(view: memoryview) -> int:
    """Count the elements of a BYTES payload without building them."""
    unpack = BYTES_LENGTH.unpack_from
    count = at = 0
    end = len(view)
    while at < end:
        if at + 4 > end:
            raise InvalidInput(f"expected a 4-byte length at byte {at}, got {end - at} bytes")
        begin = at + 4
        at = begin + unpack(view, at)[0]
        if at > end:
            raise InvalidInput(f"expected {at - begin} bytes at byte {begin}, got {end - begin}")
        count += 1
    return count
