"""On what terms a request is served: its class, its tenant, how long its caller waits; told by headers and parameters.

Callers are not identified: class and tenant are what the caller, or a proxy in front, says they are.
Not here: what follows from them (`policy/`), OIP's parameters themselves (`wire/oip.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.core.models import TENANT_PATTERN, TIMEOUT_MS_MAX, ModelSpec
from penstock.gateway.content_coding import shown
from penstock.policy.queueing import BATCH, INTERACTIVE, RequestClass
from penstock.wire.oip import PRIORITY_BATCH_MIN

__all__ = ["Terms", "TermsReader"]

CLASS_HEADER, TENANT_HEADER, TIMEOUT_HEADER = b"penstock-class", b"penstock-tenant", b"penstock-timeout-ms"
# A day to the nanosecond has 15 digits; more are padding.
TIMEOUT_CHARS_MAX = 32
# Callers choose what is remembered: 1,024 of at most 110 bytes each, all forgotten when one more comes.
TERMS_MAX = 1_024

_CLASSES = {b"interactive": INTERACTIVE, b"batch": BATCH}
_TENANT = re.compile(TENANT_PATTERN.encode())
_NUMBER = re.compile(rb"[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the headers of a request ask for.

    Args:
        request_class: None if no header says.
        tenant: '' if no header names one.
        timeout_us: How long after its arrival the answer is of use, µs; 0 if no header says.
    """

    request_class: RequestClass | None = None
    tenant: str = ""
    timeout_us: int = 0

    def settle(self, spec: ModelSpec, *, priority: int = 0, timeout_us: int = 0) -> tuple[RequestClass, int]:
        """Return the class of a request, and how long after its arrival its answer is of use, µs.

        The class of the header goes before that of the priority; of two timeouts the tighter one holds; where there is
        none the model's holds: its SLO for an interactive request, if it states one, else its timeout.

        Args:
            spec: The model's.
            priority: OIP's parameter, 0 if not given.
            timeout_us: OIP's parameter, 0 if not given.
        """
        request_class = self.request_class
        if request_class is None:
            request_class = BATCH if priority >= PRIORITY_BATCH_MIN else INTERACTIVE
        if self.timeout_us and (not timeout_us or self.timeout_us < timeout_us):
            timeout_us = self.timeout_us
        if not timeout_us:
            timeout_us = spec.slo_us if spec.slo_us and request_class is INTERACTIVE else spec.timeout_us
        return request_class, timeout_us


class TermsReader:
    """Reads terms from headers, and remembers what it has read by the headers' bytes: callers repeat theirs."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[bytes | None, bytes | None, bytes | None], Terms] = {}

    def read(self, headers: Mapping[bytes, bytes]) -> Terms:
        """Return the terms that the headers of a request, names in lower case, ask for.

        Raises:
            InvalidInput: One of them is wrong. Change it; the message has its name, what was expected and got.
        """
        key = (headers.get(CLASS_HEADER), headers.get(TENANT_HEADER), headers.get(TIMEOUT_HEADER))
        known = self._known.get(key)
        if known is None:
            known = _parse_terms(*key)
            if len(self._known) >= TERMS_MAX:
                self._known.clear()
            self._known[key] = known
        return known


def _parse_terms(named_class: bytes | None, tenant: bytes | None, timeout_ms: bytes | None) -> Terms:
    request_class = None if named_class is None else _CLASSES.get(named_class)
    if named_class is not None and request_class is None:
        raise _refusal(CLASS_HEADER, "interactive or batch", named_class)
    if tenant is not None and not _TENANT.fullmatch(tenant):
        raise _refusal(TENANT_HEADER, "1 to 64 letters, digits, '.', '_' and '-'", tenant)
    return Terms(
        request_class,
        "" if tenant is None else tenant.decode("ascii"),
        0 if timeout_ms is None else _parse_timeout_us(timeout_ms),
    )


def _parse_timeout_us(text: bytes) -> int:
    """Return ms written in decimal as µs, at least 1: what is not zero does not become "none given"."""
    ms = float(text) if len(text) <= TIMEOUT_CHARS_MAX and _NUMBER.fullmatch(text) else 0.0
    if not 0 < ms <= TIMEOUT_MS_MAX:
        raise _refusal(TIMEOUT_HEADER, f"a number more than 0 and at most {TIMEOUT_MS_MAX}, such as 50 or 0.5", text)
    return max(round(ms * 1_000), 1)


def _refusal(header: bytes, expected: str, got: bytes) -> InvalidInput:
    return InvalidInput(f"{header.decode()}: expected {expected}, got '{shown(got)}'")
