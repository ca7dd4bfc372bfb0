"""Laws of queues and dispatch, by example. The same laws over any history: tests/property/test_gateway_batcher.py."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from penstock.core.models import Batching, QueueBounds
from penstock.gateway.batcher import EXPIRY_INTERVAL_US, SIGNATURES_MAX
from penstock.gateway.work import LANES_KEPT, STALE_MAX, BatchResult, WorkState
from penstock.policy.admission import RETRY_AFTER_US_MAX, RefusalReason
from penstock.policy.batching import CloseReason
from penstock.wire.frame import (
    BATCH_FLAG_ALONE,
    Failure,
    FrameDecoder,
    FrameError,
    FrameTensor,
    ReplyMeta,
    decode_reply_meta,
)
from tests.unit.gateway.fakes import SPEC, Bench, FakeLink, FakeRequest, encode_reply

ROOMY = replace(SPEC, queue=QueueBounds())
WAIT_US = SPEC.batching.wait_us_max
SIZE_MAX = SPEC.batching.size_max


def reply(bench: Bench, link: FakeLink, *, failures: tuple[Failure, ...] = (), executed: int = 1) -> None:
    """Answer a link's oldest batch as `ReplicaLink` does."""
    batch = next(iter(link.in_flight.values()))
    failed = {failure.index for failure in failures}
    rows = sum(work.rows for index, work in enumerate(batch.works) if index not in failed)
    values = tuple(float(row) for row in range(rows))
    (frame,) = FrameDecoder().feed(encode_reply(batch.id, rows, failures=failures, values=values, executed=executed))
    meta = decode_reply_meta(frame)
    bench.batcher.finish_batch(batch, meta, bench.batcher.read_reply(batch, meta, frame.payload))
    del link.in_flight[batch.id]
    bench.turn()


def occupy(bench: Bench, *, batches: int = 1) -> None:
    """Give every replica so many batches to hold."""
    for _ in range(batches * len(bench.links)):
        bench.submit(rows=SIZE_MAX)
        bench.turn()


def sent(link: FakeLink) -> list[list[int]]:
    """Return the names of the requests in each batch that a link was sent."""
    return [[work.name for work in batch.works if isinstance(work, FakeRequest)] for batch in link.sent]


# -- dispatch --------------------------------------------------------------------------------------------------------


def test_an_idle_replica_gets_work_in_the_same_turn() -> None:
    """With a replica idle a request leaves at the end of the turn it came in, with all others of that turn."""
    bench = Bench()
    bench.submit()
    bench.submit()
    bench.turn()
    assert sent(bench.links[0]) == [[0, 1]]
    assert bench.links[0].sent[0].reason is CloseReason.IDLE
    assert not bench.batcher.requests


def test_one_flush_is_asked_for_a_turn() -> None:
    """However many requests come in one turn, they cost one wake-up."""
    bench = Bench()
    for _ in range(5):
        bench.submit()
    assert len(bench.due) == 1


def test_a_busy_replica_gets_one_batch_staged_and_no_more() -> None:
    """A batch is staged behind the running one when full; after that requests wait for a reply."""
    bench = Bench()
    occupy(bench, batches=4)
    link = bench.links[0]
    assert [batch.reason for batch in link.sent] == [CloseReason.FULL, CloseReason.FULL]
    assert bench.batcher.requests == 2
    reply(bench, link)
    assert len(link.in_flight) == 2
    assert bench.batcher.requests == 1


def test_a_batch_is_staged_when_its_oldest_request_has_waited() -> None:
    """A batch that is not full is staged when its oldest request has waited `wait_us_max`, not before."""
    bench = Bench()
    occupy(bench)
    bench.submit()
    bench.advance_us(WAIT_US - 1)
    bench.submit()
    bench.advance_us(0)
    assert len(bench.links[0].sent) == 1
    bench.advance_us(1)
    assert sent(bench.links[0])[1] == [1, 2]
    assert bench.links[0].sent[1].reason is CloseReason.TIMEOUT


