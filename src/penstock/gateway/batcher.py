"""One model version in this gateway: carries out what its scheduler (`policy/scheduling.py`) decides.

    submit, replies, losses --> Scheduler observes --> flush: it decides --> send a batch | refuse | arm the one timer

One timer per model, one wake-up per batch. Every request that enters leaves exactly once: finished, refused, or
abandoned by its caller. Not here: HTTP (`http.py`), the connection to a replica (`link.py`), any rule of scheduling.
"""

from collections.abc import Callable
from typing import cast

from penstock.core.models import ModelSpec
from penstock.core.ports import Clock
from penstock.core.profiles import CostProfile
from penstock.core.statistics import BatchStatistics, Histogram, ModelStatistics, TenantStatistics
from penstock.gateway.work import BatchResult, Link, Refusal, Work
from penstock.policy.admission import RefusalReason
from penstock.policy.balancing import Dispatch
from penstock.policy.queueing import BATCH, DONE, RUNNING, Entry, RequestClass
from penstock.policy.scheduling import Drop, Scheduler, SchedulerConfig, Served
from penstock.policy.scheduling import Refusal as SchedulerRefusal
from penstock.wire.frame import (
    BATCH_FLAG_ALONE,
    PAYLOAD_BYTES_MAX,
    BatchMeta,
    Failure,
    FrameError,
    FrameKind,
    FrameTensor,
    ReplyMeta,
    encode_frame,
    encode_meta,
)
from penstock.wire.oip import length_bucket
from penstock.wire.oip_outputs import OutputTensor, check_outputs, output_tensors

__all__ = ["ModelBatcher"]

# Steps of a request's life that are timed here; `parse` is timed by the connection.
STEPS = ("decode", "queue", "dispatch", "execute", "reply")
# What a caller is told when nothing predicts when the model will be there: about how long a replica takes to start.
RETRY_AFTER_US = 1_000_000
# Callers name tenants; those past this many are counted together.
TENANTS_MAX = 1_024
# How a replica returns a request that it did not execute because it would have come too late.
LATE_STATUS = 504
OTHER_TENANTS = "(other)"


