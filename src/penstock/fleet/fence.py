"""The command's end of a change of keys: tells the head, and waits until no gateway goes by older ones.

Without a head nobody can tell gateways: then either none is left, and nothing need be done, or those that are go on
with older keys, and that is said. Not here: the head's end (`keys.py`).
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock.core.ports import Clock
from penstock.fleet.processes import is_running, read_boot_id
from penstock.fleet.state_directory import CONTROL_SOCKET, has_head, load_record
from penstock.fleet.supervisor import Role
from penstock.wire.control import (
    ControlDecoder,
    ControlError,
    KeysChanged,
    KeysConfirmed,
    KeysFailed,
    KeysPending,
    encode_message,
)

__all__ = ["Fence", "raise_fence"]

# Between two tries to reach a head that holds its directory but does not listen yet, or not any more.
_RETRY_US = 50_000
_READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Fence:
    """What became of it.

    Args:
        is_confirmed: Every gateway process that lives goes by the new keys, or none lives.
        reason: Why it is not, for people: what was expected and what was got; '' if it is.
        pending: The gateways that have not confirmed, if they are known.
        has_server: Some process serves from the directory.
    """

    is_confirmed: bool
    reason: str = ""
    pending: tuple[str, ...] = ()
    has_server: bool = True


def raise_fence(
    directory: Path, revision: int, *, timeout_us: int, now_us: Clock, wait: Callable[[int], None]
) -> Fence:
    """Return when every gateway goes by the keys of `revision`, when that cannot be, or after `timeout_us`.

    Call it after the change is on the disk: a head that starts later reads it there.

    Args:
        directory: The head's state directory.
        revision: That the change led to.
        timeout_us: How long to wait, µs.
        now_us: Monotonic clock.
        wait: Sleeps so many µs.
    """
    call = _Call(directory, revision, now_us() + timeout_us, now_us)
    while True:
        fence = call.run()
        if fence is not None:
            return fence
        if not has_head(directory):
            return _judge_without_head(directory)
        wait(_RETRY_US)


class _Call:
    """Tries to get an answer from the head."""

    def __init__(self, directory: Path, revision: int, end_us: int, now_us: Clock) -> None:
        self._path = str(directory / CONTROL_SOCKET)
        self._revision = revision
        self._end_us = end_us
        self._now_us = now_us
        self._pending: tuple[str, ...] | None = None

    def run(self) -> Fence | None:
        """Return what the head says at the end, or that time is up; None if there is no head or it went away."""
        with socket.socket(socket.AF_UNIX) as link:
            try:
                self._limit(link)
                link.connect(self._path)
                link.sendall(encode_message(KeysChanged(self._revision)))
                return self._listen(link)
            except TimeoutError:
                return self._time_out()
            except (OSError, ControlError):
                return None

    def _limit(self, link: socket.socket) -> None:
        left_us = self._end_us - self._now_us()
        if left_us <= 0:
            raise TimeoutError
        link.settimeout(left_us / 1e6)

    def _listen(self, link: socket.socket) -> Fence | None:
        decoder = ControlDecoder()
        while True:
            self._limit(link)
            data = link.recv(_READ_BYTES)
            if not data:
                return None
            for message in decoder.feed(data):
                match message:
                    case KeysConfirmed():
                        return Fence(True)
                    case KeysFailed():
                        return Fence(False, message.reason)
                    case KeysPending():
                        self._pending = message.gateways
                    case _:
                        pass  # said to gateways and replicas, and we are neither

    def _time_out(self) -> Fence:
        expected = "expected every gateway to confirm in time"
        if not self._pending:
            return Fence(False, f"{expected}, got no answer from the head")
        return Fence(False, f"{expected}, got nothing from {', '.join(self._pending)}", self._pending)


def _judge_without_head(directory: Path) -> Fence:
    record = load_record(directory, read_boot_id())
    children = () if record is None else record.children
    gateways = [c for c in children if c.role == Role.GATEWAY and is_running(c.pid, c.start_ticks)]
    if not gateways:
        return Fence(True, has_server=False)
    names = tuple(f"{c.name} (pid {c.pid})" for c in gateways)
    reason = (
        f"expected a head to tell {', '.join(names)}, got none: they go on with the keys they have. Start"
        " `penstock serve` on this state directory again, which takes them over, and repeat the command; or end them"
    )
    return Fence(False, reason, names)
