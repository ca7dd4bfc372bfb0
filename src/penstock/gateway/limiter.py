"""Rate and concurrency limits at the door: decides by what is lent to this gateway, else asks the authority.

    admit --lent--> in                        (a comparison and a subtraction: no network)
          --else--> one atomic Check, with all other operations of this turn of the event loop in one call
                    --> in | rejected | no answer: closed, open or our share, as each limit says

Requests that wait for an answer are parked here; each leaves exactly once. Not here: which limits there are and what
is known of their buckets (`limit_plans.py`), calls (`limit_calls.py`), the rules of lending (`policy/leasing.py`).
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Protocol
from zlib import crc32

from penstock.core.authority import (
    Announce,
    Announced,
    Ask,
    Check,
    Checked,
    Debit,
    Demand,
    Granted,
    Reply,
    Settle,
    Settled,
    SlotDemand,
)
from penstock.core.limits import ConcurrencyLimit, Cost, LimitSettings, Principal, RateLimit, Unreachable
from penstock.core.ports import Clock, LimitAuthority
from penstock.core.statistics import GatewayStatistics, LimitStatistics
from penstock.gateway.limit_calls import LimitCalls
from penstock.gateway.limit_plans import Key, Plan, SlotKey, Watch
from penstock.policy.leasing import Borrower
from penstock.policy.limit_naming import bucket_key, limits_of
from penstock.policy.outage import ALONE_AFTER_US
from penstock.wire.ratelimit import Rejection, reject_cost, reject_rate, reject_slots, reject_unreachable

__all__ = ["Limiter", "Observer", "Outcome", "Parked", "Permit", "Waiting"]

# How many other sub-buckets of a split limit are asked when one says no: with two, most of what is left is found.
OTHERS_MAX = 2
# And how many are looked at for one that has not said no of late.
LOOKS_MAX = 16
# What all limits that belong to single keys are counted as.
KEY_LIMITS = "(key)"
# Plans remembered: callers times models. All are forgotten when one more comes; what was lent to them is returned.
PLANS_MAX = 65_536
# A gateway counts as present for so long after it last said so, and says so this often: one lost word is no loss.
PRESENT_US = 5_000_000
ANNOUNCE_US = 1_000_000
# Only who has been present for this long divides limits: by then every other gateway has counted it.
SHARE_AFTER_US = 3_000_000
# How long a charge may wait to be settled: longer than any request may take is a crash, and then the estimate stands.
HOLD_US = 600_000_000
# When to come back if nobody can be asked: an authority that restarts takes about so long.
RETRY_AFTER_US = 1_000_000
# Nobody knows when a request will end and leave its slot. Most end within this; a client that polls faster only costs.
SLOT_RETRY_US = 100_000

# When a decision was known, and if the authority was asked, when it was, and its time of it.
_Times = tuple[int] | tuple[int, int] | tuple[int, int, int]


class Outcome(StrEnum):
    """How a request fared with its limits, and by whose word."""

    LOCAL = "local"  # in, by tokens lent to this gateway
    CHECKED = "checked"  # in, by the authority
    ALONE = "alone"  # in, although the authority did not answer
    REJECTED = "rejected"


class Observer(Protocol):
    """Chooses of which plans decisions are told to somebody."""

    def watch(self, plan: Plan, now_us: int) -> Watch | None:
        """Return whom to tell of the decisions about a plan's requests; None for nobody. Asked once per plan."""
        ...


class Parked(Protocol):
    """A request that waits for the authority."""

    def proceed(self, rejection: Rejection | None, permit: "Permit | None") -> None:
        """Go on: it is rejected, or it is in, and then ends its permit when it is done."""
        ...


class Waiting:
    """A request's place in line for an answer. `leave` it if the client goes away."""

    __slots__ = ("asked_us", "costs", "hold", "missing", "plan", "taken", "tries", "work")

    def __init__(self, plan: Plan, work: Parked, costs: Sequence[int], asked_us: int) -> None:
        self.asked_us = asked_us
        self.plan = plan
        self.work: Parked | None = work
        self.costs = costs
        self.missing: list[tuple[int, Key]] = []  # which of the plan's, and its sub-bucket if it is split
        self.tries = 0  # sub-buckets that said no
        self.taken: list[tuple[Key, int, int]] = []  # key, tokens, until when the lease was good
        self.hold = ""

    def leave(self) -> None:
        """The client is gone."""
        self.work = None

    def give_back(self, now_us: int) -> None:
        """It is rejected: what it took of what is lent here was not used."""
        for key, cost, until_us in self.taken:
            key.borrower.give_back(cost, until_us, now_us)