def test_work_goes_to_the_least_loaded_replica() -> None:
    """Of several replicas the one that holds least gets the next batch."""
    bench = Bench(links=3)
    occupy(bench)
    assert [len(link.in_flight) for link in bench.links] == [1, 1, 1]


def test_batches_are_cut_at_size_max() -> None:
    """Requests that do not fit wait for the next batch; none is split."""
    bench = Bench(links=3)
    for rows in (3, 2, 2, 1):
        bench.submit(rows=rows)
    bench.turn()
    assert [batch for link in bench.links for batch in sent(link)] == [[0], [1, 2], [3]]


def test_requests_of_other_signatures_travel_apart() -> None:
    """Only requests of one signature share a batch; the longest-waiting signature goes first."""
    bench = Bench(links=1)
    for signature in "abab":
        bench.submit(signature=signature)
        bench.clock.advance_us(1)
    bench.turn()
    reply(bench, bench.links[0])
    assert sent(bench.links[0]) == [[0, 2], [1, 3]]


def test_priorities_go_first_come_first_served() -> None:
    """Priority 1 goes before those that name none, which rank as 2; within a priority order of arrival holds."""
    bench = Bench(links=0)
    for priority in (3, 0, 2, 1, 3, 1):
        bench.submit(priority=priority)
    bench.batcher.links.append(FakeLink())
    link = bench.batcher.links[0]
    assert isinstance(link, FakeLink)
    bench.batcher.flush()
    reply(bench, link)
    assert sent(link) == [[3, 5, 1, 2], [0, 4]]


def test_a_model_without_batching_runs_each_request_alone() -> None:
    """Requests of a model without a batch dimension never share a batch."""
    tensors = (replace(SPEC.inputs[0], shape=(2,)),)
    bench = Bench(replace(SPEC, inputs=tensors), links=2)
    bench.submit()
    bench.submit()
    bench.turn()
    assert [sent(link) for link in bench.links] == [[[0]], [[1]]]
    assert bench.links[0].sent[0].reason is CloseReason.ALONE


# -- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "nbytes", "reason"), [(16, 8, RefusalReason.QUEUE_FULL), (10, 100, RefusalReason.QUEUE_BYTES)]
)
def test_a_full_queue_refuses_at_once(count: int, nbytes: int, reason: RefusalReason) -> None:
    """Past its bound in requests or bytes a queue refuses with 503 and when to come back; what waits is untouched."""
    bench = Bench(links=0)
    for _ in range(count):
        bench.submit(nbytes=nbytes)
    before = (bench.batcher.requests, bench.batcher.nbytes)
    refusal = bench.submit(nbytes=nbytes).refusal
    assert (refusal.status, refusal.reason, refusal.retry_after_us) == (503, reason, RETRY_AFTER_US_MAX)
    assert (bench.batcher.requests, bench.batcher.nbytes) == before == (count, count * nbytes)
    assert bench.statistics.refusals == {reason.value: 1}
    assert bench.statistics.failures == {"REJECTED": 1}


def test_retry_after_follows_the_drain_rate() -> None:
    """A queue that drains fast sends callers away for less time than one that stands."""
    bench = Bench()
    for _ in range(40):
        bench.submit(rows=SIZE_MAX)
        bench.turn()
        while bench.links[0].in_flight:
            reply(bench, bench.links[0])
        bench.advance_us(10_000)
    occupy(bench, batches=18)
    refusal = bench.submit().refusal
    assert refusal.reason is RefusalReason.QUEUE_FULL
    assert 100_000 <= refusal.retry_after_us <= 1_000_000


def test_signatures_are_bounded() -> None:
    """So many different signatures may wait; one more is refused, and served again when others are gone."""
    bench = Bench(ROOMY, links=0)
    works = [bench.submit(signature=k) for k in range(SIGNATURES_MAX)]
    assert bench.submit(signature="new").refusal.reason is RefusalReason.QUEUE_FULL
    assert bench.submit(signature=0).state is WorkState.QUEUED
    bench.batcher.abandon(works[1], bench.clock())
    assert bench.submit(signature="new").state is WorkState.QUEUED
    assert len(bench.batcher._queues) <= SIGNATURES_MAX


