"""Random histories of limits, told to three at once: the script in a real Redis, the book, and exact fractions.

Time is a rule, and may step back. After each operation all three must have said the same. When Redis has forgotten a
key the book must agree that it was as good as new, and then both others forget it too. Not here: how many histories
are tried (`test_limits.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.adapters.redis import Script
from penstock.adapters.redis.encoding import decode_replies, encode_call, hold_key
from penstock.core.authority import (
    Announce,
    Announced,
    Ask,
    Check,
    Checked,
    Close,
    Debit,
    Demand,
    Granted,
    Occupy,
    Operation,
    Peek,
    Peeked,
    Reply,
    Settle,
    Settled,
    SlotDemand,
)
from penstock.core.limits import Failover, Level, RateLimit
from penstock.policy.limit_book import LimitBook
from penstock.policy.limiting import expiry_us
from penstock.testing.redis_servers import RedisServer
from tests.parity.limit_oracle import Oracle

__all__ = ["RATES", "START_US", "LimitMachine", "Redis", "machine_of"]

START_US = 1_800_000_000_000_123
END_US = 2**52  # the year 2112: `RateLimit.quota` leaves so much for the clock
TAG = "{acme}"
SOFT_KEYS = (f"p:{TAG}:soft:alice", f"p:{TAG}:soft:bob")
HARD_KEYS = (f"p:{TAG}:hard:alice",)
SLOT_KEYS = (f"p:{TAG}:slots:alice", f"p:{TAG}:soft:alice")
PRESENT = f"p:{TAG}:gateways:all"
HOLDERS = st.sampled_from(("g1", "g2", "g3"))
KEYS = st.sampled_from(SOFT_KEYS + HARD_KEYS)


@dataclass(frozen=True)
class _Rate:
    """A rate that is tried: tokens per µs and burst."""

    tokens: int
    per_us: int
    burst: int

    def limit(self, failover: Failover) -> RateLimit:
        return RateLimit("x", Level.USER, tokens=self.tokens, per_us=self.per_us, burst=self.burst, failover=failover)


RATES = (
    _Rate(100, 1_000_000, 50),
    _Rate(100, 1_000_000, 20),  # the same rate, another burst
    _Rate(7, 3_000_000, 10),  # odd
    _Rate(10_000_019, 60_000_000, 30_000),
    _Rate(1_000, 1, 17),  # a thousand tokens per µs
    _Rate(3, 3_600_000_000, 900_000),  # slow and deep
    _Rate(1, 31_536_000_000_000, 70),  # a token a year: the level is next to 2^53
    _Rate(999_983, 86_400_000_000, 52_000),  # so is this one's
    _Rate(999_983, 86_400_000_000, 5_000_000),  # in ticks of a millisecond
    _Rate(999_983, 86_400_000_000, 5_000_000_000),  # of a second
)


# Of a key's two limits, mostly the first.
WHICH = st.sampled_from((0, 0, 0, 0, 0, 1))
# Of a burst.
PARTS = st.sampled_from((0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0)) | st.floats(0, 1)


class Redis:
    """The script on a server, called as the authority calls it."""

    def __init__(self, server: RedisServer, script: Script) -> None:
        self._client = redis.Redis(port=server.port, decode_responses=False)
        self._sha = self.execute("SCRIPT", "LOAD", script.source)
        self.execute("FLUSHALL")

    def run(self, operations: Sequence[Operation], now_us: int) -> list[Reply | str]:
        """Return the replies to operations of one call."""
        keys, blob = encode_call(operations)
        return decode_replies(self.execute("EVALSHA", self._sha, len(keys), *keys, blob, now_us))

    def execute(self, *words: str | int | bytes) -> Any:
        """Return the answer to any command, as bytes."""
        client: Any = self._client
        return client.execute_command(*words, NEVER_DECODE=True)

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def knows(self, key: str, now_us: int) -> bool:
        """Return whether a bucket is kept that is not over by now."""
        value = self.execute("GET", key)
        return value is not None and msgspec.msgpack.decode(value[: _size(value)]) > now_us


def _size(value: bytes) -> int:
    """Return the length of the integer that a value begins with."""
    return {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}.get(value[0], 1)


class LimitMachine(RuleBasedStateMachine):
    """See the module.

    Args:
        server: It is emptied.
        script: On a manual clock (`penstock.testing.redis_servers.manual_script`); the time is given to each call.
    """

    def __init__(self, server: RedisServer, script: Script) -> None:
        super().__init__()
        self._now_us = START_US
        self._redis = Redis(server, script)
        self._numbers = 0
        self._known: set[str] = set()
        self._touched: tuple[tuple[str, RateLimit], ...] = ()
        self._since_us = START_US
        (announced,) = self._redis.run([Announce(PRESENT, "g0", 1)], self._now_us)
        assert isinstance(announced, Announced)
        self._book = LimitBook(announced.epoch, START_US)
        self._book.run(Announce(PRESENT, "g0", 1), self._now_us)
        self._oracle = Oracle(START_US)
        self._rates: dict[str, tuple[_Rate, _Rate]] = {}
        self._leases: dict[str, list[tuple[str, int]]] = {key: [] for key in SOFT_KEYS + HARD_KEYS}
        self._holds: dict[str, list[tuple[str, int]]] = {key: [] for key in SOFT_KEYS + HARD_KEYS}

    @initialize(
        rates=st.lists(
            st.tuples(st.sampled_from(RATES), st.sampled_from(RATES)),
            min_size=len(SOFT_KEYS + HARD_KEYS),
            max_size=len(SOFT_KEYS + HARD_KEYS),
        )
    )
    def choose(self, rates: list[tuple[_Rate, _Rate]]) -> None:
        """Each key has a limit, and another that it is changed to now and then."""
        self._rates = dict(zip(SOFT_KEYS + HARD_KEYS, rates, strict=True))

    def teardown(self) -> None:
        """Hypothesis: a history has ended."""
        self._redis.close()

    # -- all three -----------------------------------------------------------------------------------------------

    def _forget(self, key: str, limit: RateLimit) -> None:
        """Let the others forget what Redis has forgotten, if it was right to."""
        self._forget_holds(key)
        if self._redis.knows(key, self._now_us):
            self._known.add(key)
            return
        self._redis.execute("DEL", key)  # for good: it must not be there again if the clock is set back
        quota = limit.quota()
        entry = self._book._known(key, quota)
        if entry is not None:
            if key in self._known:
                assert expiry_us(entry.bucket, entry.quota) <= self._now_us, f"{key} was forgotten too early"
            # Holds are keys of their own, and stay: of the bucket, what a new key would begin with.
            del self._book._entries[key]
            begun = self._book._bucket(key, quota, self._now_us)
            if holds := {i: h for i, h in entry.holds.items() if h.until_us > self._now_us}:
                self._book._keep(key, quota, begun).holds = holds
            for hold, _ in self._holds[key]:
                if hold not in holds:
                    self._redis.execute("DEL", hold_key(key, hold))
        known = self._oracle.entries.pop(key, None)
        if known is not None and (entry is not None or limit.failover is Failover.SOFT):
            held = {i: h for i, h in known.holds.items() if h[2] > self._now_us}
            renewed, _ = self._oracle.open(key, limit, self._now_us)
            renewed.holds = held
            if held:
                self._oracle.entries[key] = renewed
        self._known.discard(key)

    def _forget_holds(self, key: str) -> None:
        """Whatever charge can be settled no more is gone for good."""
        known, told = self._book._entries.get(key), self._oracle.entries.get(key)
        for hold, _ in self._holds[key]:
            if known is not None and hold in known.holds and known.holds[hold].until_us <= self._now_us:
                del known.holds[hold]
                self._redis.execute("DEL", hold_key(key, hold))
            if told is not None and hold in told.holds and told.holds[hold][2] <= self._now_us:
                del told.holds[hold]

    def _run(self, operation: Operation, *touched: tuple[str, RateLimit]) -> Reply:
        """Do an operation on Redis and in the book; return the reply that both gave."""
        self._touched = touched
        self.forget_touched()
        (said,) = self._redis.run([operation], self._now_us)
        wanted = self._book.run(operation, self._now_us)
        assert said == wanted, f"{operation}: Redis says {said}, the book {wanted}"
        return wanted

    @invariant()
    def forget_touched(self) -> None:
        """What Redis forgets at once all forget at once: before the clock is set back."""
        for key, limit in self._touched:
            self._forget(key, limit)

    def expect_forgotten(self, key: str) -> None:
        """Somebody has deleted a key: it need not have been as good as new."""
        self._known.discard(key)

    def _unique(self, what: str) -> str:
        self._numbers += 1
        return f"{what}:{self._numbers}"

    # -- time ----------------------------------------------------------------------------------------------------

    @rule(key=KEYS, tokens=st.integers(1, 30), off_us=st.integers(-1, 1))
    def pass_time(self, key: str, tokens: int, off_us: int) -> None:
        """Time goes on by what some tokens take to come back, about."""
        rate = self._rates[key][0]
        self.pass_some_time(max(-(-tokens * rate.per_us // rate.tokens) + off_us, 0))

    @rule(us=st.sampled_from((1, 25_000, 50_000, 999_999, 1_000_000, 2_000_000, 10**10)))
    def pass_some_time(self, us: int) -> None:
        """Time goes on by what leases, holds and slots are good for; not beyond what numbers leave room for."""
        self._now_us = min(self._now_us + us, END_US)

    @rule(us=st.sampled_from((1, 10_000, 60_000, 1_000_000, 3_600_000_000)))
    def step_back(self, us: int) -> None:
        """The clock is set back."""
        self._now_us -= us

    @rule()
    def fail_over(self) -> None:
        """Another server takes over: here with all that was written, but it cannot know that."""
        key = f"p:{TAG}epoch"
        run_id, since_us = _decode_epoch(self._redis.execute("GET", key))
        self._redis.execute("SET", key, msgspec.msgpack.encode("0" * len(run_id)) + msgspec.msgpack.encode(since_us))
        self._since_us = max(self._now_us, since_us + 1)
        self._book.begin_epoch(self._book.epoch, self._since_us)
        self._oracle.since_us = self._since_us
        self._run(Announce(PRESENT, "g0", 1_000))
        assert _decode_epoch(self._redis.execute("GET", key)) == (run_id, self._since_us)

    # -- operations ----------------------------------------------------------------------------------------------

    def _limit(self, key: str, which: int) -> RateLimit:
        """Return one of the limits that a key is under."""
        return self._rates[key][which].limit(Failover.HARD if key in HARD_KEYS else Failover.SOFT)

    @rule(
        wanted=st.lists(st.tuples(KEYS, WHICH, PARTS), min_size=1, max_size=3, unique_by=lambda demand: demand[0]),
        hold_us=st.sampled_from((0, 50_000, 60_000_000)),
    )
    def check(self, wanted: list[tuple[str, int, float]], hold_us: int) -> None:
        """Take tokens of several buckets: all or none."""
        demands = []
        for key, which, part in wanted:
            limit = self._limit(key, which)
            demands.append((key, limit, min(round(limit.burst * part), limit.burst)))
        hold = self._unique("h") if hold_us else ""
        check = Check(tuple(Demand(key, limit.quota(), cost) for key, limit, cost in demands), (), "g1", hold, hold_us)
        reply = self._run(check, *((key, limit) for key, limit, _ in demands))
        assert isinstance(reply, Checked)
        denied, wait_us, left = self._oracle.check(demands, hold, hold_us, self._now_us)
        assert (reply.denied, reply.retry_after_us, list(reply.remaining)) == (denied, wait_us, left)
        if hold and denied < 0:
            for key, _, cost in demands:
                self._holds[key].append((hold, cost))

    @rule(key=KEYS, which=WHICH, ago=st.integers(0, 2), part=st.floats(0, 3) | st.just(0.0))
    def settle(self, key: str, which: int, ago: int, part: float) -> None:
        """Say what one of the last charges came to: less, more, twice, under another quota."""
        hold, cost = self._holds[key][-1 - ago] if ago < len(self._holds[key]) else ("none", 1)
        limit, actual = self._limit(key, which), int(cost * part)
        reply = self._run(Settle(key, limit.quota(), hold, actual), (key, limit))
        assert isinstance(reply, Settled)
        wanted = self._oracle.settle(key, limit, hold, actual, self._now_us)
        assert (reply.given_back, reply.remaining) == wanted

    @rule(
        key=KEYS,
        which=WHICH,
        holder=HOLDERS,
        part=PARTS,
        ttl_us=st.sampled_from((50_000, 1_000_000, 2_000_000, 9_000_000)),
        closed=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1.5)), max_size=3),
        again=st.sampled_from((-1, -1, -1, 0, 1)),
    )
    def ask(
        self, key: str, which: int, holder: str, part: float, ttl_us: int, closed: list[tuple[int, float]], again: int
    ) -> None:
        """Borrow, perhaps under an id of before, and return leases: live ones, dead ones, some twice."""
        known = self._leases[key]
        closes = [(known[-1 - ago][0], int(known[-1 - ago][1] * unused)) for ago, unused in closed if ago < len(known)]
        lease = known[-1 - again][0] if 0 <= again < len(known) else self._unique(holder)
        limit = self._limit(key, which)
        want = round(limit.burst * part)
        ask = Ask(key, limit.quota(), holder, lease, want, ttl_us, tuple(Close(*close) for close in closes))
        reply = self._run(ask, (key, limit))
        assert isinstance(reply, Granted)
        wanted = self._oracle.ask(key, limit, holder, lease, want, ttl_us, closes, self._now_us)
        assert (reply.tokens, reply.remaining, reply.leased, reply.retry_after_us) == wanted
        if reply.tokens:
            known.append((lease, reply.tokens))

    @rule(key=KEYS, which=WHICH, part=PARTS)
    def debit(self, key: str, which: int, part: float) -> None:
        """Count what was admitted without asking."""
        limit = self._limit(key, which)
        tokens = round(limit.burst * part)
        reply = self._run(Debit(key, limit.quota(), tokens), (key, limit))
        assert isinstance(reply, Settled)
        assert (reply.given_back, reply.remaining) == self._oracle.debit(key, limit, tokens, self._now_us)

    @rule(key=KEYS, which=WHICH)
    def peek(self, key: str, which: int) -> None:
        """Look."""
        limit = self._limit(key, which)
        reply = self._run(Peek(key, limit.quota()), (key, limit))
        assert isinstance(reply, Peeked)
        wanted = self._oracle.peek(key, limit, self._now_us)
        assert (reply.remaining, reply.leased, reply.leases, reply.full_after_us) == wanted

    @rule(
        wanted=st.lists(
            st.tuples(st.sampled_from(SLOT_KEYS), st.integers(0, 5)),
            min_size=1,
            max_size=2,
            unique_by=lambda demand: demand[0],
        ),
        holder=HOLDERS,
        ttl_us=st.sampled_from((1, 50_000, 10_000_000)),
    )
    def take_slots(self, wanted: list[tuple[str, int]], holder: str, ttl_us: int) -> None:
        """Take slots under several keys: all or none."""
        self._run(Check((), tuple(SlotDemand(key, slots, ttl_us) for key, slots in wanted), holder))

    @rule(
        key=st.sampled_from(SLOT_KEYS),
        holder=HOLDERS,
        count=st.integers(0, 5),
        ttl_us=st.sampled_from((1, 50_000, 10_000_000)),
    )
    def occupy(self, key: str, holder: str, count: int, ttl_us: int) -> None:
        """Say how many slots are in use."""
        self._run(Occupy(key, holder, count, ttl_us))

    @rule(holder=HOLDERS, ttl_us=st.sampled_from((1, 50_000, 10_000_000)))
    def announce(self, holder: str, ttl_us: int) -> None:
        """Say that a gateway is there."""
        self._run(Announce(PRESENT, holder, ttl_us))


def machine_of(server: RedisServer, script: Script) -> type[LimitMachine]:
    """Return the machine for one server and script, as Hypothesis wants it: a class without arguments."""

    class Bound(LimitMachine):
        def __init__(self) -> None:
            super().__init__(server, script)

    return Bound


def _decode_epoch(value: bytes) -> tuple[str, int]:
    """Return the run id and the instant that an epoch's value holds, one after the other."""
    for end in range(1, len(value)):
        try:
            return msgspec.msgpack.decode(value[:end], type=str), msgspec.msgpack.decode(value[end:], type=int)
        except msgspec.MsgspecError:
            continue
    raise AssertionError(f"expected a run id and an instant, got {value!r}")
