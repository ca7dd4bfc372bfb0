"""Where a head keeps its sockets and state unless told otherwise: the XDG base directory specification's place."""

import os
from pathlib import Path

__all__ = ["state_root"]


def state_root() -> Path:
    """Return the directory under which each head has one of its own."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification: a relative path there is invalid and must be ignored.
    parent = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return parent / "penstock"
