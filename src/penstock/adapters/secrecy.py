"""Chance that nobody can foresee: the text of a new API key. Not here: its form (`policy/identifying.py`)."""

import secrets

from penstock.policy.identifying import ID_ALPHABET, ID_CHARS, SECRET_ALPHABET, SECRET_CHARS

__all__ = ["draw_key"]


def draw_key() -> tuple[str, str]:
    """Return a new key's id (62 bits, so that a million keys share none) and secret (256 bits), from the system."""
    key_id = "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_CHARS))
    return key_id, "".join(secrets.choice(SECRET_ALPHABET) for _ in range(SECRET_CHARS))
