"""Laws of lanes and queues: earliest deadline first, counters that add up, those that gave up forgotten."""

from itertools import permutations

import pytest

from penstock.policy.profiling import ServiceEstimate
from penstock.policy.queueing import (
    BATCH,
    DONE,
    INTERACTIVE,
    QUEUED,
    RUNNING,
    STALE_MAX,
    Entry,
    RequestClass,
    SignatureQueue,
)


def queue_of(*, alone: bool = False) -> SignatureQueue:
    """Return an empty queue."""
    return SignatureQueue("key", ServiceEstimate(None, 8), 0, alone=alone)


def entry_of(deadline_us: int, *, rows: int = 1, tenant: str = "") -> Entry:
    """Return an entry with this deadline."""
    return Entry(rows, 10, 0, deadline_us, tenant=tenant)


def give_up(entry: Entry) -> None:
    """Let an entry leave as the scheduler does when its caller goes away."""
    entry.state = DONE
    entry.lane.forget(entry)


@pytest.mark.parametrize("deadlines", list(permutations([1, 2, 3, 4, 5])))
def test_the_earliest_deadline_goes_first(deadlines: tuple[int, ...]) -> None:
    """In whatever order they come, entries leave in order of deadline."""
    lane = queue_of().lane(INTERACTIVE, "")
    for deadline_us in deadlines:
        lane.push(entry_of(deadline_us))
    left = []
    while lane.head() is not None:
        left.append(lane.pop().deadline_us)
    assert left == sorted(deadlines)


@pytest.mark.parametrize("early", [0, 7])
def test_first_come_first_served_among_equals(early: int) -> None:
    """Entries of one deadline leave in the order they came, whether or not a later deadline was before them."""
    lane = queue_of().lane(INTERACTIVE, "")
    if early:
        lane.push(entry_of(100))
    pushed = [entry_of(50) for _ in range(5)]
    for entry in pushed:
        lane.push(entry)
    popped = []
    for _ in pushed:
        lane.head()
        popped.append(lane.pop())
    assert popped == pushed


def test_head_is_what_pop_takes() -> None:
    """The head stays until it is taken, and is the very entry taken."""
    lane = queue_of().lane(BATCH, "t")
    for deadline_us in (5, 3, 9, 1):
        lane.push(entry_of(deadline_us))
    head = lane.head()
    assert head is lane.head()
    assert head is lane.pop()


def test_an_empty_lane_has_no_head() -> None:
    """There is nothing to take where nothing waits, or where all have given up."""
    lane = queue_of().lane(INTERACTIVE, "")
    assert lane.head() is None
    entries = [entry_of(d) for d in (5, 3)]
    for entry in entries:
        lane.push(entry)
    for entry in entries:
        give_up(entry)
    assert lane.head() is None
    assert lane.entries() == []


def test_who_gave_up_is_passed_over() -> None:
    """Entries that have given up are never the head, wherever in the lane they stood."""
    for gone in ({0}, {1}, {3}, {0, 1}, {2, 3}, {0, 2}, {0, 1, 2}):
        lane = queue_of().lane(INTERACTIVE, "")
        entries = [entry_of(d) for d in (40, 10, 50, 20)]
        for entry in entries:
            lane.push(entry)
        for k in gone:
            give_up(entries[k])
        left = []
        while (head := lane.head()) is not None:
            left.append(head.deadline_us)
            lane.pop()
        assert left == sorted(e.deadline_us for k, e in enumerate(entries) if k not in gone)


def test_counters_are_sums() -> None:
    """Requests and rows of a lane and of its queue are those that wait, after every push, pop and forget."""
    queue = queue_of()
    lanes = [queue.lane(INTERACTIVE, "a"), queue.lane(INTERACTIVE, "b"), queue.lane(BATCH, "a")]
    entries = [entry_of(deadline_us=(7 * k) % 11, rows=1 + k % 3) for k in range(30)]
    for k, entry in enumerate(entries):
        lanes[k % 3].push(entry)
        if k % 5 == 4:
            lane = lanes[k % 2]
            if lane.head() is not None:
                lane.pop().state = RUNNING
        if k % 7 == 6 and entries[k - 3].state is QUEUED:
            give_up(entries[k - 3])
        for lane in lanes:
            waiting = lane.entries()
            assert (lane.requests, lane.rows) == (len(waiting), sum(e.rows for e in waiting))
        assert queue.requests == sum(lane.requests for lane in lanes)
        assert queue.rows == sum(lane.rows for lane in lanes)
    assert queue.requests > 10


@pytest.mark.parametrize("deadlines", [range(1_000), range(1_000, 0, -1)])
def test_those_that_gave_up_are_swept(deadlines: range) -> None:
    """A lane never holds more entries that gave up than live ones and a few, even if its head never leaves."""
    lane = queue_of().lane(INTERACTIVE, "")
    lane.push(entry_of(0))
    entries = [entry_of(deadline_us) for deadline_us in deadlines]
    for entry in entries:
        lane.push(entry)
    for entry in reversed(entries):
        give_up(entry)
        assert len(lane._ordered) + len(lane._late) <= 2 * lane.requests + STALE_MAX + 1
    head = lane.head()
    assert head is not None
    assert head.deadline_us == 0


def test_a_lane_belongs_to_one_class_and_tenant() -> None:
    """Asked again a queue returns the same lane, and another one for another class or tenant."""
    queue = queue_of()
    lanes = {(c, t): queue.lane(c, t) for c in RequestClass for t in ("", "a", "b")}
    assert len(set(map(id, lanes.values()))) == 6
    assert all(queue.lane(c, t) is lane for (c, t), lane in lanes.items())
    assert all((lane.request_class, lane.tenant) == key for key, lane in lanes.items())


def test_a_sweep_forgets_only_what_is_empty() -> None:
    """Lanes with something in them survive a sweep with all they hold."""
    queue = queue_of()
    kept, emptied = queue.lane(INTERACTIVE, "kept"), queue.lane(INTERACTIVE, "emptied")
    entry, gone = entry_of(1), entry_of(2)
    kept.push(entry)
    emptied.push(gone)
    give_up(gone)
    queue.sweep()
    assert list(queue.lanes.values()) == [kept]
    assert queue.heads() == [entry]
    assert queue.requests == 1
    assert queue.lane(INTERACTIVE, "emptied") is queue.lanes[INTERACTIVE, "emptied"]


def test_heads_are_one_a_lane() -> None:
    """The heads of a queue are the earliest entry of each lane that holds something."""
    queue = queue_of()
    for tenant, deadlines in (("a", (5, 2)), ("b", (9,)), ("c", ())):
        for deadline_us in deadlines:
            queue.lane(INTERACTIVE, tenant).push(entry_of(deadline_us))
        queue.lane(BATCH, tenant)
    assert [e.deadline_us for e in queue.heads()] == [2, 9]
