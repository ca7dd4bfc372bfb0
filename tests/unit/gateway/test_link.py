"""Laws of the connection to a replica: replies find their batches, lies and silence cut it, it is made again."""

import pytest

from penstock.gateway.link import RECONNECT_S_MAX, RECONNECT_S_MIN, ReplicaLink
from penstock.gateway.work import BatchResult
from penstock.policy.admission import RefusalReason
from penstock.policy.balancing import Replica
from penstock.policy.queueing import QUEUED
from penstock.testing.loop import ManualLoop
from penstock.wire.frame import BATCH_FLAG_CANARY, Failure, FrameKind, encode_frame
from tests.unit.gateway.fakes import SPEC, Bench, FakeReplica, encode_reply

ADDRESS = "unix:/r"
LIMIT_US = SPEC.execution_timeout_us


class Wire:
    """A batcher with one link to one replica, on manual time."""

    def __init__(self, address: str = ADDRESS, *, refuses: bool = False) -> None:
        self.bench = Bench(links=0)
        self.loop = ManualLoop(self.bench.clock)
        if refuses:
            self.loop.refuses.add(address)
        self.faults: list[tuple[str, str]] = []
        self.link = ReplicaLink(
            address,
            self.bench.batcher,
            loop=self.loop.as_asyncio,
            now_us=self.bench.clock,
            on_fault=lambda where, why: self.faults.append((where, why)),
        )

    @property
    def known(self) -> list[Replica]:
        """The replicas that the scheduler may use."""
        return self.bench.batcher.scheduler.replicas

    @property
    def replica(self) -> FakeReplica:
        """The newest connection's far end."""
        _, protocol, transport = self.loop.connections[-1]
        return FakeReplica(protocol, transport)

    def submit_and_take(self) -> tuple[FakeReplica, int]:
        """Submit one request; return the replica and the id of the batch it got."""
        self.bench.submit()
        self.bench.turn()
        replica = self.replica
        ((frame_id, _, _),) = replica.take()
        return replica, frame_id


@pytest.mark.parametrize("address", [ADDRESS, "tcp:127.0.0.1:9", "tcp:::1:9"])
def test_a_link_joins_when_it_connects(address: str) -> None:
    """Once connected a link takes batches; its batcher knows it, and work that waited leaves."""
    wire = Wire(address)
    assert wire.link.is_up
    assert [(known.name, known.handle) for known in wire.known] == [(address, wire.link)]
    assert [where for where, _, _ in wire.loop.connections] == [address]


def test_a_reply_ends_its_batch() -> None:
    """A reply is given to the batch of its id; requests get their rows and the link proves itself."""
    wire = Wire()
    replica, frame_id = wire.submit_and_take()
    wire.bench.clock.advance_us(5)
    replica.say(encode_reply(frame_id, 1))
    assert isinstance(wire.bench.works[0].endings[0], BatchResult)
    assert not wire.link.in_flight
    assert wire.link.success_at_us == wire.bench.clock()


def test_a_reply_may_come_in_pieces() -> None:
    """However a reply is cut, it is one reply."""
    wire = Wire()
    replica, frame_id = wire.submit_and_take()
    for byte in encode_reply(frame_id, 1):
        replica.say(bytes([byte]))
    assert isinstance(wire.bench.works[0].endings[0], BatchResult)


def test_a_model_that_judges_input_works() -> None:
    """A 4xx by the model proves that it runs; a 5xx proves nothing."""
    for status, proves in ((400, True), (500, False), (504, False)):
        wire = Wire()
        replica, frame_id = wire.submit_and_take()
        replica.say(encode_reply(frame_id, 0, failures=(Failure(0, status, ""),)))
        assert bool(wire.link.success_at_us) is proves
        assert wire.bench.works[0].refusal.status == status


