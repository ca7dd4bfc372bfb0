"""Lanes against a list: whatever is pushed, taken and given up in whatever order, the earliest deadline is next."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.profiling import ServiceEstimate
from penstock.policy.queueing import DONE, INTERACTIVE, RUNNING, Entry, SignatureQueue

ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 9)),
        st.tuples(st.sampled_from(["pop", "give up"]), st.integers(0, 99)),
    )
)


@given(acts=ACTS, rows=st.integers(1, 3))
def test_a_lane_is_a_list_ordered_by_deadline(acts: list[tuple[str, int]], rows: int) -> None:
    """The head is always the earliest deadline of those that wait, and requests and rows are their number and sum."""
    queue = SignatureQueue("key", ServiceEstimate(None, 8), 0, alone=False)
    lane = queue.lane(INTERACTIVE, "")
    waiting: list[Entry] = []
    for act, number in acts:
        if act == "push":
            entry = Entry(rows, 0, 0, number)
            lane.push(entry)
            waiting.append(entry)
        elif waiting and act == "pop":
            head = lane.head()
            taken = lane.pop()
            taken.state = RUNNING
            assert taken is head
            waiting.remove(taken)
        elif waiting:
            entry = waiting.pop(number % len(waiting))
            entry.state = DONE
            lane.forget(entry)
        head = lane.head()
        assert (head.deadline_us if head else None) == min((e.deadline_us for e in waiting), default=None)
        assert head is None or head in waiting
        assert (lane.requests, lane.rows) == (len(waiting), rows * len(waiting))
        assert (queue.requests, queue.rows) == (lane.requests, lane.rows)
        assert {id(e) for e in lane.entries()} == {id(e) for e in waiting}
