"""The authority on real Redis servers that restart, stall, forget, fail over and share slots.

Not here: what the operations mean (`tests/conformance/test_limit_authority.py`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from penstock.adapters.clock import now_us
from penstock.adapters.redis import RedisAuthority
from penstock.adapters.redis.cluster import slot_of
from penstock.adapters.redis.encoding import companion
from penstock.core.authority import (
    Announce,
    Announced,
    Ask,
    Check,
    Checked,
    Demand,
    Granted,
    Occupy,
    Operation,
    Peek,
    Peeked,
    Reply,
    SlotDemand,
)
from penstock.core.errors import ConfigError
from penstock.core.limits import Quota
from penstock.policy.breaking import BreakerState
from penstock.policy.leasing import LEASE_US_MAX
from penstock.testing.redis_servers import RedisCluster, RedisReplication, RedisServer, wait_for

# A busy machine may take this long for an answer; what must not be waited for is never answered at all.
DEADLINE_US = 500_000
KEY = "penstock:{acme}:per-user:alice"
# 10 tokens per second, 100 at once.
QUOTA = Quota(drain=1, weight=100_000, tick_us=1, burst=100, lease_max=50)
HARD = Quota(drain=1, weight=10_000, tick_us=1, burst=20, lease_max=10, is_hard=True)


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    """A server that no test harms."""
    with RedisServer(now_us) as started:
        yield started


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """The shared server, empty."""
    shared.ask("FLUSHALL")
    return shared


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[RedisAuthority]:
    """Start an authority and end it."""
    authority = RedisAuthority(url, **{"deadline_us": DEADLINE_US, **options})
    await authority.start()
    try:
        yield authority
    finally:
        authority.close()
        await asyncio.sleep(0)


async def submit(authority: RedisAuthority, *operations: Operation) -> Sequence[Reply | None]:
    """Return the replies to operations of one turn."""
    answered: asyncio.Future[Sequence[Reply | None]] = asyncio.get_running_loop().create_future()
    authority.submit(operations, answered.set_result)
    return await answered


async def check(authority: RedisAuthority, *demands: tuple[str, Quota, int]) -> Checked | None:
    """Take tokens, all or none."""
    (reply,) = await submit(authority, Check(tuple(Demand(*demand) for demand in demands)))
    assert reply is None or isinstance(reply, Checked)
    return reply


async def take(authority: RedisAuthority, key: str = KEY, quota: Quota = QUOTA, cost: int = 1) -> bool | None:
    """Take tokens of one bucket; None if there was no answer."""
    reply = await check(authority, (key, quota, cost))
    return None if reply is None else reply.denied < 0


async def left(authority: RedisAuthority, key: str = KEY, quota: Quota = QUOTA) -> int:
    """Return what is left in a bucket."""
    (reply,) = await submit(authority, Peek(key, quota))
    assert isinstance(reply, Peeked)
    return reply.remaining


async def wait_until(is_so: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Look again and again until something is so."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while not is_so():
        assert loop.time() < until, f"expected {what}"
        await asyncio.sleep(0.01)


async def wait_answered(authority: RedisAuthority, key: str = KEY, quota: Quota = QUOTA) -> None:
    """Ask until there is an answer."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 30.0
    while (await submit(authority, Peek(key, quota)))[0] is None:
        assert loop.time() < until, f"expected an answer, got {authority.statistics()}"
        await asyncio.sleep(0.01)


# -- a server of one's own ---------------------------------------------------------------------------------------------


def test_concurrent_submits_share_a_call(server: RedisServer) -> None:
    """What many ask in one turn of the loop goes in one command, and each has its own answer."""

    async def ask() -> None:
        async with connected(server.url) as authority:
            before = authority.statistics().calls
            replies = await asyncio.gather(*(check(authority, (KEY, QUOTA, cost)) for cost in range(1, 21)))
            # NOSCRIPT once, as the server was just emptied of nothing but keys: the script may be new to it.
            assert authority.statistics().calls - before <= 2
            assert [reply.denied for reply in replies if reply is not None] == [-1] * 13 + [0] * 7

    asyncio.run(ask())


