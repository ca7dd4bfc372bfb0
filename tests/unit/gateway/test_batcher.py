"""Laws of queues and dispatch, by example. The same laws over any history: tests/property/test_gateway_batcher.py."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.core.statistics import TenantStatistics
from penstock.gateway.batcher import OTHER_TENANTS, TENANTS_MAX
from penstock.gateway.work import BatchResult
from penstock.policy.admission import RETRY_AFTER_US_MAX, RETRY_AFTER_US_MIN, RefusalReason
from penstock.policy.batching import CloseReason
from penstock.policy.queueing import BATCH, DONE, QUEUED, RUNNING
from penstock.policy.scheduling import EXPIRY_INTERVAL_US, LEAD_US, SIGNATURES_MAX
from penstock.wire.frame import (
    BATCH_FLAG_ALONE,
    Failure,
    FrameDecoder,
    FrameError,
    FrameTensor,
    ReplyMeta,
    decode_batch_meta,
    decode_reply_meta,
)
from tests.unit.gateway.fakes import SPEC, Bench, FakeLink, FakeRequest, encode_reply

ROOMY = replace(SPEC, queue=QueueBounds())
WAIT_US = SPEC.batching.wait_us_max
SIZE_MAX = SPEC.batching.size_max
# A batch of 4 takes 10 ms on a device of this profile, one of 1 takes 8.5 ms.
PROFILE = CostProfile.from_line(beta_us=8_000, alpha_us=500, size_max=SIZE_MAX)
FULL_US = PROFILE.time_us(SIZE_MAX)
PREDICTED = replace(SPEC, batching=Batching(size_max=SIZE_MAX), slo_us=4 * FULL_US)


def reply(
    bench: Bench,
    link: FakeLink,
    *,
    failures: tuple[Failure, ...] = (),
    executed: int | None = None,
    execute_us: int = 3,
) -> None:
    """Answer a link's oldest batch as `ReplicaLink` does."""
    batch = next(iter(link.in_flight.values()))
    failed = {failure.index for failure in failures}
    rows = sum(entry.rows for index, entry in enumerate(batch.entries) if index not in failed)
    values = tuple(float(row) for row in range(rows))
    data = encode_reply(batch.id, rows, failures=failures, values=values, executed=executed, execute_us=execute_us)
    (frame,) = FrameDecoder().feed(data)
    meta = decode_reply_meta(frame)
    bench.batcher.finish_batch(batch, meta, bench.batcher.read_reply(batch, meta, frame.payload))
    del link.in_flight[batch.id]
    bench.turn()


def occupy(bench: Bench, *, batches: int = 1, timeout_us: int = 1_000_000) -> None:
    """Give every replica so many batches to hold."""
    for _ in range(batches * len(bench.links)):
        bench.submit(rows=SIZE_MAX, timeout_us=timeout_us)
        bench.turn()


def sent(link: FakeLink) -> list[list[int]]:
    """Return the names of the requests in each batch that a link was sent."""
    return [[work.name for work in batch.entries if isinstance(work, FakeRequest)] for batch in link.sent]


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


def test_a_batch_is_staged_only_shortly_before_the_first_is_predicted_to_be_done() -> None:
    """A second batch leaves `LEAD_US` before the replica will fall idle, so until then it could go elsewhere."""
    bench = Bench(profile=PROFILE)
    occupy(bench, batches=3)
    link = bench.links[0]
    bench.advance_us(FULL_US - LEAD_US - 1)
    assert sent(link) == [[0]]
    bench.advance_us(1)
    assert sent(link) == [[0], [1]]
    assert [batch.is_staged for batch in link.sent] == [False, True]
    bench.advance_us(10 * FULL_US)
    assert sent(link) == [[0], [1]], "never a third"


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


