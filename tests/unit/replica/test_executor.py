"""Laws of execution: every request is accounted for once, merging changes nothing, and blame falls where it belongs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.errors import InvalidInput
from penstock.core.profiles import CostProfile
from penstock.core.tensors import TensorSpec
from penstock.replica.batch import Batch, Reply
from penstock.replica.runtimes import Array
from penstock.wire.frame import BatchMeta, FrameTensor
from tests.unit.replica.fakes import (
    SUM,
    WHOLE,
    batch_of,
    bytes_batch,
    executor_of,
    failures,
    messages,
    output,
    sum_rows,
)

# A request: its rows' first values. 13 is unlucky (the model raises), 7 is invalid (it blames the row), NaN is NaN.
requests = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 7.0, 13.0, float("nan")]), min_size=1, max_size=3),
        st.sampled_from([0, 5, 50]),
    ),
    min_size=1,
    max_size=5,
)


def fussy(x: Array) -> Mapping[str, Array]:
    """Sum rows, but raise at 13 and blame the row of a 7."""
    if (x[:, 0] == 13).any():
        raise RuntimeError("thirteen")
    for row in np.flatnonzero(x[:, 0] == 7):
        raise InvalidInput("input 'x': expected no seven", row=row)  # type: ignore[arg-type]  # a numpy integer, as users will
    return sum_rows(x)


def _batch(drawn: list[tuple[list[float], int]]) -> Batch:
    values = [[v, 1.0] for rows, _ in drawn for v in rows]
    return batch_of(values, [len(r) for r, _ in drawn], budgets_us=[b for _, b in drawn], received_at_us=999_990)


def _expected_status(values: list[float], budget_us: int) -> set[int]:
    """Return what may become of a request; 0 is success. Which of several mistakes is named is not a law."""
    if 0 < budget_us <= 10:
        return {504}
    if any(v != v for v in values):  # noqa: PLR0124 - NaN
        return {400}
    return ({500} if 13.0 in values else set()) | ({400} if 7.0 in values else set()) or {0}


@given(st.lists(requests, min_size=1, max_size=4))
def test_each_request_is_answered_once_and_rightly(drawn: list[list[tuple[list[float], int]]]) -> None:
    """One reply per batch; each request fails for its own reason or has its own rows in the outputs, in order."""
    executor, _, _, _ = executor_of(fussy)
    batches = [_batch(d) for d in drawn]
    replies = executor.execute(batches)
    assert len(replies) == len(batches)
    for sent, reply in zip(drawn, replies, strict=True):
        failed = failures(reply)
        assert len(failed) == len(reply.meta.failures)
        assert all(failed.get(k, 0) in _expected_status(*r) for k, r in enumerate(sent))
        values = [v + 1 for k, (rows, _) in enumerate(sent) if k not in failed for v in rows]
        got = output(reply).ravel().tolist() if reply.meta.outputs else []
        assert got == values


@given(st.lists(requests, min_size=2, max_size=4))
def test_merged_is_the_same_as_separate(drawn: list[list[tuple[list[float], int]]]) -> None:
    """A batch's outputs and failures do not depend on its company."""
    batches = [_batch(d) for d in drawn]
    together = executor_of(fussy)[0].execute(batches)
    alone = [executor_of(fussy)[0].execute([b])[0] for b in batches]

    def gist(reply: Reply) -> Any:
        failed = {k: s for k, s in failures(reply).items() if s == 504}
        return reply.payload, reply.meta.outputs, set(failures(reply)), failed

    assert [gist(r) for r in together] == [gist(r) for r in alone]


def test_good_batches_run_once_together() -> None:
    """Merged batches cost one call of the model, and each reply tells the rows run together."""
    executor, runtime, _, _ = executor_of()
    replies = executor.execute([batch_of([[1, 2]], [1]), batch_of([[3, 4], [5, 6]], [2])])
    assert runtime.calls == [3]
    assert [r.meta.executed_rows for r in replies] == [3, 3]
    assert [output(r).ravel().tolist() for r in replies] == [[3], [7, 11]]


