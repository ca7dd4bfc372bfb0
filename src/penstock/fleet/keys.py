"""API keys at the head: reads their store, tells every gateway, and knows when the last of them goes by what it said.

    command --KeysChanged--> head --Keys--> each gateway --KeysApplied--> head --KeysConfirmed--> command

Every gateway process that lives counts, heard of or not, until it has said so or has ended: one that is stopped, cut
off or still starting might accept an old key when it goes on. Not here: the store (`adapters/sql/keys.py`), the
command's end (`fence.py`), what a gateway does with keys (`gateway/identity.py`).
"""

from collections.abc import Callable, Collection, Iterable

from penstock.core.errors import PenstockError
from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.fleet.control import Channel
from penstock.policy.identifying import tenant_weights
from penstock.wire.control import (
    Keys,
    KeysChanged,
    KeysConfirmed,
    KeysFailed,
    KeysPending,
    encode_message,
)

__all__ = ["KeyDesk", "ProcessId"]

# Pid and start time: no two processes of one boot share both.
ProcessId = tuple[int, int]


class _Waiter:
    """A command that waits until no gateway goes by keys older than `sequence`."""

    __slots__ = ("said", "sequence")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.said: tuple[str, ...] | None = None


class KeyDesk:
    """See the module.

    Args:
        read: Returns the keys in the store, None if they are still those of the revision given. Raises PenstockError.
        sequence: Greater than any that an earlier head said.
        gateways: Yields each gateway process that lives, wanted or not, with its name.
        on_warning: Called with what people should know.
        tiers: Names of the tiers there are.

    Attributes:
        weights: What keys say tenants weigh.
    """

    def __init__(
        self,
        read: Callable[[int | None], KeySnapshot | None],
        *,
        sequence: int,
        gateways: Callable[[], Iterable[tuple[str, ProcessId]]],
        on_warning: Callable[[str], None],
        tiers: Collection[str] = (),
    ) -> None:
        self._read = read
        self._gateways = gateways
        self._on_warning = on_warning
        self._sequence = sequence
        self._snapshot: KeySnapshot | None = None
        self._message = b""
        self._fault = ""
        self._tiers = frozenset(tiers)
        self._strange_tiers: set[str] = set()
        self._channels: dict[ProcessId, Channel] = {}
        self._applied: dict[ProcessId, int] = {}
        self._waiters: dict[Channel, _Waiter] = {}
        self.weights: dict[str, float] = {}

    def start(self) -> None:
        """Read the store for the first time.

        Raises:
            PenstockError: It cannot be read. Nobody could be told from anybody: do not start.
        """
        self._apply(self._read(None))

    def tend(self) -> None:
        """Call every second or so: a command may have changed the store and died before it could say so."""
        self._refresh()

    @property
    def records(self) -> tuple[KeyRecord, ...]:
        """The keys that are good, oldest first."""
        return () if self._snapshot is None else self._snapshot.records

    def hello(self, process: ProcessId, channel: Channel) -> None:
        """A gateway is there: it gets the keys before anything else."""
        self._channels[process] = channel
        channel.send_bytes(self._message)

    def note_applied(self, process: ProcessId, sequence: int) -> None:
        """A gateway goes by the keys of `sequence`."""
        self._applied[process] = max(sequence, self._applied.get(process, 0))
        self.check()

    def change(self, channel: Channel, message: KeysChanged) -> None:
        """A command has changed the store: tell every gateway, and the command when all of them go by it."""
        self._refresh()
        revision = -1 if self._snapshot is None else self._snapshot.revision
        if self._fault:
            channel.send(KeysFailed(self._fault))
        elif revision < message.revision:
            expected = f"expected the store of keys at revision {message.revision} or later, got {revision}"
            channel.send(KeysFailed(f"{expected}: the command and the server use different files"))
        else:
            self._waiters[channel] = _Waiter(self._sequence)
            self.check()

    def forget(self, channel: Channel) -> None:
        """A channel was closed."""
        self._waiters.pop(channel, None)
        self._channels = {process: c for process, c in self._channels.items() if c is not channel}

    def check(self) -> None:
        """Call when a gateway process has begun or ended: answer the commands that wait for no other."""
        living = list(self._gateways())
        processes = {process for _, process in living}
        self._applied = {process: sequence for process, sequence in self._applied.items() if process in processes}
        for channel, waiter in list(self._waiters.items()):
            pending = tuple(
                f"{name} (pid {process[0]})"
                for name, process in living
                if self._applied.get(process, 0) < waiter.sequence
            )
            if not pending:
                del self._waiters[channel]
                assert self._snapshot is not None
                channel.send(KeysConfirmed(self._snapshot.revision))
            elif pending != waiter.said:
                waiter.said = pending
                channel.send(KeysPending(pending))

    def _refresh(self) -> None:
        try:
            snapshot = self._read(None if self._snapshot is None else self._snapshot.revision)
        except PenstockError as error:
            # Gateways go on with the keys they have; the store is tried again within a second.
            if error.message != self._fault:
                self._on_warning(error.message)
            self._fault = error.message
            return
        self._fault = ""
        self._apply(snapshot)

    def _apply(self, snapshot: KeySnapshot | None) -> None:
        if snapshot is None:
            return
        self._snapshot = snapshot
        self._sequence += 1
        self._message = encode_message(Keys(self._sequence, snapshot))
        self.weights = tenant_weights(snapshot.records)
        for channel in self._channels.values():
            channel.send_bytes(self._message)
        self._warn_of_tiers({record.tier for record in snapshot.records if record.tier} - self._tiers)

    def _warn_of_tiers(self, strange: set[str]) -> None:
        news = strange - self._strange_tiers
        self._strange_tiers = strange
        if news:
            known = ", ".join(sorted(self._tiers)) or "none"
            named = ", ".join(sorted(news))
            self._on_warning(
                f"keys of tier {named}: expected one of [tiers] ({known}); only limits of no tier hold there"
            )
