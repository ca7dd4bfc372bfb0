"""Laws of the catalogue: it becomes what each snapshot says, and ready is what proved itself lately."""

from dataclasses import replace

import pytest

from penstock.gateway.catalogue import CANARY_INTERVAL_US
from penstock.wire.control import ModelEntry
from penstock.wire.frame import BATCH_FLAG_CANARY
from tests.unit.gateway.fakes import SPEC, FakeReplica
from tests.unit.gateway.room import AGE_US_MAX, TEND_US, Room, entry

# -- snapshots -------------------------------------------------------------------------------------------------------


def test_before_the_first_snapshot_nothing_is_known() -> None:
    """An empty catalogue that has not been told so is not ready."""
    room = Room()
    assert not room.catalogue.is_known
    assert not room.catalogue.is_ready
    room.apply()
    assert room.catalogue.is_known
    assert room.catalogue.is_ready
    assert room.changes == 1


def test_models_are_found_by_name_and_version() -> None:
    """Without a version the highest is found, by number and not by spelling."""
    room = Room()
    room.apply(entry(version="9"), entry(version="10"), entry(name="other"))
    assert room.model().entry.version == "10"
    assert room.model(version="9").entry.version == "9"
    assert room.catalogue.versions("sum") == ["9", "10"]
    assert room.catalogue.find("sum", "1") is None
    assert room.catalogue.find("none", None) is None
    room.apply(entry(version="9"))
    assert room.model().entry.version == "9"
    assert room.catalogue.find("other", None) is None


def test_the_same_snapshot_changes_nothing() -> None:
    """A snapshot that repeats what is known leaves models, links and connections as they are."""
    room = Room()
    room.apply(entry("a", "b"))
    model, links = room.model(), dict(room.model().links)
    room.apply(entry("a", "b"))
    assert room.model() is model
    assert model.links == links
    assert len(room.loop.connections) == 2


def test_replicas_come_and_go() -> None:
    """A new address is connected to, one that is no longer named is cut, others are left alone."""
    room = Room()
    room.apply(entry("a", "b"))
    kept = room.model().links["unix:b"]
    room.apply(entry("b", "c"))
    room.loop.run()
    assert set(room.model().links) == {"unix:b", "unix:c"}
    assert room.model().links["unix:b"] is kept
    assert [transport.is_closing() for _, _, transport in room.loop.connections] == [True, False, False]
    batcher = room.model().batcher
    assert batcher is not None
    assert len(batcher.scheduler.replicas) == 2


def test_a_loading_model_gets_its_queue_with_its_spec() -> None:
    """Until a replica has loaded it a model has no queue; then it has, and its links are made."""
    room = Room()
    room.apply(entry(spec=None, state="LOADING"))
    assert room.model().batcher is None
    room.apply(entry("a"))
    assert room.model().batcher is not None
    assert room.model().links


def test_a_removed_model_answers_all_it_had() -> None:
    """When a model is no longer served, what waited and what ran for it is refused at once, once each."""
    room = Room()
    room.apply(entry("a"))
    room.silent.add("unix:a")
    works = [room.submit(room.model()) for _ in range(20)]
    room.apply()
    assert [work.refusal.status for work in works] == [503] * 20
    room.loop.advance_us(100_000_000)
    assert all(len(work.endings) == 1 for work in works)
    assert room.catalogue.pending == 0
    assert room.loop.connections[0][2].is_closing()


def test_a_changed_spec_replaces_the_model() -> None:
    """Another spec under the same version is another model: the old one's requests are refused, its counters kept."""
    room = Room()
    room.apply(entry("a"))
    old = room.model()
    room.silent.add("unix:a")
    work = room.submit(old)
    room.apply(entry("a", spec=replace(SPEC, timeout_us=1)))
    assert room.model() is not old
    assert work.refusal.status == 503
    assert room.model().statistics is old.statistics
    room.apply(entry("a", spec=None))
    assert room.model().spec is not None, "an entry without a spec says nothing about it"