def test_abandoned_requests_take_no_room() -> None:
    """Submitting and going away again and again leaves no more than a few entries behind, and none of their bytes."""
    bench = Bench(ROOMY, links=0)
    keeper = bench.submit()
    for k in range(1_000):
        bench.batcher.abandon(bench.submit(priority=k % 200 + 3, nbytes=100), bench.clock())
    bench.submit(priority=250)
    (queue,) = bench.batcher._queues.values()
    assert sum(len(lane) for _, lane in queue.lanes) <= 2 + 2 * STALE_MAX
    assert len(queue.lanes) <= LANES_KEPT + STALE_MAX + 2
    assert (bench.batcher.requests, bench.batcher.nbytes) == (2, 16)
    assert not any(work.request.payload for work in bench.works[1:-1])
    assert keeper.request.payload


# -- deadlines -------------------------------------------------------------------------------------------------------


def test_requests_expire_where_they_wait() -> None:
    """A request whose deadline passes while it waits gets 504 at its deadline, is counted, and is never executed."""
    bench = Bench(links=0)
    work = bench.submit(timeout_us=5_000)
    later = bench.submit(timeout_us=50_000)
    bench.advance_us(4_999)
    assert work.state is WorkState.QUEUED
    bench.advance_us(1)
    assert (work.refusal.status, work.refusal.reason) == (504, RefusalReason.EXPIRED)
    assert later.state is WorkState.QUEUED
    link = FakeLink()
    bench.batcher.links.append(link)
    bench.batcher.flush()
    assert sent(link) == [[1]]


def test_every_deadline_is_met_though_they_come_thick() -> None:
    """Deadlines that pass one after another are each told within the interval of looking for them."""
    bench = Bench(links=0)
    works = [bench.submit(timeout_us=10_000 + 100 * k) for k in range(16)]
    for _ in range(130):
        bench.advance_us(100)
        for work in works:
            late_us = bench.clock() - work.deadline_us
            assert bool(work.endings) or late_us < EXPIRY_INTERVAL_US
            assert not work.endings or late_us >= 0
    assert not bench.batcher.requests


def test_what_has_expired_is_not_taken_along() -> None:
    """A request that has expired but was not yet told so is refused when its batch is put together."""
    bench = Bench(links=0)
    first = bench.submit(timeout_us=1_000)
    bench.advance_us(1_000)  # deadlines have just been looked for
    assert first.endings
    work = bench.submit(timeout_us=1_500)
    other = bench.submit(timeout_us=1_000_000)
    bench.batcher._deadline_us = bench.clock() + EXPIRY_INTERVAL_US
    bench.clock.advance_us(1_500)
    link = FakeLink()
    bench.batcher.links.append(link)
    bench.batcher.flush()
    assert work.refusal.reason is RefusalReason.EXPIRED
    assert sent(link) == [[other.name]]


def test_budgets_count_from_sending() -> None:
    """A replica is told how much time is left when the batch is sent, not when the request came."""
    bench = Bench(links=0)
    bench.submit(timeout_us=5_000)
    bench.advance_us(2_000)
    link = FakeLink()
    bench.batcher.links.append(link)
    bench.batcher.flush()
    assert b"\xcd\x0b\xb8" in link.frames[0]  # msgpack of 3,000


def family(bench: Bench, count: int, *, timeout_us: int = 5_000) -> list[FakeRequest]:
    """Submit requests that belong together: when one ends the others are given up, as embeddings chunks are."""
    works = [bench.submit(timeout_us=timeout_us) for _ in range(count)]

    def give_up(ended: FakeRequest) -> Callable[[], None]:
        def give_up_others() -> None:
            for work in works:
                if work is not ended and not work.endings:
                    bench.batcher.abandon(work, bench.clock(), RefusalReason.EXPIRED)

        return give_up_others

    for work in works:
        work.on_end = give_up(work)
    return works