def test_a_flushed_script_is_sent_again(server: RedisServer) -> None:
    """A server that has forgotten the script is told it within the same call: nothing fails, nothing is done twice."""

    async def ask() -> None:
        async with connected(server.url) as authority:
            for _ in range(20):
                server.flush_scripts()
                assert await take(authority)
            assert await left(authority) in (80, 81, 82)
            assert authority.statistics().failures == 0

    asyncio.run(ask())


def test_a_restart_is_survived(server: RedisServer) -> None:
    """While the server is away callers are told so at once; when it is back it is asked again, by itself."""

    async def ask() -> None:
        with RedisServer(now_us, ["--appendonly", "yes", "--appendfsync", "always"]) as own:
            async with connected(own.url) as authority:
                assert await take(authority, cost=60)
                (first,) = await submit(authority, Announce("p:{-}:g:all", "g1", 1_000_000))
                own.kill()
                await wait_until(lambda: authority.statistics().state is not BreakerState.CLOSED, "an open breaker")
                sent = authority.statistics().calls
                assert [await take(authority) for _ in range(50)] == [None] * 50
                assert authority.statistics().calls == sent
                own.start_again()
                await wait_answered(authority)
                assert await take(authority, cost=60) is False
                (second,) = await submit(authority, Announce("p:{-}:g:all", "g1", 1_000_000))
                assert isinstance(first, Announced)
                assert isinstance(second, Announced)
                assert first.epoch != second.epoch

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["SIGSTOP", "CLIENT PAUSE"])
def test_a_stalled_server_costs_little(how: str) -> None:
    """Who asks a server that hangs is told within the deadline; after a few nobody asks, until it answers a probe."""

    async def ask() -> None:
        with RedisServer(now_us) as own:
            async with connected(own.url, deadline_us=20_000) as authority:
                await wait_answered(authority)
                if how == "SIGSTOP":
                    own.pause()
                else:
                    own.ask("CLIENT", "PAUSE", 600_000, "WRITE")
                while authority.statistics().state is BreakerState.CLOSED:
                    await take(authority)
                sent = authority.statistics().calls
                assert [await take(authority) for _ in range(50)] == [None] * 50
                assert authority.statistics().calls == sent
                if how == "SIGSTOP":
                    own.resume()
                else:
                    own.ask("CLIENT", "UNPAUSE")
                await wait_answered(authority)
                assert await left(authority) >= 50

    asyncio.run(ask())


def test_answers_keep_their_questions_after_a_stall() -> None:
    """Late answers meet nobody: what is asked afterwards has its own."""

    async def ask() -> None:
        with RedisServer(now_us) as own:
            async with connected(own.url, deadline_us=20_000) as authority:
                await wait_answered(authority)
                own.pause()
                assert await take(authority, cost=7) is None
                own.resume()
                await wait_answered(authority)
                keys = [f"p:{{t{n}}}:x:u" for n in range(20)]
                for cost, key in enumerate(keys):
                    while await take(authority, key, cost=cost) is None:
                        pass
                assert [await left(authority, key) for key in keys] == [100 - cost for cost in range(20)]

    asyncio.run(ask())


def test_a_key_of_another_kind_spoils_nobody_elses_call(server: RedisServer) -> None:
    """An operation that cannot be done has no answer; those that travel with it have theirs."""

    async def ask() -> None:
        server.ask("LPUSH", KEY, "something else")
        async with connected(server.url) as authority:
            other = "penstock:{acme}:per-user:bob"
            spoiled, sound = await submit(authority, Peek(KEY, QUOTA), Check((Demand(other, QUOTA, 5),)))
            assert spoiled is None
            assert isinstance(sound, Checked)
            assert sound.remaining == (95,)
            statistics = authority.statistics()
            assert (statistics.faults, statistics.failures, statistics.state) == (1, 0, BreakerState.CLOSED)
            assert "WRONGTYPE" in statistics.fault

    asyncio.run(ask())


