"""Request bodies that differ from an earlier one only in their numbers, decoded without parsing the rest again.

Clients send the same JSON over and over with other data. Once such a body has been decoded in full, its bytes before
and after the `data` array of its one input are kept; a later body that has both, and a valid JSON array of the same
length between them, is the same document but for that array. JSON's grammar is context-free, so nothing else can
differ; whatever does not fit is parsed in full, errors included. Halves the cost of decoding a small request.
"""

import struct
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["RequestForms"]

_KEY = b'"data":'
# Stands where the array was, to see whether it was the tensor's. No array that decodes is this one.
_PROBE = b"[null]"
# Callers choose the bytes that are kept, so both are bounded: at most 256 KiB a model, forgotten whole when full.
FORMS_MAX = 256
FORM_BYTES_MAX = 1_024


class _Form:
    __slots__ = ("decode", "pack", "request", "suffix")

    def __init__(self, request: Any, suffix: bytes, decode: msgspec.json.Decoder[Any], pack: struct.Struct) -> None:
        self.request = request
        self.suffix = suffix
        self.decode = decode.decode
        self.pack = pack


class RequestForms:
    """The forms of one model's requests."""

    __slots__ = ("_forms",)

    def __init__(self) -> None:
        self._forms: dict[bytes, _Form] = {}

    def find(self, body: bytes) -> tuple[Any, bytes] | None:
        """Return what was kept with this body's form, and its tensor as bytes; None to parse it in full."""
        at = body.find(_KEY) + len(_KEY)
        form = self._forms.get(body[:at])
        if form is None or not body.endswith(form.suffix):
            return None
        try:
            values = form.decode(body[at : len(body) - len(form.suffix)])
            return form.request, form.pack.pack(*values)
        except (msgspec.DecodeError, UnicodeDecodeError, struct.error, OverflowError):
            return None  # the full parse says what is wrong, or accepts another way to write it

    def remember(
        self,
        body: bytes,
        data: bytes,
        request: Any,
        decode: msgspec.json.Decoder[Any],
        pack: struct.Struct,
        data_of: Callable[[bytes], bytes],
    ) -> None:
        """Keep the form of a body that was decoded in full.

        Args:
            body: The whole body.
            data: The bytes of the one input's `data` array in it, flat.
            request: Handed back by `find`; must hold nothing that depends on `data`.
            decode: Decodes the array.
            pack: Packs exactly as many elements as the tensor has; other lengths must not fit.
            data_of: Parses a body in full and returns the bytes of its one input's `data`.
        """
        at = body.find(_KEY) + len(_KEY)
        begin = body.find(data, at)
        suffix = body[begin + len(data) :]
        if begin < 0 or body[at:begin].strip() or at + len(suffix) > FORM_BYTES_MAX:
            return
        # The first `"data":` may be a stranger with the same value, or a duplicate that a later one overrides.
        if data_of(body[:at] + _PROBE + suffix) != _PROBE:
            return
        if len(self._forms) >= FORMS_MAX:
            self._forms.clear()
        self._forms[body[:at]] = _Form(request, suffix, decode, pack)
