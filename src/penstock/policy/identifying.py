"""Telling whose an API key is: the form of a key's text, what is kept of it, and a ring of those that are good.

    pk_ABCDEFGHIJKL_<secret>         12 characters name the key, in public; 43 prove it: 62^43 > 2^256

Only the SHA-256 of the secret is kept. A password needs salt and a slow hash because it can be guessed; of 256 random
bits no share worth naming can be tried, and no two are alike. Pure. Not here: making keys (`adapters/secrecy.py`),
keeping them (`adapters/sql/keys.py`), headers (`gateway/identity.py`). Source: NIST SP 800-63B section 5.1.2 (look-up
secrets of 112 bits or more need only an approved one-way function).
"""

import hmac
import re
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.core.limits import Principal

__all__ = [
    "ID_ALPHABET",
    "ID_CHARS",
    "KEY_PREFIX",
    "SECRET_ALPHABET",
    "SECRET_CHARS",
    "KeyRing",
    "format_key",
    "hash_secret",
    "parse_key",
    "tenant_weights",
]

KEY_PREFIX = "pk_"
ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
ID_CHARS = 12
SECRET_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"  # noqa: S105 - an alphabet
SECRET_CHARS = 43

_KEY = re.compile(rb"pk_([a-z0-9]{%d})_([A-Za-z0-9]{%d})" % (ID_CHARS, SECRET_CHARS))


def format_key(key_id: str, secret: str) -> str:
    """Write a key."""
    return f"{KEY_PREFIX}{key_id}_{secret}"


def parse_key(text: bytes) -> tuple[str, bytes] | None:
    """Return the id and the secret of a key's text; None if it is not of a key's form."""
    found = _KEY.fullmatch(text)
    return None if found is None else (found[1].decode("ascii"), found[2])


def hash_secret(secret: bytes) -> bytes:
    """Return what is kept of a secret."""
    return sha256(secret).digest()


def tenant_weights(records: Iterable[KeyRecord]) -> dict[str, float]:
    """Return the weight of each tenant of whom a key names one: a tenant has one, and its newest key decides."""
    return {record.tenant: record.weight for record in records if record.weight}


class KeyRing:
    """The keys that are good at one revision.

    Attributes:
        revision: Of the store. 0: no key was ever made.
    """

    __slots__ = ("_records", "_weights", "revision")

    def __init__(self, snapshot: KeySnapshot) -> None:
        self.revision = snapshot.revision
        self._weights = tenant_weights(snapshot.records)
        self._records = {record.key_id: record for record in snapshot.records}

    def __len__(self) -> int:
        """Return how many keys are good."""
        return len(self._records)

    def find(self, text: bytes) -> Principal | None:
        """Return whose key this is; None if it is nobody's.

        How long it takes says nothing about the secret, nor whether there is a key of that id: a wrong id, too, costs
        a hash and a comparison.
        """
        key_id, secret = parse_key(text) or ("", b"")
        record = self._records.get(key_id, _NOBODY)
        is_right = hmac.compare_digest(hash_secret(secret), record.digest)
        if not is_right or record is _NOBODY:
            return None
        principal = record.to_principal()
        return replace(principal, weight=self._weights.get(principal.tenant, 0.0))


_NOBODY = KeyRecord("", bytes(32), "", "")
