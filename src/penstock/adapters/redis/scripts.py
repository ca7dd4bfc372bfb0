"""The Lua script: its parts, one file for each operation, joined into the one text that Redis keeps.

Not here: what it does (the `.lua` files), what it is called with (`encoding.py`).
"""

from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

from penstock.core.ports import Clock
from penstock.policy.leasing import LEASE_US_MAX

__all__ = ["PARTS", "Script", "load_script"]

# In the order in which each may use those before it.
PARTS = ("store", "bucket", "book", "slots", "check", "lease", "settle", "dispatch")


@dataclass(frozen=True, slots=True)
class Script:
    """What EVAL is given, and the name under which EVALSHA finds it again.

    Attributes:
        source: Lua.
        sha: Of the source, as Redis computes it.
        now_us: For tests, a clock whose time each call is given; the script that users run takes none.
    """

    source: str
    sha: str
    now_us: Clock | None = None

    @property
    def arguments(self) -> tuple[int, ...]:
        """Return what each call is given after the operations."""
        return () if self.now_us is None else (self.now_us(),)


def load_script(now_us: Clock | None = None, **replaced: str) -> Script:
    """Join the parts.

    Args:
        now_us: See `Script`.
        **replaced: Other texts for parts, by name: for tests, that bring their own clock or leave out a guard.
    """
    assert replaced.keys() <= set(PARTS)
    own = Path(__file__).parent
    parts = [replaced.get(part) or (own / f"{part}.lua").read_text() for part in PARTS]
    source = "\n".join([f"local LEASE_US_MAX = {LEASE_US_MAX}", *parts])
    # Redis names scripts by SHA-1; nothing is protected by it.
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest(), now_us)