@pytest.mark.parametrize("first_us", [0, 1_000])
@pytest.mark.parametrize(("waited_us", "late"), [(99, set()), (100, {1}), (200, {1, 2})])
def test_late_requests_return_unexecuted(waited_us: int, late: set[int], first_us: int) -> None:
    """A request whose budget is used up is not run; one microsecond less is enough to run. 0 means no deadline."""
    executor, runtime, clock, _ = executor_of()
    batch = batch_of([[1, 2], [3, 4], [5, 6]], [1, 1, 1], budgets_us=[first_us, 100, 200])
    clock.now_us += waited_us
    (reply,) = executor.execute([batch])
    assert failures(reply) == dict.fromkeys(late, 504)
    assert runtime.calls == [3 - len(late)]
    assert reply.meta.wait_us == waited_us


def test_all_late_runs_nothing() -> None:
    """With no request left the model is not called."""
    executor, runtime, clock, _ = executor_of()
    clock.now_us += 100
    (reply,) = executor.execute([batch_of([[1, 2]] * 2, [1, 1], budgets_us=[1, 1])])
    assert failures(reply) == {0: 504, 1: 504}
    assert runtime.calls == []
    assert reply.meta.outputs == ()


@pytest.mark.parametrize(("left_us", "late"), [(300, {}), (299, {0: 504}), (0, {0: 504})])
def test_a_request_that_cannot_make_it_even_alone_returns_unexecuted(left_us: int, late: dict[int, int]) -> None:
    """With a profile a budget of less than one row's time is as good as none; that time exactly is enough."""
    executor, runtime, clock, _ = executor_of()
    executor.use_profile(CostProfile((1, 8), (300, 900)))
    clock.now_us += 1_000
    (reply,) = executor.execute([batch_of([[1, 2], [3, 4]], [1, 1], budgets_us=[1_000 + left_us, 0])])
    assert failures(reply) == late
    assert runtime.calls == [2 - len(late)]


def test_who_is_late_is_told_how_late() -> None:
    """The message tells a passed deadline from one that could not be met."""
    executor, _, clock, _ = executor_of()
    executor.use_profile(CostProfile((1,), (300,)))
    clock.now_us += 1_000
    (reply,) = executor.execute([batch_of([[1, 2], [3, 4]], [1, 1], budgets_us=[1_299, 900])])
    assert messages(reply) == {
        0: "deadline: expected at least 300 µs left to execute in, got 299",
        1: "deadline: passed 100 µs before execution would have started",
    }


def test_a_profile_that_was_too_slow_refuses_nobody_for_long() -> None:
    """What a whole batch really took is enough time for one request: a slow measurement is forgotten at once."""
    executor, runtime, clock, _ = executor_of()
    executor.use_profile(CostProfile((1,), (300,)))

    def quick(x: Array) -> Mapping[str, Array]:
        clock.now_us += 200
        return sum_rows(x)

    runtime._function = quick
    tight = [[1, 2]], [1]
    assert failures(executor.execute([batch_of(*tight, budgets_us=[250], received_at_us=clock.now_us)])[0]) == {0: 504}
    executor.execute([batch_of(*tight, received_at_us=clock.now_us)])
    for budget_us, late in ((200, {}), (199, {0: 504})):
        batch = batch_of(*tight, budgets_us=[budget_us], received_at_us=clock.now_us)
        assert failures(executor.execute([batch])[0]) == late


def test_a_failure_says_nothing_about_the_cost() -> None:
    """A model that raises at once does not make its batches look cheap."""
    executor, _, _, _ = executor_of(fussy)
    executor.use_profile(CostProfile((1,), (300,)))
    executor.execute([batch_of([[13, 0]], [1])])
    (reply,) = executor.execute([batch_of([[1, 2]], [1], budgets_us=[299])])
    assert failures(reply) == {0: 504}


def test_nan_blames_only_its_owner_by_its_own_row() -> None:
    """The message counts rows within the request, also behind a request that was dropped as late."""
    executor, runtime, clock, _ = executor_of()
    nan = float("nan")
    batch = batch_of([[1, 1], [2, 2], [3, 3], [4, nan], [5, 5]], [1, 1, 2, 1], budgets_us=[0, 1, 0, 0])
    clock.now_us += 1
    (reply,) = executor.execute([batch])
    assert failures(reply) == {1: 504, 2: 400}
    assert messages(reply)[2] == "input 'x': expected finite values, got NaN or infinity in row 1"
    assert runtime.calls == [2]
    assert output(reply).ravel().tolist() == [2, 10]


def test_blamed_row_costs_one_more_run() -> None:
    """InvalidInput with a row fails its owner and the rest run together again."""
    executor, runtime, _, log = executor_of(fussy)
    (reply,) = executor.execute([batch_of([[1, 1], [2, 2], [7, 7], [3, 3]], [1, 2, 1])])
    assert failures(reply) == {1: 400}
    assert runtime.calls == [4, 2]
    assert log == []


