"""Queues and dispatch of one model version: carries out what `policy/batching.py` and `policy/admission.py` decide.

One queue per input signature, one timer per model, one wake-up per batch. Every request that enters leaves exactly
once: finished, failed, or abandoned by its caller.

    submit -> QUEUED -> RUNNING -> DONE      the death of a replica makes RUNNING work QUEUED again, once
    abandon() makes either QUEUED or RUNNING work DONE

Not here: HTTP (`http.py`), the connection to a replica (`link.py`).
"""

from collections.abc import Callable

from penstock.core.models import ModelSpec
from penstock.core.ports import Clock
from penstock.core.statistics import BatchStatistics, Histogram, ModelStatistics
from penstock.gateway.work import DONE, QUEUED, RUNNING, Batch, BatchResult, Link, Refusal, Work, WorkQueue
from penstock.policy.admission import RefusalReason, decide_refusal, estimate_retry_after_us
from penstock.policy.batching import CREDITS_PER_REPLICA, CloseReason, Dispatch, QueueView, decide_dispatch
from penstock.wire.frame import (
    BATCH_FLAG_ALONE,
    PAYLOAD_BYTES_MAX,
    BatchMeta,
    FrameError,
    FrameKind,
    FrameTensor,
    ReplyMeta,
    encode_frame,
    encode_meta,
)
from penstock.wire.oip_outputs import OutputTensor, check_outputs, output_tensors

__all__ = ["ModelBatcher"]

# Steps of a request's life that are timed here; `parse` is timed by the connection.
STEPS = ("decode", "queue", "dispatch", "execute", "reply")
# The drain rate behind Retry-After is counted over windows of this length.
DRAIN_WINDOW_US = 1_000_000
# Distinct input signatures of one model that may wait at once. Callers choose open dimensions and parameters,
# so without a bound they could make queues without end.
SIGNATURES_MAX = 1_024
# What a caller is told when nothing predicts when the model will be there: about how long a replica takes to start.
RETRY_AFTER_US = 1_000_000
# Deadlines are looked for among all that waits at most this often: under overload one passes in every turn of the
# event loop. A request is never executed after its deadline, but may be told so this much later.
EXPIRY_INTERVAL_US = 2_000


