"""Keys and the ring of those that are good: their form, what is kept of them, whose a tenant's weight is."""

from hashlib import sha256
from math import log2

import pytest

from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.core.limits import Level, Principal, RateLimit
from penstock.policy.identifying import (
    SECRET_ALPHABET,
    SECRET_CHARS,
    KeyRing,
    format_key,
    hash_secret,
    parse_key,
    tenant_weights,
)

ID = "abc123def456"
SECRET = "Zz9" + "k" * (SECRET_CHARS - 3)
LIMIT = RateLimit(f"key-{ID}", Level.USER, 5, 1_000_000, 7)
ALICE = Principal(ID, "acme", "alice", is_batch=True, models=("m", "n"), tier="pro", weight=2.0, limits=(LIMIT,))


def record_of(principal: Principal, secret: str = SECRET) -> KeyRecord:
    """Return what is kept of a key."""
    return KeyRecord.from_principal(principal, hash_secret(secret.encode()))


def test_a_secret_has_256_bits() -> None:
    """There are at least 2^256 secrets, so that a plain hash of one cannot be turned back by trying."""
    assert SECRET_CHARS * log2(len(set(SECRET_ALPHABET))) >= 256


def test_only_a_hash_is_kept() -> None:
    """What is kept is the SHA-256 of the secret and what the key says of its holder, which comes back whole."""
    record = record_of(ALICE)
    assert record.digest == sha256(SECRET.encode()).digest()
    assert record.to_principal() == ALICE
    assert SECRET not in repr(record)


def test_a_key_is_its_holders() -> None:
    """The ring finds the holder of the right text."""
    ring = KeyRing(KeySnapshot(1, (record_of(ALICE),)))
    assert ring.find(format_key(ID, SECRET).encode()) == ALICE
    assert len(ring) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"pk_",
        format_key(ID, SECRET[:-1]).encode(),
        format_key(ID, SECRET + "a").encode(),
        format_key(ID, "a" * SECRET_CHARS).encode(),
        format_key("0" * 12, SECRET).encode(),
        format_key(ID.upper(), SECRET).encode(),
        b" " + format_key(ID, SECRET).encode(),
        format_key(ID, SECRET).encode() + b"\n",
        format_key(ID, SECRET).replace("pk_", "sk_").encode(),
        format_key("", SECRET).encode(),
        format_key(ID, SECRET[:-1] + "\xe9").encode("latin-1"),
    ],
)
def test_no_other_text_is(text: bytes) -> None:
    """Another secret, another id, or a text that only resembles a key is nobody's."""
    assert KeyRing(KeySnapshot(1, (record_of(ALICE),))).find(text) is None


def test_nobody_has_no_key() -> None:
    """A ring without keys finds nobody, whatever the text: not even for one whose hash were that of nobody."""
    ring = KeyRing(KeySnapshot())
    assert parse_key(format_key(ID, SECRET).encode()) == (ID, SECRET.encode())
    assert ring.find(format_key(ID, SECRET).encode()) is None
    assert ring.find(b"") is None


def test_a_tenant_has_one_weight() -> None:
    """The newest key that names a weight sets it for its tenant, whichever of its keys is used."""
    old, new, silent, other = (
        Principal(key_id * 12, tenant, "u", weight=weight)
        for key_id, tenant, weight in (("a", "acme", 2.0), ("b", "acme", 3.0), ("c", "acme", 0.0), ("d", "b", 0.0))
    )
    snapshot = KeySnapshot(4, tuple(map(record_of, (old, new, silent, other))))
    ring = KeyRing(snapshot)
    found = [ring.find(format_key(p.key_id, SECRET).encode()) for p in (old, new, silent, other)]
    assert [p and p.weight for p in found] == [3.0, 3.0, 3.0, 0.0]
    assert tenant_weights(snapshot.records) == {"acme": 3.0}