def test_many_blames_end_in_single_runs() -> None:
    """A model that blames row after row is asked request by request: runs stay linear in the requests."""
    executor, runtime, _, _ = executor_of(fussy)
    (reply,) = executor.execute([batch_of([[7, 7]] * 6 + [[1, 1]], [1] * 7)])
    assert failures(reply) == dict.fromkeys(range(6), 400)
    assert runtime.calls == [7, 6, 5, 1, 1, 1, 1]


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3), KeyboardInterrupt(), MemoryError("much")])
def test_whatever_a_model_raises_fails_its_own_request(error: BaseException) -> None:
    """Even SystemExit fails one request with its type and message, and the others run."""

    def raising(x: Array) -> Mapping[str, Array]:
        if (x == 13).any():
            raise error
        return sum_rows(x)

    executor, _, _, log = executor_of(raising)
    for _ in range(2):
        (reply,) = executor.execute([batch_of([[1, 1], [13, 0], [2, 2]], [1, 1, 1])])
        assert failures(reply) == {1: 500}
        assert messages(reply)[1] == f"model 'sum': {type(error).__name__}: {error}"
        assert output(reply).ravel().tolist() == [2, 4]
    assert len(log) == 1
    assert "Traceback" in log[0]


def test_exception_that_cannot_be_printed_still_fails_one_request() -> None:
    """Neither a broken __str__ nor an unencodable message gets past the executor."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ValueError

    for error, text in ((Unprintable(), "could not be formatted"), (OSError("\udcff"), "OSError: ?")):

        def raising(x: Array, error: Exception = error) -> Mapping[str, Array]:
            raise error

        (reply,) = executor_of(raising)[0].execute([batch_of([[1, 1]], [1])])
        assert text in messages(reply)[0]


def test_output_mistake_fails_the_batch_and_not_the_replica() -> None:
    """A wrong dtype fails every request of the execution with the tensor's name; the next execution runs."""
    executor, runtime, _, _ = executor_of(lambda x: {"y": x.sum(axis=1, keepdims=True, dtype=np.float64)})
    for _ in range(2):
        replies = executor.execute([batch_of([[1, 1]] * 2, [1, 1]), batch_of([[1, 1]], [1])])
        assert [failures(r) for r in replies] == [{0: 500, 1: 500}, {0: 500}]
        assert messages(replies[0])[0] == "model 'sum': output 'y': expected FP32 (float32), got float64"
    assert runtime.calls == [3, 3]


def test_deadlines_hold_while_the_culprit_is_sought() -> None:
    """A request whose deadline passes during the single runs is not run any more."""
    executor, runtime, clock, _ = executor_of()

    def slow(x: Array) -> Mapping[str, Array]:
        clock.now_us += 10
        if len(x) > 1:
            raise RuntimeError("one at a time")
        return sum_rows(x)

    runtime._function = slow
    (reply,) = executor.execute([batch_of([[1, 1]] * 3, [1, 1, 1], budgets_us=[15, 15, 50])])
    assert failures(reply) == {1: 504}
    assert runtime.calls == [3, 1, 1]


def test_single_runs_too_are_only_for_those_who_can_make_it() -> None:
    """While the culprit is sought a request with less left than one row takes is not run; with as much it is."""
    executor, runtime, clock, _ = executor_of()
    executor.use_profile(CostProfile((1,), (10,)))

    def slow(x: Array) -> Mapping[str, Array]:
        clock.now_us += 10
        if len(x) > 1:
            raise RuntimeError("one at a time")
        return sum_rows(x)

    runtime._function = slow
    (reply,) = executor.execute([batch_of([[1, 1]] * 3, [1, 1, 1], budgets_us=[20, 29, 30])])
    assert failures(reply) == {1: 504}
    assert runtime.calls == [3, 1, 1]


def test_unbatched_model_gets_whole_shapes_one_by_one() -> None:
    """Without batching each request is one call with the shape it came in."""
    shapes = []

    def column_sums(x: Array) -> Mapping[str, Array]:
        shapes.append(x.shape)
        return {"y": x.sum(axis=0)}

    executor, _, _, _ = executor_of(column_sums, spec=WHOLE)
    (reply,) = executor.execute([batch_of([[[1, 2, 3], [4, 5, 6]], [[0, 0, 1], [1, 0, 0]]], [1, 1])])
    assert shapes == [(2, 3), (2, 3)]
    assert output(reply).tolist() == [[5, 7, 9], [1, 0, 1]]
    assert executor.row_count_max == 0


