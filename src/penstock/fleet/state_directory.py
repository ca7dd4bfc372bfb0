"""The head's directory: a lock so that it has one head, the control socket, and who the children are.

    head.lock      held (flock) by the living head          control.sock   the control channel
    fleet.json     the children: what a new head adopts      r-N.sock       where replica process N listens

Not here: watching the children (`supervisor.py`), deciding which are still wanted (`head.py`).
"""

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from penstock.core.errors import ConfigError
from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile

__all__ = ["CONTROL_SOCKET", "ChildRecord", "FleetRecord", "StateDirectory", "has_head", "load_record"]

CONTROL_SOCKET = "control.sock"
_LOCK = "head.lock"
_RECORD = "fleet.json"

# sun_path is 108 bytes with its terminating zero: unix(7).
_SOCKET_PATH_BYTES_MAX = 107
# As long as the longest name a socket in the directory gets in ten million replica starts.
_SOCKET_NAME_LONGEST = "r-9999999.sock"


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """One child as a later head needs to know it.

    Args:
        role: `gateway` or `replica`.
        name: Unique among the children.
        pid, start_ticks: The process.
        address: Where it listens.
        fingerprint: What it was started with, hashed; a child started otherwise is not wanted any more.
        spec: The model a replica has loaded; None before, and for gateways.
        load_us: How long the loading took, µs.
        restarts: How often it was started again.
        is_ready: It has said hello.
        profile: What a replica's batches cost, as it measured at load; None if that is not known, and for gateways.
    """

    role: str
    name: str
    pid: int
    start_ticks: int
    address: str
    fingerprint: str
    spec: ModelSpec | None = None
    load_us: int = 0
    restarts: int = 0
    is_ready: bool = False
    profile: CostProfile | None = None


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """All children of a head; only valid on the boot of the machine it was written on."""

    boot_id: str
    http: str
    address_next: int
    children: tuple[ChildRecord, ...] = field(default=())


class StateDirectory:
    """The directory, locked. Close it last."""

    def __init__(self, path: Path) -> None:
        """Make the directory if it is missing, and lock it.

        Raises:
            ConfigError: Another head holds it, it cannot be written, or its path is too long for sockets.
        """
        self.path = path
        self._lock = self._take_lock()

    def _take_lock(self) -> IO[str]:
        longest = os.fsencode(self.path / _SOCKET_NAME_LONGEST)
        if len(longest) > _SOCKET_PATH_BYTES_MAX:
            room = _SOCKET_PATH_BYTES_MAX - len(_SOCKET_NAME_LONGEST) - 1
            raise ConfigError(
                f"state directory {self.path}: expected a path of at most {room} bytes, because the sockets in it must"
                f" fit the kernel's limit, got {len(os.fsencode(self.path))}; choose a shorter one with --state"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.path / _LOCK).open("a+", encoding="ascii")
        except OSError as error:
            raise ConfigError(f"state directory {self.path}: expected to write there, got: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise ConfigError(
                f"state directory {self.path}: expected no other head, got one with pid {holder};"
                " stop it, or choose another directory with --state"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    @property
    def control(self) -> Path:
        """Where the control socket is."""
        return self.path / CONTROL_SOCKET

    def replica_socket(self, number: int) -> Path:
        """Return where replica process `number` listens."""
        return self.path / f"r-{number}.sock"

    def load(self, boot_id: str) -> FleetRecord | None:
        """Return what the last head wrote on this boot; None if nothing, or nothing that can be read."""
        return load_record(self.path, boot_id)

    def save(self, record: FleetRecord) -> None:
        """Write who the children are, whole or not at all.

        Raises:
            OSError: The disk is full or gone. The fleet runs on; only adoption suffers.
        """
        temporary = self.path / "fleet.json.new"
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(self.path / _RECORD)

    def close(self, *, is_empty: bool) -> None:
        """Give up the lock; with no children left also remove what would tell of them."""
        if is_empty:
            (self.path / _RECORD).unlink(missing_ok=True)
            for socket_path in self.path.glob("r-*.sock"):
                socket_path.unlink(missing_ok=True)
        self._lock.close()


def load_record(path: Path, boot_id: str) -> FleetRecord | None:
    """Return what the last head of the directory at `path` wrote; see `StateDirectory.load`. Needs no lock."""
    try:
        record = msgspec.json.decode((path / _RECORD).read_bytes(), type=FleetRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        # A file of another version or cut short by a full disk: its children, orphaned, drain by themselves.
        return None
    return record if record.boot_id == boot_id else None


def has_head(path: Path) -> bool:
    """Return True if a head holds the directory at `path`, which may be missing."""
    try:
        with (path / _LOCK).open(encoding="ascii") as lock:
            # Shared and for an instant: a head that starts in just this instant would say that there is another.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
