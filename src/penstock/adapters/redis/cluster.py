"""A Redis Cluster as the authority: each operation goes to the server that has its slot.

Which server that is, the cluster says; it is asked again when a server was wrong about it or went away. Not here: one
server's calls (`node.py`), checks that span slots (`spreading.py`), which keys an operation has (`encoding.py`).

Source: Redis Cluster specification, redis.io/docs/reference/cluster-spec.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache, partial

from redis.crc import key_slot

from penstock.adapters.redis.encoding import key_of
from penstock.adapters.redis.node import Node, Parcel
from penstock.adapters.redis.spreading import Spread
from penstock.adapters.redis.target import Address
from penstock.core.authority import Check, Operation, Reply
from penstock.core.ports import Clock

__all__ = ["SLOTS", "Cluster", "Shards", "read_shards", "slot_of"]

SLOTS = 16_384
# Between questions about the slots while a server is away: a replica takes over after some seconds.
_REFRESH_S = 0.25

Shards = dict[Address, list[range]]
_OnReplies = Callable[[Sequence[Reply | None]], None]


# Tenants in use at a time, about; computing one takes some µs.
@lru_cache(maxsize=65_536)
def _slot_of_tag(tag: str) -> int:
    return key_slot(tag.encode())


def slot_of(key: str) -> int:
    """Return the slot of a key: of its hash tag, of the whole if it has none."""
    start = key.find("{")
    end = key.find("}", start + 1) if start >= 0 else -1
    return _slot_of_tag(key[start + 1 : end]) if end > start + 1 else key_slot(key.encode())


def read_shards(reply: object, asked: Address) -> Shards:
    """Return each primary's slots.

    Args:
        reply: To CLUSTER SLOTS: ranges, each with its primary first and then its replicas.
        asked: The server that gave it: one that does not know its own name leaves it out.

    Raises:
        ConnectionError: It is no such reply, or no server has any slot.
    """
    found: Shards = {}
    for entry in reply if isinstance(reply, Iterable) else [None]:
        match entry:
            case [int(first), int(last), [bytes() | None as host, int(port), *_], *_] if 0 <= first <= last < SLOTS:
                name = (host or b"").decode(errors="replace")
                address = Address(asked.host if name in ("", "?") else name, port)
                found.setdefault(address, []).append(range(first, last + 1))
            case _:
                raise ConnectionError(f"CLUSTER SLOTS: expected ranges with their primaries, got {entry!r}")
    if not found:
        raise ConnectionError("CLUSTER SLOTS: expected ranges with their primaries, got none")
    return found


class Cluster:
    """See the module.

    Args:
        shards: Its servers at the start.
        make_node: Makes one, unconnected, that turns to the given `Cluster` with what it cannot do.
        ask_shards: Asks some of the given servers about all.
        loop, now_us: Event loop and clock.
    """

    def __init__(
        self,
        shards: Shards,
        make_node: "Callable[[Address, Cluster], Node]",
        ask_shards: Callable[[Sequence[Address]], Awaitable[Shards]],
        *,
        loop: asyncio.AbstractEventLoop,
        now_us: Clock,
    ) -> None:
        self._make_node = make_node
        self._ask_shards = ask_shards
        self._loop = loop
        self._now_us = now_us
        self._nodes: dict[Address, Node] = {}
        self._by_slot: list[Node | None] = [None] * SLOTS
        self._refreshing: asyncio.Task[None] | None = None
        self._is_closed = False
        # Under which checks in several slots are undone: unique over gateways and lives.
        self._nonce = secrets.token_hex(8)
        self._spreads = 0
        self._apply(shards)

    @property
    def nodes(self) -> list[Node]:
        """Return its servers."""
        return list(self._nodes.values())

    async def start(self) -> None:
        """Connect to all.

        Raises:
            OSError: One does not answer, or will not do.
        """
        try:
            await asyncio.gather(*(node.start() for node in self._nodes.values()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up everything and disconnect."""
        self._is_closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
        for node in self._nodes.values():
            node.close()

    # -- operations ----------------------------------------------------------------------------------------------

    def submit(self, operations: Sequence[Operation], on_replies: _OnReplies) -> None:
        """See `LimitAuthority`."""
        joint = _Joint(len(operations), on_replies)
        by_slot: dict[int, list[int]] = {}
        spread: list[tuple[int, Check]] = []
        for index, operation in enumerate(operations):
            if isinstance(operation, Check) and _is_spread(operation):
                spread.append((index, operation))
            else:
                by_slot.setdefault(slot_of(key_of(operation)), []).append(index)
        now_us = self._now_us()
        for slot, indices in by_slot.items():
            self._send(slot, [operations[i] for i in indices], partial(joint.put, indices), now_us)
        for index, check in spread:
            self._spreads += 1
            Spread(
                check,
                f"{self._nonce}:{self._spreads}",
                slot_of=slot_of,
                send=partial(self._send, at_us=now_us),
                answer=partial(joint.put_one, index),
            ).start()

    def _send(self, slot: int, operations: Sequence[Operation], answer: _OnReplies, at_us: int) -> None:
        self._hand_over(Parcel(slot, operations, answer, at_us), self._by_slot[slot])

    def _hand_over(self, parcel: Parcel, node: Node | None) -> None:
        if node is not None:
            node.submit(parcel)
            return
        self._loop.call_soon(parcel.answer, [None] * len(parcel.operations))
        self.refresh_soon()

    def redirect(self, parcel: Parcel, word: str, rest: str) -> None:
        """A server does not have the parcel's slot, and says who does; nothing of it was run.

        Args:
            parcel: Goes there, if we know that server.
            word: `MOVED` for good, or `ASK`: this once.
            rest: `SLOT HOST:PORT`.
        """
        host, _, port = rest.partition(" ")[2].rpartition(":")
        node = self._nodes.get(Address(host, int(port) if port.isdecimal() else 0))
        parcel.is_asking = word == "ASK"
        if word == "MOVED":
            self._by_slot[parcel.slot] = node
            self.refresh_soon()
        self._hand_over(parcel, node)

    # -- servers -------------------------------------------------------------------------------------------------

    def refresh_soon(self) -> None:
        """A server is away, or was wrong: ask who has which slot, until all are well."""
        if self._refreshing is None and not self._is_closed:
            self._refreshing = self._loop.create_task(self._refresh())

    async def _refresh(self) -> None:
        try:
            while True:
                try:
                    self._apply(await self._ask_shards(list(self._nodes)))
                except OSError:
                    # Nobody could be asked, and each server's breaker says so.
                    pass
                if all(node.breaker.allows for node in self._nodes.values()) and None not in self._by_slot:
                    return
                await asyncio.sleep(_REFRESH_S)
        finally:
            self._refreshing = None

    def _apply(self, shards: Shards) -> None:
        by_slot: list[Node | None] = [None] * SLOTS
        for address, ranges in shards.items():
            node = self._nodes.get(address)
            if node is None:
                node = self._nodes[address] = self._make_node(address, self)
            for slots in ranges:
                by_slot[slots.start : slots.stop] = [node] * len(slots)
        for address in self._nodes.keys() - shards.keys():
            self._nodes.pop(address).close()
        self._by_slot = by_slot


class _Joint:
    """Replies from several servers, until there is one for each operation of a `submit`."""

    def __init__(self, count: int, on_replies: _OnReplies) -> None:
        self._replies: list[Reply | None] = [None] * count
        self._open = count
        self._on_replies = on_replies

    def put(self, indices: Sequence[int], replies: Sequence[Reply | None]) -> None:
        for index, reply in zip(indices, replies, strict=True):
            self._replies[index] = reply
        self._open -= len(indices)
        if not self._open:
            self._on_replies(self._replies)

    def put_one(self, index: int, reply: Reply | None) -> None:
        self.put((index,), (reply,))


def _is_spread(check: Check) -> bool:
    if len(check.demands) + len(check.slots) == 1:
        return False
    slots = {slot_of(demand.key) for demand in check.demands} | {slot_of(slot.key) for slot in check.slots}
    return len(slots) > 1
