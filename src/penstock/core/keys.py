"""API keys as nouns: what is kept of one, and all that are good at one revision of their store.

Not here: the form of a key's text and telling a right one from a wrong one (`policy/identifying.py`), the store
(`adapters/sql/keys.py`).
"""

import msgspec

from penstock.core.limits import Principal, RateLimit

__all__ = ["KEYS_MAX", "USER_PATTERN", "KeyRecord", "KeySnapshot"]

# Users go into bucket keys after the last colon and into answers: what mail addresses need, and nothing else.
USER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$"
# Every gateway holds all keys and gets all of them in one message: 50,000 of at most 1 KiB are below its bound.
KEYS_MAX = 50_000

_models_decoder = msgspec.json.Decoder(tuple[str, ...])
_limits_decoder = msgspec.json.Decoder(tuple[RateLimit, ...])


class KeyRecord(msgspec.Struct, frozen=True, array_like=True):
    """One key that is good: flat, because gateways get all of them at once and look closely at few.

    Attributes:
        digest: SHA-256 of its secret, 32 bytes: all that is kept of the key's text but its id.
        models: JSON list, None for all.
        limits: JSON list of `RateLimit`.
        key_id, tenant, user, is_batch, tier, weight: See `Principal`.
    """

    key_id: str
    digest: bytes
    tenant: str
    user: str
    is_batch: bool = False
    models: str | None = None
    tier: str = ""
    weight: float = 0.0
    limits: str = "[]"

    @classmethod
    def from_principal(cls, principal: Principal, digest: bytes) -> "KeyRecord":
        """Return what is kept of a key that says this of its holder."""
        return cls(
            principal.key_id,
            digest,
            principal.tenant,
            principal.user,
            principal.is_batch,
            None if principal.models is None else msgspec.json.encode(principal.models).decode(),
            principal.tier,
            principal.weight,
            msgspec.json.encode(principal.limits).decode(),
        )

    def to_principal(self) -> Principal:
        """Return what the key says of its holder."""
        return Principal(
            self.key_id,
            self.tenant,
            self.user,
            self.is_batch,
            None if self.models is None else _models_decoder.decode(self.models),
            self.tier,
            self.weight,
            _limits_decoder.decode(self.limits),
        )


class KeySnapshot(msgspec.Struct, frozen=True, array_like=True):
    """All keys that are good, oldest first.

    Attributes:
        revision: Grows by one with each change; 0 if no key was ever made.
        records: The keys.
    """

    revision: int = 0
    records: tuple[KeyRecord, ...] = ()