@pytest.mark.parametrize("how", ["expire", "end", "lose"])
def test_requests_that_belong_together_end_once_each(how: str) -> None:
    """When the end of one request makes its caller give up others that would end just then, each leaves once."""
    bench = Bench(links=0)
    works = family(bench, 4)
    stranger = bench.submit(timeout_us=50_000)
    if how == "expire":
        bench.advance_us(5_000)
    elif how == "end":
        bench.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
    else:
        link = FakeLink()
        bench.batcher.links.append(link)
        bench.batcher.flush()
        bench.clock.advance_us(5_000)
        bench.batcher.lose_link(link, "killed")
    assert [len(work.endings) for work in works] in ([1, 0, 0, 0], [0, 0, 0, 1])
    assert all(work.state is WorkState.DONE for work in works)
    left = stranger.state is WorkState.QUEUED
    assert (bench.batcher.requests, bench.batcher.nbytes) == (int(left), 8 * left)
    assert bench.statistics.failures.get("REJECTED", 0) == 5 - left


# -- leaving ---------------------------------------------------------------------------------------------------------


def test_an_abandoned_request_is_not_executed() -> None:
    """A caller that goes while its request waits leaves the queue, is counted, and nothing is executed for it."""
    bench = Bench(links=0)
    gone, stays = bench.submit(), bench.submit()
    bench.batcher.abandon(gone, bench.clock())
    bench.batcher.abandon(gone, bench.clock())
    link = FakeLink()
    bench.batcher.links.append(link)
    bench.batcher.flush()
    assert sent(link) == [[stays.name]]
    assert not gone.endings
    assert bench.statistics.refusals == {"disconnected": 1}
    assert bench.statistics.failures == {"CANCELED": 1}


def test_the_result_of_an_abandoned_request_is_thrown_away() -> None:
    """If a caller goes while its request runs, its rows go nowhere and its neighbours get theirs."""
    bench = Bench()
    gone, stays = bench.submit(rows=2), bench.submit(rows=1)
    bench.turn()
    bench.batcher.abandon(gone, bench.clock())
    reply(bench, bench.links[0])
    assert not gone.endings
    assert len(stays.endings) == 1
    assert bench.statistics.success == 1


# -- replies ---------------------------------------------------------------------------------------------------------


class RowRequest(FakeRequest):
    """A caller that keeps the row it was given."""

    __slots__ = ("row",)

    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        self.row = row
        return super().finish(result, row, now_us)


def test_each_request_gets_its_own_rows() -> None:
    """Rows are handed out in order; a failed request has none and an abandoned one keeps its place."""
    bench = Bench(replace(SPEC, batching=Batching(size_max=16)))
    works = []
    for rows in (1, 2, 3, 1):
        template = bench.submit(rows=rows)
        bench.batcher.abandon(template, bench.clock())
        template.request.payload = (bytes(rows * 8),)
        work = RowRequest(template.name, template.request, bench.clock(), bench.clock() + 1_000_000)
        bench.batcher.submit(work, bench.clock())
        works.append(work)
    bench.turn()
    bench.batcher.abandon(works[2], bench.clock())
    reply(bench, bench.links[0], failures=(Failure(1, 400, "no"),))
    assert works[0].row == 0
    assert works[1].refusal.status == 400
    assert not works[2].endings
    assert works[3].row == 4


@pytest.mark.parametrize(
    ("status", "reason", "label"),
    [
        (400, RefusalReason.INVALID, "OTHER"),
        (500, None, "BACKEND"),
        (504, RefusalReason.EXPIRED, "REJECTED"),
    ],
)
def test_a_replica_may_fail_single_requests(status: int, reason: RefusalReason | None, label: str) -> None:
    """A request that the model failed gets the replica's status and words, and is counted by whose fault it was."""
    bench = Bench()
    work = bench.submit()
    bench.turn()
    reply(bench, bench.links[0], failures=(Failure(0, status, "words"),))
    assert (work.refusal.status, work.refusal.message, work.refusal.reason) == (status, "words", reason)
    assert bench.statistics.failures == {label: 1}


