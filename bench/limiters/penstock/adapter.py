"""Penstock over Redis: `checked` asks the authority about each request, `leased` is the limiter of a gateway.

Both send what one turn of the event loop asked in one call, as gateways do. What Redis did not answer in time is an
error here; a gateway would answer it as the limit's `unreachable` says.
"""

import asyncio
import os
from collections.abc import Sequence

from bench.limiters.form import Client, Limit, Limiter, Purpose, UnsupportedError
from penstock.adapters.clock import now_us
from penstock.adapters.redis import RedisAuthority
from penstock.core.authority import Check, Checked, Demand, Operation, Reply, Settle
from penstock.core.limits import ANONYMOUS, Cost, Level, LimitSettings, Quota, RateLimit, Unreachable
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.limit_plans import Plan
from penstock.gateway.limiter import Limiter as GatewayLimiter
from penstock.gateway.limiter import Permit, Waiting
from penstock.wire.ratelimit import Rejection

_COSTS = {Purpose.REQUESTS: Cost.REQUESTS, Purpose.WEIGHTS: Cost.ROWS, Purpose.SETTLED: Cost.TOKENS}
_HOLD_US = 60_000_000
_TEND_S = 0.1  # as often as a gateway does


def _to_rate_limit(limit: Limit, key: str, purpose: Purpose) -> RateLimit:
    return RateLimit(
        name=key.replace(":", "-"),
        level=Level.USER,
        tokens=limit.tokens,
        per_us=limit.per_s * 1_000_000,
        burst=limit.burst,
        cost=_COSTS[purpose],
        unreachable=Unreachable.CLOSED,
    )


class _Turn:
    """Collects what one turn of the event loop asks, and sends it in one call."""

    def __init__(self, authority: RedisAuthority) -> None:
        self._authority = authority
        self._asked: list[tuple[Operation, asyncio.Future[Reply | None]]] = []

    def ask(self, operation: Operation) -> asyncio.Future[Reply | None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply | None] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._flush)
        self._asked.append((operation, future))
        return future

    def _flush(self) -> None:
        asked, self._asked = self._asked, []
        futures = [future for _, future in asked]

        def reply(replies: Sequence[Reply | None]) -> None:
            for future, one in zip(futures, replies, strict=True):
                if not future.done():
                    future.set_result(one)

        self._authority.submit([operation for operation, _ in asked], reply)


class _Checked:
    """Each request is one `Check`."""

    def __init__(self, turn: _Turn, key: str, quota: Quota) -> None:
        self._turn = turn
        self._key = key
        self._quota = quota

    async def acquire(self, cost: int = 1) -> bool:
        return await self._check(cost, Check((Demand(self._key, self._quota, cost),)))

    async def settle(self, estimate: int, actual: int) -> bool:
        check = Check((Demand(self._key, self._quota, estimate),), (), "bench", "bench:1", _HOLD_US)
        admitted = await self._check(estimate, check)
        await self._turn.ask(Settle(self._key, self._quota, "bench:1", actual))
        return admitted

    async def _check(self, cost: int, check: Check) -> bool:
        if cost < 0:
            raise UnsupportedError
        reply = await self._turn.ask(check)
        if not isinstance(reply, Checked):
            raise TimeoutError("Redis did not answer in time")
        return reply.denied < 0


class _Parked:
    """A request that waits for the limiter's word."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Permit | None] = asyncio.get_running_loop().create_future()

    def proceed(self, rejection: Rejection | None, permit: Permit | None) -> None:
        if self.future.done():
            return
        if rejection is None:
            self.future.set_result(permit)
        else:
            self.future.set_exception(_RejectedError(rejection))


class _RejectedError(Exception):
    def __init__(self, rejection: Rejection) -> None:
        self.rejection = rejection


class _Leased:
    """The limiter of one gateway, under one limit."""

    def __init__(self, limiter: GatewayLimiter, plan: Plan) -> None:
        self._limiter = limiter
        self._plan = plan
        self._tend()

    def close(self) -> None:
        self._tending.cancel()
        self._limiter.close()

    async def acquire(self, cost: int = 1) -> bool:
        admitted, _ = await self._admit(cost)
        return admitted

    async def settle(self, estimate: int, actual: int) -> bool:
        admitted, permit = await self._admit(estimate)
        if permit is not None:
            permit.end(actual)
        await asyncio.sleep(_TEND_S)
        return admitted

    async def _admit(self, cost: int) -> tuple[bool, Permit | None]:
        if cost < 0:
            raise UnsupportedError
        parked = _Parked()
        found = self._limiter.admit(self._plan, parked, cost, cost)
        permit = None
        if isinstance(found, Waiting):
            try:
                permit = await parked.future
            except _RejectedError as error:
                found = error.rejection
            except asyncio.CancelledError:
                found.leave()  # as when a client goes away
                raise
        if isinstance(found, Rejection) and found.status != 429:
            raise TimeoutError(found.message)
        return not isinstance(found, Rejection), permit

    def _tend(self) -> None:
        self._tending = asyncio.get_running_loop().call_later(_TEND_S, self._tend)
        self._limiter.tend()


class _Client:
    def __init__(self, authority: RedisAuthority, algorithm: str) -> None:
        self._authority = authority
        self._turn = _Turn(authority)
        self._algorithm = algorithm
        self._leased: list[_Leased] = []

    async def limiter(self, limit: Limit, key: str, purpose: Purpose) -> Limiter:
        rate_limit = _to_rate_limit(limit, key, purpose)
        if self._algorithm == "checked":
            return _Checked(self._turn, f"penstock:{{-}}:{rate_limit.name}:anonymous", rate_limit.quota())
        limiter = GatewayLimiter(
            LimitSettings(limits=(rate_limit,)),
            self._authority,
            holder=f"bench-{os.getpid()}-{len(self._leased)}-{now_us()}",
            statistics=GatewayStatistics(),
            now_us=now_us,
            call_soon=asyncio.get_running_loop().call_soon,
        )
        plan = limiter.plan(ANONYMOUS, "bench")
        assert plan is not None
        self._leased.append(_Leased(limiter, plan))
        return self._leased[-1]

    async def close(self) -> None:
        for leased in self._leased:
            leased.close()
        await asyncio.sleep(_TEND_S)  # what was lent goes back
        self._authority.close()


async def connect(url: str, algorithm: str) -> Client:
    """See `Connect`."""
    authority = RedisAuthority(url, deadline_us=LimitSettings().deadline_us, now_us=now_us)
    await authority.start()
    return _Client(authority, algorithm)
