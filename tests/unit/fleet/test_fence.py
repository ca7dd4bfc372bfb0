"""Laws of the fence: confirmed only by a head that says so or where nothing runs; else it says who is in the way."""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.core.ports import Clock
from penstock.fleet.fence import Fence, raise_fence
from penstock.fleet.processes import read_boot_id
from penstock.fleet.state_directory import ChildRecord, FleetRecord, StateDirectory
from penstock.testing.clock import ManualClock
from penstock.wire.control import (
    ControlDecoder,
    Drain,
    KeysChanged,
    KeysConfirmed,
    KeysFailed,
    KeysPending,
    Message,
    encode_message,
)

# Long enough for a thread to answer on a busy machine, where the test does not wait for it to pass.
AMPLE_US = 20_000_000
BRIEF_US = 20_000


@pytest.fixture
def state() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        yield Path(directory)


@contextmanager
def head_that_says(state: Path, *messages: Message, hangs_up: bool = False) -> Iterator[list[Message]]:
    """Run a head that answers the first command with these messages; yield what it was told."""
    heard: list[Message] = []
    done = threading.Event()
    directory = StateDirectory(state)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory.control))
    listener.listen()

    def answer() -> None:
        link = listener.accept()[0]
        with link:
            while not heard:
                heard.extend(decoder.feed(link.recv(4096)))
            link.sendall(b"".join(map(encode_message, messages)))
            if hangs_up:
                directory.close(is_empty=False)
                listener.close()
                return
            done.wait()

    decoder = ControlDecoder()
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield heard
    finally:
        done.set()
        thread.join()
        listener.close()
        directory.close(is_empty=False)


def leave(state: Path, **roles: int) -> None:
    """Leave the record of a head that is gone: processes by role, each with this pid."""
    directory = StateDirectory(state)
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    children = tuple(ChildRecord(role, f"{role}-0", pid, ticks, "", "") for role, pid in roles.items())
    directory.save(FleetRecord(read_boot_id(), "127.0.0.1:1", 0, children))
    directory.close(is_empty=False)


def raise_here(state: Path, *, timeout_us: int = AMPLE_US, clock: Clock | None = None) -> Fence:
    """Raise a fence at revision 7 where nothing makes it wait between tries."""

    def wait(duration_us: int) -> None:
        raise AssertionError("there is nothing to try again")

    return raise_fence(state, 7, timeout_us=timeout_us, now_us=clock or ManualClock(), wait=wait)


def test_where_nothing_runs_all_is_done(state: Path) -> None:
    """Without a directory, a head or a gateway, whoever comes later reads the change."""
    assert raise_here(state / "none") == Fence(is_confirmed=True, has_server=False)
    leave(state, gateway=2**22 + 1, replica=os.getpid())
    assert raise_here(state) == Fence(is_confirmed=True, has_server=False)


def test_the_head_confirms(state: Path) -> None:
    """The head is told the revision, and its word counts, after whatever else it says."""
    with head_that_says(state, KeysPending(("gateway-0 (pid 1)",)), Drain(1), KeysConfirmed(8)) as heard:
        assert raise_here(state) == Fence(is_confirmed=True)
        assert heard == [KeysChanged(7)]


def test_a_head_that_cannot_read_the_keys_says_why(state: Path) -> None:
    """The head's reason is what people get."""
    with head_that_says(state, KeysFailed("keys.db: broken")):
        assert raise_here(state) == Fence(is_confirmed=False, reason="keys.db: broken")


def test_who_has_not_confirmed_in_time_is_named(state: Path) -> None:
    """After the timeout the newest list of the missing is given."""
    both = KeysPending(("gateway-0 (pid 1)", "gateway-1 (pid 2)"))
    with head_that_says(state, both, KeysPending(("gateway-1 (pid 2)",))):
        fence = raise_here(state, timeout_us=BRIEF_US * 50)
    assert not fence.is_confirmed
    assert fence.pending == ("gateway-1 (pid 2)",)
    assert fence.reason == "expected every gateway to confirm in time, got nothing from gateway-1 (pid 2)"


def test_a_silent_head_is_said_to_be(state: Path) -> None:
    """A head that takes the call and says nothing is no confirmation."""
    with head_that_says(state):
        fence = raise_here(state, timeout_us=BRIEF_US)
    assert fence == Fence(
        is_confirmed=False, reason="expected every gateway to confirm in time, got no answer from the head"
    )


def test_a_head_that_does_not_listen_yet_is_tried_again(state: Path) -> None:
    """While a head holds the directory it is called again and again, until the time is up."""
    directory = StateDirectory(state)
    clock = ManualClock()
    fence = raise_fence(state, 7, timeout_us=1_000_000, now_us=clock, wait=clock.advance_us)
    directory.close(is_empty=True)
    assert not fence.is_confirmed
    assert "got no answer from the head" in fence.reason


def test_gateways_without_a_head_are_no_confirmation(state: Path) -> None:
    """If the head is gone, or goes, while a gateway lives, that is said, with its name and the way out."""
    leave(state, gateway=os.getpid())
    for fence in (raise_here(state), _raise_while_the_head_dies(state)):
        assert not fence.is_confirmed
        assert fence.pending == (f"gateway-0 (pid {os.getpid()})",)
        assert "Start `penstock serve` on this state directory again" in fence.reason


def _raise_while_the_head_dies(state: Path) -> Fence:
    with head_that_says(state, KeysPending(("gateway-0 (pid 1)",)), hangs_up=True):
        return raise_here(state)