@pytest.mark.parametrize(
    "meta",
    [
        ReplyMeta((), (), 0, 0, 0, 0, 2),
        ReplyMeta((FrameTensor("z", "FP32", (1,), 8),), (), 0, 0, 0, 0, 2),
        ReplyMeta((FrameTensor("y", "INT32", (1,), 8),), (), 0, 0, 0, 0, 2),
        ReplyMeta((FrameTensor("y", "FP32", (2,), 8),), (), 0, 0, 0, 0, 2),
        ReplyMeta((FrameTensor("y", "FP32", (1,), 4),), (), 0, 0, 0, 0, 2),
        ReplyMeta((FrameTensor("y", "FP32", (1,), 8),), (Failure(1, 400, ""),), 0, 0, 0, 0, 2),
        ReplyMeta((FrameTensor("y", "FP32", (1,), 8),), (Failure(2, 400, ""),), 0, 0, 0, 0, 2),
    ],
    ids=["none", "name", "datatype", "shape", "rows", "rows of a failed request", "failure of nobody"],
)
def test_a_reply_that_does_not_fit_is_not_believed(meta: ReplyMeta) -> None:
    """Outputs that are not the model's, or not as many rows as the requests have, are no reply."""
    bench = Bench()
    bench.submit()
    bench.submit()
    bench.turn()
    (batch,) = bench.links[0].in_flight.values()
    payload = memoryview(bytes(sum(tensor.nbytes for tensor in meta.outputs)))
    with pytest.raises(FrameError):
        bench.batcher.read_reply(batch, meta, payload)
    assert not any(work.endings for work in bench.works)


def test_a_bug_in_one_caller_loses_nobody() -> None:
    """If handing out a result fails, the link breaks, and every request of the batch still gets an ending."""
    bench = Bench()
    works = [bench.submit() for _ in range(3)]
    bench.turn()

    def fail_once() -> None:
        works[1].on_end = None
        works[1].endings.clear()
        raise RuntimeError("bug")

    works[1].on_end = fail_once
    with pytest.raises(RuntimeError):
        reply(bench, bench.links[0])
    bench.batcher.lose_link(bench.links[0], "bug")
    bench.batcher.links.append(link := FakeLink())
    bench.batcher.flush()
    while link.in_flight:
        reply(bench, link)
    assert [len(work.endings) for work in works] == [1, 1, 1]


# -- lost replicas ---------------------------------------------------------------------------------------------------


def test_what_had_begun_is_tried_once_more_alone() -> None:
    """Requests of a batch that its replica died under each travel alone, once; a second death is the end of them."""
    bench = Bench()
    works = [bench.submit() for _ in range(2)]
    bench.turn()
    bench.batcher.lose_link(bench.links[0], "killed")
    assert all(work.state is WorkState.QUEUED for work in works)
    bench.batcher.links.append(link := FakeLink())
    bench.batcher.flush()
    assert sent(link) == [[0], [1]]
    assert all(batch.reason is CloseReason.ALONE for batch in link.sent)
    assert all(next(iter(FrameDecoder().feed(frame))).flags == BATCH_FLAG_ALONE for frame in link.frames)
    bench.batcher.lose_link(link, "killed")
    assert (works[0].refusal.status, works[0].refusal.reason) == (503, RefusalReason.REPLICA_LOST)
    assert works[0].refusal.retry_after_us > 0
    bench.batcher.links.append(link := FakeLink())
    bench.batcher.flush()
    assert sent(link) == [[1]], "staged behind the deadly one, it had not begun"
    reply(bench, link)
    assert isinstance(works[1].endings[0], BatchResult)
    assert bench.statistics.retries == 2


