"""Laws of merging, by batches as a replica receives them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.merging import is_late, plan_merge
from tests.unit.replica.fakes import batch_of

kinds = st.sampled_from([{}, {"k": 1}, {"k": True}])


@given(st.lists(st.tuples(st.integers(1, 40), kinds), min_size=1, max_size=8))
def test_merge_keeps_order_fits_and_agrees(waiting: list[tuple[int, dict[str, object]]]) -> None:
    """The oldest is always chosen; the chosen agree in signature and fit, and nothing of that kind is passed over."""
    batches = [batch_of([[0, 0]] * n, [n], parameters=p) for n, p in waiting]
    chosen = plan_merge(batches, row_count_max=64)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert {batches[k].signature for k in chosen} == {batches[0].signature}
    assert sum(batches[k].row_count for k in chosen) <= 64
    same = [k for k, b in enumerate(batches) if b.signature == batches[0].signature]
    assert chosen == same[: len(chosen)]


def test_parameters_equal_only_to_python_do_not_merge() -> None:
    """1, True and 1.0 are different parameters to a model."""
    batches = [batch_of([[0, 0]], [1], parameters={"k": value}) for value in (1, True, 1.0)]
    assert plan_merge(batches, row_count_max=64) == [0]


def test_tensors_that_differ_do_not_merge() -> None:
    """Name, datatype and inner shape must agree."""
    first = batch_of([[0, 0]], [1])
    others = [batch_of([[0, 0, 0]], [1]), batch_of([[0, 0]], [1], datatype="FP64"), batch_of([[0, 0]], [1], name="z")]
    assert plan_merge([first, *others, first], row_count_max=64) == [0, 4]


def test_first_batch_larger_than_the_limit_runs_alone() -> None:
    """A batch beyond size_max is run, but takes no company."""
    assert plan_merge([batch_of([[0, 0]] * 9, [9]), batch_of([[0, 0]], [1])], row_count_max=8) == [0]


def test_canary_never_merges() -> None:
    """A canary shares no execution, neither as first nor as follower."""
    canary, work = batch_of([[0, 0]], [1], is_alone=True), batch_of([[0, 0]], [1])
    assert plan_merge([canary, canary, work], row_count_max=64) == [0]
    assert plan_merge([work, canary, work], row_count_max=64) == [0, 2]


@pytest.mark.parametrize(
    ("budget_us", "waited_us", "least_us", "expected"),
    [
        (0, 0, 0, False),
        (0, 10**9, 10**9, False),
        (1_000, 0, 0, False),
        (1_000, 999, 0, False),
        (1_000, 1_000, 0, True),
        (1_000, 0, 999, False),
        (1_000, 0, 1_000, False),
        (1_000, 0, 1_001, True),
        (1_000, 500, 499, False),
        (1_000, 500, 500, False),
        (1_000, 500, 501, True),
        (-1, 0, 0, True),
    ],
)
def test_late_is_who_has_less_time_than_the_least(
    budget_us: int, waited_us: int, least_us: int, *, expected: bool
) -> None:
    """A request is late once waiting and the least execution have used up its budget; 0 is no budget to use up."""
    assert is_late(budget_us=budget_us, waited_us=waited_us, least_us=least_us) is expected
