"""The batcher as a state machine: whatever callers, replicas and time do, every request ends once and bounds hold."""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.core.models import Batching, ModelSpec, QueueBounds
from penstock.core.tensors import TensorSpec
from penstock.gateway.batcher import EXPIRY_INTERVAL_US, SIGNATURES_MAX
from penstock.gateway.work import STALE_MAX, Batch, BatchResult, WorkState
from penstock.policy.admission import RefusalReason
from penstock.policy.batching import CREDITS_PER_REPLICA, CloseReason
from penstock.wire.frame import (
    BATCH_FLAG_ALONE,
    Failure,
    FrameDecoder,
    FrameTensor,
    ReplyMeta,
    decode_batch_meta,
)
from tests.unit.gateway.fakes import Bench, FakeLink, FakeRequest

SIZE_MAX = 4
WAIT_US = 1_000
REQUESTS_MAX = 12
BYTES_MAX = 200


def spec_of(*, is_batched: bool) -> ModelSpec:
    """Return a model with small bounds, so that the machine meets them."""
    shape = (-1, 2) if is_batched else (2,)
    return ModelSpec(
        "m",
        (TensorSpec("x", "FP32", shape),),
        (TensorSpec("y", "FP32", (-1, 1) if is_batched else (1,)),),
        batching=Batching(size_max=SIZE_MAX, wait_us_max=WAIT_US),
        queue=QueueBounds(requests_max=REQUESTS_MAX, bytes_max=BYTES_MAX),
    )


class CheckedLink(FakeLink):
    """A replica that holds each batch to the laws at the moment it is sent."""

    def __init__(self, check: Callable[[Batch, bytes], None]) -> None:
        super().__init__()
        self._check = check

    def send(self, batch: Batch, frame: bytes) -> None:
        self._check(batch, frame)
        super().send(batch, frame)


