"""The batcher as a state machine: whatever callers, replicas and time do, every request ends once and bounds hold."""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.core.models import POLICIES, Batching, ModelSpec, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.core.tensors import TensorSpec
from penstock.gateway.work import BatchResult
from penstock.policy.admission import RefusalReason
from penstock.policy.balancing import CREDITS_PER_REPLICA, Dispatch
from penstock.policy.batching import CloseReason
from penstock.policy.queueing import BATCH, DONE, INTERACTIVE, QUEUED, RUNNING, RequestClass
from penstock.policy.scheduling import EXPIRY_INTERVAL_US, LEAD_US
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
SLO_US = 50_000
PROFILE = CostProfile.from_line(beta_us=2_000, alpha_us=500, size_max=SIZE_MAX)


def spec_of(*, policy: str, slo_us: int, is_batched: bool) -> ModelSpec:
    """Return a model with small bounds, so that the machine meets them."""
    shape = (-1, 2) if is_batched else (2,)
    return ModelSpec(
        "m",
        (TensorSpec("x", "FP32", shape),),
        (TensorSpec("y", "FP32", (-1, 1) if is_batched else (1,)),),
        batching=Batching(policy=policy, size_max=SIZE_MAX, wait_us_max=WAIT_US),
        slo_us=slo_us,
        queue=QueueBounds(requests_max=REQUESTS_MAX, bytes_max=BYTES_MAX),
    )


class CheckedLink(FakeLink):
    """A replica that holds each batch to the laws at the moment it is sent."""

    def __init__(self, check: Callable[[Dispatch, bytes], None], overhead_us: Callable[[], float]) -> None:
        super().__init__()
        self._check = check
        self.overhead_us = overhead_us
        self.replied_us = 0

    def send(self, batch: Dispatch, frame: bytes) -> None:
        self._check(batch, frame)
        if self.in_flight:
            self.check_staged(batch)
        super().send(batch, frame)

    def check_staged(self, batch: Dispatch) -> None:
        """A second batch leaves shortly before the first is predicted to be done, and a third never."""
        (running,) = self.in_flight.values()
        begun_us = max(running.sent_us, self.replied_us)
        assert batch.is_staged
        assert batch.sent_us >= begun_us + running.predicted_us - LEAD_US - round(self.overhead_us())


