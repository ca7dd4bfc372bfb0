"""Where a head keeps its sockets and state unless told otherwise: the XDG base directory specification's place."""

import os
from pathlib import Path

__all__ = ["default_state", "keys_file", "state_root"]


def state_root() -> Path:
    """Return the directory under which each head has one of its own."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification: a relative path there is invalid and must be ignored.
    parent = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return parent / "penstock"


def default_state(host: str, port: int) -> Path:
    """Return the directory of the head at an inference port, unless it is told another."""
    return state_root() / f"{host.replace(':', '_')}-{port}"


def keys_file(directory: Path) -> Path:
    """Return where the API keys of the head of a state directory are."""
    return directory / "keys.db"