GARBAGE = {
    "no frame": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(64),
    "a batch": encode_frame(FrameKind.BATCH, 1, b"", []),
    "an unknown id": encode_reply(99, 1),
    "meta that is none": encode_frame(FrameKind.REPLY, 1, b"\xc1", []),
    "too few rows": encode_reply(1, 0),
    "too many rows": encode_reply(1, 2),
    "failure of nobody": encode_reply(1, 1, failures=(Failure(5, 400, ""),)),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_replica_that_lies_is_cut(garbage: bytes) -> None:
    """Bytes that are not the reply to a batch in flight cut the link, tell the head, and try the work elsewhere."""
    wire = Wire()
    replica, frame_id = wire.submit_and_take()
    assert frame_id == 1
    replica.say(garbage + encode_reply(1, 1))
    assert replica.transport.is_aborted
    assert [where for where, _ in wire.faults] == [ADDRESS]
    assert not wire.link.is_up
    assert not wire.known
    assert wire.link.replica is None
    (work,) = wire.bench.works
    assert (work.state, work.attempts) == (QUEUED, 1)
    assert not wire.link.in_flight


def test_nothing_is_sent_to_a_replica_that_was_given_up() -> None:
    """Between the fault and the loss of the connection no batch goes to that replica, and none is lost with it."""
    wire = Wire()
    replica, _ = wire.submit_and_take()
    wire.link.fault("hangs")
    wire.bench.submit()
    wire.bench.turn()
    assert not replica.take()
    wire.loop.run()
    assert [work.attempts for work in wire.bench.works] == [1, 0]
    assert not any(work.endings for work in wire.bench.works)


@pytest.mark.parametrize("staged", [False, True])
def test_a_hung_replica_is_found(*, staged: bool) -> None:
    """A batch that runs for longer than the execution timeout is a fault; time behind another batch does not count."""
    wire = Wire()
    replica, frame_id = wire.submit_and_take()
    if staged:
        wire.bench.submit(rows=4, timeout_us=10**9)
        wire.bench.turn()
        wire.bench.clock.advance_us(LIMIT_US - 1)
        wire.link.check_execution(wire.bench.clock())
        replica.say(encode_reply(frame_id, 1))
    wire.bench.clock.advance_us(LIMIT_US)
    wire.link.check_execution(wire.bench.clock())
    assert not wire.faults
    wire.bench.clock.advance_us(1)
    wire.link.check_execution(wire.bench.clock())
    ((where, why),) = wire.faults
    assert where == ADDRESS
    assert "did not finish within 30.0 s" in why
    assert replica.transport.is_aborted


def test_an_idle_replica_does_not_hang() -> None:
    """Without a batch in flight no time is too long."""
    wire = Wire()
    wire.link.check_execution(wire.bench.clock() + 10 * LIMIT_US)
    assert not wire.faults


def test_a_lost_link_is_made_again_and_proves_itself_first() -> None:
    """After a loss the link connects again, sends a canary, and takes work only once that is back."""
    wire = Wire()
    replica, _ = wire.submit_and_take()
    replica.die()
    assert not wire.known
    assert wire.link.replica is None
    wire.loop.advance_us(int(RECONNECT_S_MIN * 1e6))
    assert len(wire.loop.connections) == 2
    assert not wire.link.is_up
    again = wire.replica
    ((frame_id, flags, _),) = again.take()
    assert flags == BATCH_FLAG_CANARY
    again.say(encode_reply(frame_id, 1))
    assert wire.link.is_up
    assert wire.link.success_at_us == wire.bench.clock()
    assert again.reply_all() == 1
    assert isinstance(wire.bench.works[0].endings[0], BatchResult)


def test_a_loss_ends_readiness() -> None:
    """Whoever answers at an address after a loss has not proved itself by what was before."""
    wire = Wire()
    replica, frame_id = wire.submit_and_take()
    replica.say(encode_reply(frame_id, 1))
    assert wire.link.success_at_us
    replica.die()
    assert not wire.link.success_at_us


def test_a_failed_canary_is_a_fault() -> None:
    """A canary that comes back with a 5xx proves nothing and is reported; a 4xx shows a model that works."""
    for status, is_fit in ((400, True), (500, False)):
        wire = Wire()
        wire.link.send_canary(wire.bench.clock())
        ((frame_id, _, _),) = wire.replica.take()
        wire.replica.say(encode_reply(frame_id, 0, failures=(Failure(0, status, "broken"),)))
        assert bool(wire.link.success_at_us) is is_fit
        assert wire.faults == ([] if is_fit else [(ADDRESS, "canary: broken")])
        assert wire.link.is_up


def test_connecting_backs_off() -> None:
    """While nobody listens the link tries again, less and less often down to once a second, for ever."""
    wire = Wire(refuses=True)
    wire.loop.advance_us(10_000_000)
    assert not wire.loop.connections
    wire.loop.refuses.clear()
    wire.loop.advance_us(int(RECONNECT_S_MAX * 1e6))
    assert wire.link.is_up


def test_a_replica_that_only_takes_connections_is_not_called_in_a_loop() -> None:
    """A peer that accepts and closes is tried less and less often, down to once a second."""
    wire = Wire()
    closed = 0
    for _ in range(1_000):
        if len(wire.loop.connections) > closed:
            closed += 1
            wire.replica.die()
        wire.loop.advance_us(10_000)
    assert 10 <= closed <= 20


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_closed_link_stays_closed(*, is_connected: bool) -> None:
    """After `close` the connection is cut and not made again; what was in flight is tried elsewhere."""
    wire = Wire(refuses=not is_connected)
    work = wire.bench.submit()
    wire.bench.turn()
    wire.link.close()
    wire.loop.refuses.clear()
    wire.loop.advance_us(10_000_000)
    assert len(wire.loop.connections) == is_connected
    assert not wire.known
    assert wire.link.replica is None
    assert not work.endings
    wire.bench.batcher.end(503, "gone", RefusalReason.UNAVAILABLE)
    assert work.refusal.status == 503