class ModelBatcher:
    """All that waits for one model version in this gateway, and the replicas that may take it.

    Args:
        spec: The model.
        statistics: Where to count.
        now_us: Clock.
        call_later: `call_later(delay_us, callback)` arms a timer and returns its cancel function.
        schedule_flush: Asks for one `flush` at the end of this turn of the event loop.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        statistics: ModelStatistics,
        now_us: Clock,
        call_later: Callable[[int, Callable[[], None]], Callable[[], None]],
        schedule_flush: Callable[["ModelBatcher"], None],
    ) -> None:
        self.spec = spec
        self.statistics = statistics
        self.links: list[Link] = []
        self.requests = 0
        self.nbytes = 0
        self.is_flush_due = False
        self.success_at_us = 0
        self._now_us = now_us
        self._call_later = call_later
        self._schedule_flush = schedule_flush
        self._queues: dict[object, WorkQueue] = {}
        self._alone = not spec.is_batched
        self._next_id = 1
        self._deadline_us = 0  # no queued request expires before this; 0 if none is queued
        self._timer_us = 0  # when the armed timer fires; 0 if none is armed
        self._cancel_timer: Callable[[], None] | None = None
        self._drained_before = self._drained = self._window_us = 0
        self._end: Refusal | None = None  # what everything gets once the model is gone
        for step in STEPS:
            statistics.steps.setdefault(step, Histogram())
        self._steps = statistics.steps
        self._observe_decode = statistics.steps["decode"].observe
        self._observe_queue = statistics.steps["queue"].observe

    # -- in ------------------------------------------------------------------------------------------------------

    def submit(self, work: Work, now_us: int) -> None:
        """Queue a request, or refuse it at once if the queue is at its bounds or `end` was called."""
        if self._end is not None:
            self._refuse(work, self._end, now_us)
            return
        reason = decide_refusal(
            self.spec.queue,
            requests=self.requests,
            nbytes=self.nbytes,
            request_bytes=work.nbytes,
        )
        if reason is None:
            queue = self._queue_for(work.request.signature, alone=self._alone)
            if queue is not None:
                work.queued_us = now_us
                self._observe_decode(now_us - work.arrived_us)
                self._enter(queue, work)
                return
            reason = RefusalReason.QUEUE_FULL
        window_us = max(now_us - self._window_us, 1) + (DRAIN_WINDOW_US if self._drained_before else 0)
        retry_after_us = estimate_retry_after_us(
            requests=self.requests, drained=self._drained + self._drained_before, window_us=window_us
        )
        message = f"model {self.spec.name!r}: {self.requests} requests ({self.nbytes} bytes) are waiting; retry later"
        self._refuse(work, Refusal(503, message, reason, retry_after_us), now_us)

    def _queue_for(self, key: object, *, alone: bool) -> WorkQueue | None:
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) >= SIGNATURES_MAX:
                self._queues = {k: q for k, q in self._queues.items() if q.requests}
                if len(self._queues) >= SIGNATURES_MAX:
                    return None
            queue = self._queues[key] = WorkQueue(alone=alone)
        return queue

    def _enter(self, queue: WorkQueue, work: Work, *, first: bool = False) -> None:
        work.queue = queue
        work.state = QUEUED
        queue.push(work, first=first)
        self.requests += 1
        self.nbytes += work.nbytes
        if not self._deadline_us or work.deadline_us < self._deadline_us:
            self._deadline_us = work.deadline_us
        if not self.is_flush_due:
            self.is_flush_due = True
            self._schedule_flush(self)

    def abandon(self, work: Work, now_us: int, reason: RefusalReason | None = RefusalReason.DISCONNECTED) -> None:
        """The caller is gone: leave the queue if still there; if running, the result is thrown away.

        `reason` says what to count it as, if it was not the client who gave up.
        """
        if work.state is DONE:
            return
        was_queued = work.state is QUEUED
        work.state = DONE
        if was_queued:
            self._leave(work)
            work.queue.forget(work)
        self._count_failure(reason, now_us - work.arrived_us)

    def _leave(self, work: Work) -> None:
        work.queue.rows -= work.rows
        work.queue.requests -= 1
        self.requests -= 1
        self.nbytes -= work.nbytes

    # -- out -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Dispatch whatever the policy says must leave now, and arm the timer for the next decision."""
        self.is_flush_due = False
        now_us = self._now_us()
        if self._deadline_us and now_us >= self._deadline_us:
            self._expire(now_us)
        until_us = self._dispatch_due(now_us)
        if self.requests and self._deadline_us and (until_us is None or self._deadline_us < until_us):
            until_us = self._deadline_us
        if until_us is not None and (not self._timer_us or until_us < self._timer_us):
            if self._cancel_timer is not None:
                self._cancel_timer()
            self._timer_us = until_us
            self._cancel_timer = self._call_later(max(until_us - now_us, 0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_us = 0
        self._cancel_timer = None
        self.flush()

    def _dispatch_due(self, now_us: int) -> int | None:
        """Dispatch batch after batch, the longest-waiting queue first; return when to ask again, if time matters."""
        while True:
            idle = stageable = 0
            for link in self.links:
                held = len(link.in_flight)
                if not held:
                    idle += 1
                elif held < CREDITS_PER_REPLICA:
                    stageable += 1
            if not (idle or stageable):
                return None
            best: tuple[int, WorkQueue, CloseReason] | None = None
            until_us: int | None = None
            for queue in self._queues.values():
                if not queue.requests:
                    continue
                oldest_us = queue.oldest_us()
                view = QueueView(
                    rows=queue.rows,
                    is_full=queue.rows >= self.spec.batching.size_max,
                    is_alone=queue.alone,
                    oldest_us=oldest_us,
                    replicas_idle=idle,
                    replicas_stageable=stageable,
                )
                decision = decide_dispatch(self.spec.batching, view, now_us=now_us)
                if isinstance(decision, Dispatch):
                    if best is None or oldest_us < best[0]:
                        best = (oldest_us, queue, decision.reason)
                elif decision.until_us is not None and (until_us is None or decision.until_us < until_us):
                    until_us = decision.until_us
            if best is None:
                return until_us
            self._dispatch(best[1], best[2], now_us)

    def _dispatch(self, queue: WorkQueue, reason: CloseReason, now_us: int) -> None:
        works, rows = self._take(queue, now_us)
        if not works:
            return
        link = min(self.links, key=lambda candidate: len(candidate.in_flight))
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
            budgets_us=tuple([work.deadline_us - now_us for work in works]),
            parameters=first.parameters,
        )
        batch = Batch(self._next_id, works, rows, reason, now_us)
        self._next_id += 1
        self._count_dispatch(batch, now_us)
        flags = BATCH_FLAG_ALONE if queue.alone else 0
        link.send(batch, encode_frame(FrameKind.BATCH, batch.id, encode_meta(meta), payload, flags=flags))

    def _take(self, queue: WorkQueue, now_us: int) -> tuple[list[Work], int]:
        works: list[Work] = []
        rows = nbytes = 0
        rows_max = self.spec.batching.size_max
        if queue.alone or self.nbytes > PAYLOAD_BYTES_MAX:
            rows_max = 1  # the first request only, whatever its rows: together they might not fit into a frame
        observe = self._observe_queue
        for _, lane in queue.lanes:
            while lane and rows < rows_max:
                work = lane[0]
                if work.state is not QUEUED:
                    lane.popleft()
                    queue.stale -= 1
                    continue
                if works and rows + work.rows > rows_max:
                    break
                lane.popleft()
                if now_us >= work.deadline_us:
                    self._leave(work)
                    self._refuse_expired(work, now_us)
                    continue
                work.state = RUNNING
                work.sent_us = now_us
                observe(now_us - work.queued_us)
                works.append(work)
                rows += work.rows
                nbytes += work.nbytes
        queue.rows -= rows
        queue.requests -= len(works)
        self.requests -= len(works)
        self.nbytes -= nbytes
        return works, rows

    def _expire(self, now_us: int) -> None:
        """Refuse every queued request whose deadline has passed; find the next deadline."""
        self._deadline_us = 0
        expired: list[Work] = []
        for queue in self._queues.values():
            for _, lane in queue.lanes:
                for work in lane:
                    if work.state is not QUEUED:
                        continue
                    if work.deadline_us <= now_us:
                        expired.append(work)
                    elif not self._deadline_us or work.deadline_us < self._deadline_us:
                        self._deadline_us = work.deadline_us
        if self._deadline_us:
            self._deadline_us = max(self._deadline_us, now_us + EXPIRY_INTERVAL_US)
        for work in expired:
            # A refusal may make its caller abandon others of these.
            if work.state is QUEUED:
                work.state = DONE
                self._leave(work)
                work.queue.forget(work)
                self._refuse_expired(work, now_us)

    def _refuse_expired(self, work: Work, now_us: int) -> None:
        waited_ms = (now_us - work.arrived_us) / 1_000
        message = f"model {self.spec.name!r}: the deadline passed after {waited_ms:.1f} ms, before execution"
        self._refuse(work, Refusal(504, message, RefusalReason.EXPIRED), now_us)

    def end(self, status: int, message: str, reason: RefusalReason) -> None:
        """Refuse everything that waits or runs, and whatever comes later until `reopen`.

        The model is gone, or no replica of it works, or the gateway stops.
        """
        now_us = self._now_us()
        self._end = Refusal(status, message, reason, RETRY_AFTER_US)
        works = [work for queue in self._queues.values() for _, lane in queue.lanes for work in lane]
        works += [work for link in self.links for batch in link.in_flight.values() for work in batch.works]
        self._queues.clear()
        for work in works:
            # Entries may be stale, and a refusal may make its caller abandon others of these.
            if work.state is QUEUED:
                self._leave(work)
            if work.state is not DONE:
                self._refuse(work, self._end, now_us)

    def reopen(self) -> None:
        """Take requests again after `end`."""
        self._end = None

    # -- back ----------------------------------------------------------------------------------------------------

    def read_reply(self, batch: Batch, meta: ReplyMeta, payload: memoryview) -> list[OutputTensor]:
        """Return a reply's outputs, checked to be an answer to this batch by this model.

        Raises:
            FrameError: It is not. The replica cannot be trusted; give its link up.
        """
        failed = {failure.index for failure in meta.failures}
        if failed and max(failed) >= len(batch.works):
            raise FrameError(f"failures: expected indices below {len(batch.works)}, got {max(failed)}")
        rows = batch.rows
        if failed:
            rows = sum(work.rows for index, work in enumerate(batch.works) if index not in failed)
        outputs = output_tensors(meta.outputs, payload)
        check_outputs(self.spec, outputs, rows)
        return outputs

    def finish_batch(self, batch: Batch, meta: ReplyMeta, outputs: list[OutputTensor]) -> None:
        """Hand each request of an answered batch its rows or its failure. `outputs` come from `read_reply`."""
        now_us = self._now_us()
        self.success_at_us = now_us
        self._count_execution(batch, meta, now_us)
        timing = b'execute;dur=%.3f, batch;desc="%d rows, %b"' % (
            meta.execute_us / 1_000,
            meta.executed_rows,
            batch.reason.value.encode(),
        )
        result = BatchResult(outputs, timing)
        failures = {failure.index: failure for failure in meta.failures}
        row = success = success_us = 0
        for index, work in enumerate(batch.works):
            if failures and index in failures:
                if work.state is not DONE:
                    failure = failures[index]
                    self._fail(work, failure.status, failure.message, now_us)
                continue
            if work.state is not DONE:
                work.state = DONE
                try:
                    is_success = work.finish(result, row, now_us)
                except BaseException:
                    work.state = RUNNING  # the link breaks on this, and its loss leads to another answer
                    raise
                if is_success:
                    success += 1
                    success_us += now_us - work.arrived_us
                else:
                    self._count_failure(None, now_us - work.arrived_us)
            row += work.rows
        statistics = self.statistics
        statistics.success += success
        statistics.success_us += success_us
        reply_us = (self._now_us() - now_us) // len(batch.works)
        self._steps["reply"].observe(reply_us, len(batch.works))
        if self.requests and not self.is_flush_due:
            self.is_flush_due = True
            self._schedule_flush(self)

    def lose_link(self, link: Link, reason: str) -> None:
        """A replica's connection broke: what it was running may have killed it, the batches behind had not begun.

        What had begun is tried once more, each request alone so that a deadly one cannot take others with it; what
        had not begun is queued again as it was. Nothing is left without an answer.
        """
        if link in self.links:
            self.links.remove(link)
        now_us = self._now_us()
        batches = list(link.in_flight.values())
        link.in_flight.clear()
        begun = _count_begun(batches, rows_max=self.spec.batching.size_max)
        for position, batch in reversed(list(enumerate(batches))):
            began = position < begun
            for work in reversed(batch.works):
                if work.state is RUNNING:
                    self._retry(work, reason, now_us, began=began)

    def _retry(self, work: Work, reason: str, now_us: int, *, began: bool) -> None:
        work.attempts += began
        if now_us >= work.deadline_us:
            self._refuse_expired(work, now_us)
        elif self._end is not None:
            self._refuse(work, self._end, now_us)
        elif work.attempts > 1:
            message = f"model {self.spec.name!r}: the replica was lost twice while running this request ({reason})"
            self._refuse(work, Refusal(503, message, RefusalReason.REPLICA_LOST, DRAIN_WINDOW_US), now_us)
        else:
            self.statistics.retries += began
            # A key of its own, made past the bound on queues if need be: a retry is never refused for want of one.
            key = (work.request.signature, "retry") if work.attempts else work.request.signature
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = WorkQueue(alone=self._alone or work.attempts > 0)
            self._enter(queue, work, first=True)

    def _fail(self, work: Work, status: int, message: str, now_us: int) -> None:
        reason = None
        if status == 504:
            reason = RefusalReason.EXPIRED
        elif status < 500:
            reason = RefusalReason.INVALID
        self._refuse(work, Refusal(status, message, reason), now_us)

    def _refuse(self, work: Work, refusal: Refusal, now_us: int) -> None:
        work.state = DONE
        self._count_failure(refusal.reason, now_us - work.arrived_us)
        work.refuse(refusal, now_us)

    # -- counting ------------------------------------------------------------------------------------------------

    def count_invalid(self, elapsed_us: int) -> None:
        """A request was refused before it became a Work: its body was wrong."""
        self._count_failure(RefusalReason.INVALID, elapsed_us)

    def _count_failure(self, reason: RefusalReason | None, elapsed_us: int) -> None:
        statistics = self.statistics
        statistics.failure_us += elapsed_us
        label = "BACKEND" if reason is None else _TRITON_REASON[reason]
        statistics.failures[label] = statistics.failures.get(label, 0) + 1
        if reason is not None:
            statistics.refusals[reason.value] = statistics.refusals.get(reason.value, 0) + 1

    def _count_dispatch(self, batch: Batch, now_us: int) -> None:
        if now_us - self._window_us >= DRAIN_WINDOW_US:
            is_adjacent = now_us - self._window_us < 2 * DRAIN_WINDOW_US
            self._drained_before = self._drained if is_adjacent else 0
            self._drained = 0
            self._window_us = now_us
        self._drained += len(batch.works)
        closes = self.statistics.closes
        closes[batch.reason.value] = closes.get(batch.reason.value, 0) + 1

    def _count_execution(self, batch: Batch, meta: ReplyMeta, now_us: int) -> None:
        if not meta.executed_rows:
            return  # every request of it came back unexecuted, too late
        statistics = self.statistics
        count = len(batch.works)
        statistics.inference_count += batch.rows
        statistics.execution_count += 1
        statistics.batch_rows.observe(batch.rows)
        statistics.queue_us += sum([work.sent_us - work.queued_us for work in batch.works]) + meta.wait_us * count
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


def _count_begun(batches: list[Batch], *, rows_max: int) -> int:
    """Count the batches, oldest first, that a lost replica may have been running: replicas merge what fits together."""
    if not batches:
        return 0
    first, *others = batches
    count, rows = 1, first.rows
    for batch in others:
        rows += batch.rows
        is_alone = CloseReason.ALONE in (first.reason, batch.reason)
        if is_alone or rows > rows_max or batch.works[0].request.signature != first.works[0].request.signature:
            break
        count += 1
    return count


_TRITON_REASON = {
    RefusalReason.QUEUE_FULL: "REJECTED",
    RefusalReason.QUEUE_BYTES: "REJECTED",
    RefusalReason.EXPIRED: "REJECTED",
    RefusalReason.DRAINING: "REJECTED",
    RefusalReason.UNAVAILABLE: "REJECTED",
    RefusalReason.DISCONNECTED: "CANCELED",
    RefusalReason.REPLICA_LOST: "BACKEND",
    RefusalReason.INVALID: "OTHER",
}