class BatcherMachine(RuleBasedStateMachine):
    """Callers submit and go away, replicas answer, fail and die, time passes; in between the laws are checked."""

    @initialize(is_batched=st.booleans(), links=st.integers(0, 2))
    def start(self, *, is_batched: bool, links: int) -> None:
        self.is_batched = is_batched
        self.bench = Bench(spec_of(is_batched=is_batched), links=0)
        self.batcher = self.bench.batcher
        self.links: list[CheckedLink] = []
        self.sendings: dict[int, int] = {}  # how often each request was sent
        self.begun_and_lost: dict[int, int] = {}  # how often a link was lost while running it
        self.abandoned: set[int] = set()
        self.is_ended = False
        for _ in range(links):
            self.add_link()

    # -- what may happen -----------------------------------------------------------------------------------------

    @rule(
        rows=st.integers(1, SIZE_MAX),
        signature=st.sampled_from("aab"),
        priority=st.integers(0, 6),
        nbytes=st.integers(0, 40),
        timeout_us=st.sampled_from([1, 500, 3_000, 50_000, 1_000_000]),
        count=st.integers(1, 4),
        meddling=st.sampled_from(["", "", "abandon", "submit"]),
    )
    def submit(
        self, *, rows: int, signature: str, priority: int, nbytes: int, timeout_us: int, count: int, meddling: str
    ) -> None:
        for _ in range(count):
            before = (self.batcher.requests, self.batcher.nbytes)
            work = self.bench.submit(
                rows=rows if self.is_batched else 1,
                signature=signature,
                priority=priority,
                nbytes=nbytes,
                timeout_us=timeout_us,
            )
            fits = before[0] < REQUESTS_MAX and before[1] + nbytes <= BYTES_MAX and not self.is_ended
            assert (work.state is WorkState.QUEUED) == fits
            if not fits:
                assert work.refusal.status == 503
                assert (self.batcher.requests, self.batcher.nbytes) == before
            elif meddling == "abandon":
                # As an embeddings request does: when one part ends, the others are given up.
                work.on_end = self.abandon_others_of(work)
            elif meddling == "submit":
                # As a pipelined connection does: the answer lets the next request in.
                work.on_end = lambda: self.submit_another(priority)

    def abandon_others_of(self, work: FakeRequest) -> Callable[[], None]:
        def abandon() -> None:
            for other in self.bench.works[max(work.name - 3, 0) : work.name + 3]:
                if other is not work:
                    self.give_up(other)

        return abandon

    def submit_another(self, priority: int) -> None:
        if len(self.bench.works) < 500:
            self.bench.submit(rows=1, signature="b", priority=(priority + 1) % 7, nbytes=8)

    def give_up(self, work: FakeRequest) -> None:
        """Abandon a request as its caller does: not after its end."""
        if not work.endings and work.name not in self.abandoned:
            self.abandoned.add(work.name)
            self.batcher.abandon(work, self.bench.clock())

    @precondition(lambda self: self.bench.works)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.give_up(data.draw(st.sampled_from(self.bench.works)))

    @rule(us=st.sampled_from([0, 1, WAIT_US - 1, WAIT_US, 10_000]))
    def pass_time(self, us: int) -> None:
        self.bench.advance_us(us)

    @rule()
    def end_turn(self) -> None:
        self.bench.turn()

    @precondition(lambda self: len(self.links) < 3)
    @rule()
    def add_link(self) -> None:
        link = CheckedLink(self.check_batch)
        self.links.append(link)
        self.batcher.links.append(link)
        self.batcher.flush()

    @precondition(lambda self: any(link.in_flight for link in self.links))
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from([link for link in self.links if link.in_flight]))
        batch = next(iter(link.in_flight.values()))
        failed = data.draw(st.lists(st.integers(0, len(batch.works) - 1), unique=True))
        failures = tuple(Failure(i, data.draw(st.sampled_from([400, 500, 504])), "no") for i in failed)
        rows = sum(work.rows for i, work in enumerate(batch.works) if i not in failed)
        outputs = (FrameTensor("y", "FP32", (1,), rows * 4),) if rows else ()
        meta = ReplyMeta(outputs, failures, 1, 2, 3, 4, batch.rows)
        read = self.batcher.read_reply(batch, meta, memoryview(bytes(rows * 4)))
        before = {w.name: len(w.endings) for w in self.bench.works}
        expected = [w.name for w in self.requests_of(batch) if w.state is WorkState.RUNNING]
        self.batcher.finish_batch(batch, meta, read)
        link.in_flight.pop(batch.id)
        for work in self.requests_of(batch):
            ended = len(work.endings) - before[work.name]
            assert ended == (work.name in expected and work.name not in self.abandoned)
        self.batcher.flush()

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def lose_link(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(self.links))
        self.links.remove(link)
        batches = list(link.in_flight.values())
        running = [w for w in self.bench.works if w.state is WorkState.RUNNING]
        if batches:
            for work in self.requests_of(batches[0]):
                self.begun_and_lost[work.name] = self.begun_and_lost.get(work.name, 0) + 1
        self.batcher.lose_link(link, "killed")
        assert not link.in_flight
        for work in running:
            if any(work in batch.works for batch in batches):
                assert work.state is not WorkState.RUNNING
                # Unless another's refusal made its caller abandon it before its turn came.
                assert work.name in self.abandoned or work.attempts >= self.begun_and_lost.get(work.name, 0)
        self.batcher.flush()

    @precondition(lambda self: len(self.bench.works) > 20)
    @rule()
    def end(self) -> None:
        self.is_ended = True
        self.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
        assert all(work.state is WorkState.DONE for work in self.bench.works)

    # -- the laws ------------------------------------------------------------------------------------------------

    def requests_of(self, batch: Batch) -> list[FakeRequest]:
        return [work for work in batch.works if isinstance(work, FakeRequest)]

    def check_batch(self, batch: Batch, frame: bytes) -> None:
        """Hold a batch to the laws as it leaves."""
        now_us = self.bench.clock()
        works = self.requests_of(batch)
        first = works[0]
        assert batch.rows == sum(work.rows for work in works)
        assert batch.rows <= SIZE_MAX
        assert len({work.request.signature for work in works}) == 1
        is_retry = any(work.attempts for work in works)
        is_alone = batch.reason is CloseReason.ALONE
        assert is_alone == (is_retry or not self.is_batched)
        assert not is_alone or len(works) == 1
        for work in works:
            assert work.state in (WorkState.RUNNING, WorkState.DONE)
            assert work.deadline_us > now_us, "executed though expired"
            assert not work.endings
            assert work.attempts <= 1
            self.check_first_come(work)
        for work in works:
            self.sendings[work.name] = self.sendings.get(work.name, 0) + 1
        (found,) = FrameDecoder().feed(frame)
        meta = decode_batch_meta(found)
        assert meta.rows == tuple(work.rows for work in works)
        assert meta.budgets_us == tuple(work.deadline_us - now_us for work in works)
        assert meta.parameters == first.request.parameters
        assert bytes(found.payload) == b"".join(work.request.payload[0] for work in works)
        assert bool(found.flags & BATCH_FLAG_ALONE) == is_alone
        full = batch.reason is CloseReason.FULL
        waiting_rows = sum(w.rows for w in self.waiting() if w.request.signature == first.request.signature)
        assert not full or batch.rows + waiting_rows >= SIZE_MAX
        if batch.reason is CloseReason.TIMEOUT:
            assert all(link.in_flight for link in self.links)

    def check_first_come(self, work: FakeRequest) -> None:
        for other in self.waiting():
            assert (
                other.name in self.sendings
                or work.name in self.sendings
                or other.request.signature != work.request.signature
                or other.priority != work.priority
                or other.name > work.name
            ), "overtaken within its priority"

    def waiting(self) -> list[FakeRequest]:
        return [work for work in self.bench.works if work.state is WorkState.QUEUED and not work.endings]

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "bench"):
            return
        waiting = [w for w in self.bench.works if w.state is WorkState.QUEUED and not w.endings]
        assert self.batcher.requests == len(waiting)
        assert self.batcher.nbytes == sum(work.nbytes for work in waiting)
        queues = [] if self.is_ended else list(self.batcher._queues.values())
        assert sum(queue.requests for queue in queues) == len(waiting) or self.is_ended
        assert sum(queue.rows for queue in queues) == sum(work.rows for work in waiting) or self.is_ended
        assert len(queues) <= SIGNATURES_MAX + 3
        for queue in queues:
            entries = sum(len(lane) for _, lane in queue.lanes)
            assert entries == queue.requests + queue.stale
            assert queue.stale <= REQUESTS_MAX + STALE_MAX

    @invariant()
    def every_request_ends_once(self) -> None:
        if not hasattr(self, "bench"):
            return
        for work in self.bench.works:
            ended = len(work.endings) + (work.name in self.abandoned)
            assert ended == (work.state is WorkState.DONE)
            if self.abandoned and work.name in self.abandoned:
                assert not work.endings

    @invariant()
    def running_work_is_in_flight_once(self) -> None:
        if not hasattr(self, "bench"):
            return
        in_flight = [w.name for link in self.links for b in link.in_flight.values() for w in self.requests_of(b)]
        assert len(set(in_flight)) == len(in_flight)
        running = {w.name for w in self.bench.works if w.state is WorkState.RUNNING}
        assert running <= set(in_flight)
        assert all(len(link.in_flight) <= CREDITS_PER_REPLICA for link in self.links)

    @invariant()
    def nothing_waits_without_reason(self) -> None:
        """After a turn no replica idles while requests wait, and what only time can move has its timer."""
        if not hasattr(self, "bench") or self.bench.due:
            return
        waiting = self.waiting()
        if not waiting:
            return
        held = [len(link.in_flight) for link in self.links]
        assert all(held), "a replica idles while requests wait"
        armed_us = min((at_us for at_us, _ in self.bench.timers), default=None)
        assert armed_us is not None
        now_us = self.bench.clock()
        assert armed_us <= max(min(work.deadline_us for work in waiting), now_us + EXPIRY_INTERVAL_US)
        if min(held, default=CREDITS_PER_REPLICA) < CREDITS_PER_REPLICA:
            assert armed_us <= max(min(work.queued_us for work in waiting) + WAIT_US, now_us)

    def teardown(self) -> None:
        """Whatever is left ends by its deadline once the replicas are gone; then nothing waits."""
        if not hasattr(self, "bench"):
            return
        for link in list(self.links):
            self.batcher.lose_link(link, "killed")
            self.links.remove(link)
        # The longest deadline, and once more for what callers submit when they are refused at it.
        self.bench.advance_us(2_000_000)
        self.bench.advance_us(2_000_000)
        assert not self.batcher.requests
        assert not self.batcher.nbytes
        for work in self.bench.works:
            assert work.state is WorkState.DONE
            assert len(work.endings) + (work.name in self.abandoned) == 1
        self.check_statistics()

    def check_statistics(self) -> None:
        statistics = self.bench.statistics
        successes = sum(isinstance(ending, BatchResult) for work in self.bench.works for ending in work.endings)
        assert statistics.success == successes
        assert statistics.success + sum(statistics.failures.values()) == len(self.bench.works)
        assert statistics.refusals.get("disconnected", 0) == len(self.abandoned)
        assert sum(statistics.closes.values()) >= statistics.execution_count


BatcherMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60)
TestBatcher: Any = BatcherMachine.TestCase