def test_no_memory_is_no_admission() -> None:
    """A server that is full and evicts nothing lets nobody in uncounted, and answers again when it has room."""

    async def ask() -> None:
        with RedisServer(now_us) as own:
            async with connected(own.url) as authority:
                own.ask("CONFIG", "SET", "maxmemory", 1)
                assert await take(authority) is None
                own.ask("CONFIG", "SET", "maxmemory", 0)
                assert await take(authority)

    asyncio.run(ask())


def test_every_key_goes_by_itself(server: RedisServer) -> None:
    """Buckets, leases, holds, slots and gateways leave nothing behind, and none is gone before its time."""
    quick = Quota(drain=1, weight=1_000, tick_us=1, burst=200, lease_max=100)
    slow = Quota(drain=1, weight=1_000_000, tick_us=1, burst=200, lease_max=100)
    slots = "p:{acme}:at-once:alice"

    async def ask() -> None:
        async with connected(server.url) as authority:
            await submit(
                authority,
                Check((Demand(KEY, slow, 60),), (SlotDemand(slots, 3, 50_000),), "g1", "hold", 70_000_000),
                Ask(KEY, slow, "g1", "g1:1", 20, 2_000_000),
            )
            assert 80_000 < server.ask("PTTL", KEY) <= 82_001
            assert 0 < server.ask("PTTL", companion(KEY, "leases")) <= 2_001
            assert 60_000 < server.ask("PTTL", f"{companion(KEY, 'hold')}:hold") <= 70_001
            server.ask("DEL", KEY)
            await submit(
                authority,
                Check((Demand(KEY, quick, 60),), (SlotDemand(slots, 3, 50_000),), "g1", "hold", 70_000),
                Ask(KEY, quick, "g1", "g1:2", 20, 50_000),
                Announce("p:{acme}:gateways:all", "g1", 50_000),
                Occupy(slots, "g2", 2, 60_000),
            )
            await wait_until(lambda: server.ask("KEYS", "*") == ["p:{acme}epoch"], "an empty server")

    asyncio.run(ask())


def test_closing_answers_everybody_once(server: RedisServer) -> None:
    """Whoever still waits is told None, once; who asks later, too."""

    async def ask() -> None:
        authority = RedisAuthority(server.url, deadline_us=DEADLINE_US)
        await authority.start()
        told: list[Sequence[Reply | None]] = []
        for _ in range(3):
            authority.submit([Peek(KEY, QUOTA)], told.append)
        await asyncio.sleep(0)
        authority.submit([Peek(KEY, QUOTA)] * 2, told.append)
        authority.close()
        authority.submit([Peek(KEY, QUOTA)], told.append)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sorted(map(len, told)) == [1, 1, 1, 1, 2]
        assert all(reply is None for replies in told for reply in replies)

    asyncio.run(ask())


def test_a_caller_that_fails_hurts_nobody(server: RedisServer) -> None:
    """An exception in one caller's answer is reported, and the others of the call have theirs."""

    async def ask() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with connected(server.url) as authority:
            authority.submit([Peek(KEY, QUOTA)], lambda _: 1 / 0)  # type: ignore[arg-type]
            assert await left(authority) == 100
        assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]

    asyncio.run(ask())


# -- starting ----------------------------------------------------------------------------------------------------------


def start_error(url: str, **options: Any) -> str:
    """Return why an authority cannot start."""

    async def start() -> str:
        with pytest.raises(ConfigError) as caught:
            async with connected(url, **options):
                pass
        return caught.value.message

    return asyncio.run(start())