def test_unbatched_outputs_that_disagree_fail_the_later_request() -> None:
    """One reply tensor has one shape: a request run alone that returns another is told to come again."""
    executor, _, _, _ = executor_of(lambda x: {"y": x[0, : int(x[0, 0])]}, spec=WHOLE)
    (reply,) = executor.execute([batch_of([[[1, 1], [1, 1]], [[2, 1], [1, 1]]], [1, 1])])
    assert failures(reply) == {1: 500}
    assert output(reply).tolist() == [[1]]


def test_rows_of_an_unbatched_request_are_refused() -> None:
    """A model without batching has no rows to give to one request."""
    executor, runtime, _, _ = executor_of(lambda x: {"y": x[0]}, spec=WHOLE)
    (reply,) = executor.execute([batch_of([[[1, 1], [1, 1]]] * 2, [2])])
    assert failures(reply) == {0: 400}
    assert runtime.calls == []


def test_malformed_batch_fails_and_its_company_runs() -> None:
    """Bytes that are not what was described fail that batch's requests with 400, in place."""
    text = replace(SUM, inputs=(TensorSpec("text", "BYTES", (-1, 1)),))
    lengths = executor_of(lambda text: {"y": np.vectorize(len)(text).astype(np.float32)}, spec=text)[0]
    good = bytes_batch(b"\x02\0\0\0ab", [1])
    replies = lengths.execute([good, bytes_batch(b"\x09\0\0\0ab", [1]), good])
    assert [failures(r) for r in replies] == [{}, {0: 400}, {}]
    assert output(replies[2]).tolist() == [[2]]


def test_inputs_and_outputs_keep_their_places() -> None:
    """With several tensors each is read from and written to its own part of the payload."""
    spec = replace(
        SUM,
        inputs=(
            TensorSpec("a", "INT32", (-1,)),
            TensorSpec("text", "BYTES", (-1, 1)),
            TensorSpec("b", "FP64", (-1, 2)),
        ),
        outputs=(TensorSpec("b2", "FP64", (-1, 2)), TensorSpec("a2", "INT32", (-1,))),
    )
    pieces = [
        np.array([1, 2], dtype="<i4").tobytes(),
        b"\x01\0\0\0x\x03\0\0\0xyz",
        np.array([[1, 2], [3, 4]], dtype="<f8").tobytes(),
    ]
    shapes = [("a", "INT32", ()), ("text", "BYTES", (1,)), ("b", "FP64", (2,))]
    tensors = tuple(FrameTensor(*shape, len(piece)) for shape, piece in zip(shapes, pieces, strict=True))
    batch = Batch(1, BatchMeta(tensors, (1, 1), (0, 0), {}), b"".join(pieces), 1_000_000)

    def double(a: Array, text: Array, b: Array) -> Mapping[str, Array]:
        return {"a2": a + np.vectorize(len)(text[:, 0]).astype(np.int32), "b2": 2 * b}

    (reply,) = executor_of(double, spec=spec)[0].execute([batch])
    assert output(reply, 0).tolist() == [[2, 4], [6, 8]]
    assert output(reply, 1).tolist() == [2, 5]


def test_signature_of_another_model_is_refused() -> None:
    """Every request of a batch that this model cannot take gets 400 and the model is not called."""
    executor, runtime, _, _ = executor_of()
    meta = BatchMeta((FrameTensor("z", "FP32", (2,), 16),), (1, 1), (0, 0), {})
    (reply,) = executor.execute([Batch(1, meta, bytes(16), 1_000_000)])
    assert failures(reply) == {0: 400, 1: 400}
    assert runtime.calls == []


def test_model_time_is_told_apart() -> None:
    """execute_us is the model's own time, wait_us runs from receipt to start."""
    executor, runtime, clock, _ = executor_of()

    def slow(x: Array) -> Mapping[str, Array]:
        clock.now_us += 250
        return sum_rows(x)

    runtime._function = slow
    clock.now_us += 40
    (reply,) = executor.execute([batch_of([[1, 1]], [1])])
    meta = reply.meta
    assert (meta.wait_us, meta.input_us, meta.execute_us, meta.output_us) == (40, 0, 250, 0)