def test_what_had_not_begun_is_queued_again_as_it_was() -> None:
    """A batch staged behind the running one goes back to the head of its queue, in order, with its retry unused."""
    bench = Bench()
    occupy(bench, batches=3)
    staged, waiting = bench.works[1:]
    late = bench.submit()
    bench.batcher.lose_link(bench.links[0], "killed")
    assert (staged.attempts, waiting.attempts) == (0, 0)
    bench.batcher.links += [FakeLink(), FakeLink()]
    bench.batcher.flush()
    bench.advance_us(WAIT_US)
    batches = [batch for link in bench.batcher.links if isinstance(link, FakeLink) for batch in sent(link)]
    assert sorted(batches) == [[0], [1], [2], [late.name]]


def test_no_retry_past_the_deadline() -> None:
    """A request whose deadline has passed when its replica dies is not tried again."""
    bench = Bench()
    work = bench.submit(timeout_us=1_000)
    bench.turn()
    bench.clock.advance_us(1_000)
    bench.batcher.lose_link(bench.links[0], "killed")
    assert work.refusal.reason is RefusalReason.EXPIRED
    assert not bench.statistics.retries


def test_a_retry_is_never_refused_for_want_of_room() -> None:
    """What a dead replica was running is queued again though the queue is full."""
    bench = Bench(ROOMY)
    work = bench.submit()
    bench.turn()
    for k in range(SIGNATURES_MAX):
        bench.submit(signature=k)
    assert bench.submit(signature="new").endings
    bench.batcher.lose_link(bench.links[0], "killed")
    assert work.state is WorkState.QUEUED


# -- the end ---------------------------------------------------------------------------------------------------------


def test_the_end_is_for_everyone() -> None:
    """When a model is gone, what waits, what runs and what comes later is refused with the same words."""
    bench = Bench()
    occupy(bench, batches=3)
    bench.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
    bench.submit()
    assert [(work.refusal.status, work.refusal.message) for work in bench.works] == [(503, "gone")] * 4
    assert (bench.batcher.requests, bench.batcher.nbytes) == (0, 0)
    bench.batcher.lose_link(bench.links[0], "closed")
    bench.advance_us(10_000_000)
    assert all(len(work.endings) == 1 for work in bench.works)


def test_after_reopening_requests_are_served() -> None:
    """A model that works again takes requests again."""
    bench = Bench()
    bench.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
    bench.batcher.reopen()
    bench.submit()
    bench.turn()
    assert sent(bench.links[0]) == [[0]]


# -- counting --------------------------------------------------------------------------------------------------------


def test_executions_are_counted() -> None:
    """Requests, rows, batches and the time of each step are counted once per execution."""
    bench = Bench()
    bench.submit(rows=3)
    bench.submit(rows=1)
    bench.turn()
    bench.clock.advance_us(500)
    reply(bench, bench.links[0])
    statistics = bench.statistics
    assert (statistics.success, statistics.inference_count, statistics.execution_count) == (2, 4, 1)
    assert (statistics.success_us, statistics.queue_us) == (1_000, 2)
    assert (statistics.input_us, statistics.execute_us, statistics.output_us) == (4, 6, 8)
    assert statistics.batches[4].count == 1
    assert statistics.closes == {"full": 1}
    assert {step: histogram.count for step, histogram in statistics.steps.items()} == dict.fromkeys(
        ("decode", "queue", "dispatch", "execute", "reply"), 2
    )
    assert bench.batcher.success_at_us == bench.clock()


def test_what_was_not_executed_is_not_counted_as_executed() -> None:
    """A batch that came back unexecuted, too late, is no execution."""
    bench = Bench()
    bench.submit()
    bench.turn()
    reply(bench, bench.links[0], failures=(Failure(0, 504, "late"),), executed=0)
    assert (bench.statistics.execution_count, bench.statistics.inference_count) == (0, 0)
    assert bench.statistics.refusals == {"expired": 1}
