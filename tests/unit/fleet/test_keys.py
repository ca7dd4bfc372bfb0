"""Laws of the keys' desk: every gateway hears of every change, and none is confirmed while one may not have."""

from typing import Any

import pytest

from penstock.core.errors import ConfigError
from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.fleet.control import Channel
from penstock.fleet.keys import KeyDesk, ProcessId
from penstock.testing.transport import MemoryTransport
from penstock.wire.control import (
    ControlDecoder,
    Keys,
    KeysChanged,
    KeysConfirmed,
    KeysFailed,
    KeysPending,
    Message,
)

ONE, TWO = (11, 1), (22, 2)


def snapshot_of(revision: int, tier: str = "", weight: float = 0.0) -> KeySnapshot:
    """Return a store's content at a revision."""
    return KeySnapshot(revision, (KeyRecord("a" * 12, bytes(32), "acme", "alice", tier=tier, weight=weight),))


class Peer:
    """A gateway or a command: its channel, and what it was told."""

    def __init__(self) -> None:
        self.transport = MemoryTransport()
        self.channel = Channel(lambda *_: None, lambda *_: None)
        self.channel.connection_made(self.transport)
        self._decoder = ControlDecoder()

    def read(self) -> list[Message]:
        """Return what it was told since the last call."""
        return self._decoder.feed(self.transport.take())


class Desk:
    """A desk over a store that tests change."""

    def __init__(self, **options: Any) -> None:
        self.store: KeySnapshot | ConfigError = snapshot_of(1)
        self.living: dict[ProcessId, str] = {ONE: "gateway-0", TWO: "gateway-1"}
        self.warnings: list[str] = []
        self.desk = KeyDesk(
            self._read,
            sequence=100,
            gateways=lambda: [(name, process) for process, name in self.living.items()],
            on_warning=self.warnings.append,
            **options,
        )

    def _read(self, revision: int | None) -> KeySnapshot | None:
        if isinstance(self.store, ConfigError):
            raise self.store
        return None if self.store.revision == revision else self.store

    def start(self) -> tuple[Peer, Peer]:
        """Start with two gateways that have applied the first keys."""
        self.desk.start()
        peers = Peer(), Peer()
        for process, peer in zip((ONE, TWO), peers, strict=True):
            self.desk.hello(process, peer.channel)
            assert peer.read() == [Keys(101, snapshot_of(1))]
            self.desk.note_applied(process, 101)
        return peers

    def change(self, revision: int) -> Peer:
        """Change the store and say so, as a command does."""
        self.store = snapshot_of(revision)
        command = Peer()
        self.desk.change(command.channel, KeysChanged(revision))
        return command


def test_a_change_is_confirmed_by_the_last_gateway() -> None:
    """Both gateways get the new keys; the command hears who is missing, then that nobody is."""
    desk = Desk()
    one, two = desk.start()
    command = desk.change(2)
    assert one.read() == two.read() == [Keys(102, snapshot_of(2))]
    assert command.read() == [KeysPending(("gateway-0 (pid 11)", "gateway-1 (pid 22)"))]
    desk.desk.note_applied(TWO, 102)
    assert command.read() == [KeysPending(("gateway-0 (pid 11)",))]
    desk.desk.note_applied(TWO, 102)
    assert command.read() == []
    desk.desk.note_applied(ONE, 102)
    assert command.read() == [KeysConfirmed(2)]


def test_an_older_word_confirms_nothing() -> None:
    """A gateway that confirms earlier keys, late, is still waited for."""
    desk = Desk()
    desk.start()
    command = desk.change(2)
    desk.desk.note_applied(ONE, 102)
    desk.desk.note_applied(TWO, 101)
    desk.desk.note_applied(ONE, 101)
    assert command.read()[-1] == KeysPending(("gateway-1 (pid 22)",))


def test_a_gateway_that_is_not_connected_is_waited_for() -> None:
    """A process that lives counts whether it was ever heard of or not, until it has said so or has ended."""
    desk = Desk()
    one, _ = desk.start()
    desk.desk.forget(one.channel)
    desk.living[33, 3] = "gateway-2"  # starting: it has not said hello
    command = desk.change(2)
    desk.desk.note_applied(TWO, 102)
    assert command.read()[-1] == KeysPending(("gateway-0 (pid 11)", "gateway-2 (pid 33)"))
    again = Peer()
    desk.desk.hello(ONE, again.channel)
    assert again.read() == [Keys(102, snapshot_of(2))]
    desk.desk.note_applied(ONE, 102)
    assert command.read() == [KeysPending(("gateway-2 (pid 33)",))]
    del desk.living[33, 3]
    desk.desk.check()
    assert command.read() == [KeysConfirmed(2)]