class Permit:
    """What an admitted request must give back at its end: its slots, and what it was charged too much or too little."""

    __slots__ = ("_hold", "_is_ended", "_limiter", "_plan")

    def __init__(self, limiter: "Limiter", plan: Plan, hold: str) -> None:
        self._limiter = limiter
        self._plan = plan
        self._hold = hold
        self._is_ended = False

    def end(self, tokens: int | None) -> None:
        """The request is over and took so many model tokens; None: nobody counted, the estimate stands."""
        if not self._is_ended:
            self._is_ended = True
            self._limiter.end(self._plan, self._hold, tokens)


class Limiter:
    """The limits of one gateway.

    Args:
        settings: Every limit.
        authority: Who counts.
        holder: This gateway, unique over the lives of all.
        statistics: Where to count.
        now_us: Clock that never steps back. It is this limiter's alone: how far it is off any other does not matter.
        call_soon: Calls back at the end of this turn of the event loop.
        observer: Is told of decisions about what it watches; None for nobody.
    """

    def __init__(
        self,
        settings: LimitSettings,
        authority: LimitAuthority,
        *,
        holder: str,
        statistics: GatewayStatistics,
        now_us: Clock,
        call_soon: Callable[[Callable[[], None]], object],
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings
        self._holder = holder
        self._statistics = statistics
        self._now_us = now_us
        self._calls = LimitCalls(authority, holder=holder, statistics=statistics, now_us=now_us, call_soon=call_soon)
        self._outage = self._calls.outage
        self._observer = observer
        self._plans: dict[tuple[str, str], Plan | None] = {}
        self._keys: dict[str, Key] = {}
        self._slot_keys: dict[str, SlotKey] = {}
        self._borrowing: set[Key] = set()
        self._sharing: set[Key] = set()
        self._serial = 0
        self._announced_us = 0
        self._present_since_us = 0
        self._gateways: list[int] = []  # as last announced, newest last
        self._epoch = ""

    # -- what is limited -----------------------------------------------------------------------------------------

    def plan(self, principal: Principal, model: str) -> Plan | None:
        """Return the limits of a caller's requests for a model, None if there are none."""
        key = (principal.key_id, model)
        try:
            return self._plans[key]
        except KeyError:
            pass
        if len(self._plans) >= PLANS_MAX:
            self.forget()
        limits = limits_of(self._settings, principal, model)
        plan = self._plans[key] = self._make_plan(limits, principal, model) if limits else None
        return plan

    def forget(self) -> None:
        """Callers or limits have changed: look everything up anew. What is lent is returned in time."""
        self._plans.clear()
        self._keys.clear()
        if len(self._slot_keys) >= PLANS_MAX:
            self._slot_keys = {name: slot for name, slot in self._slot_keys.items() if slot.count}

    def _make_plan(self, limits: Sequence[RateLimit | ConcurrencyLimit], principal: Principal, model: str) -> Plan:
        keys, slots = [], []
        for limit in limits:
            name = bucket_key(self._settings.prefix, limit, principal, model)
            # Limits of keys are counted together: callers' keys are no names for metrics.
            label = KEY_LIMITS if limit in principal.limits else limit.name
            counts = self._statistics.limits.setdefault(label, LimitStatistics())
            if isinstance(limit, RateLimit) and limit.split > 1:
                keys.append(self._make_ring(limit, principal, model, counts))
            elif isinstance(limit, ConcurrencyLimit):
                slot = self._slot_keys.get(name)
                if slot is None:
                    slot = self._slot_keys[name] = SlotKey(name, limit, counts)
                slots.append(slot)
            else:
                keys.append(self._make_key(name, limit, counts))
        plan = Plan(principal, model, keys, slots)
        if self._observer is not None:
            plan.watch = self._observer.watch(plan, self._now_us())
        return plan

    def _make_ring(self, limit: RateLimit, principal: Principal, model: str, counts: LimitStatistics) -> Key:
        """Return the sub-bucket of a split limit that this gateway goes to first; the others follow it in a ring."""
        names = [bucket_key(self._settings.prefix, limit, principal, model, part) for part in range(limit.split)]
        ring = [self._make_key(name, limit, counts) for name in names]
        for index, key in enumerate(ring):
            key.other = ring[(index + 1) % len(ring)]
        return ring[crc32(self._holder.encode()) % len(ring)]

    def _make_key(self, name: str, limit: RateLimit, counts: LimitStatistics) -> Key:
        key = self._keys.get(name)
        if key is None:
            self._serial += 1
            # A name of its own for each borrower: no lease is ever taken for that of an earlier one of the same key.
            holder = f"{self._holder}.{self._serial}"
            borrower = Borrower(name, limit.quota(), holder, self._settings.lease_us, self._now_us())
            key = self._keys[name] = Key(name, limit, borrower, counts)
        return key

    # -- deciding ------------------------------------------------------------------------------------------------

    def admit(self, plan: Plan, work: Parked, rows: int, tokens: int) -> Rejection | Waiting | None:
        """Decide one request.

        Args:
            plan: Its limits.
            work: Told to proceed if this returns a `Waiting`.
            rows, tokens: What it costs by either measure; the tokens of a model are an estimate.

        Returns:
            None: it is in, and owes nothing at its end. A `Rejection`: it is not. A `Waiting`: `work` will be told.
        """
        now_us = self._now_us()  # for each request: the instant of its admission must be its own
        for key in plan.quick:
            borrower = key.borrower
            if not borrower.tokens or now_us >= borrower.until_us:
                break
        else:
            if plan.quick:
                self._take_quickly(plan, now_us)
                return None
        return self._admit_slowly(plan, work, plan.costs(rows, tokens), now_us)

    def _take_quickly(self, plan: Plan, now_us: int) -> None:
        """Take a token from each bucket: all of them are lent here."""
        for key in plan.quick:
            borrower = key.borrower
            borrower.tokens -= 1
            borrower.demand += 1
            key.counts.local += 1
            if borrower.tokens <= borrower.low:
                self._ask(key, now_us)
        if plan.watch is not None:
            plan.watch.observe(plan.ones, Outcome.LOCAL, "", now_us)

    def _admit_slowly(self, plan: Plan, work: Parked, costs: Sequence[int], now_us: int) -> Rejection | Waiting | None:
        keys = [_pick(key, cost, now_us) for key, cost in zip(plan.keys, costs, strict=True)]
        rejection = self._reject_at_once(plan, keys, costs, now_us)
        if rejection is not None:
            return rejection
        waiting = Waiting(plan, work, costs, now_us)
        for index, (key, cost) in enumerate(zip(keys, costs, strict=True)):
            if key.borrower.take(cost, now_us):
                waiting.taken.append((key, cost, key.borrower.until_us))
            else:
                waiting.missing.append((index, key))
        outcome = Outcome.LOCAL
        if self._outage.is_alone and waiting.missing:
            outcome = Outcome.ALONE
            rejection = self._take_shares(waiting, now_us)
            if rejection is not None:
                waiting.give_back(now_us)
                return rejection
        is_waiting = bool(waiting.missing or plan.slots)
        if is_waiting:
            self._send_check(waiting)
        for key in keys:
            if key.borrower.tokens <= key.borrower.low:
                self._ask(key, now_us)
        if is_waiting:
            return waiting
        for key, _, _ in waiting.taken:
            key.counts.local += 1
        _tell(plan, costs, outcome, "", now_us)
        return None

    def _reject_at_once(self, plan: Plan, picked: Sequence[Key], costs: Sequence[int], now_us: int) -> Rejection | None:
        """Say what is surely in the way: a cost that can never pass, or tokens that are known not to be there."""
        if not plan.ones:  # a single token always fits
            for index, (key, cost) in enumerate(zip(plan.keys, costs, strict=True)):
                if cost > key.quota.burst:
                    return self._reject(plan, costs, index, 0, (now_us,))
        for index, (key, cost) in enumerate(zip(picked, costs, strict=True)):
            denied_us = key.denial_us(cost, now_us)
            if denied_us:
                plan.keys[index].borrower.note_demand(cost)
                return self._reject(plan, costs, index, denied_us, (now_us,))
        return None

    def _reject(
        self,
        plan: Plan,
        costs: Sequence[int],
        index: int,
        retry_after_us: int,
        times: _Times,
        *,
        is_answered: bool = True,
    ) -> Rejection:
        """Put into words that the limit at `index`, keys first, then slots, is in the way."""
        slot = None if index < len(plan.keys) else plan.slots[index - len(plan.keys)]
        counted = plan.keys[index] if slot is None else slot
        counted.counts.rejected += 1
        _tell(plan, costs, Outcome.REJECTED, counted.limit.name, *times)
        if not is_answered:
            return reject_unreachable(counted.limit, retry_after_us)
        if slot is not None:
            return reject_slots(slot.limit, SLOT_RETRY_US)
        key, cost = plan.keys[index], costs[index]
        if cost > key.quota.burst:
            return reject_cost(key.limit, cost, key.quota.burst)
        return reject_rate(key.limit, cost, key.remaining, retry_after_us)

    def _send_check(self, waiting: Waiting) -> None:
        if waiting.plan.quick and len(waiting.missing) == 1:
            _, key = waiting.missing[0]
            if key.check is None:
                key.check = Check((Demand(key.key, key.quota, 1),), (), self._holder)
            self._calls.send(key.check, partial(self._checked, waiting))
            return
        demands = tuple(
            [
                Demand(key.key, key.quota, waiting.costs[index], key.limit.cost is Cost.TOKENS)
                for index, key in waiting.missing
            ]
        )
        slots = tuple([SlotDemand(s.key, s.limit.slots, s.limit.ttl_us) for s in waiting.plan.slots])
        if waiting.plan.is_settled:
            self._serial += 1
            waiting.hold = f"{self._holder}:{self._serial}"
        check = Check(demands, slots, self._holder, waiting.hold, HOLD_US if waiting.hold else 0)
        (self._calls.send_slots if slots else self._calls.send)(check, partial(self._checked, waiting))

    def _checked(self, waiting: Waiting, reply: Reply | None, now_us: int) -> None:
        if isinstance(reply, Checked):
            if self._try_other(waiting, reply, now_us):
                return
            rejection = self._apply_check(waiting, reply, now_us)
        else:
            rejection = self._decide_alone(waiting, now_us)
            waiting.hold = ""
        if rejection is not None:
            waiting.give_back(now_us)
        else:
            for key, _, _ in waiting.taken:
                key.counts.local += 1
            outcome, authority_us = Outcome.ALONE, 0
            if isinstance(reply, Checked):
                outcome, authority_us = Outcome.CHECKED, reply.now_us
            _tell(waiting.plan, waiting.costs, outcome, "", now_us, waiting.asked_us, authority_us, waiting.hold)
        permit = None
        if rejection is None and (waiting.plan.slots or waiting.hold):
            permit = Permit(self, waiting.plan, waiting.hold)
        work, waiting.work = waiting.work, None
        if work is not None:
            work.proceed(rejection, permit)
        elif permit is not None:
            permit.end(0)

    def _try_other(self, waiting: Waiting, reply: Checked, now_us: int) -> bool:
        """Ask again if what said no is one of several sub-buckets, and another may say yes."""
        if not 0 <= reply.denied < len(waiting.missing) or waiting.tries >= OTHERS_MAX:
            return False
        index, key = waiting.missing[reply.denied]
        if key.other is None:
            return False
        cost = waiting.costs[index]
        key.remaining = reply.remaining[reply.denied]
        key.note_denial(cost, reply.retry_after_us, now_us)
        other = _pick(key, cost, now_us)
        if other is key:
            return False
        waiting.tries += 1
        waiting.missing[reply.denied] = (index, other)
        self._send_check(waiting)
        return True

    def _apply_check(self, waiting: Waiting, reply: Checked, now_us: int) -> Rejection | None:
        plan, missing = waiting.plan, waiting.missing
        plan.note_change()
        times = (now_us, waiting.asked_us, reply.now_us)
        for (_, key), remaining in zip(missing, reply.remaining, strict=True):
            key.remaining = remaining
        for slot, taken in zip(plan.slots, reply.taken, strict=True):
            slot.taken = taken
        if reply.denied < 0:
            for _, key in missing:
                key.counts.checked += 1
            for slot in plan.slots:
                slot.count += 1
                slot.counts.checked += 1
                slot.said_us = now_us
            return None
        if reply.denied >= len(missing):
            index = len(plan.keys) + reply.denied - len(missing)
            return self._reject(plan, waiting.costs, index, 0, times)
        index, key = missing[reply.denied]
        key.note_denial(waiting.costs[index], reply.retry_after_us, now_us)
        return self._reject(plan, waiting.costs, index, reply.retry_after_us, times)

    # -- alone ---------------------------------------------------------------------------------------------------

    def _decide_alone(self, waiting: Waiting, now_us: int) -> Rejection | None:
        """Nobody answered: each limit says what then. All must agree, and only then anything is taken."""
        plan = waiting.plan
        gateways = self._known_gateways(now_us)
        times = (now_us, waiting.asked_us)
        reject = partial(self._reject, plan, waiting.costs, times=times, is_answered=False)
        for slot in plan.slots:
            self._calls.say_slots(slot)  # whether the authority counted one is not known
        for index, key in waiting.missing:
            if key.limit.unreachable is Unreachable.CLOSED:
                return reject(index, RETRY_AFTER_US)
        for index, slot in enumerate(plan.slots, len(plan.keys)):
            share = 0 if not gateways else slot.limit.slots // gateways
            is_open = slot.limit.unreachable is Unreachable.OPEN
            if not is_open and (slot.limit.unreachable is Unreachable.CLOSED or slot.count >= share):
                return reject(index, RETRY_AFTER_US)
        for index, key in waiting.missing:
            if key.limit.unreachable is Unreachable.LOCAL_SHARE and not self._outage.is_alone:
                return reject(index, ALONE_AFTER_US)  # one lost answer is no outage
        rejection = self._take_shares(waiting, now_us)
        if rejection is not None:
            return rejection
        for _, key in waiting.missing:
            key.counts.alone += 1
        for slot in plan.slots:
            slot.count += 1
            slot.counts.alone += 1
        return None

    def _take_shares(self, waiting: Waiting, now_us: int) -> Rejection | None:
        """Take what is missing from our shares of those limits that have some; only the others are missing then."""
        gateways = self._known_gateways(now_us)
        others = []
        for index, key in waiting.missing:
            if key.limit.unreachable is not Unreachable.LOCAL_SHARE:
                others.append((index, key))
                continue
            # Of several shares one may say no after another was taken: that one's callers get less, never more.
            wait_us = key.take_share(waiting.costs[index], gateways, now_us)
            self._sharing.add(key)
            if wait_us:
                times = (now_us, waiting.asked_us)
                return self._reject(waiting.plan, waiting.costs, index, wait_us, times, is_answered=False)
            key.counts.alone += 1
        waiting.missing = others
        return None

    def _known_gateways(self, now_us: int) -> int:
        """Return by how many gateways limits are divided: the most of late, 0 if we may not count on our share yet."""
        if not self._present_since_us or now_us - self._present_since_us < SHARE_AFTER_US:
            return 0
        return max(self._gateways)

    # -- borrowing -----------------------------------------------------------------------------------------------

    def _ask(self, key: Key, now_us: int) -> None:
        if self._outage.is_alone and key.limit.unreachable is Unreachable.LOCAL_SHARE:
            return
        ask = key.borrower.plan_ask(now_us)
        if ask is not None:
            self._borrowing.add(key)
            self._calls.send(ask, partial(self._granted, key, ask))

    def _granted(self, key: Key, ask: Ask, reply: Reply | None, now_us: int) -> None:
        if isinstance(reply, Granted):
            key.remaining = reply.remaining
            key.borrower.observe_grant(reply, now_us)
        else:
            key.borrower.lose_grant()

    # -- at the end ----------------------------------------------------------------------------------------------

    def end(self, plan: Plan, hold: str, tokens: int | None) -> None:
        """See `Permit.end`."""
        for slot in plan.slots:
            slot.count -= 1
            self._calls.say_slots(slot)
        if hold and tokens is not None:
            for key in plan.keys:
                if key.limit.cost is Cost.TOKENS:
                    told = partial(_tell_settled, plan, key, hold, tokens, self._now_us())
                    self._calls.send(Settle(key.key, key.quota, hold, tokens), told)

    # -- time ----------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Call a few times a second: says that we are there, returns what is not used, repeats which slots are."""
        if not self._settings.limits and not self._keys and not self._slot_keys:
            return
        now_us = self._now_us()
        if self._outage.is_alone or now_us - self._announced_us >= ANNOUNCE_US:
            self._announced_us = now_us
            present = f"{self._settings.prefix}:{{gateways}}:present"
            self._calls.send(Announce(present, self._holder, PRESENT_US), self._note_present)
        if self._sharing and not self._outage.is_alone:
            self._tell_shares(now_us)
        for key in list(self._borrowing):
            self._return_if_idle(key, now_us)
            key.count_stranded()
        for slot in self._slot_keys.values():
            if slot.count and now_us - slot.said_us >= slot.limit.ttl_us // 3:
                self._calls.say_slots(slot)

    def _return_if_idle(self, key: Key, now_us: int) -> None:
        borrower = key.borrower
        if borrower.demand != key.idle_demand:
            key.idle_demand = borrower.demand
            return
        back = borrower.plan_return(now_us)
        if back is not None:
            self._calls.send(back, partial(self._granted, key, back))
        else:
            self._borrowing.discard(key)

    def close(self) -> None:
        """Return everything: the gateway stops."""
        now_us = self._now_us()
        for key in self._borrowing:
            back = key.borrower.plan_return(now_us)
            if back is not None:
                self._calls.send(back, partial(self._granted, key, back))
        self._calls.flush()

    def _note_present(self, reply: Reply | None, now_us: int) -> None:
        if not isinstance(reply, Announced):
            return
        self._present_since_us = self._present_since_us or now_us
        self._gateways = [*self._gateways[-2:], reply.gateways]
        if self._epoch and reply.epoch != self._epoch:
            self._statistics.limit_epochs += 1
        self._epoch = reply.epoch
        self._tell_shares(now_us)

    def _tell_shares(self, now_us: int) -> None:
        """Tell the authority what was admitted without it, and close our shares if it is asked again."""
        for key in self._sharing:
            admitted, tokens = key.untold(now_us)
            if tokens:
                self._calls.send(Debit(key.key, key.quota, tokens), partial(_note_told, key, admitted))
            elif admitted:
                key.note_told(admitted)
            if not self._outage.is_alone:
                key.share = None
        if not self._outage.is_alone:
            self._sharing.clear()


def _pick(key: Key, cost: int, now_us: int) -> Key:
    """Return the bucket to go to: of several sub-buckets one of the next few that has not said no of late."""
    if key.other is None:
        return key
    candidate = key
    for _ in range(LOOKS_MAX):
        if not candidate.denial_us(cost, now_us):
            return candidate
        assert candidate.other is not None
        candidate = candidate.other
    return key if candidate.denial_us(cost, now_us) else candidate


def _tell(plan: Plan, costs: Sequence[int], outcome: Outcome, limit: str, *times_and_hold: Any) -> None:
    if plan.watch is not None:
        plan.watch.observe(costs, outcome, limit, *times_and_hold)


def _tell_settled(
    plan: Plan, key: Key, hold: str, actual: int, sent_us: int, reply: Reply | None, _now_us: int
) -> None:
    if plan.watch is not None:
        given_back = reply.given_back if isinstance(reply, Settled) else None
        plan.watch.settle(key, hold, actual, given_back, sent_us)


def _note_told(key: Key, admitted: int, reply: Reply | None, _now_us: int) -> None:
    """The authority knows what our share has admitted, if it answered."""
    if reply is not None:
        key.note_told(admitted)
