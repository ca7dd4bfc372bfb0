"""Redis as the authority over limits: one server, one found by Sentinel, or a cluster.

Connects by itself, again and again; while nobody answers, callers are told so at once. Not here: one server's calls and
deadlines (`node.py`), a cluster's servers (`cluster.py`), the operations themselves (the Lua script).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import hiredis

from penstock.adapters import clock
from penstock.adapters.redis.cluster import Cluster, Shards, read_shards
from penstock.adapters.redis.inspection import Server, complain_about_eviction, complain_about_server, read_info
from penstock.adapters.redis.link import Link
from penstock.adapters.redis.node import Node, Parcel, Tally
from penstock.adapters.redis.scripts import Script, load_script
from penstock.adapters.redis.target import CONNECT_S, Address, Kind, open_link, read_target
from penstock.core.authority import Operation, Reply
from penstock.core.errors import ConfigError
from penstock.core.ports import Clock
from penstock.policy.breaking import BreakerState

__all__ = ["AuthorityStatistics", "RedisAuthority"]

# Between attempts to begin with a Redis that was away when we started.
_RETRY_S = 0.5
# Between questions to the sentinels about who is the primary. One that was replaced while it was well goes on answering
# for some 8 s, until it is told: whoever stays with it is counted apart from those who left. Leases and hard limits
# allow for `LEASE_US_MAX` of that.
_FOLLOW_S = 0.5


@dataclass(frozen=True, slots=True)
class AuthorityStatistics:
    """What one authority has done since it was made.

    Attributes:
        calls: Commands sent.
        operations: Sent in them.
        failures: Calls without a reply in time, or with an error.
        refused: Operations given up unsent.
        faults: Operations that failed alone; `fault` is what was said of the last.
        fault: Of an operation or a call, in the server's words; '' if there was none.
        openings: How often a breaker has opened.
        state: Of the breaker; of the worst of several; `open` before the first connection.
    """

    calls: int
    operations: int
    failures: int
    refused: int
    faults: int
    fault: str
    openings: int
    state: BreakerState


class RedisAuthority:
    """Implements `LimitAuthority`.

    Args:
        url: See `target.py`.
        deadline_us: How long a caller waits for an answer at most, µs.
        eviction: `refuse` to start with a Redis that may evict limits, or `warn`.
        on_warning: Called with what an operator should know.
        now_us: Clock.
        script: What is run; for tests.

    Raises:
        ConfigError: `url` is none.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_us: int = 10_000,
        eviction: str = "refuse",
        on_warning: Callable[[str], None] | None = None,
        now_us: Clock = clock.now_us,
        script: Script | None = None,
    ) -> None:
        try:
            self._target = read_target(url)
        except ValueError as error:
            raise ConfigError(f"redis.url: {error}") from None
        self._script = script or load_script()
        self._deadline_us = deadline_us
        self._refuses_eviction = eviction == "refuse"
        self._on_warning = on_warning
        self._now_us = now_us
        self._tally = Tally()
        self._warned: set[str] = set()
        self._node: Node | None = None
        self._cluster: Cluster | None = None
        self._is_closed = False
        self._beginning: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self, *, is_required: bool = True) -> None:
        """Connect and see whether the server will do.

        Args:
            is_required: False: if nobody answers now, go on trying; until then every answer is None. For a gateway,
                which must be able to start while Redis is away.

        Raises:
            ConfigError: Nobody answers, or the server will not do; the message names the field and the fix.
        """
        try:
            await self._begin()
        except ConfigError as error:
            if is_required:
                raise
            self._warn(error.message)
            self._beginning = asyncio.get_running_loop().create_task(self._begin_later())

    async def _begin_later(self) -> None:
        while not self._is_closed:
            await asyncio.sleep(_RETRY_S)
            try:
                await self._begin()
            except ConfigError as error:
                self._warn(error.message)
            else:
                return

    async def _begin(self) -> None:
        try:
            address = await self._target.locate()
            shards = await self._ask([address] if self._target.kind is Kind.SENTINEL else self._target.addresses)
            if shards is None:
                if self._target.kind is Kind.CLUSTER:
                    raise ConnectionError("a server that is not in a cluster; use redis://")
                node = self._make_node(None, None)
                await node.start()
                self._node = node
                if self._target.kind is Kind.SENTINEL:
                    self._following = asyncio.get_running_loop().create_task(self._follow(node))
            else:
                cluster = Cluster(
                    shards,
                    self._make_node,
                    self._ask_shards,
                    loop=asyncio.get_running_loop(),
                    now_us=self._now_us,
                )
                await cluster.start()
                self._cluster = cluster
        except (OSError, hiredis.HiredisError) as error:
            raise ConfigError(
                f"redis.url: expected a Redis that answers at {self._target.name}, got: {_describe(error)};"
                " start it, or correct the URL"
            ) from None

    def close(self) -> None:
        """Give up what is in flight, with None for an answer, and disconnect."""
        self._is_closed = True
        for task in (self._beginning, self._following):
            if task is not None:
                task.cancel()
        if self._node is not None:
            self._node.close()
        if self._cluster is not None:
            self._cluster.close()

    async def _follow(self, node: Node) -> None:
        """Leave a primary that is none any more, while it still answers."""
        while True:
            await asyncio.sleep(_FOLLOW_S)
            try:
                address = await self._target.locate()
            except OSError:
                continue  # without sentinels the primary may be well all the same
            node.stay_at(str(address))

    # -- use -----------------------------------------------------------------------------------------------------

    def submit(self, operations: Sequence[Operation], on_replies: Callable[[Sequence[Reply | None]], None]) -> None:
        """See `LimitAuthority`."""
        if self._is_closed or not operations or (self._node is None and self._cluster is None):
            asyncio.get_running_loop().call_soon(on_replies, [None] * len(operations))
        elif self._node is not None:
            self._node.submit(Parcel(0, operations, on_replies, self._now_us()))
        elif self._cluster is not None:
            self._cluster.submit(operations, on_replies)

    def statistics(self) -> AuthorityStatistics:
        """Return what was done so far."""
        nodes = self._nodes()
        allowing = [node for node in nodes if node.breaker.allows]
        worst = next((n.breaker.state for n in nodes if not n.breaker.allows), None)
        state = worst or (allowing[0].breaker.state if allowing else BreakerState.OPEN)
        tally = self._tally
        return AuthorityStatistics(
            calls=tally.calls,
            operations=tally.operations,
            failures=tally.failures,
            refused=tally.refused,
            faults=tally.faults,
            fault=tally.fault,
            openings=sum(node.breaker.openings for node in nodes),
            state=state,
        )

    def _nodes(self) -> list[Node]:
        if self._node is not None:
            return [self._node]
        return self._cluster.nodes if self._cluster is not None else []

    # -- servers -------------------------------------------------------------------------------------------------

    def _make_node(self, address: Address | None, cluster: Cluster | None) -> Node:
        """Return a server's node: the one at `address`, or wherever the target says at the time."""
        return Node(
            partial(self._connect, address),
            self._script,
            deadline_us=self._deadline_us,
            loop=asyncio.get_running_loop(),
            now_us=self._now_us,
            tally=self._tally,
            on_connected=self._inspect,
            on_moved=None if cluster is None else cluster.redirect,
            on_away=None if cluster is None else cluster.refresh_soon,
        )

    async def _connect(self, address: Address | None) -> Link:
        address = await self._target.locate() if address is None else address
        return await open_link(self._target, address, asyncio.get_running_loop())

    async def _ask_shards(self, addresses: Sequence[Address]) -> Shards:
        """Ask the first of some servers that answers, or one that the URL names, about the whole cluster."""
        shards = await self._ask([*addresses, *self._target.addresses])
        if shards is None:
            raise ConnectionError("the server is no longer in a cluster")
        return shards

    async def _ask(self, addresses: Sequence[Address]) -> Shards | None:
        """Return the cluster's servers, as the first that answers says; None if it is in no cluster.

        Raises:
            ConfigError: The server will not do.
            OSError: None answers.
        """
        trouble: Exception = ConnectionError("no address")
        for address in addresses:
            try:
                return await self._ask_one(address)
            except (OSError, hiredis.HiredisError) as error:
                trouble = error
        raise trouble

    async def _ask_one(self, address: Address) -> Shards | None:
        link = await open_link(self._target, address, asyncio.get_running_loop())
        try:
            async with asyncio.timeout(CONNECT_S):
                info = await link.request("INFO")
                assert isinstance(info, bytes)
                server = read_info(info)
                trouble = complain_about_eviction(server)
                if trouble and self._refuses_eviction and not self._nodes():
                    raise ConfigError(f"redis.url: {self._target.name}: {trouble}")
                if not server.is_cluster:
                    return None
                return read_shards(await link.request("CLUSTER", "SLOTS"), address)
        finally:
            link.abort()

    def _inspect(self, server: Server) -> None:
        """Refuse a server that will not do, whenever we connect; of what may be lost, warn once."""
        if trouble := complain_about_server(server):
            raise ConnectionRefusedError(trouble)
        if trouble := complain_about_eviction(server):
            self._warn(f"redis: {trouble}")

    def _warn(self, text: str) -> None:
        if self._on_warning is not None and text not in self._warned:
            self._warned.add(text)
            self._on_warning(text)


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