def test_nobody_there_is_an_error_that_names_the_setting() -> None:
    """A URL that nobody answers at says so, by its field and with what to do, and shows no password."""
    with RedisServer(now_us) as gone:
        port = gone.port
    message = start_error(f"redis://alice:opensesame@127.0.0.1:{port}/0")
    assert message.startswith("redis.url: expected a Redis that answers at redis://127.0.0.1:")
    assert "start it, or correct the URL" in message
    assert "opensesame" not in message


def test_a_wrong_password_is_an_error_that_does_not_show_it() -> None:
    """What the server says of a login is passed on; the right one is let in."""
    with RedisServer(now_us) as own:
        own.ask("ACL", "SETUSER", "alice", "on", ">open sesame", "~*", "+@all")
        host = f"127.0.0.1:{own.port}/3"
        assert "WRONGPASS" in (message := start_error(f"redis://alice:wrongsecret@{host}"))
        assert "wrongsecret" not in message

        async def ask() -> None:
            async with connected(f"redis://alice:open%20sesame@{host}") as authority:
                assert await take(authority)
                own.ask("SELECT", 3)
                assert own.ask("KEYS", "*") == [KEY]

        asyncio.run(ask())


def test_a_socket_is_as_good_as_a_port(tmp_path: Any) -> None:
    """`unix://` connects to the server's socket, in the database it names."""
    path = tmp_path / "redis.sock"

    async def ask() -> None:
        with RedisServer(now_us, ["--unixsocket", str(path)]):
            async with connected(f"unix://{path}?db=2") as authority:
                assert await take(authority)

    asyncio.run(ask())


def test_eviction_is_refused_or_warned_of() -> None:
    """A server that may evict limits is refused by name of the setting; with `warn` it is used, and said once."""
    warnings: list[str] = []

    async def ask(url: str) -> None:
        async with connected(url, eviction="warn", on_warning=warnings.append) as authority:
            assert await take(authority)

    with RedisServer(now_us, ["--maxmemory-policy", "allkeys-lru"]) as own:
        message = start_error(own.url)
        assert message.startswith("redis.url: ")
        assert "expected maxmemory-policy noeviction, got allkeys-lru" in message
        assert 'redis.eviction = "warn"' in message
        asyncio.run(ask(own.url))
    assert len(warnings) == 1
    assert "allkeys-lru" in warnings[0]


def test_a_replica_is_refused(server: RedisServer) -> None:
    """A server that refuses writes is named for what it is."""
    with RedisServer(now_us, ["--replicaof", "127.0.0.1", str(server.port)]) as replica:
        assert "got a replica" in start_error(replica.url)


def test_a_server_without_a_cluster_is_no_cluster(server: RedisServer) -> None:
    """`redis+cluster://` wants one."""
    assert "not in a cluster" in start_error(f"redis+cluster://127.0.0.1:{server.port}")


def test_one_may_start_before_redis_does() -> None:
    """With `is_required=False` one starts without an answer, says why, and uses the server when it is there."""
    warnings: list[str] = []
    with RedisServer(now_us) as gone:
        port = gone.port

    async def ask() -> None:
        authority = RedisAuthority(f"redis://127.0.0.1:{port}", deadline_us=DEADLINE_US, on_warning=warnings.append)
        await authority.start(is_required=False)
        assert authority.statistics().state is BreakerState.OPEN
        assert await take(authority) is None
        with RedisServer(now_us, port=port):
            await wait_answered(authority)
            assert await take(authority)
            authority.close()
            await asyncio.sleep(0)

    asyncio.run(ask())
    assert len(warnings) == 1
    assert "redis.url" in warnings[0]


# -- Sentinel ----------------------------------------------------------------------------------------------------------


async def count_admitted(authority: RedisAuthority, key: str, quota: Quota, is_over: Callable[[], bool]) -> int:
    """Take single tokens as fast as there are answers until something is so; return how many were there."""
    admitted = 0
    while not is_over():
        admitted += await take(authority, key, quota) or 0
        await asyncio.sleep(0)
    return admitted


