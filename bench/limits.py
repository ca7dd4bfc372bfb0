"""What deciding about limits costs where nothing else happens: in a gateway's process, and in Redis.

hot      `Limiter.admit` on a key that is lent to the gateway, each call timed; bar: a median of at most 5 µs
direct   checks per second of Redis' CPU time, on 10,000 keys that nobody has leased, many in one round trip, beside
         GET and SET pairs of the same keys, pipelined alike on the same server; bar: at least 50,000

Not here: limits on served requests (`limited.py`).
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import uvloop

from penstock.adapters.clock import boot_us, now_us
from penstock.adapters.redis import RedisAuthority
from penstock.core.authority import Check, Checked, Demand, Reply
from penstock.core.limits import Level, LimitSettings, Principal, RateLimit
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.limit_audit import LimitWatch
from penstock.gateway.limiter import Limiter, Permit
from penstock.load.drills.redis_servers import RedisServer
from penstock.testing.authority import BookAuthority
from penstock.wire.ratelimit import Rejection

HOT_US_MAX = 5.0
HOT_STEP_US = 100  # 10,000 requests per second at one gateway
HOT_WARMUP, HOT_CALLS = 20_000, 200_000
DIRECT_PER_S_MIN = 50_000
DIRECT_KEYS = 10_000
BATCH, BATCHES_IN_FLIGHT = 64, 8
ROUNDS, ROUND_S = 3, 3.0
LIMIT = RateLimit("per-user", Level.USER, 20_000, 1_000_000, 2_000)


def bench_hot() -> dict[str, Any]:
    """Time single decisions by what is lent, under one limit, one that is audited, and three at once."""
    others = (Level.TENANT, Level.GLOBAL)
    three = (LIMIT, *(RateLimit(f"per-{level}", level, 20_000, 1_000_000, 2_000) for level in others))
    found = {
        "one_limit": _time_admissions((LIMIT,), is_audited=False),
        "one_audited": _time_admissions((LIMIT,), is_audited=True),
        "three_limits": _time_admissions(three, is_audited=True),
    }
    empty_us = _time_calls(lambda: None, lambda: None)
    return {
        **found,
        "empty_call": _to_quantiles(empty_us),
        "median_us_max": HOT_US_MAX,
        "passed": found["one_limit"]["median_us"] <= HOT_US_MAX and found["one_audited"]["median_us"] <= HOT_US_MAX,
    }


class _Parked:
    """A request that waits: counts how many ever did."""

    def __init__(self) -> None:
        self.count = 0

    def proceed(self, rejection: Rejection | None, permit: Permit | None) -> None:
        """Go on."""
        self.count += 1


def _time_admissions(limits: Sequence[RateLimit], *, is_audited: bool) -> dict[str, Any]:
    """Return how long `admit` takes on a virtual clock that steps; a real one is read each time, as a gateway does."""
    virtual_us = 1_000_000_000
    soon: list[Callable[[], None]] = []

    def read() -> int:
        boot_us()
        return virtual_us

    def step() -> None:
        nonlocal virtual_us
        while soon:
            soon.pop(0)()
        virtual_us += HOT_STEP_US

    counts = GatewayStatistics()
    limiter = Limiter(
        LimitSettings(limits=tuple(limits)),
        BookAuthority(lambda: virtual_us, soon.append),
        holder="bench",
        statistics=counts,
        now_us=read,
        call_soon=soon.append,
        observer=LimitWatch("penstock") if is_audited else None,
    )
    plan = limiter.plan(Principal("k", "acme", "alice"), "digits")
    assert plan is not None
    parked = _Parked()
    for _ in range(HOT_WARMUP):
        step()
        limiter.admit(plan, parked, 1, 1)
    parked.count = 0
    took_us = _time_calls(lambda: limiter.admit(plan, parked, 1, 1), step)
    asked = sum(limit.rejected for limit in counts.limits.values()) + parked.count
    return {**_to_quantiles(took_us), "local_ratio": round(1 - asked / HOT_CALLS, 5)}


def _time_calls(call: Callable[[], object], before: Callable[[], object]) -> list[float]:
    """Return how long each of many calls took, µs, with what the timer itself takes."""
    gc.collect()
    clock = time.perf_counter_ns
    took = []
    for _ in range(HOT_CALLS):
        before()
        began = clock()
        call()
        took.append(clock() - began)
    return [ns / 1e3 for ns in took]


def _to_quantiles(took_us: list[float]) -> dict[str, float]:
    ordered = sorted(took_us)
    return {"median_us": ordered[len(ordered) // 2], "p99_us": ordered[len(ordered) * 99 // 100]}


def bench_direct() -> dict[str, Any]:
    """Count checks and GET and SET pairs for each second that Redis computes, in turns on one server."""
    with RedisServer(now_us) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = [
            {"checks_per_s": runner.run(_check_for(server, ROUND_S)), "pairs_per_s": _get_and_set_for(server, ROUND_S)}
            for _ in range(ROUNDS)
        ]
        version = server.client.info("server")["redis_version"]
    checks = statistics.median(r["checks_per_s"] for r in rounds)
    pairs = statistics.median(r["pairs_per_s"] for r in rounds)
    return {
        "redis": version,
        "keys": DIRECT_KEYS,
        "checks_per_s": round(checks),
        "checks_per_s_min": DIRECT_PER_S_MIN,
        "pairs_per_s": round(pairs),
        "ratio": round(statistics.median(r["checks_per_s"] / r["pairs_per_s"] for r in rounds), 3),
        "rounds": rounds,
        "passed": checks >= DIRECT_PER_S_MIN,
    }


def redis_cpu_s(server: RedisServer) -> float:
    """Return the CPU time that a Redis has used, s."""
    told = server.client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def _keys() -> list[str]:
    return [f"penstock:{{tenant-{i % 100}}}:per-user:user-{i}" for i in range(DIRECT_KEYS)]


async def _check_for(server: RedisServer, seconds: float) -> float:
    """Send checks as a busy gateway does; return how many there were for each second of Redis' CPU time."""
    authority = RedisAuthority(server.url, deadline_us=2_000_000)
    await authority.start()
    quota = LIMIT.quota()
    checks = [Check((Demand(key, quota, 1),), (), "bench") for key in _keys()]
    batches = [checks[i : i + BATCH] for i in range(0, len(checks), BATCH)]
    done = asyncio.Event()
    sent = answered = 0
    before_s, began = redis_cpu_s(server), time.monotonic()

    def submit() -> None:
        nonlocal sent
        authority.submit(batches[sent % len(batches)], take)
        sent += 1

    def take(replies: Sequence[Reply | None]) -> None:
        nonlocal answered
        if not all(isinstance(reply, Checked) and reply.denied < 0 for reply in replies):
            raise RuntimeError(f"checks: expected all of them admitted, got {authority.statistics()}")
        answered += len(replies)
        if time.monotonic() - began < seconds:
            submit()
        else:
            done.set()

    for _ in range(BATCHES_IN_FLIGHT):
        submit()
    await done.wait()
    used_s = redis_cpu_s(server) - before_s
    counted = answered
    authority.close()
    return counted / used_s


def _get_and_set_for(server: RedisServer, seconds: float) -> float:
    """Get and set values of a bucket's size; return how many pairs there were for each second of Redis' CPU time."""
    keys = [f"pair:{key}" for key in _keys()]
    client, value = server.client, "v" * 40
    pairs, before_s, began = 0, redis_cpu_s(server), time.monotonic()
    while time.monotonic() - began < seconds:
        pipeline = client.pipeline(transaction=False)
        for index in range(pairs, pairs + BATCH * BATCHES_IN_FLIGHT // 2):
            key = keys[index % len(keys)]
            pipeline.get(key)
            pipeline.set(key, value, px=10_000)
        pairs += len(pipeline.execute()) // 2
    return pairs / (redis_cpu_s(server) - before_s)