def test_the_earliest_deadline_goes_first() -> None:
    """What does not fit into the next batch is what has the most time left, not what came last."""
    bench = Bench(links=0)
    for timeout_ms in (60, 20, 50, 40, 30, 10):
        bench.submit(timeout_us=timeout_ms * 1_000)
    link = bench.join()
    reply(bench, link)
    assert sent(link) == [[5, 1, 4, 3], [2, 0]]


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
    before = (bench.batcher.requests, bench.batcher.scheduler.nbytes)
    refusal = bench.submit(nbytes=nbytes).refusal
    assert (refusal.status, refusal.reason, refusal.retry_after_us) == (503, reason, RETRY_AFTER_US_MAX)
    assert (bench.batcher.requests, bench.batcher.scheduler.nbytes) == before == (count, count * nbytes)
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
    assert bench.submit(signature=0).state is QUEUED
    bench.batcher.abandon(works[1], bench.clock())
    assert bench.submit(signature="new").state is QUEUED
    assert len(bench.batcher.scheduler._queues) <= SIGNATURES_MAX


def test_abandoned_requests_take_no_room() -> None:
    """Submitting and going away again and again leaves neither entries nor bytes behind, and no queue of its own."""
    bench = Bench(ROOMY, links=0)
    keeper = bench.submit()
    for k in range(1_000):
        bench.batcher.abandon(bench.submit(tenant=f"t{k % 7}", nbytes=100), bench.clock())
    bench.submit()
    assert (bench.batcher.requests, bench.batcher.scheduler.nbytes) == (2, 16)
    assert (bench.batcher.pending, bench.batcher.scheduler.rows) == (2, 2)
    assert not any(work.request.payload for work in bench.works[1:-1])
    assert keeper.request.payload


# -- deadlines -------------------------------------------------------------------------------------------------------


def test_requests_expire_where_they_wait() -> None:
    """A request whose deadline passes while it waits gets 504 at its deadline, is counted, and is never executed."""
    bench = Bench(links=0)
    work = bench.submit(timeout_us=5_000)
    later = bench.submit(timeout_us=50_000)
    bench.advance_us(4_999)
    assert work.state is QUEUED
    bench.advance_us(1)
    assert (work.refusal.status, work.refusal.reason) == (504, RefusalReason.EXPIRED)
    assert later.state is QUEUED
    link = bench.join()
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
    first, work, other = (bench.submit(timeout_us=us) for us in (1_000, 1_500, 1_000_000))
    bench.advance_us(1_000)
    assert first.endings
    bench.clock.advance_us(EXPIRY_INTERVAL_US // 2)
    assert work.state is QUEUED, "deadlines have just been looked for"
    link = bench.join()
    assert work.refusal.reason is RefusalReason.EXPIRED
    assert sent(link) == [[other.name]]


def test_budgets_count_from_sending() -> None:
    """A replica is told how much time is left when the batch is sent, not when the request came."""
    bench = Bench(links=0)
    bench.submit(timeout_us=5_000)
    bench.advance_us(2_000)
    link = bench.join()
    (frame,) = FrameDecoder().feed(link.frames[0])
    assert decode_batch_meta(frame).budgets_us == (3_000,)


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
        link = bench.join()
        bench.clock.advance_us(5_000)
        bench.lose(link)
    assert [len(work.endings) for work in works] == [1, 1, 1, 1]
    assert all(work.state is DONE for work in works)
    left = stranger.state is QUEUED
    assert (bench.batcher.requests, bench.batcher.scheduler.nbytes) == (int(left), 8 * left)
    assert bench.statistics.failures.get("REJECTED", 0) == 5 - left


# -- leaving ---------------------------------------------------------------------------------------------------------


def test_an_abandoned_request_is_not_executed() -> None:
    """A caller that goes while its request waits leaves the queue, is counted, and nothing is executed for it."""
    bench = Bench(links=0)
    gone, stays = bench.submit(), bench.submit()
    bench.batcher.abandon(gone, bench.clock())
    bench.batcher.abandon(gone, bench.clock())
    link = bench.join()
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
        ReplyMeta((FrameTensor("y", "FP32", (1,), 8),), (), 0, 0, 0, 0, 1),
    ],
    ids=["none", "name", "datatype", "shape", "rows", "rows of a failed request", "failure of nobody", "unexecuted"],
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