def test_a_failover_is_survived_within_the_bound() -> None:
    """The new primary is found; hard limits admit not one token too much, soft ones a burst and the lag's at most."""
    soft_key, hard_key = "p:{a}:soft:u", "p:{b}:hard:u"

    async def ask() -> None:
        with RedisReplication(now_us) as servers:
            async with connected(servers.url) as authority:
                loop = asyncio.get_running_loop()
                await take(authority, hard_key, HARD)
                began = loop.time()
                until = began + LEASE_US_MAX / 1e6 + 0.3
                admitted_hard = await count_admitted(authority, hard_key, HARD, lambda: loop.time() > until)
                assert admitted_hard > 0
                admitted_soft = await count_admitted(authority, soft_key, QUOTA, lambda: loop.time() > until + 0.2)
                servers.cut_replication()
                again = loop.time()
                admitted_soft += await count_admitted(authority, soft_key, QUOTA, lambda: loop.time() > again + 0.3)
                admitted_hard += await count_admitted(authority, hard_key, HARD, lambda: loop.time() > again + 0.5)
                servers.primary.kill()
                await wait_until(lambda: servers.find_primary_port() == servers.replica.port, "a failover")
                await wait_answered(authority)
                back = loop.time()
                admitted_hard += await count_admitted(authority, hard_key, HARD, lambda: loop.time() > back + 2.5)
                admitted_soft += await count_admitted(authority, soft_key, QUOTA, lambda: loop.time() > back + 2.7)
                seconds = loop.time() - began
                assert admitted_hard <= HARD.burst + 100 * seconds
                assert admitted_soft <= 2 * QUOTA.burst + 10 * seconds
                # The hard bucket filled from empty both times: what was lost is refusals.
                assert admitted_hard <= 100 * (seconds - 2 * LEASE_US_MAX / 1e6) + 1

    asyncio.run(ask())


def test_a_primary_that_is_replaced_is_left_while_it_still_answers() -> None:
    """After a failover by hand the old primary goes on for seconds; we are gone before, and hard limits hold."""

    async def ask() -> None:
        with RedisReplication(now_us) as servers:
            async with connected(servers.url) as authority:
                loop = asyncio.get_running_loop()
                await take(authority, KEY, HARD)
                began = loop.time()
                until = began + LEASE_US_MAX / 1e6 + 0.3
                admitted = await count_admitted(authority, KEY, HARD, lambda: loop.time() > until)
                servers.sentinels[0].ask("SENTINEL", "FAILOVER", "penstock")
                marker = "p:{marker}:x:x"
                admitted += await count_admitted(
                    authority, KEY, HARD, lambda: servers.find_primary_port() == servers.replica.port
                )
                while not servers.replica.ask("EXISTS", marker):
                    assert servers.primary.client.info("replication")["role"] == "master", "left too late"
                    await take(authority, marker)
                    admitted += await take(authority, KEY, HARD) or 0
                again = loop.time() + LEASE_US_MAX / 1e6 + 0.5
                admitted += await count_admitted(authority, KEY, HARD, lambda: loop.time() > again)
                assert admitted <= HARD.burst + 100 * (loop.time() - began)

    asyncio.run(ask())


def test_a_primary_that_comes_back_without_a_restart_is_another() -> None:
    """Who followed its successor and was promoted again has lost what it had counted: hard limits begin anew."""
    key = "p:{epochs}:hard:u"

    async def ask() -> str:
        async with connected(first.url) as authority:
            announced, peeked = await submit(authority, Announce("p:{epochs}:g:all", "g", 1_000), Peek(key, HARD))
            assert isinstance(announced, Announced)
            assert isinstance(peeked, Peeked)
            assert peeked.full_after_us > LEASE_US_MAX
            return announced.epoch

    with RedisServer(now_us) as first, RedisServer(now_us, ["--replicaof", "127.0.0.1", str(first.port)]) as second:
        wait_for(lambda: second.client.info("replication")["master_link_status"] == "up", "a replica", now_us)
        before = asyncio.run(ask())
        second.ask("REPLICAOF", "NO", "ONE")
        first.ask("REPLICAOF", "127.0.0.1", second.port)
        wait_for(lambda: first.client.info("replication")["master_link_status"] == "up", "a replica", now_us)
        first.ask("REPLICAOF", "NO", "ONE")
        assert asyncio.run(ask()) != before