class ModelBatcher:
    """All that waits for one model version in this gateway, and the replicas that may take it.

    Args:
        spec: The model.
        profile: What its batches cost as measured at load, if that is known.
        statistics: Where to count.
        now_us: Clock.
        call_later: `call_later(delay_us, callback)` arms a timer and returns its cancel function.
        schedule_flush: Asks for one `flush` at the end of this turn of the event loop.
        chance: Uniform in [0, 1), for the scheduler.
        on_bug: Called with an exception of a caller's `finish` or `refuse`, which should not have happened.
    """

    def __init__(
        self,
        spec: ModelSpec,
        profile: CostProfile | None,
        *,
        statistics: ModelStatistics,
        now_us: Clock,
        call_later: Callable[[int, Callable[[], None]], Callable[[], None]],
        schedule_flush: Callable[["ModelBatcher"], None],
        chance: Callable[[], float],
        on_bug: Callable[[Exception], None],
    ) -> None:
        self.spec = spec
        self.statistics = statistics
        self.scheduler = Scheduler(
            SchedulerConfig.from_spec(spec, batch_bytes_max=PAYLOAD_BYTES_MAX),
            profile,
            chance,
            bucket_of=_bucket_of if spec.task == "embedding" else None,
        )
        self.is_flush_due = False
        self.success_at_us = 0
        self._now_us = now_us
        self._call_later = call_later
        self._schedule_flush = schedule_flush
        self._on_bug = on_bug
        self._due_us = 0  # when the scheduler wants to be asked again; 0 if only when something changes
        self._timer_us = 0  # when the armed timer fires; 0 if none is armed
        self._cancel_timer: Callable[[], None] | None = None
        self._end: Refusal | None = None  # what everything gets once the model is gone
        for step in STEPS:
            statistics.steps.setdefault(step, Histogram())
        self._steps = statistics.steps
        self._observe_decode = statistics.steps["decode"].observe
        self._observe_queue = statistics.steps["queue"].observe

    @property
    def requests(self) -> int:
        """Requests waiting now."""
        return self.scheduler.requests

    @property
    def pending(self) -> int:
        """Requests waiting or running."""
        return self.scheduler.requests + self.scheduler.in_flight

    def profiles(self) -> dict[str, CostProfile]:
        """Return what batches cost now, by length bucket, as far as that is known."""
        return {b: e.typical for b, e in self.scheduler.estimates.items() if e.is_usable}

    # -- in ------------------------------------------------------------------------------------------------------

    def submit(self, work: Work, now_us: int) -> None:
        """Queue a request, or refuse it at once if it may not wait or `end` was called."""
        if self._end is not None:
            self._refuse(work, self._end, now_us)
            return
        refusal = self.scheduler.admit(work, work.request.signature, now_us)
        if refusal is not None:
            self._refuse(work, self._explain(refusal, work), now_us)
            return
        self._observe_decode(now_us - work.arrived_us)
        self._ask_flush()

    def _ask_flush(self) -> None:
        if not self.is_flush_due:
            self.is_flush_due = True
            self._schedule_flush(self)

    def _explain(self, refusal: SchedulerRefusal, work: Work) -> Refusal:
        scheduler = self.scheduler
        name = f"model {self.spec.name!r}"
        if refusal.reason is RefusalReason.PREDICTED_LATE:
            allowed_us = work.deadline_us - work.arrived_us
            message = (
                f"{name}: expected to be done within {allowed_us / 1_000:.1f} ms of its arrival, predicted"
                f" {refusal.predicted_us / 1_000:.1f} ms; retry later, or allow more by penstock-timeout-ms"
            )
        elif refusal.reason is RefusalReason.TENANT_FULL:
            message = f"{name}: tenant {work.tenant!r} has its share of the queue waiting; retry later"
        elif refusal.reason is RefusalReason.CONCURRENCY:
            message = f"{name}: {scheduler.limit} requests are in the system, its limit by queue delay; retry later"
        else:
            message = f"{name}: {scheduler.requests} requests ({scheduler.nbytes} bytes) are waiting; retry later"
        return Refusal(503, message, refusal.reason, refusal.retry_after_us)

    def abandon(self, work: Work, now_us: int, reason: RefusalReason | None = RefusalReason.DISCONNECTED) -> None:
        """The caller is gone: leave the queue if still there; if running, the result is thrown away.

        `reason` says what to count it as, if it was not the client who gave up.
        """
        if work.state is DONE:
            return
        if work.state is not RUNNING:
            work.request.payload = ()
        self.scheduler.abandon(work)
        self._count_unserved(work, reason, now_us)

    # -- out -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Do whatever the scheduler says must be done now, and arm the timer for its next decision."""
        self.is_flush_due = False
        now_us = self._now_us()
        decide = self.scheduler.decide
        while True:
            decision = decide(now_us)
            if isinstance(decision, Dispatch):
                self._send(decision, now_us)
            elif isinstance(decision, Drop):
                self._drop(decision, now_us)
            else:
                break
        self._due_us = decision.until_us or 0
        if self._due_us and (not self._timer_us or self._due_us < self._timer_us):
            self._arm(now_us)

    def _arm(self, now_us: int) -> None:
        if self._cancel_timer is not None:
            self._cancel_timer()
        self._timer_us = self._due_us
        self._cancel_timer = self._call_later(max(self._due_us - now_us, 0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_us = 0
        self._cancel_timer = None
        now_us = self._now_us()
        if not self._due_us:
            return
        if now_us < self._due_us:  # what it was armed for is past; the scheduler has asked for a later time since
            self._arm(now_us)
        else:
            self.flush()

    def _send(self, dispatch: Dispatch, now_us: int) -> None:
        works = cast("list[Work]", dispatch.entries)
        first = works[0].request
        payload: list[bytes | memoryview] = []
        described: list[FrameTensor] = []
        for i, (name, datatype, shape) in enumerate(first.tensors):
            pieces = [work.request.payload[i] for work in works]
            payload += pieces
            described.append(FrameTensor(name, datatype, shape, sum(map(len, pieces))))
        meta = BatchMeta(
            inputs=tuple(described),
            rows=tuple([work.rows for work in works]),
            # 0 would say that there is no deadline.
            budgets_us=tuple([work.deadline_us - now_us or -1 for work in works]),
            parameters=first.parameters,
        )
        observe = self._observe_queue
        for work in works:
            observe(now_us - work.queued_us)
        closes = self.statistics.closes
        closes[dispatch.reason.value] = closes.get(dispatch.reason.value, 0) + 1
        flags = BATCH_FLAG_ALONE if dispatch.alone else 0
        link = cast("Link", dispatch.replica.handle)
        link.send(dispatch, encode_frame(FrameKind.BATCH, dispatch.id, encode_meta(meta), payload, flags=flags))

    def _drop(self, drop: Drop, now_us: int) -> None:
        for work in cast("list[Work]", drop.entries):
            work.request.payload = ()
            if drop.reason is RefusalReason.EXPIRED:
                self._refuse_expired(work, now_us)
                continue
            waited_ms = (now_us - work.arrived_us) / 1_000
            message = (
                f"model {self.spec.name!r}: after {waited_ms:.1f} ms in the queue it could no longer be done in time;"
                " retry later, or allow more time"
            )
            self._refuse_safely(work, Refusal(503, message, drop.reason, drop.retry_after_us), now_us)

    def _refuse_expired(self, work: Work, now_us: int) -> None:
        waited_ms = (now_us - work.arrived_us) / 1_000
        allowed_ms = (work.deadline_us - work.arrived_us) / 1_000
        message = (
            f"model {self.spec.name!r}: the deadline passed before execution: {allowed_ms:g} ms were allowed, by"
            f" penstock-timeout-ms, parameters.timeout or the model's own, and {waited_ms:.1f} ms have passed"
        )
        self._refuse_safely(work, Refusal(504, message, RefusalReason.EXPIRED), now_us)

    def end(self, status: int, message: str, reason: RefusalReason) -> None:
        """Refuse everything that waits or runs, and whatever comes later until `reopen`.

        The model is gone, or no replica of it works, or the gateway stops.
        """
        now_us = self._now_us()
        self._end = Refusal(status, message, reason, RETRY_AFTER_US)
        works = cast("list[Work]", self.scheduler.clear())
        running = [e for r in self.scheduler.replicas for d in r.in_flight for e in d.entries if e.state is not DONE]
        works += cast("list[Work]", running)
        for work in works:
            # A refusal may make its caller abandon others of these.
            work.state = DONE
        for work in works:
            self._refuse_safely(work, self._end, now_us)

    def reopen(self) -> None:
        """Take requests again after `end`."""
        self._end = None

    # -- back ----------------------------------------------------------------------------------------------------

    def join_link(self, link: Link) -> None:
        """A replica can take work over this link from now on."""
        link.replica = self.scheduler.add_replica(link.address, self._now_us())
        link.replica.handle = link
        self.flush()

    def read_reply(self, batch: Dispatch, meta: ReplyMeta, payload: memoryview) -> list[OutputTensor]:
        """Return a reply's outputs, checked to be an answer to this batch by this model.

        Raises:
            FrameError: It is not. The replica cannot be trusted; give its link up.
        """
        entries = batch.entries
        failed = {failure.index for failure in meta.failures}
        if failed and max(failed) >= len(entries):
            raise FrameError(f"failures: expected indices below {len(entries)}, got {max(failed)}")
        rows = batch.rows
        if failed:
            rows = sum(entry.rows for index, entry in enumerate(entries) if index not in failed)
        if rows > meta.executed_rows:
            raise FrameError(f"executed_rows: expected at least the {rows} of the outputs, got {meta.executed_rows}")
        outputs = output_tensors(meta.outputs, payload)
        check_outputs(self.spec, outputs, rows)
        return outputs

    def finish_batch(self, batch: Dispatch, meta: ReplyMeta, outputs: list[OutputTensor]) -> None:
        """Hand each request of an answered batch its rows or its failure. `outputs` come from `read_reply`."""
        now_us = self._now_us()
        self.success_at_us = now_us
        works = cast("list[Work]", batch.entries)
        service_us = meta.input_us + meta.execute_us + meta.output_us
        timing = b'execute;dur=%.3f, batch;desc="%d rows, %b"' % (
            meta.execute_us / 1_000,
            meta.executed_rows,
            batch.reason.value.encode(),
        )
        endings = self._hand_out(works, BatchResult(outputs, timing), meta.failures, now_us)
        if meta.executed_rows:
            self._count_execution(batch, meta, now_us)
            self._count_device(batch, service_us, meta.executed_rows, endings)
        else:
            service_us = 0  # every request of it came back unexecuted, too late
        served = Served(service_us, meta.wait_us, meta.executed_rows, meta.backlog_us, meta.gateways)
        self.scheduler.observe_reply(batch, served, now_us)
        reply_us = (self._now_us() - now_us) // len(works)
        self._steps["reply"].observe(reply_us, len(works))
        if self.scheduler.requests:
            self._ask_flush()

    def _hand_out(
        self, works: list[Work], result: BatchResult, failures: tuple[Failure, ...], now_us: int
    ) -> "_Endings":
        """End every request of a batch that is not over yet, and count how they ended."""
        failed = {failure.index: failure for failure in failures}
        endings = _Endings()
        row = success = success_us = in_time = 0
        for index, work in enumerate(works):
            if failed and index in failed:
                failure = failed[index]
                endings.unserved[index] = failure.status != LATE_STATUS
                if work.state is not DONE:
                    self._fail(work, failure.status, failure.message, now_us)
                continue
            if work.state is not DONE and self._finish(work, result, row, now_us):
                success += 1
                success_us += now_us - work.arrived_us
                if now_us <= work.deadline_us:
                    in_time += 1
                else:
                    endings.wasted_rows += work.rows
            else:
                endings.unserved[index] = True
            row += work.rows
        statistics = self.statistics
        statistics.success += success
        statistics.success_us += success_us
        statistics.in_time += in_time
        return endings

    def _finish(self, work: Work, result: BatchResult, row: int, now_us: int) -> bool:
        """Give a request its rows; return False if it ended otherwise after all."""
        work.state = DONE
        try:
            if work.finish(result, row, now_us):
                return True
        except Exception as error:  # noqa: BLE001 - one request's bug must not take its neighbours' results
            self._on_bug(error)
            self._refuse_safely(work, Refusal(500, "internal error; please report it"), now_us)
        else:
            self._count_unserved(work, None, now_us)
        return False

    def lose_link(self, link: Link, reason: str) -> None:
        """A replica's connection broke. What it held is tried again or answered; nothing is left without an answer."""
        replica, link.replica = link.replica, None
        if replica is None:
            return
        now_us = self._now_us()
        retries = self.scheduler.retries
        lost = self.scheduler.lose_replica(replica, now_us)
        self.statistics.retries += self.scheduler.retries - retries
        for work in cast("list[Work]", lost.expired):
            self._refuse_expired(work, now_us)
        message = f"model {self.spec.name!r}: the replica was lost twice while running this request ({reason})"
        for work in cast("list[Work]", lost.refused):
            self._refuse_safely(work, Refusal(503, message, RefusalReason.REPLICA_LOST, RETRY_AFTER_US), now_us)
        self.flush()

    def _fail(self, work: Work, status: int, message: str, now_us: int) -> None:
        reason = None
        if status == LATE_STATUS:
            reason = RefusalReason.EXPIRED
        elif status < 500:
            reason = RefusalReason.INVALID
        self._refuse_safely(work, Refusal(status, message, reason), now_us)

    def _refuse(self, work: Work, refusal: Refusal, now_us: int) -> None:
        work.state = DONE
        self._count_unserved(work, refusal.reason, now_us)
        work.refuse(refusal, now_us)

    def _refuse_safely(self, work: Work, refusal: Refusal, now_us: int) -> None:
        """Refuse one of several: a bug in its answer must not cost the others theirs."""
        try:
            self._refuse(work, refusal, now_us)
        except Exception as error:  # noqa: BLE001 - as above
            self._on_bug(error)

    # -- counting ------------------------------------------------------------------------------------------------

    def snapshot_gauges(self) -> None:
        """Bring what is a state, not a count, up to date in the statistics."""
        self.statistics.pending = self.scheduler.requests
        self.statistics.limit = self.scheduler.limit
        self.statistics.ejections = self.scheduler.ejections

    def count_invalid(self, elapsed_us: int) -> None:
        """A request was refused before it became a Work: its body was wrong."""
        self._count_failure(RefusalReason.INVALID, elapsed_us)

    def _count_failure(self, reason: RefusalReason | None, elapsed_us: int) -> str:
        statistics = self.statistics
        statistics.failure_us += elapsed_us
        label = "BACKEND" if reason is None else _TRITON_REASON[reason]
        statistics.failures[label] = statistics.failures.get(label, 0) + 1
        if reason is not None:
            statistics.refusals[reason.value] = statistics.refusals.get(reason.value, 0) + 1
        return label

    def _tenant(self, name: str) -> TenantStatistics:
        tenants = self.statistics.tenants
        found = tenants.get(name)
        if found is None:
            if len(tenants) >= TENANTS_MAX:
                name = OTHER_TENANTS
            found = tenants.setdefault(name, TenantStatistics())
        return found

    def _count_unserved(self, work: Work, reason: RefusalReason | None, now_us: int) -> None:
        """Count a request that ended without a result, whyever."""
        label = self._count_failure(reason, now_us - work.arrived_us)
        tenant = self._tenant(work.tenant)
        tenant.requests += 1
        tenant.refused += label == "REJECTED"
        self._count_class(work.request_class, 1)

    def _count_class(self, request_class: RequestClass, times: int) -> None:
        label = "batch" if request_class == BATCH else "interactive"
        classes = self.statistics.classes
        classes[label] = classes.get(label, 0) + times

    def _count_device(self, batch: Dispatch, service_us: int, executed_rows: int, endings: "_Endings") -> None:
        """Count device time by its use, and successes by tenant and class; in one go if the batch has one of each."""
        works = cast("list[Work]", batch.entries)
        statistics, unserved = self.statistics, endings.unserved
        first = works[0]
        tenant, request_class = first.tenant, first.request_class
        row_us = service_us / executed_rows
        if not unserved and batch.is_uniform:
            device_us = round(row_us * batch.rows)
            counted = self._tenant(tenant)
            counted.requests += len(works)
            counted.success += len(works)
            counted.device_us += device_us
            self._count_class(request_class, len(works))
            statistics.device_us += device_us
            statistics.wasted_us += round(row_us * endings.wasted_rows)
            return
        wasted_rows = endings.wasted_rows
        for index, work in enumerate(works):
            counted = self._tenant(work.tenant)
            if index not in unserved:
                counted.requests += 1
                counted.success += 1
                self._count_class(work.request_class, 1)
            elif unserved[index]:
                wasted_rows += work.rows
            else:
                continue
            counted.device_us += round(row_us * work.rows)
            statistics.device_us += round(row_us * work.rows)
        statistics.wasted_us += round(row_us * wasted_rows)

    def _count_execution(self, batch: Dispatch, meta: ReplyMeta, now_us: int) -> None:
        statistics = self.statistics
        count = len(batch.entries)
        statistics.inference_count += batch.rows
        statistics.execution_count += 1
        statistics.batch_rows.observe(batch.rows)
        statistics.fill.observe(min(batch.rows * 100 // self.spec.batching.size_max, 100))
        statistics.queue_us += sum([e.sent_us - e.queued_us for e in batch.entries]) + meta.wait_us * count
        statistics.input_us += meta.input_us * count
        statistics.execute_us += meta.execute_us * count
        statistics.output_us += meta.output_us * count
        size = statistics.batches.get(batch.rows)
        if size is None:
            size = statistics.batches[batch.rows] = BatchStatistics()
        size.count += 1
        size.input_us += meta.input_us
        size.execute_us += meta.execute_us
        size.output_us += meta.output_us
        self._steps["execute"].observe(meta.execute_us, count)
        self._steps["dispatch"].observe(max(now_us - batch.sent_us - meta.execute_us, 0), count)


class _Endings:
    """How the requests of one batch ended.

    Attributes:
        unserved: Those without a result, by index; True if they were executed all the same.
        wasted_rows: Rows of those whose result came after their deadline.
    """

    __slots__ = ("unserved", "wasted_rows")

    def __init__(self) -> None:
        self.unserved: dict[int, bool] = {}
        self.wasted_rows = 0


def _bucket_of(entry: Entry) -> str:
    """Name the length bucket of an entry by its upper end: texts of fewer bytes than that."""
    return str(1 << length_bucket(entry.nbytes // entry.rows))


_TRITON_REASON = {
    RefusalReason.QUEUE_FULL: "REJECTED",
    RefusalReason.QUEUE_BYTES: "REJECTED",
    RefusalReason.TENANT_FULL: "REJECTED",
    RefusalReason.PREDICTED_LATE: "REJECTED",
    RefusalReason.DROPPED: "REJECTED",
    RefusalReason.CONCURRENCY: "REJECTED",
    RefusalReason.EXPIRED: "REJECTED",
    RefusalReason.DRAINING: "REJECTED",
    RefusalReason.UNAVAILABLE: "REJECTED",
    RefusalReason.DISCONNECTED: "CANCELED",
    RefusalReason.REPLICA_LOST: "BACKEND",
    RefusalReason.INVALID: "OTHER",
}