class BatcherMachine(RuleBasedStateMachine):
    """Callers submit and go away, replicas answer, fail and die, time passes; in between the laws are checked."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        slo_us=st.sampled_from([0, SLO_US]),
        is_batched=st.booleans(),
        is_profiled=st.booleans(),
        links=st.integers(0, 2),
    )
    def start(self, *, policy: str, slo_us: int, is_batched: bool, is_profiled: bool, links: int) -> None:
        self.policy = policy
        self.slo_us = slo_us
        self.is_batched = is_batched
        spec = spec_of(policy=policy, slo_us=slo_us, is_batched=is_batched)
        self.bench = Bench(spec, profile=PROFILE if is_profiled else None, links=0)
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
        request_class=st.sampled_from([INTERACTIVE, INTERACTIVE, BATCH]),
        tenant=st.sampled_from(["", "", "a"]),
        nbytes=st.integers(0, 40),
        timeout_us=st.sampled_from([1, 500, 3_000, 9_000, SLO_US, 1_000_000]),
        count=st.integers(1, 4),
        meddling=st.sampled_from(["", "", "abandon", "submit"]),
    )
    def submit(
        self,
        *,
        rows: int,
        signature: str,
        request_class: RequestClass,
        tenant: str,
        nbytes: int,
        timeout_us: int,
        count: int,
        meddling: str,
    ) -> None:
        for _ in range(count):
            before = (self.batcher.requests, self.batcher.scheduler.nbytes)
            work = self.bench.submit(
                rows=rows if self.is_batched else 1,
                signature=signature,
                request_class=request_class,
                tenant=tenant,
                nbytes=nbytes,
                timeout_us=timeout_us,
            )
            # A tenant has its share though another has filled the queue, and so it holds twice its bounds at most.
            fits = before[0] < 2 * REQUESTS_MAX and before[1] + nbytes <= 2 * BYTES_MAX and not self.is_ended
            if work.state is QUEUED:
                assert fits
            else:
                assert work.refusal.status == 503
                assert work.refusal.retry_after_us > 0
                assert (self.batcher.requests, self.batcher.scheduler.nbytes) == before
                is_full = before[0] >= REQUESTS_MAX or before[1] + nbytes > BYTES_MAX
                assert self.policy == "deadline" or is_full or self.is_ended, "refused without need"
            if work.state is not QUEUED:
                continue
            if meddling == "abandon":
                # As an embeddings request does: when one part ends, the others are given up.
                work.on_end = self.abandon_others_of(work)
            elif meddling == "submit":
                # As a pipelined connection does: the answer lets the next request in.
                work.on_end = lambda: self.submit_another(request_class)

    def abandon_others_of(self, work: FakeRequest) -> Callable[[], None]:
        def abandon() -> None:
            for other in self.bench.works[max(work.name - 3, 0) : work.name + 3]:
                if other is not work:
                    self.give_up(other)

        return abandon

    def submit_another(self, request_class: RequestClass) -> None:
        if len(self.bench.works) < 500:
            self.bench.submit(rows=1, signature="b", request_class=request_class, nbytes=8)

    def give_up(self, work: FakeRequest) -> None:
        """Abandon a request as its caller does: not after its end, though perhaps when that is decided already."""
        if not work.endings and work.name not in self.abandoned:
            if work.state is not DONE:
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
        link = CheckedLink(self.check_batch, lambda: self.batcher.scheduler._overhead_us)
        self.links.append(link)
        self.bench.join(link)

    @precondition(lambda self: any(link.in_flight for link in self.links))
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from([link for link in self.links if link.in_flight]))
        batch = next(iter(link.in_flight.values()))
        failed = data.draw(st.lists(st.integers(0, len(batch.entries) - 1), unique=True))
        failures = tuple(Failure(i, data.draw(st.sampled_from([400, 500, 504])), "no") for i in failed)
        rows = sum(work.rows for i, work in enumerate(batch.entries) if i not in failed)
        outputs = (FrameTensor("y", "FP32", (1,), rows * 4),) if rows else ()
        executed = sum(work.rows for i, work in enumerate(batch.entries) if Failure(i, 504, "no") not in failures)
        execute_us = data.draw(st.sampled_from([1, 3_000, 40_000]))
        meta = ReplyMeta(outputs, failures, 1, 2, execute_us, 4, executed)
        link.replied_us = self.bench.clock()
        read = self.batcher.read_reply(batch, meta, memoryview(bytes(rows * 4)))
        before = {w.name: len(w.endings) for w in self.bench.works}
        expected = [w.name for w in self.requests_of(batch) if w.state is RUNNING]
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
        running = [w for w in self.bench.works if w.state is RUNNING]
        if batches:
            for work in self.requests_of(batches[0]):
                self.begun_and_lost[work.name] = self.begun_and_lost.get(work.name, 0) + 1
        self.bench.lose(link)
        for work in running:
            if any(work in batch.entries for batch in batches):
                assert work.state is not RUNNING or self.is_in_flight(work), "lost with its replica"
                # Unless another's refusal made its caller abandon it before its turn came.
                assert work.name in self.abandoned or work.attempts >= self.begun_and_lost.get(work.name, 0)
        self.batcher.flush()

    def is_in_flight(self, work: FakeRequest) -> bool:
        return any(work in batch.entries for link in self.links for batch in link.in_flight.values())

    @precondition(lambda self: len(self.bench.works) > 20)
    @rule()
    def end(self) -> None:
        self.is_ended = True
        self.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
        assert all(work.state is DONE for work in self.bench.works)

    # -- the laws ------------------------------------------------------------------------------------------------

    def requests_of(self, batch: Dispatch) -> list[FakeRequest]:
        return [work for work in batch.entries if isinstance(work, FakeRequest)]

    def check_batch(self, batch: Dispatch, frame: bytes) -> None:
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
            assert work.state in (RUNNING, DONE)
            is_soft = self.policy == "deadline" and work.deadline_us - work.arrived_us == self.slo_us
            assert is_soft or work.deadline_us > now_us, "executed though expired"
            assert not work.endings
            assert work.attempts <= 1
            self.check_order(work)
        for work in works:
            self.sendings[work.name] = self.sendings.get(work.name, 0) + 1
        (found,) = FrameDecoder().feed(frame)
        meta = decode_batch_meta(found)
        assert meta.rows == tuple(work.rows for work in works)
        assert meta.budgets_us == tuple(work.deadline_us - now_us or -1 for work in works)
        assert meta.parameters == first.request.parameters
        assert bytes(found.payload) == b"".join(work.request.payload[0] for work in works)
        assert bool(found.flags & BATCH_FLAG_ALONE) == is_alone
        if batch.reason is CloseReason.FULL and self.policy == "size_or_timeout":
            # What was found too late when the full batch was put together counts.
            dropped = [w for w in self.bench.works if w.endings and w.ended_us == now_us]
            there = [w for w in (*self.waiting(), *dropped) if w.request.signature == first.request.signature]
            assert batch.rows + sum(w.rows for w in there) >= SIZE_MAX
        if batch.reason is CloseReason.TIMEOUT:
            assert all(link.in_flight for link in self.links)

    def check_order(self, work: FakeRequest) -> None:
        """Nobody of the same kind who has less time left stays behind."""
        for other in self.waiting():
            # A lane holds those of one tenant, class and signature.
            assert other.lane is not work.lane or other.deadline_us >= work.deadline_us, "overtaken"

    def waiting(self) -> list[FakeRequest]:
        return [work for work in self.bench.works if work.state is QUEUED and not work.endings]

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "bench"):
            return
        waiting = [w for w in self.bench.works if w.state is QUEUED and not w.endings]
        assert self.batcher.requests == len(waiting)
        scheduler = self.batcher.scheduler
        assert scheduler.nbytes == sum(work.nbytes for work in waiting)
        assert scheduler.rows == sum(work.rows for work in waiting)
        assert scheduler.in_flight == sum(len(b.entries) for link in self.links for b in link.in_flight.values())
        assert self.batcher.pending == scheduler.requests + scheduler.in_flight

    @invariant()
    def every_request_ends_once(self) -> None:
        if not hasattr(self, "bench"):
            return
        for work in self.bench.works:
            ended = len(work.endings) + (work.name in self.abandoned)
            assert ended == (work.state is DONE)
            if self.abandoned and work.name in self.abandoned:
                assert not work.endings

    @invariant()
    def running_work_is_in_flight_once(self) -> None:
        if not hasattr(self, "bench"):
            return
        in_flight = [w.name for link in self.links for b in link.in_flight.values() for w in self.requests_of(b)]
        assert len(set(in_flight)) == len(in_flight)
        running = {w.name for w in self.bench.works if w.state is RUNNING}
        assert running <= set(in_flight)
        assert all(len(link.in_flight) <= CREDITS_PER_REPLICA for link in self.links)

    @invariant()
    def nothing_waits_without_reason(self) -> None:
        """After a turn what only time can move has its timer; only by deadline does a replica idle while some wait."""
        if not hasattr(self, "bench") or self.bench.due:
            return
        waiting = self.waiting()
        if not waiting:
            return
        if self.policy != "deadline" and not self.batcher.scheduler.ejections:
            assert all(link.in_flight for link in self.links), "a replica idles while requests wait"
        assert len(self.bench.timers) == 1
        ((armed_us, _),) = self.bench.timers
        now_us = self.bench.clock()
        assert armed_us <= max(min(work.deadline_us for work in waiting), now_us + EXPIRY_INTERVAL_US)

    def teardown(self) -> None:
        """Whatever is left ends by its deadline once the replicas are gone; then nothing waits."""
        if not hasattr(self, "bench"):
            return
        for link in list(self.links):
            self.bench.lose(link)
            self.links.remove(link)
        # The longest deadline, and once more for what callers submit when they are refused at it.
        self.bench.advance_us(2_000_000)
        self.bench.advance_us(2_000_000)
        assert not self.batcher.requests
        assert not self.batcher.scheduler.nbytes
        for work in self.bench.works:
            assert work.state is DONE
            assert len(work.endings) + (work.name in self.abandoned) == 1
        self.check_statistics()

    def check_statistics(self) -> None:
        statistics = self.bench.statistics
        successes = sum(isinstance(ending, BatchResult) for work in self.bench.works for ending in work.endings)
        assert statistics.success == successes
        assert statistics.success + sum(statistics.failures.values()) == len(self.bench.works)
        assert statistics.refusals.get("disconnected", 0) == len(self.abandoned)
        assert sum(statistics.closes.values()) >= statistics.execution_count
        assert not self.bench.bugs
        tenants = statistics.tenants.values()
        assert sum(t.requests for t in tenants) == sum(statistics.classes.values()) == len(self.bench.works)
        assert sum(t.success for t in tenants) == successes
        assert sum(t.refused for t in tenants) == statistics.failures.get("REJECTED", 0)
        # Each rounds to a microsecond.
        executed = sum(rows * batches.count for rows, batches in statistics.batches.items())
        assert abs(sum(t.device_us for t in tenants) - statistics.device_us) <= executed
        assert statistics.in_time <= successes
        assert statistics.wasted_us <= statistics.device_us + executed


BatcherMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60)
TestBatcher: Any = BatcherMachine.TestCase