# -- Cluster -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Three servers that share the slots."""
    with RedisCluster(now_us) as started:
        yield started


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_cluster_serves_every_key(cluster: RedisCluster, scheme: str) -> None:
    """Tenants, models and the global key lie in different slots, and each operation finds its own: no CROSSSLOT."""
    quota = Quota(drain=1, weight=10_000_000, tick_us=1, burst=40)
    tenants = [f"tenant-{scheme}-{n}" for n in range(12)]

    async def ask() -> None:
        async with connected(f"{scheme}://127.0.0.1:{cluster.nodes[1].port}") as authority:
            operations: list[Operation] = []
            for tenant in tenants:
                user, whole = f"p:{{{tenant}}}:per-user:alice", f"p:{{{tenant}}}:per-tenant:{tenant}"
                slot = SlotDemand(f"p:{{{tenant}}}:at-once:alice", 2, 1_000_000)
                operations += [
                    Check((Demand(user, quota, 3), Demand(whole, quota, 3)), (slot,), "g1", f"h-{tenant}", 1_000_000),
                    Ask(user, QUOTA, "g1", f"g1:{tenant}", 5, 1_000_000),
                    Announce(f"p:{{{tenant}}}:gateways:all", "g1", 1_000_000),
                ]
            replies = await submit(authority, *operations)
            assert [type(reply) for reply in replies] == [Checked, Granted, Announced] * len(tenants)
            assert [reply.denied for reply in replies if isinstance(reply, Checked)] == [-1] * len(tenants)
            assert authority.statistics().faults == authority.statistics().failures == 0
            keys = [node.ask("DBSIZE") for node in cluster.nodes]
            assert min(keys) > 0

    asyncio.run(ask())


def test_a_check_of_several_slots_charges_all_or_nobody(cluster: RedisCluster) -> None:
    """The users of a cluster get what the global limit has, and who is refused is charged by no other limit."""
    quota = Quota(drain=1, weight=60_000_000, tick_us=1, burst=100)
    users = [f"p:{{t{n}}}:per-user:u" for n in range(8)]
    shared, model = "p:{global}:all:all", "p:{model:digits}:per-model:digits"

    async def ask() -> None:
        async with connected(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}") as authority:
            replies = [
                await check(authority, (user, quota, 5), (model, quota, 5), (shared, quota, 5))
                for user in users
                for _ in range(3)
            ]
            denied = [reply.denied for reply in replies if reply is not None]
            assert denied[:20] == [-1] * 20
            assert len(denied) == 24
            assert set(denied[20:]) <= {1, 2}
            assert [await left(authority, user, quota) for user in users] == [85] * 6 + [90, 100]
            assert [await left(authority, key, quota) for key in (model, shared)] == [0, 0]

    asyncio.run(ask())


def test_checks_of_several_slots_at_once_keep_the_bound(cluster: RedisCluster) -> None:
    """However they get in each other's way, no limit lets in more than it has, and who is undone is mostly refunded."""
    quota = Quota(drain=1, weight=60_000_000, tick_us=1, burst=100)
    users = [f"p:{{t{n}}}:at-once:u" for n in range(8)]
    shared = "p:{global}:at-once:all"

    async def ask() -> None:
        async with connected(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}") as authority:
            asked = [check(authority, (user, quota, 5), (shared, quota, 5)) for user in users for _ in range(6)]
            replies = [reply for reply in await asyncio.gather(*asked) if reply is not None]
            assert len(replies) == 48
            admitted = sum(reply.denied < 0 for reply in replies)
            assert {reply.denied for reply in replies} == {-1, 1}
            assert 1 <= admitted <= 20
            used = sum([100 - await left(authority, user, quota) for user in users])
            assert admitted * 5 <= used <= admitted * 5 + (48 - admitted)
            assert 100 - await left(authority, shared, quota) == admitted * 5

    asyncio.run(ask())


