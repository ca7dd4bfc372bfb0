"""A gateway under limits in the simulator: the flow of `gateway/limiter.py` on a clock of its own.

What is lent is used, what surely is not there is refused, the rest is asked for in one check; all operations of one
instant travel in one call, which may fail. Not here: what befalls it from outside (`limit_fleet.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from penstock.core.authority import Ask, Check, Checked, Demand, Granted, Operation, Reply, Settle
from penstock.core.limits import Quota
from penstock.policy.leasing import DENIAL_US_MAX, Borrower

__all__ = ["LimitLedger", "LimitRequest", "SimulatedLimiter"]

_Handler = Callable[[Reply | None, int], None]


class LimitRequest:
    """A request at a gateway.

    Args:
        demands: Key and tokens of each of its buckets.
        settles: What it will turn out to cost; None if that is known.
        service_us: How long after it was admitted, µs.
    """

    __slots__ = ("demands", "hold", "service_us", "settles", "taken")

    def __init__(self, demands: Sequence[tuple[str, int]], settles: int | None, service_us: int) -> None:
        self.demands = demands
        self.settles = settles
        self.service_us = service_us
        self.hold = ""
        self.taken: list[tuple[str, int, int, Any]] = []  # key, tokens, until when the lease was good, the ledger's


class LimitLedger(Protocol):
    """Who is told what a gateway does."""

    def took(self, key: str, tokens: int) -> Any:
        """Lent tokens were used. Returns what to call it by."""

    def gave_back(self, admission: Any) -> None:
        """They were given back into their lease."""

    def answered(self, request: LimitRequest, *, is_admitted: bool) -> None:
        """A request was let in or refused."""


class _Denial:
    """What was said last: until then so many tokens of a key are not there."""

    __slots__ = ("tokens", "until_us")

    def __init__(self) -> None:
        self.until_us = 0
        self.tokens = 0


class SimulatedLimiter:
    """One life of one gateway. All instants are its own clock's.

    Args:
        holder: Unique among all lives of all gateways.
        quotas: Of each key.
        lease_us: How long it borrows for, µs.
        ledger: Told what it does.
        send: Sends the operations of an instant, later calls the handler with each reply, None where none came.
        now_us: When it begins.
    """

    def __init__(
        self,
        holder: str,
        quotas: dict[str, Quota],
        lease_us: int,
        *,
        ledger: LimitLedger,
        send: Callable[[list[Operation], list[_Handler]], None],
        now_us: int,
    ) -> None:
        self._holder = holder
        self._quotas = quotas
        self._ledger = ledger
        self._send = send
        self._operations: list[Operation] = []
        self._handlers: list[_Handler] = []
        self._holds = 0
        self.borrowers = {k: Borrower(k, q, holder, lease_us, now_us) for k, q in quotas.items()}
        self._denials = {key: _Denial() for key in quotas}
        self._demand = dict.fromkeys(quotas, -1)

    # -- deciding ------------------------------------------------------------------------------------------------

    def submit(self, request: LimitRequest, now_us: int) -> None:
        """Decide a request: at once, or when the authority has answered."""
        borrowers = self.borrowers
        if request.settles is None:
            for key, cost in request.demands:
                if not borrowers[key].lends(cost, now_us) and self._is_denied(key, cost, now_us):
                    borrowers[key].note_demand(cost)
                    self._ledger.answered(request, is_admitted=False)
                    return
        missing = [Demand(k, self._quotas[k], c) for k, c in request.demands if not self._take(request, k, c, now_us)]
        if missing:
            self._check(request, tuple(missing))
        else:
            self._ledger.answered(request, is_admitted=True)
        if request.settles is None:
            for key, _ in request.demands:
                self._ask(key, now_us)

    def _is_denied(self, key: str, cost: int, now_us: int) -> bool:
        denial, borrower = self._denials[key], self.borrowers[key]
        if now_us < denial.until_us and cost >= denial.tokens:
            return True
        return borrower.is_hot and now_us < borrower.denied_until_us

    def _take(self, request: LimitRequest, key: str, cost: int, now_us: int) -> bool:
        borrower = self.borrowers[key]
        if request.settles is not None or not borrower.take(cost, now_us):
            return False
        request.taken.append((key, cost, borrower.until_us, self._ledger.took(key, cost)))
        return True

    def _check(self, request: LimitRequest, missing: tuple[Demand, ...]) -> None:
        if request.settles is not None:
            self._holds += 1
            request.hold = f"{self._holder}:{self._holds}"
        check = Check(missing, (), self._holder, request.hold, 60_000_000 if request.hold else 0)

        def proceed(reply: Reply | None, now_us: int) -> None:
            if isinstance(reply, Checked) and reply.denied < 0:
                self._ledger.answered(request, is_admitted=True)
                return
            if isinstance(reply, Checked):
                denied = missing[reply.denied]
                self._deny(denied.key, denied.cost, reply.retry_after_us, now_us)
            for key, cost, until_us, admission in request.taken:
                borrower = self.borrowers[key]
                tokens = borrower.tokens
                borrower.give_back(cost, until_us, now_us)
                if borrower.tokens != tokens:
                    self._ledger.gave_back(admission)
            self._ledger.answered(request, is_admitted=False)

        self._operations.append(check)
        self._handlers.append(proceed)

    def _deny(self, key: str, cost: int, retry_after_us: int, now_us: int) -> None:
        self.borrowers[key].deny(retry_after_us, now_us)
        denial = self._denials[key]
        denial.until_us = now_us + min(retry_after_us, DENIAL_US_MAX)
        denial.tokens = cost

    def settle(self, request: LimitRequest, now_us: int) -> None:
        """The request's cost is known."""
        assert request.settles is not None
        for key, _ in request.demands:
            self._operations.append(Settle(key, self._quotas[key], request.hold, request.settles))
            self._handlers.append(_ignore)

    # -- borrowing -----------------------------------------------------------------------------------------------

    def _ask(self, key: str, now_us: int) -> None:
        borrower = self.borrowers[key]
        if borrower.tokens <= borrower.low:
            self._send_ask(borrower, borrower.plan_ask(now_us))

    def _send_ask(self, borrower: Borrower, ask: Ask | None) -> None:
        if ask is None:
            return

        def observe(reply: Reply | None, now_us: int) -> None:
            if isinstance(reply, Granted):
                borrower.observe_grant(reply, now_us)
            else:
                borrower.lose_grant()

        self._operations.append(ask)
        self._handlers.append(observe)

    def tend(self, now_us: int) -> None:
        """Return what nobody has asked for since the last time."""
        for key, borrower in self.borrowers.items():
            if borrower.demand == self._demand[key]:
                self._send_ask(borrower, borrower.plan_return(now_us))
            self._demand[key] = borrower.demand

    def flush(self) -> None:
        """Send what this instant has brought."""
        if self._operations:
            operations, self._operations = self._operations, []
            handlers, self._handlers = self._handlers, []
            self._send(operations, handlers)


def _ignore(reply: Reply | None, now_us: int) -> None:
    """Nothing follows from the answer."""