def test_a_successor_is_another_process() -> None:
    """What a process confirmed is not taken for its successor's word, even under the same pid."""
    desk = Desk()
    desk.start()
    command = desk.change(2)
    for process in (ONE, TWO):
        desk.desk.note_applied(process, 102)
    assert command.read()[-1] == KeysConfirmed(2)
    del desk.living[ONE]
    desk.living[11, 99] = "gateway-0"
    late = desk.change(2)
    assert late.read() == [KeysPending(("gateway-0 (pid 11)",))]


def test_what_is_in_force_already_is_confirmed_at_once() -> None:
    """A command that asks again, or comes when no gateway lives, does not wait."""
    desk = Desk()
    one, _ = desk.start()
    assert desk.change(1).read() == [KeysConfirmed(1)]
    assert one.read() == []
    desk.living.clear()
    assert desk.change(2).read() == [KeysConfirmed(2)]


def test_a_command_may_go_away() -> None:
    """Who closed its channel is not told anything any more, and disturbs nobody."""
    desk = Desk()
    desk.start()
    gone = desk.change(2)
    desk.desk.forget(gone.channel)
    stays = desk.change(3)
    gone.read()
    for process in (ONE, TWO):
        desk.desk.note_applied(process, 103)
    assert gone.read() == []
    assert stays.read()[-1] == KeysConfirmed(3)


def test_a_change_that_nobody_told_of_is_found() -> None:
    """A command that dies between the store and its word leaves a change that the next look finds."""
    desk = Desk()
    one, _ = desk.start()
    desk.store = snapshot_of(2)
    desk.desk.tend()
    assert one.read() == [Keys(102, snapshot_of(2))]
    desk.desk.tend()
    assert one.read() == []


def test_an_older_copy_of_the_store_is_a_change() -> None:
    """Where the store was put back gateways get what it says now, under a sequence that is newer all the same."""
    desk = Desk()
    one, _ = desk.start()
    desk.change(7)
    one.read()
    desk.store = snapshot_of(3)
    desk.desk.tend()
    assert one.read() == [Keys(103, snapshot_of(3))]


def test_another_store_than_the_commands_is_told() -> None:
    """If the head reads an earlier revision than the command wrote, they use different files, and that is said."""
    desk = Desk()
    desk.start()
    command = Peer()
    desk.desk.change(command.channel, KeysChanged(9))
    (answer,) = command.read()
    assert isinstance(answer, KeysFailed)
    assert "expected the store of keys at revision 9 or later, got 1" in answer.reason


def test_a_store_that_cannot_be_read_changes_nothing() -> None:
    """Gateways keep their keys, people are warned once, a command is told; when it can be read again all goes on."""
    desk = Desk()
    one, _ = desk.start()
    desk.store = ConfigError("keys.db: broken")
    for _ in range(2):
        desk.desk.tend()
    command = Peer()
    desk.desk.change(command.channel, KeysChanged(2))
    assert command.read() == [KeysFailed("keys.db: broken")]
    assert desk.warnings == ["keys.db: broken"]
    assert one.read() == []
    desk.store = snapshot_of(2)
    desk.desk.tend()
    assert one.read() == [Keys(102, snapshot_of(2))]


def test_nobody_is_served_from_a_store_that_cannot_be_read() -> None:
    """At the start such a store is an error."""
    desk = Desk()
    desk.store = ConfigError("keys.db: broken")
    with pytest.raises(ConfigError, match="broken"):
        desk.desk.start()


def test_people_hear_of_tiers_that_are_none() -> None:
    """A key of a tier that the configuration has not is under fewer limits than meant: said once for each."""
    desk = Desk(tiers=("free",))
    desk.start()
    for revision, tier in enumerate(("free", "pro", "pro", ""), start=2):
        desk.store = snapshot_of(revision, tier)
        desk.desk.tend()
    assert desk.warnings == [
        "keys of tier pro: expected one of [tiers] (free); only limits of no tier hold there",
    ]


def test_weights_follow_the_keys() -> None:
    """What keys say tenants weigh is what the newest store says."""
    desk = Desk()
    desk.start()
    assert desk.desk.weights == {}
    desk.store = snapshot_of(2, weight=2.5)
    desk.desk.tend()
    assert desk.desk.weights == {"acme": 2.5}
