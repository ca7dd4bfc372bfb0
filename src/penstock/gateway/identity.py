"""Who asks: the API key in a request's headers, and what it allows.

    Authorization: Bearer KEY   or   X-API-Key: KEY   ->   Principal | 401 | 403

No message ever shows what a header held: it may be a key. Not here: telling right keys from wrong ones
(`policy/identifying.py`), where they come from (`control.py`), limits (`limiter.py`).
Source: RFC 6750 section 2.1 and 3, RFC 9110 section 11.6.
"""

import re
from collections.abc import Mapping, Sequence

from penstock.core.errors import CallerError, Overloaded
from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.core.limits import ANONYMOUS, Principal
from penstock.gateway.terms import CLASS_HEADER, TENANT_HEADER, Terms
from penstock.policy.identifying import KEY_PREFIX, KeyRing
from penstock.policy.queueing import BATCH, INTERACTIVE

__all__ = ["Identifier", "NotAllowed", "check_model", "settle_terms"]

AUTHORIZATION, API_KEY = b"authorization", b"x-api-key"
# Callers remembered by the bytes of their headers: 16,384 of some 300 bytes each are 5 MB. All are forgotten when one
# more comes; finding a key again costs a hash of 43 bytes.
CALLERS_MAX = 16_384
# A key and its scheme have 65 characters; what is longer is padded, and is looked at anew each time.
CREDENTIAL_BYTES_MAX = 128
KEYS_RETRY_US = 1_000_000

_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)")
_VISIBLE = re.compile(rb"[!-~]+")
_CHALLENGE = b"www-authenticate: Bearer\r\n"
_CHALLENGE_WRONG = b'www-authenticate: Bearer error="invalid_token"\r\n'


class NotAllowed(CallerError):
    """The caller may not do this: 401 without a right key, 403 with one that does not allow it.

    Attributes:
        headers: Further header lines of the answer.
        code: OpenAI's name for it.
    """

    def __init__(self, message: str, *, status: int, code: str, headers: bytes = b"") -> None:
        super().__init__(message, status=status)
        self.headers = headers
        self.code = code


class _KeysMissing(Overloaded):
    """The keys have not arrived: nobody can be told from anybody."""

    headers = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (KEYS_RETRY_US // 1_000_000, KEYS_RETRY_US // 1_000)


class Identifier:
    """Knows the keys, as the head said them last.

    Args:
        requires_key: Refuse callers without a key.
    """

    __slots__ = ("_known", "_requires_key", "_ring")

    def __init__(self, *, requires_key: bool) -> None:
        self._requires_key = requires_key
        self._ring: KeyRing | None = None
        self._known: dict[tuple[bytes | None, bytes | None], Principal] = {}

    def apply(self, revision: int, records: Sequence[KeyRecord]) -> None:
        """From now on only these keys are good; whatever was remembered of others, their texts included, is gone."""
        self._ring = KeyRing(KeySnapshot(revision, tuple(records)))
        self._known.clear()

    def identify(self, headers: Mapping[bytes, bytes]) -> Principal:
        """Return who sends these headers, names in lower case.

        A caller without a key is `ANONYMOUS`, unless keys are required. Where none are and none was ever made, so is
        one with any other credential: clients of servers without keys send placeholders.

        Raises:
            NotAllowed: 401: a key is required, malformed or not good; get a good one.
            CallerError: Both headers are there and differ; send one of them.
            Overloaded: The keys have not arrived yet; retry.
        """
        key = (headers.get(AUTHORIZATION), headers.get(API_KEY))
        known = self._known.get(key)
        if known is not None:
            return known
        ring = self._ring
        if ring is None:
            raise _KeysMissing("the keys have not arrived yet; retry", retry_after_us=KEYS_RETRY_US)
        credential = _read_credential(*key)
        if credential is None:
            if self._requires_key:
                raise _unauthorised("expected an API key in Authorization: Bearer KEY or in X-API-Key: KEY, got none")
            return ANONYMOUS
        principal = ring.find(credential)
        if principal is None:
            is_placeholder = not credential.startswith(KEY_PREFIX.encode())
            if not self._requires_key and not ring.revision and is_placeholder:
                return ANONYMOUS
            raise _unauthorised("API key: expected one that is good, got one that is unknown or revoked", wrong=True)
        if len(key[0] or b"") + len(key[1] or b"") <= CREDENTIAL_BYTES_MAX:
            if len(self._known) >= CALLERS_MAX:
                self._known.clear()
            self._known[key] = principal
        return principal


def check_model(principal: Principal, model: str) -> None:
    """Raise `NotAllowed` (403) if this caller's key is not for this model: use one of those it names."""
    if principal.models is not None and model not in principal.models:
        allowed = ", ".join(principal.models)
        raise _forbidden(f"model: expected one of those that this key is for ({allowed}), got {model!r}")


def settle_terms(principal: Principal, terms: Terms) -> Terms:
    """Return the terms a caller gets: what the headers ask for, on the account and in the class of the key.

    Raises:
        NotAllowed: 403: a header asks for what the key does not allow; leave the header out.
    """
    if not principal.key_id:
        return terms
    if terms.tenant and terms.tenant != principal.tenant:
        expected = f"expected none, or {principal.tenant!r}, the tenant of this key"
        raise _forbidden(f"{TENANT_HEADER.decode()}: {expected}, got {terms.tenant!r}")
    request_class = terms.request_class
    if principal.is_batch:
        if request_class is INTERACTIVE:
            expected = "expected none, or batch, the only class of this key"
            raise _forbidden(f"{CLASS_HEADER.decode()}: {expected}, got interactive")
        request_class = BATCH
    if request_class is terms.request_class and terms.tenant == principal.tenant:
        return terms
    return Terms(request_class, principal.tenant, terms.timeout_us)


def _read_credential(authorization: bytes | None, api_key: bytes | None) -> bytes | None:
    """Return what the headers hold as a key, None if neither is there."""
    bearer = None
    if authorization is not None:
        found = _BEARER.fullmatch(authorization)
        if found is None:
            raise _unauthorised(f"Authorization: expected Bearer KEY, got {_describe(authorization)}")
        bearer = found[1]
    if api_key is None:
        return bearer
    if not _VISIBLE.fullmatch(api_key):
        raise _unauthorised(f"X-API-Key: expected KEY, got {_describe_key(api_key)}")
    if bearer is not None and bearer != api_key:
        raise CallerError("Authorization, X-API-Key: expected one key, got two that differ; send one header")
    return api_key


def _describe(authorization: bytes) -> str:
    """Say what is wrong with a header without showing any of it."""
    words = authorization.split()
    if not words or not authorization.isascii():
        return _describe_key(authorization)
    if words[0].lower() != b"bearer":
        return "no scheme before it" if len(words) == 1 else "another scheme"
    if len(words) == 1:
        return "no key after the scheme"
    return "more than one word after the scheme" if len(words) > 2 else "other characters between or in the two"


def _describe_key(text: bytes) -> str:
    if not text.strip():
        return "nothing"
    return "several words" if text.isascii() and len(text.split()) > 1 else "characters that are not visible ASCII"


def _unauthorised(message: str, *, wrong: bool = False) -> NotAllowed:
    headers = _CHALLENGE_WRONG if wrong else _CHALLENGE
    return NotAllowed(message, status=401, code="invalid_api_key", headers=headers)


def _forbidden(message: str) -> NotAllowed:
    return NotAllowed(message, status=403, code="permission_denied")