def test_a_bug_in_one_caller_costs_the_others_nothing() -> None:
    """If taking a result raises, that request gets 500 and the bug is reported; its neighbours have their rows."""
    bench = Bench()
    works = [bench.submit() for _ in range(3)]
    bench.turn()

    def fail() -> None:
        works[1].on_end = None
        works[1].endings.clear()
        raise RuntimeError("bug")

    works[1].on_end = fail
    reply(bench, bench.links[0])
    assert isinstance(works[0].endings[0], BatchResult)
    assert (works[1].refusal.status, works[1].refusal.reason) == (500, None)
    assert isinstance(works[2].endings[0], BatchResult)
    assert [str(bug) for bug in bench.bugs] == ["bug"]
    assert (bench.statistics.success, bench.statistics.failures) == (2, {"BACKEND": 1})
    bench.submit()
    bench.turn()
    assert sent(bench.links[0])[1] == [3], "the replica is as good as before"


@pytest.mark.parametrize("how", ["expire", "drop", "end", "lose", "reply"])
def test_a_bug_in_one_refusal_costs_the_others_nothing(how: str) -> None:
    """If telling one caller of its refusal raises, the others are told all the same, and work goes on."""
    bench = Bench(PREDICTED if how == "drop" else SPEC, profile=PROFILE if how == "drop" else None, links=0)

    def fail() -> None:
        raise RuntimeError("bug")

    works = [bench.submit(timeout_us=5_000) for _ in range(3)]
    works[0].on_end = fail
    stranger = bench.submit(timeout_us=50_000, signature="b")
    if how == "expire":
        bench.advance_us(5_000)
    elif how == "end":
        bench.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
        bench.batcher.reopen()
        stranger = bench.submit(timeout_us=50_000)
    elif how == "lose":
        link = bench.join()
        bench.clock.advance_us(5_000)
        bench.lose(link)
    elif how == "reply":
        reply(bench, bench.join(), failures=tuple(Failure(k, 400, "no") for k in range(3)))
    if how != "reply":
        bench.join()
        bench.turn()
    assert [len(work.endings) for work in works] == [1, 1, 1]
    assert [str(bug) for bug in bench.bugs] == ["bug"]
    assert stranger.state is RUNNING


# -- overload --------------------------------------------------------------------------------------------------------


def test_what_could_not_be_done_in_time_is_refused_on_arrival() -> None:
    """A request whose predicted end is past its deadline gets 503 at once, with how long it would have taken."""
    bench = Bench(PREDICTED, profile=PROFILE)
    occupy(bench)
    before = bench.batcher.requests
    work = bench.submit(rows=SIZE_MAX, timeout_us=2 * FULL_US - 1_000)
    assert (work.refusal.status, work.refusal.reason) == (503, RefusalReason.PREDICTED_LATE)
    assert RETRY_AFTER_US_MIN <= work.refusal.retry_after_us <= RETRY_AFTER_US_MAX
    assert "within 19.0 ms of its arrival, predicted 20.0 ms" in work.refusal.message
    assert bench.batcher.requests == before
    assert not bench.due, "answered in the turn it came in, without waking anybody"
    assert bench.submit(rows=SIZE_MAX, timeout_us=2 * FULL_US + 1_000).state is QUEUED
    assert bench.statistics.refusals == {"predicted_late": 1}
    assert bench.statistics.failures == {"REJECTED": 1}


def test_refused_callers_are_not_all_told_to_come_back_at_once() -> None:
    """Two that are refused for the same reason at the same time come back at different times, by chance."""
    bench = Bench(replace(PREDICTED, queue=QueueBounds()), profile=PROFILE)
    occupy(bench)
    bench.chances = [0.0, 0.5]
    refused = [bench.submit(rows=100 * SIZE_MAX, timeout_us=FULL_US) for _ in range(2)]
    first, second = (work.refusal.retry_after_us for work in refused)
    assert first * 3 == second * 2