def test_slots_of_several_keys_are_bounded(cluster: RedisCluster) -> None:
    """Concurrency limits in different slots hold together: no more than the least of them has."""

    async def ask() -> None:
        async with connected(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}") as authority:
            many, few = SlotDemand("p:{t1}:at-once:u", 5, 5_000_000), SlotDemand("p:{global}:at-once:all", 2, 5_000_000)
            demand = Demand("p:{t1}:per-user:slots", QUOTA, 1)
            denied = []
            for _ in range(4):
                (reply,) = await submit(authority, Check((demand,), (many, few), "g1"))
                assert isinstance(reply, Checked)
                denied.append((reply.denied, reply.taken))
            assert denied == [(-1, (1, 1)), (-1, (2, 2)), (2, (2, 2)), (2, (2, 2))]

    asyncio.run(ask())


def test_a_slot_that_moves_is_followed(cluster: RedisCluster) -> None:
    """While a slot is on its way to another server, and afterwards, its keys are found, and nothing is lost of them."""
    key, new = "p:{mover}:per-user:u", "p:{mover}:per-user:v"
    slot = slot_of(key)
    source = next(node for node in cluster.nodes if holds(node, slot))
    target = next(node for node in cluster.nodes if node is not source)
    source_id, target_id = source.ask("CLUSTER", "MYID"), target.ask("CLUSTER", "MYID")

    async def ask() -> None:
        async with connected(f"redis+cluster://127.0.0.1:{target.port}") as authority:
            assert await take(authority, key, cost=60)
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
            assert await take(authority, key, cost=10)  # still there
            assert await take(authority, new, cost=10)  # by ASK
            source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5_000)
            assert await take(authority, key, cost=10)  # by ASK
            for node in (target, source, *cluster.nodes):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
            assert await take(authority, key, cost=30) is False  # by MOVED
            assert 20 <= await left(authority, key) <= 25
            assert 90 <= await left(authority, new) <= 95
            statistics = authority.statistics()
            assert (statistics.failures, statistics.state) == (0, BreakerState.CLOSED)

    asyncio.run(ask())


def holds(node: RedisServer, slot: int) -> bool:
    """Return whether a server of the cluster has a slot."""
    own = node.ask("CLUSTER", "MYID")
    return any(first <= slot <= last and found[0][2] == own for first, last, *found in node.ask("CLUSTER", "SLOTS"))


def test_one_server_of_a_cluster_away_leaves_the_others(cluster: RedisCluster) -> None:
    """Only who needs the server that hangs is without an answer."""
    keys = [f"p:{{t{n}}}:per-user:away" for n in range(30)]

    async def ask() -> None:
        async with connected(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", deadline_us=50_000) as authority:
            stalled = cluster.nodes[2]
            theirs = {key for key in keys if holds(stalled, slot_of(key))}
            assert 0 < len(theirs) < len(keys)
            stalled.pause()
            try:
                await wait_until_answered_but(authority, keys, theirs)
            finally:
                stalled.resume()
            for key in theirs:
                await wait_answered(authority, key)

    asyncio.run(ask())


async def wait_until_answered_but(authority: RedisAuthority, keys: list[str], lost: set[str]) -> None:
    """Ask for all keys until exactly those of `lost` have no answer: nobody else may stay without one."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 20.0
    while True:
        replies = await asyncio.gather(*(take(authority, key, cost=0) for key in keys))
        silent = {key for key, reply in zip(keys, replies, strict=True) if reply is None}
        if silent == lost:
            return
        assert loop.time() < until, f"expected silence of {lost}, got it of {silent}"
        await asyncio.sleep(0.01)