def test_an_unavailable_model_refuses_until_it_is_back() -> None:
    """A model that the head calls UNAVAILABLE refuses with the head's reason; when it is back it serves again."""
    room = Room()
    room.apply(entry("a"))
    room.apply(entry(state="UNAVAILABLE"))
    refusal = room.submit(room.model()).refusal
    assert refusal.status == 503
    assert "because" in refusal.message
    room.apply(entry("b"))
    work = room.submit(room.model())
    room.answer()
    assert len(work.endings) == 1
    assert not hasattr(work.endings[0], "status")


def test_closing_cuts_all_links() -> None:
    """After `close` no connection is left, and none is made again."""
    room = Room()
    room.apply(entry("a", "b"), entry("c", name="other"))
    room.catalogue.close()
    room.loop.advance_us(10_000_000)
    assert all(transport.is_closing() for _, _, transport in room.loop.connections)
    assert len(room.loop.connections) == 3


# -- readiness -------------------------------------------------------------------------------------------------------


def test_ready_needs_a_success() -> None:
    """A connection is not enough: a model is ready once an inference came back."""
    room = Room()
    room.silent.add("unix:a")
    room.apply(entry("a"))
    room.tend()
    assert room.model().links["unix:a"].is_up
    assert not room.catalogue.is_ready
    room.silent.clear()
    room.tend()
    assert room.catalogue.is_ready
    assert room.catalogue.readiness() == {"sum:1": True}


def test_readiness_grows_old() -> None:
    """Without a new success a model is ready for the bound on its age, and no longer."""
    room = Room()
    room.apply(entry("a"))
    room.tend()
    room.silent.add("unix:a")
    room.loop.advance_us(AGE_US_MAX - 1)
    assert room.catalogue.is_ready
    room.loop.advance_us(1)
    assert not room.catalogue.is_ready


def test_a_dead_replica_is_not_ready() -> None:
    """A model is not ready once its last link is down, however recent its last success."""
    room = Room()
    room.apply(entry("a"))
    room.tend()
    room.model().links["unix:a"].fault("hangs")
    assert not room.catalogue.is_ready
    room.loop.run()
    assert not room.catalogue.is_ready


@pytest.mark.parametrize("unready", [entry(name="other"), entry(name="other", spec=None, state="LOADING")])
def test_every_model_counts(unready: ModelEntry) -> None:
    """The gateway is ready if all models are."""
    room = Room()
    room.apply(entry("a"), unready)
    room.tend()
    assert room.catalogue.readiness() == {"sum:1": True, "other:1": False}
    assert not room.catalogue.is_ready


def test_idle_links_get_canaries() -> None:
    """A link without traffic is proved at once and then every two seconds."""
    room = Room()
    room.apply(entry("a"))
    room.tend(10 * CANARY_INTERVAL_US)
    assert 10 <= len(room.canaries) <= 11
    assert room.catalogue.is_ready


def test_busy_links_get_none() -> None:
    """A link that is running a batch, or whose batches succeed, gets no canary."""
    room = Room()
    room.apply(entry("a"))
    for _ in range(20):
        work = room.submit(room.model())
        room.answer()
        assert len(work.endings) == 1
        room.loop.advance_us(CANARY_INTERVAL_US - 1)
        room.catalogue.tend()
    room.silent.add("unix:a")
    room.submit(room.model())
    room.tend(2 * CANARY_INTERVAL_US)
    replica = FakeReplica(*room.loop.connections[0][1:])
    assert not any(flags & BATCH_FLAG_CANARY for _, flags, _ in replica.take())


def test_a_hung_replica_is_reported() -> None:
    """A canary that does not come back in the execution time is a hung replica: reported, and its link cut."""
    room = Room()
    room.silent.add("unix:a")
    room.apply(entry("a"))
    room.tend(SPEC.execution_timeout_us + 4 * TEND_US)
    assert [where for where, _ in room.faults] == ["unix:a"]
    assert room.loop.connections[0][2].is_aborted


def test_pending_counts_what_waits_and_what_runs() -> None:
    """`pending` is every request without an answer; canaries are none."""
    room = Room()
    room.silent.add("unix:a")
    room.apply(entry("a"))
    room.tend()
    assert room.catalogue.pending == 0
    for _ in range(10):
        room.submit(room.model())
    assert room.catalogue.pending == 10