def test_what_can_no_longer_be_done_in_time_is_dropped_unexecuted() -> None:
    """An admitted request that a slow execution before it makes impossible is refused before its deadline, unsent."""
    bench = Bench(PREDICTED, profile=PROFILE)
    link = bench.links[0]
    occupy(bench, batches=2, timeout_us=3 * FULL_US)
    work = bench.submit(rows=SIZE_MAX, timeout_us=3 * FULL_US + 1_000)
    assert work.state is QUEUED
    bench.advance_us(FULL_US - LEAD_US)
    assert sent(link) == [[0], [1]]
    bench.advance_us(8_000)  # the first takes this much longer
    reply(bench, link, execute_us=FULL_US)
    bench.advance_us(work.deadline_us - bench.clock() - 1)
    assert (work.refusal.status, work.refusal.reason) == (503, RefusalReason.DROPPED)
    assert work.refusal.retry_after_us >= RETRY_AFTER_US_MIN
    assert "it could no longer be done in time" in work.refusal.message
    assert not work.request.payload
    assert sent(link) == [[0], [1]]
    assert bench.statistics.refusals == {"dropped": 1}
    assert bench.statistics.failures == {"REJECTED": 1}


def test_a_tenant_has_its_share_of_a_full_queue() -> None:
    """When one tenant has filled the queue, another may still wait up to its share, and is told when that is full."""
    bench = Bench(links=0)
    bound = SPEC.queue.requests_max
    for _ in range(bound):
        bench.submit(tenant="greedy")
    assert bench.submit(tenant="greedy").refusal.reason is RefusalReason.QUEUE_FULL
    for _ in range(bound // 2):
        assert bench.submit(tenant="small").state is QUEUED
    refusal = bench.submit(tenant="small").refusal
    assert (refusal.status, refusal.reason) == (503, RefusalReason.TENANT_FULL)
    assert "tenant 'small'" in refusal.message


def test_without_a_profile_the_system_is_bounded_by_its_limit() -> None:
    """While execution times are unknown, no more than the limit by queue delay may wait and run together."""
    bench = Bench(replace(PREDICTED, queue=QueueBounds(requests_max=16)), links=0)
    bench.batcher.snapshot_gauges()
    limit = bench.statistics.limit
    assert limit > 0
    link = bench.join()
    refused: FakeRequest | None = None
    while refused is None:
        work = bench.submit(rows=SIZE_MAX)
        refused = work if work.endings else None
        bench.turn()
    assert len(link.in_flight) == 2
    assert refused.refusal.reason in (RefusalReason.CONCURRENCY, RefusalReason.QUEUE_FULL)
    assert bench.batcher.pending <= limit


# -- timers ----------------------------------------------------------------------------------------------------------


def test_a_timer_that_is_no_longer_due_decides_nothing() -> None:
    """A timer fires for what the scheduler asked last: if that is later, it is armed again and nobody is asked."""
    bench = Bench()
    occupy(bench)
    work = bench.submit(timeout_us=50_000)
    bench.turn()
    assert [at_us for at_us, _ in bench.timers] == [bench.clock() + WAIT_US]
    bench.advance_us(WAIT_US // 2)
    bench.submit(rows=SIZE_MAX, timeout_us=60_000)
    bench.turn()
    assert work.state is RUNNING
    asked = bench.batcher.flushes
    bench.advance_us(WAIT_US)
    assert bench.batcher.flushes == asked
    ((at_us, _),) = bench.timers
    assert at_us > bench.clock()


def test_a_timer_without_anything_due_decides_nothing() -> None:
    """When nothing waits any more, the timer that is still armed fires for nothing and is not armed again."""
    bench = Bench()
    occupy(bench)
    bench.submit()
    bench.turn()
    reply(bench, bench.links[0])
    assert not bench.batcher.requests
    asked = bench.batcher.flushes
    bench.advance_us(10_000_000)
    assert bench.batcher.flushes == asked
    assert not bench.timers


def test_there_is_one_timer_however_many_wait() -> None:
    """Requests of many signatures and deadlines cost one timer; an earlier time replaces it, a later one does not."""
    bench = Bench(ROOMY, links=0)
    for k in range(50):
        bench.submit(signature=k % 5, timeout_us=10_000 + k * 100)
        bench.turn()
    assert (len(bench.timers), bench.armed) == (1, 1)
    bench.submit(timeout_us=5_000)
    bench.turn()
    assert (len(bench.timers), bench.armed) == (1, 2)
    assert bench.timers[0][0] == bench.clock() + 5_000


def test_a_timer_asks_at_the_time_it_was_told() -> None:
    """The scheduler is asked again at the time it named, and not a microsecond earlier."""
    bench = Bench()
    occupy(bench)
    bench.submit()
    bench.turn()
    asked = bench.batcher.flushes
    bench.advance_us(WAIT_US - 1)
    assert bench.batcher.flushes == asked
    bench.advance_us(1)
    assert bench.batcher.flushes == asked + 1


# -- lost replicas ---------------------------------------------------------------------------------------------------


def test_what_had_begun_is_tried_once_more_alone() -> None:
    """Requests of a batch that its replica died under each travel alone, once; a second death is the end of them."""
    bench = Bench()
    works = [bench.submit() for _ in range(2)]
    bench.turn()
    bench.lose(bench.links[0])
    assert all(work.state is QUEUED for work in works)
    link = bench.join()
    assert sent(link) == [[0], [1]]
    assert all(batch.reason is CloseReason.ALONE for batch in link.sent)
    assert all(next(iter(FrameDecoder().feed(frame))).flags == BATCH_FLAG_ALONE for frame in link.frames)
    bench.lose(link)
    assert (works[0].refusal.status, works[0].refusal.reason) == (503, RefusalReason.REPLICA_LOST)
    assert works[0].refusal.retry_after_us > 0
    link = bench.join()
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
    bench.lose(bench.links[0])
    assert (staged.attempts, waiting.attempts) == (0, 0)
    links = [bench.join(), bench.join()]
    bench.advance_us(WAIT_US)
    batches = [batch for link in links for batch in sent(link)]
    assert sorted(batches) == [[0], [1], [2], [late.name]]


def test_no_retry_past_the_deadline() -> None:
    """A request whose deadline has passed when its replica dies is not tried again."""
    bench = Bench()
    work = bench.submit(timeout_us=1_000)
    bench.turn()
    bench.clock.advance_us(1_000)
    bench.lose(bench.links[0])
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
    bench.lose(bench.links[0])
    assert work.state is QUEUED


# -- the end ---------------------------------------------------------------------------------------------------------


def test_the_end_is_for_everyone() -> None:
    """When a model is gone, what waits, what runs and what comes later is refused with the same words."""
    bench = Bench()
    occupy(bench, batches=3)
    bench.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
    bench.submit()
    assert [(work.refusal.status, work.refusal.message) for work in bench.works] == [(503, "gone")] * 4
    assert (bench.batcher.requests, bench.batcher.scheduler.nbytes) == (0, 0)
    bench.lose(bench.links[0], "closed")
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


def test_goodput_counts_answers_in_time() -> None:
    """`in_time` counts answers no later than their deadline; what a late, abandoned or failed one took is wasted."""
    bench = Bench()
    works = [bench.submit(timeout_us=us) for us in (1_000, 1_001, 50_000, 50_000)]
    bench.turn()
    bench.clock.advance_us(1_001)
    bench.batcher.abandon(works[3], bench.clock())
    reply(bench, bench.links[0], failures=(Failure(2, 500, "broken"),), executed=4, execute_us=394)
    statistics = bench.statistics
    assert (statistics.success, statistics.in_time) == (2, 1)
    assert (statistics.device_us, statistics.wasted_us) == (400, 300)


def test_device_time_is_shared_with_whom_it_was_merged_and_not_with_the_late() -> None:
    """Of an execution a batch pays for the rows of its own that ran: not for others', nor for those that came back."""
    bench = Bench()
    bench.submit(rows=1)
    bench.submit(rows=3)
    bench.turn()
    reply(bench, bench.links[0], failures=(Failure(1, 504, "late"),), executed=10, execute_us=994)
    assert (bench.statistics.device_us, bench.statistics.wasted_us) == (100, 0)
    assert bench.statistics.refusals == {"expired": 1}


def test_tenants_and_classes_are_counted_once_each() -> None:
    """Each request counts once for its tenant and class, however it ends; device time goes to whose rows ran."""
    bench = Bench(replace(SPEC, batching=replace(SPEC.batching, size_max=8)), links=0)
    served = bench.submit(tenant="a", rows=2)
    bench.submit(tenant="b", rows=1, request_class=BATCH)
    failed = bench.submit(tenant="b", rows=1)
    late = bench.submit(tenant="c", rows=1)
    gone = bench.submit(tenant="a", rows=3, request_class=BATCH)
    left = bench.submit(tenant="c")
    bench.batcher.abandon(left, bench.clock())
    link = bench.join()
    (batch,) = link.sent
    at = {entry: index for index, entry in enumerate(batch.entries)}
    bench.batcher.abandon(gone, bench.clock())
    reply(
        bench,
        link,
        failures=(Failure(at[failed], 400, "no"), Failure(at[late], 504, "late")),
        executed=7,
        execute_us=694,
    )
    assert served.endings
    assert bench.statistics.tenants == {
        "a": TenantStatistics(requests=2, success=1, refused=0, device_us=500),
        "b": TenantStatistics(requests=2, success=1, refused=0, device_us=200),
        "c": TenantStatistics(requests=2, success=0, refused=1, device_us=0),
    }
    assert bench.statistics.classes == {"interactive": 4, "batch": 2}
    assert bench.statistics.success + sum(bench.statistics.failures.values()) == 6


def test_a_batch_of_one_tenant_is_counted_as_others_are() -> None:
    """Counting a whole batch in one go comes to the same as counting its requests one by one."""
    found = []
    for tenants in ("aaa", "aba"):
        bench = Bench(links=0)
        for tenant in tenants:
            bench.submit(tenant=tenant)
        reply(bench, bench.join(), execute_us=294)
        found.append(bench.statistics.tenants)
    assert found[0] == {"a": TenantStatistics(requests=3, success=3, device_us=300)}
    assert found[1] == {
        "a": TenantStatistics(requests=2, success=2, device_us=200),
        "b": TenantStatistics(requests=1, success=1, device_us=100),
    }


def test_tenants_are_bounded() -> None:
    """Callers who name tenants without end are counted together from some number on."""
    bench = Bench(links=0)
    bench.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
    for k in range(TENANTS_MAX + 5):
        bench.submit(tenant=f"t{k}")
    assert len(bench.statistics.tenants) == TENANTS_MAX + 1
    assert bench.statistics.tenants[OTHER_TENANTS].requests == 5


def test_gauges_are_the_state_when_asked() -> None:
    """The gauges are what waits, the limit in force and how often a replica was put aside, as of the snapshot."""
    bench = Bench(replace(PREDICTED, queue=QueueBounds(requests_max=16)))
    occupy(bench, batches=3)
    bench.batcher.snapshot_gauges()
    statistics = bench.statistics
    assert (statistics.pending, statistics.ejections) == (bench.batcher.requests, 0)
    assert statistics.limit == bench.batcher.scheduler.limit > 0
    while bench.links[0].in_flight:
        reply(bench, bench.links[0])
    bench.batcher.snapshot_gauges()
    assert (statistics.pending, statistics.limit) == (0, 0), "nothing waits, and times are known by now"


def test_a_slow_replica_is_put_aside_and_counted() -> None:
    """A replica that takes far longer than its neighbours gets no work for a while, which the gauges show."""
    bench = Bench(PREDICTED, profile=PROFILE, links=2)
    for _ in range(40):
        bench.submit(timeout_us=10_000_000)
        bench.submit(timeout_us=10_000_000, signature="b")
        bench.turn()
        for link, execute_us in zip(bench.links, (10_000, 100_000), strict=True):
            while link.in_flight:
                reply(bench, link, execute_us=execute_us)
        bench.advance_us(1_000)
    bench.batcher.snapshot_gauges()
    assert bench.statistics.ejections == 1
    assert len(bench.links[0].sent) > len(bench.links[1].sent)


def test_profiles_are_what_is_known_of_costs() -> None:
    """Costs measured at load are known at once; without them nothing is, until executions have told."""
    assert Bench(profile=PROFILE).batcher.profiles() == {"": PROFILE}
    bench = Bench()
    assert bench.batcher.profiles() == {}
    for _ in range(4):
        bench.submit()
        bench.turn()
        reply(bench, bench.links[0], execute_us=494)
    assert bench.batcher.profiles()[""].time_us(1) == 500
