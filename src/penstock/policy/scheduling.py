"""The scheduler of a model version in one gateway: who may wait, what leaves when, to which replica, who is dropped.

    observe (admit, observe_reply, abandon, add_replica ...) --> decide --> the owner applies: Dispatch | Drop | Wait

It decides and does nothing else: no clock, no IO, no dice of its own. The live gateway (`gateway/batcher.py`) and the
simulator (`sim/`) drive this same object, so what is simulated is what runs. Ask `decide` again until it says Wait.

Not here: the rules themselves (`batching.py`, `admission.py`, `fairness.py`, `balancing.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from penstock.core.models import Batching, ModelSpec, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.policy.admission import (
    RETRY_AFTER_US_MAX,
    RETRY_AFTER_US_MIN,
    DelayLimit,
    RefusalReason,
    decide_refusal,
    estimate_retry_after_us,
    predict_completion_us,
)
from penstock.policy.balancing import OUTLIER_RATIO, Dispatch, Replica, choose_replica, find_outlier, restore_excess
from penstock.policy.batching import (
    GUARD_US,
    SOLE_REPLICA_RATIO,
    SPACING_RATIO,
    AdaptiveSize,
    CloseReason,
    QueueView,
    Wait,
    count_fitting,
    decide_close,
    plan_target,
)
from penstock.policy.fairness import Ledger
from penstock.policy.filling import BatchFiller
from penstock.policy.pressure import Pressure
from penstock.policy.profiling import ServiceEstimate
from penstock.policy.queueing import BATCH, DONE, QUEUED, RUNNING, Entry, SignatureQueue
from penstock.policy.rates import DrainRate

__all__ = ["Dispatch", "Drop", "Lost", "Refusal", "Scheduler", "SchedulerConfig", "Served", "Wait"]

# Distinct input signatures of one model that may wait at once. Callers choose open dimensions and parameters,
# so without a bound they could make queues without end.
SIGNATURES_MAX = 1_024
# Tenants and classes of one signature that may wait at once.
LANES_MAX = 4_096
# Deadlines are looked for among all that waits at most this often: under overload one passes in every turn of the
# event loop. A request is never executed after its deadline, but may be told so this much later.
EXPIRY_INTERVAL_US = 2_000
# The batch behind a running one is sent this much before that one is done, beyond the measured way there: timers of
# an event loop count milliseconds, and a replica should not stand idle for one.
LEAD_US = 1_000
# Executions on replicas slower than the fastest by more than this say nothing about the profile.
SLOW_RATIO = 1.25
# Weight of the newest batch in the measured way to a replica and back.
OVERHEAD_WEIGHT = 0.1
# It is overload, too, when arrivals exceed what can be carried by this much: about the error of their rate.
OVERRUN_RATIO = 1.1
# One that is predicted to be late by the model's own SLO is let in all the same while that is allowed, if it is late by
# no more than this part of it: predictions err, and the queue may be shorter than it looks.
LATE_SLO_PART = 16
# While requests are refused as predicted late although a replica is idle, one is let through this often: only
# executions can correct an estimate that is too high.
PROBE_INTERVAL_US = 100_000
# Of the SLO, the queue delay that the delay limit aims at (Breakwater: 40 %).
DELAY_TARGET_RATIO = 0.4
# A batch of only class `batch` takes at most this part of the SLO, so that an interactive request finds a replica.
BATCH_CLASS_RATIO = 1 / 3


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What a scheduler goes by. See `ModelSpec` for the fields of the same names.

    Args:
        batch_bytes_max: While more than this waits, requests travel one by one: together they might not fit.
    """

    batching: Batching = field(default_factory=Batching)
    bounds: QueueBounds = field(default_factory=QueueBounds)
    slo_us: int = 0
    timeout_us: int = 30_000_000
    is_batched: bool = True
    weights: Mapping[str, float] = field(default_factory=dict)
    batch_bytes_max: int = 1 << 62

    @classmethod
    def from_spec(cls, spec: ModelSpec, *, batch_bytes_max: int) -> "SchedulerConfig":
        """Return what a model was published with."""
        return cls(
            batching=spec.batching,
            bounds=spec.queue,
            slo_us=spec.slo_us,
            timeout_us=spec.timeout_us,
            is_batched=spec.is_batched,
            weights=dict(spec.weights),
            batch_bytes_max=batch_bytes_max,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request may not wait. Coming back before `retry_after_us` is useless.

    Args:
        reason: Why.
        retry_after_us: When to come back, from now.
        predicted_us: For `PREDICTED_LATE`, how long it would have taken; else 0.
    """

    reason: RefusalReason
    retry_after_us: int
    predicted_us: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """These entries waited and will not be executed; they are done. Refuse them."""

    entries: list[Entry]
    reason: RefusalReason
    retry_after_us: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """What a replica took with it: entries whose deadline has passed, and entries that have lost two replicas.

    All of them are done. Refuse them.
    """

    expired: list[Entry]
    refused: list[Entry]


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica says about a batch it answered.

    Args:
        service_us: Device time of the execution it was part of; 0 if nothing was executed.
        wait_us: From receipt to the start of that execution.
        rows: Rows executed together.
        backlog_us: Device time that still waited at the replica when it answered, all gateways together.
        gateways: How many gateways feed it.
    """

    service_us: int
    wait_us: int = 0
    rows: int = 0
    backlog_us: int = 0
    gateways: int = 1


class _Retry(NamedTuple):
    """The key under which entries of a key are tried again, each alone."""

    key: object


_WAIT_FOR_CHANGE = Wait(None)


class Scheduler:
    """See the module.

    Args:
        config: The model's.
        profile: Measured at load; None if the model could not be measured.
        chance: Uniform in [0, 1), a stream of its own.
        bucket_of: Where the length of inputs matters: the length bucket of an entry, the same for all of one key. Each
            bucket has an estimate of its own.

    Attributes:
        requests, rows, nbytes: Waiting now.
        in_flight: Requests sent and not yet answered.
        replicas: Those that work.
        estimates: What batches cost, by length bucket; '' is the one measured at load.
        ledger: What tenants have been charged.
        limit: The delay limit in force; 0 while execution times can be predicted.
        ejections: How often a replica was put aside.
        retries: How many entries were sent again because their replica died while it may have been running them.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        profile: CostProfile | None,
        chance: Callable[[], float],
        *,
        bucket_of: Callable[[Entry], str] | None = None,
    ) -> None:
        self.config = config
        self.requests = 0
        self.rows = 0
        self.nbytes = 0
        self.in_flight = 0
        self.replicas: list[Replica] = []
        self.ledger = Ledger(config.weights)
        self.ejections = 0
        self.retries = 0
        self._size_max = config.batching.size_max if config.is_batched else 1
        self.estimates = {"": ServiceEstimate(profile, self._size_max)}
        self._profile = profile
        self._bucket_of = bucket_of
        self._chance = chance
        self._policy = config.batching.policy
        self._queues: dict[object, SignatureQueue] = {}
        self._next_id = 1
        self._pending: Dispatch | None = None  # decided together with a Drop, which goes first
        self._expiry_us = 0  # no queued entry expires before this; 0 if none is queued
        self._gateways = 1
        self._sent_us = 0  # when the last batch left
        self._overhead_us = 0.0
        self._pressure = Pressure(config.slo_us)
        self._filler = BatchFiller(config.batching.mode, self.ledger)
        self._drain = DrainRate()
        self._probed_us = 0
        self._batch_waiting = 0  # requests of class `batch`
        self._adaptive = AdaptiveSize(self._size_max, config.slo_us) if self._policy == "adaptive" else None
        self._delay_limit = DelayLimit(
            max(round((config.slo_us or config.timeout_us) * DELAY_TARGET_RATIO), 1), 2 * config.bounds.requests_max
        )

    @property
    def limit(self) -> int:
        """The delay limit in force; 0 if there is none."""
        is_predicted = all(estimate.is_usable for estimate in self.estimates.values())
        return 0 if self._policy != "deadline" or is_predicted else self._delay_limit.limit

    # -- replicas ------------------------------------------------------------------------------------------------

    def add_replica(self, name: str, now_us: int) -> Replica:
        """A replica can take work from now on."""
        replica = Replica(name, now_us)
        self.replicas.append(replica)
        return replica

    def lose_replica(self, replica: Replica, now_us: int) -> Lost:
        """A replica is gone. What it was running may have killed it; the batches behind that had not begun.

        What had begun is tried once more, each request alone so that a deadly one cannot take others with it; what had
        not begun is queued again as it was.

        Returns:
            Who is not tried again: those whose deadline has passed, and those that have now lost two replicas.
        """
        if replica in self.replicas:
            self.replicas.remove(replica)
        restore_excess(self.replicas)
        held, replica.in_flight = replica.in_flight, []
        begun = _count_begun(held, self._size_max)
        lost = Lost([], [])
        for position, dispatch in enumerate(held):
            self._settle(dispatch, 0)
            for entry in dispatch.entries:
                if entry.state is not RUNNING:
                    continue
                entry.attempts += position < begun
                if now_us >= entry.deadline_us:
                    lost.expired.append(entry)
                elif entry.attempts > 1:
                    lost.refused.append(entry)
                else:
                    self.retries += position < begun
                    self._requeue(entry, dispatch.key, now_us, alone=entry.attempts > 0)
                    continue
                entry.state = DONE
        return lost

    # -- in ------------------------------------------------------------------------------------------------------

    def admit(self, entry: Entry, key: object, now_us: int) -> Refusal | None:
        """Let an entry wait among those of its key, or say why not. A refusal changes nothing for the others."""
        tenant = entry.tenant
        bounds = self.config.bounds
        # Everything below is asked only when it can matter: most requests meet a short queue and a distant deadline.
        if self.requests >= bounds.requests_max or self.nbytes + entry.nbytes > bounds.bytes_max:
            account = self.ledger.backlogged.get(tenant)
            reason = decide_refusal(
                bounds,
                requests=self.requests,
                nbytes=self.nbytes,
                request_bytes=entry.nbytes,
                tenant_requests=account.waiting if account else 0,
                tenant_bytes=account.nbytes if account else 0,
                share=self.ledger.share(tenant, entry.weight),
            )
            if reason is not None:
                return self._refuse(reason, now_us)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._make_queue(key, entry, now_us, alone=not self.config.is_batched)
            if queue is None:
                return self._refuse(RefusalReason.QUEUE_FULL, now_us)
        queue.rate.arrived += entry.rows
        if self._policy == "deadline":
            estimate = queue.estimate
            if not estimate.is_usable:
                if self.requests + self.in_flight >= self._delay_limit.limit:
                    return self._refuse(RefusalReason.CONCURRENCY, now_us)
            elif (self.rows > self._size_max or entry.deadline_us - now_us < estimate.ample_us) and self.replicas:
                refusal = self._refuse_late(entry, queue, now_us)
                if refusal is not None:
                    return refusal
        if self._pressure.shed_ratio:
            self._pressure.count_admitted()
        self._enter(queue, entry, now_us)
        return None

    def _requeue(self, entry: Entry, key: object, now_us: int, *, alone: bool) -> None:
        """An entry that was sent must be sent again. It is never refused for want of room."""
        if alone and not isinstance(key, _Retry):
            key = _Retry(key)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._make_queue(key, entry, now_us, alone=alone or not self.config.is_batched, is_bounded=False)
            assert queue is not None
        self._enter(queue, entry, now_us)

    def _enter(self, queue: SignatureQueue, entry: Entry, now_us: int) -> None:
        if len(queue.lanes) >= LANES_MAX:
            queue.sweep()
        entry.queued_us = now_us
        lane = queue.lane(entry.request_class, entry.tenant)
        lane.push(entry)
        account = lane.account
        if account is not None and account.waiting:  # its tenant is in the ledger, with others waiting
            account.waiting += 1
            account.nbytes += entry.nbytes
        else:
            lane.account = self.ledger.enter(entry.tenant, entry.nbytes, entry.weight)
        self._batch_waiting += entry.request_class == BATCH
        self.requests += 1
        self.rows += entry.rows
        self.nbytes += entry.nbytes
        if not self._expiry_us or entry.deadline_us < self._expiry_us:
            self._expiry_us = entry.deadline_us

    def _make_queue(
        self, key: object, entry: Entry, now_us: int, *, alone: bool, is_bounded: bool = True
    ) -> SignatureQueue | None:
        if len(self._queues) >= SIGNATURES_MAX:
            self._queues = {k: q for k, q in self._queues.items() if q.requests}
            if is_bounded and len(self._queues) >= SIGNATURES_MAX:
                return None
        bucket = "" if self._bucket_of is None else self._bucket_of(entry)
        estimate = self.estimates.get(bucket)
        if estimate is None:
            estimate = self.estimates[bucket] = ServiceEstimate(self._profile, self._size_max)
        queue = self._queues[key] = SignatureQueue(key, estimate, now_us, alone=alone)
        return queue

    def _refuse(self, reason: RefusalReason, now_us: int, *, predicted_us: int = 0, excess_us: int = 0) -> Refusal:
        self._pressure.count_shed()
        if predicted_us:
            # It would have been in time had it come so much later; spread, lest all come back at once.
            retry_us = round(excess_us * (1 + self._chance()))
            retry_us = min(max(retry_us, RETRY_AFTER_US_MIN), RETRY_AFTER_US_MAX)
        else:
            retry_us = self._retry_after_us(now_us)
        return Refusal(reason, retry_us, predicted_us)

    def _retry_after_us(self, now_us: int) -> int:
        drained, window_us = self._drain.read(now_us)
        return estimate_retry_after_us(requests=max(self.requests, 1), drained=drained, window_us=window_us)

    def _refuse_late(self, entry: Entry, queue: SignatureQueue, now_us: int) -> Refusal | None:
        estimate = queue.estimate
        allowed_us = entry.deadline_us - entry.arrived_us
        batch_rows = first_rows = 1 if queue.alone else self._sustainable_rows(estimate, allowed_us)
        free_us = sorted([max(r.free_us, r.ejected_until_us, now_us) for r in self.replicas])
        overhead_us = round(self._overhead_us)
        rows_ahead, share = self._rows_ahead(entry)
        is_overload = self._is_overload(queue)
        if rows_ahead + entry.rows <= share * batch_rows and share < 1.0:
            # Its tenant has less waiting than its share of a batch: it is in the next one, whatever others have.
            completion_us = free_us[0] + overhead_us + estimate.time_us(batch_rows)
        else:
            margin_us = overhead_us
            if is_overload:
                # There is more work than can be done: better refused now than dropped when it has waited.
                margin_us += self._pressure.judge_us(allowed_us, estimate.time_us(batch_rows))
            if queue.requests and not queue.alone:
                room_us = min([e.deadline_us for e in queue.heads()]) - free_us[0] - margin_us
                first_rows = self._rows_within(estimate, room_us)
            completion_us = margin_us + predict_completion_us(
                free_us=free_us,
                rows_ahead=min(int(rows_ahead / share), self.rows),
                rows=entry.rows,
                first_rows=first_rows,
                batch_rows=batch_rows,
                last_rows_min=batch_rows if is_overload else 1,
                time_us=estimate.time_us,
            )
        if completion_us <= entry.deadline_us:
            return None
        if not self.requests and free_us[0] <= now_us and now_us - self._probed_us >= PROBE_INTERVAL_US:
            self._probed_us = now_us
            return None
        if (
            not is_overload
            and self._is_lateness_allowed(entry)
            and completion_us <= entry.deadline_us + self.config.slo_us // LATE_SLO_PART
        ):
            return None
        predicted_us = completion_us - entry.arrived_us
        excess_us = completion_us - entry.deadline_us
        return self._refuse(RefusalReason.PREDICTED_LATE, now_us, predicted_us=predicted_us, excess_us=excess_us)

    def _is_overload(self, queue: SignatureQueue) -> bool:
        """Return True if more is asked for than can be done: by what is refused, or sooner, by what arrives."""
        if self._pressure.is_overload:
            return True
        carried = self._speed() * self._size_max / queue.estimate.time_us(self._size_max)
        return queue.rate.value > OVERRUN_RATIO * carried

    def _rows_ahead(self, entry: Entry) -> tuple[int, float]:
        """Return the rows of an entry's tenant that are served before it, and the tenant's share of the replicas."""
        account = self.ledger.backlogged.get(entry.tenant)
        others = len(self.ledger.backlogged) - (account is not None)
        if not others and entry.request_class == BATCH:
            return self.rows, 1.0
        rows = 0
        for queue in self._queues.values():
            for (request_class, tenant), lane in queue.lanes.items():
                if request_class <= entry.request_class and (not others or tenant == entry.tenant):
                    rows += lane.rows
        return rows, self.ledger.share(entry.tenant, entry.weight) if others else 1.0

    def abandon(self, entry: Entry) -> None:
        """Nobody wants this entry's answer any more: it leaves if it waits. Its state is DONE afterwards."""
        was_queued = entry.state is QUEUED
        entry.state = DONE
        if was_queued:
            entry.lane.forget(entry)
            self._left(entry)

    def clear(self) -> list[Entry]:
        """Take out everything that waits, and return it; all of it is done."""
        entries = [e for q in self._queues.values() for lane in q.lanes.values() for e in lane.entries()]
        for entry in entries:
            self.abandon(entry)
        self._queues.clear()
        return entries

    def _left(self, entry: Entry) -> None:
        self.requests -= 1
        self.rows -= entry.rows
        self.nbytes -= entry.nbytes
        self.ledger.leave(entry.tenant, entry.nbytes)
        self._batch_waiting -= entry.request_class == BATCH

    # -- out -----------------------------------------------------------------------------------------------------

    def decide(self, now_us: int) -> Dispatch | Drop | Wait:
        """Decide the next thing to do.

        Returns:
            A Dispatch, whose entries are RUNNING from now on and must be sent; a Drop, whose entries are DONE; or Wait,
            and then there is nothing more to do before something changes or its time has come.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            return pending
        if not self.requests:
            self._expiry_us = 0
            return _WAIT_FOR_CHANGE
        if now_us >= self._expiry_us:
            expired = self._take_expired(now_us)
            if expired:
                return Drop(expired, RefusalReason.EXPIRED)
            if not self.requests:
                return _WAIT_FOR_CHANGE
        available, next_us = self._find_available(now_us)
        until_us = self._expiry_us
        if not available:
            return Wait(until_us if next_us is None else min(until_us, next_us))
        best = self._find_due(available, now_us)
        if isinstance(best, Wait):
            return best if best.until_us is not None and best.until_us < until_us else Wait(until_us)
        queue, view, reason = best
        replica = choose_replica(available, now_us, gateways=self._gateways, chance=self._chance)
        dropped, entries = self._take(queue, view, replica, now_us)
        reason_dropped = RefusalReason.DROPPED if self._policy == "deadline" else RefusalReason.EXPIRED
        if dropped and self._policy == "deadline" and self._is_overload(queue):
            allowed_us = min([e.deadline_us - e.arrived_us for e in dropped])
            self._pressure.widen(len(dropped), allowed_us, queue.estimate.time_us(max(len(entries), 1)))
        if entries:
            dispatch = self._send(queue, view, replica, entries, reason, now_us)
            if not dropped:
                return dispatch
            self._pending = dispatch
        return Drop(dropped, reason_dropped, self._retry_after_us(now_us))

    def _find_due(self, available: list[Replica], now_us: int) -> tuple[SignatureQueue, QueueView, CloseReason] | Wait:
        """Return the queue whose turn it is among those whose batch should leave now, else when to ask again."""
        idle = sum([not r.in_flight for r in available])
        until_us: int | None = None
        due: list[tuple[SignatureQueue, QueueView, CloseReason]] = []
        for queue in self._queues.values():
            if not queue.requests:
                continue
            view = self._view(queue, available, idle, now_us)
            decision = decide_close(self.config.batching, view, now_us=now_us)
            if not isinstance(decision, Wait):
                due.append((queue, view, decision.reason))
            elif decision.until_us is not None and (until_us is None or decision.until_us < until_us):
                until_us = decision.until_us
        if not due:
            return Wait(until_us)
        return due[0] if len(due) == 1 else min(due, key=self._turn)

    def _turn(self, due: tuple[SignatureQueue, QueueView, CloseReason]) -> tuple[bool, float, int]:
        """Rank a queue among those that could go next, the least first.

        What class `batch` is owed goes first. While tenants contend the queue of the one furthest behind follows: its
        requests may be of another shape than the others', and share no batch with them. Then the earliest deadline.
        """
        queue, view, _ = due
        lanes = [lane for lane in queue.lanes.values() if lane.requests]
        is_owed = self._filler.owed_rows >= min(queue.rows, view.size_max) and all(
            lane.request_class == BATCH for lane in lanes
        )
        behind_us = 0.0
        if len(self.ledger.backlogged) > 1:
            behind_us = min([self.ledger.backlogged[lane.tenant].virtual_us for lane in lanes])
        return not is_owed, behind_us, view.deadline_us

    def _find_available(self, now_us: int) -> tuple[list[Replica], int | None]:
        """Return the replicas that can take a batch now, and when the next one can."""
        lead_us = LEAD_US + round(self._overhead_us)
        available: list[Replica] = []
        next_us: int | None = None
        for replica in self.replicas:
            from_us = replica.available_us(lead_us)
            if from_us is None:
                continue
            if from_us <= now_us:
                if replica.ejected_until_us:
                    replica.ejected_until_us = 0
                    replica.is_probing = True
                available.append(replica)
            elif next_us is None or from_us < next_us:
                next_us = from_us
        return available, next_us

    def _speed(self) -> float:
        """Return how many replicas as fast as the profile says this gateway may count on."""
        speed = sum([1.0 / r.slowness for r in self.replicas if not r.ejected_until_us])
        return max(speed / self._gateways, 0.01)

    def _sustainable_rows(self, estimate: ServiceEstimate, slack_us: int) -> int:
        return count_fitting(
            slack_us=slack_us,
            alpha_us=estimate.alpha_us,
            beta_us=estimate.beta_us,
            replicas=self._speed(),
            size_max=self._size_max,
        )

    def _view(self, queue: SignatureQueue, available: list[Replica], idle: int, now_us: int) -> QueueView:
        heads = queue.heads()
        first = heads[0] if len(heads) == 1 else min(heads, key=_deadline_of)
        oldest_us = first.queued_us if len(heads) == 1 else min([e.queued_us for e in heads])
        size_max = self._size_max if self._adaptive is None else self._adaptive.rows
        target, limit, period_us, latest_us, spaced_us = 1, size_max, 0, 0, 0
        if self._policy == "deadline" and not queue.alone:
            estimate = queue.estimate
            speed = self._speed()
            limit = self._sustainable_rows(estimate, first.deadline_us - first.arrived_us)
            is_batch_class = all(e.request_class == BATCH for e in heads)
            if self.config.slo_us and is_batch_class:
                limit = self._rows_within(estimate, self.config.slo_us * BATCH_CLASS_RATIO)
            if is_batch_class or self.config.batching.mode == "throughput":
                size_max = min(size_max, limit)
            rate = queue.rate.fold(now_us)
            busy = 1
            if len(self._queues) > 1:
                # Queues take turns: each gets batches as large as their turns are far apart.
                busy = sum([1 for q in self._queues.values() if q.requests])
            target, period_us = plan_target(
                rate=rate,
                alpha_us=estimate.alpha_us,
                beta_us=estimate.beta_us * busy,
                replicas=speed,
                size_max=limit,
            )
            latest_us = first.deadline_us - estimate.tail_us(min(queue.rows + 1, size_max)) - GUARD_US
            latest_us -= round(self._overhead_us)
            if queue.rows > size_max and speed >= 2 and self._pressure.is_overload:
                spaced_us = self._sent_us + round(SPACING_RATIO * estimate.time_us(size_max) / speed)
        return QueueView(
            rows=queue.rows,
            is_alone=queue.alone,
            oldest_us=oldest_us,
            deadline_us=first.deadline_us,
            available=len(available),
            idle=idle,
            target=target,
            period_us=period_us,
            latest_us=latest_us,
            size_max=size_max,
            spaced_us=spaced_us,
            is_sole=self._speed() < 2,
            is_scarce=target > 1 and target >= limit,
        )

    def _rows_within(self, estimate: ServiceEstimate, time_us: float) -> int:
        """Return the largest batch that takes no longer than this, at least 1."""
        room_us = time_us - estimate.beta_us
        alpha_us = estimate.alpha_us
        if alpha_us * self._size_max <= room_us:
            return self._size_max
        return max(int(room_us / alpha_us), 1) if room_us > 0 else 1

    def _take(
        self, queue: SignatureQueue, view: QueueView, replica: Replica, now_us: int
    ) -> tuple[list[Entry], list[Entry]]:
        """Take the next batch out of a queue; return who is dropped, and the batch, which may be empty then."""
        rows_max = 1 if queue.alone or self.nbytes > self.config.batch_bytes_max else view.size_max
        entries: list[Entry] = []
        if self._policy != "deadline":
            dropped = self._pop_until(queue, now_us)
            self._fill(queue, rows_max, now_us, entries)
            return dropped, entries
        estimate = queue.estimate
        # Under overload whoever might be late only takes the place of somebody who would not be.
        time_us = estimate.safe_us if self._pressure.is_overload else estimate.time_us
        start_us = max(now_us, replica.free_us)
        if replica.in_flight or now_us - self._sent_us < PROBE_INTERVAL_US:
            start_us += round(self._overhead_us)
        # Else nothing was sent for a while: the measured way may be that of a stall, and only an execution corrects it.
        slowness = replica.slowness

        def done_us(rows: int) -> float:
            return start_us + time_us(rows) * slowness

        rows = max(min(queue.rows, rows_max), *[e.rows for e in queue.heads()])
        if view.deadline_us >= done_us(rows):  # the whole batch, and all in time
            self._fill(queue, rows_max, now_us, entries)
            return [], entries
        floor = view.target
        if self._speed() < 2:
            floor = min(-int(-floor * SOLE_REPLICA_RATIO // 1), self._size_max)
        floor = max(min(rows, floor), 1)
        dropped, first_us, floor = self._screen(queue, done_us, floor, entries)
        rows = min(queue.rows + sum([e.rows for e in entries]), rows_max)
        while rows > floor and first_us < done_us(rows):
            rows -= 1
        self._fill(queue, rows, now_us, entries)
        return dropped, entries

    def _screen(
        self, queue: SignatureQueue, done_us: Callable[[int], float], floor: int, entries: list[Entry]
    ) -> tuple[list[Entry], int, int]:
        """Sort out who cannot be done in time in a batch that is large enough; `done_us` tells when one is done.

        Large enough is `floor`, or what is left without those sorted out: for less nobody need go.
        Those who are late by the model's own SLO stay while it is kept without them; they go first into the batch.

        Returns:
            Who is dropped, the earliest deadline of those who can be in time, and the rows for which they can.
        """
        dropped: list[Entry] = []
        first_us = 1 << 62
        late_rows = 0
        rows_kept = floor
        for lane in queue.lanes.values():
            while (head := lane.head()) is not None:
                rows = max(min(floor, queue.rows + late_rows - head.rows), head.rows)
                if head.deadline_us >= done_us(rows):
                    first_us = min(first_us, head.deadline_us)
                    rows_kept = min(rows_kept, rows)
                    break
                lane.pop()
                if late_rows + head.rows <= floor and self._is_lateness_allowed(head):
                    late_rows += head.rows
                    head.is_tolerated = True
                    self._pressure.count_served(1, late=1)
                    entries.append(head)
                    continue
                self._left(head)
                head.state = DONE
                self._pressure.count_shed()
                dropped.append(head)
        return dropped, first_us, rows_kept

    def _is_lateness_allowed(self, entry: Entry) -> bool:
        slo_us = self.config.slo_us
        return bool(slo_us) and entry.deadline_us - entry.arrived_us == slo_us and self._pressure.is_lateness_allowed

    def _fill(self, queue: SignatureQueue, rows_max: int, now_us: int, entries: list[Entry]) -> None:
        """Fill a batch up to `rows_max` rows, those that are in it already included; from here on it runs."""
        self._filler.fill(queue, rows_max - sum([e.rows for e in entries]), entries)
        if len(self.ledger.backlogged) == 1:
            nbytes = rows = batch = 0
            for entry in entries:
                entry.state = RUNNING
                entry.sent_us = now_us
                rows += entry.rows
                nbytes += entry.nbytes
                batch += entry.request_class == BATCH
            if entries:
                self.requests -= len(entries)
                self.rows -= rows
                self.nbytes -= nbytes
                self._batch_waiting -= batch
                self.ledger.leave(entries[0].tenant, nbytes, len(entries))
            return
        for entry in entries:
            self._left(entry)
            entry.state = RUNNING
            entry.sent_us = now_us

    def _send(
        self,
        queue: SignatureQueue,
        view: QueueView,
        replica: Replica,
        entries: list[Entry],
        reason: CloseReason,
        now_us: int,
    ) -> Dispatch:
        rows = 0
        for entry in entries:
            rows += entry.rows
        dispatch = Dispatch(self._next_id, replica, entries, rows, reason, now_us, key=queue.key, alone=queue.alone)
        self._next_id += 1
        self._sent_us = now_us
        dispatch.estimate = queue.estimate
        if queue.estimate.is_usable:
            dispatch.predicted_us = round(queue.estimate.time_us(rows) * replica.slowness)
        dispatch.is_staged = bool(replica.in_flight)
        replica.in_flight.append(dispatch)
        start_us = max(now_us + round(self._overhead_us / 2), replica.free_us)
        replica.free_us = start_us + dispatch.predicted_us
        first = entries[0].lane
        dispatch.is_uniform = len(queue.lanes) == 1 or all(entry.lane is first for entry in entries)
        self.in_flight += len(entries)
        self._charge(dispatch, dispatch.predicted_us)
        self._owe(dispatch)
        self._drain.count(len(entries), now_us)
        if not queue.estimate.is_usable:
            self._delay_limit.observe(now_us - view.oldest_us, self.requests + self.in_flight, now_us)
        return dispatch

    def _take_expired(self, now_us: int) -> list[Entry]:
        expired: list[Entry] = []
        next_us = 0
        for queue in self._queues.values():
            if queue.requests:
                expired += self._pop_until(queue, now_us)
                for head in queue.heads():
                    if not next_us or head.deadline_us < next_us:
                        next_us = head.deadline_us
        self._expiry_us = max(next_us, now_us + EXPIRY_INTERVAL_US) if next_us else 0
        return expired

    def _pop_until(self, queue: SignatureQueue, now_us: int) -> list[Entry]:
        """Take out the entries whose deadline has passed."""
        expired: list[Entry] = []
        for lane in queue.lanes.values():
            while (head := lane.head()) is not None and head.deadline_us <= now_us:
                lane.pop()
                self._left(head)
                head.state = DONE
                expired.append(head)
        return expired

    # -- back ----------------------------------------------------------------------------------------------------

    def observe_reply(self, dispatch: Dispatch, served: Served, now_us: int) -> None:
        """A batch came back."""
        replica = dispatch.replica
        is_first = bool(replica.in_flight) and replica.in_flight[0] is dispatch
        if dispatch in replica.in_flight:
            replica.in_flight.remove(dispatch)
        # Of an execution that several batches shared, this one pays for its rows.
        share_us = (
            served.service_us * dispatch.rows // served.rows if served.rows > dispatch.rows else served.service_us
        )
        self._settle(dispatch, share_us)
        self._gateways = max(served.gateways, 1)
        if served.rows and served.service_us:
            self._observe_service(dispatch, served, now_us)
        if is_first or not replica.in_flight:
            ahead_us = sum([d.predicted_us for d in replica.in_flight])
            replica.free_us = now_us + max(ahead_us, served.backlog_us)
        # Those tolerated have been counted.
        counted = [now_us > entry.deadline_us for entry in dispatch.entries if not entry.is_tolerated]
        if counted:
            self._pressure.count_served(len(counted), late=sum(counted))
        if self._adaptive is not None:
            self._adaptive.observe(dispatch.rows, served.service_us)

    def _observe_service(self, dispatch: Dispatch, served: Served, now_us: int) -> None:
        estimate, replica = dispatch.estimate, dispatch.replica
        if estimate is None:
            return
        was_probing = replica.is_probing
        if estimate.is_usable and len(self.replicas) > 1:
            replica.observe(served.service_us / estimate.time_us(served.rows))
            if estimate.spread <= OUTLIER_RATIO and find_outlier(self.replicas, replica):
                replica.eject(now_us)
                self.ejections += 1
            elif was_probing:
                replica.restore()
        fastest = min([r.slowness for r in self.replicas], default=1.0)
        if replica.slowness <= fastest * SLOW_RATIO:
            estimate.observe(served.rows, served.service_us, now_us)
        if not dispatch.is_staged and served.rows == dispatch.rows:
            way_us = max(now_us - dispatch.sent_us - served.service_us - served.wait_us, 0)
            self._overhead_us += OVERHEAD_WEIGHT * (way_us - self._overhead_us)

    def _settle(self, dispatch: Dispatch, service_us: int) -> None:
        """Correct what tenants were charged when the batch was sent by what it took."""
        self.in_flight -= len(dispatch.entries)
        self._charge(dispatch, service_us - dispatch.charged_us)

    def _charge(self, dispatch: Dispatch, device_us: int) -> None:
        if not device_us:
            return
        ledger = self.ledger
        if len(ledger.accounts) == 1:
            return  # nobody to be fair to; with a second tenant all begin level
        dispatch.charged_us += device_us
        row_us = device_us / dispatch.rows
        for entry in dispatch.entries:
            ledger.charge(entry.tenant, row_us * entry.rows)

    def _owe(self, dispatch: Dispatch) -> None:
        """Note what class `batch` got of a batch and what it should have got, while some of it waits."""
        if self._batch_waiting or not dispatch.is_uniform or dispatch.entries[0].request_class == BATCH:
            batch_rows = sum([e.rows for e in dispatch.entries if e.request_class == BATCH])
            self._filler.owe(dispatch.rows, batch_rows, is_waiting=self._batch_waiting > 0)


def _count_begun(held: list[Dispatch], rows_max: int) -> int:
    """Count the batches, oldest first, that a lost replica may have been running: replicas merge what fits together."""
    if not held:
        return 0
    first, *others = held
    count, rows = 1, first.rows
    for dispatch in others:
        rows += dispatch.rows
        if first.alone or dispatch.alone or rows > rows_max or dispatch.key != first.key:
            break
        count += 1
    return count


def _deadline_of(entry: Entry) -> int:
    return entry.deadline_us
