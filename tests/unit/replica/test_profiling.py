"""Laws of measuring: what comes out is what the device takes, in bounded time, or nothing."""

from collections.abc import Callable, Mapping

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile, profiled_sizes
from penstock.replica.executor import Executor
from penstock.replica.profiling import MEASURE_US_MAX, REPEATS_MAX, REPEATS_MIN, measure_profile
from penstock.replica.runtimes import Array
from tests.unit.replica.fakes import SUM, WHOLE, FunctionRuntime, batch_of, executor_of, sum_rows

SIZES = profiled_sizes(SUM.batching.size_max)


def measure(time_us: Callable[[int, int], int], *, spec: ModelSpec = SUM) -> tuple[CostProfile | None, list[int], int]:
    """Measure a device that takes `time_us(rows, earlier calls)`; return the profile, the calls' rows, the time."""
    executor, runtime, clock, _ = executor_of(spec=spec)

    def run(x: Array) -> Mapping[str, Array]:
        clock.now_us += time_us(len(x), len(runtime.calls) - 1)
        return sum_rows(x) if spec is SUM else {"y": x[0]}

    runtime._function = run
    begin_us = clock.now_us
    profile = measure_profile(executor, spec, now_us=clock)
    return profile, runtime.calls, clock.now_us - begin_us


def test_a_line_is_measured_exactly() -> None:
    """A device of β + α·b has exactly that profile, at the sizes worth measuring."""
    profile, _, _ = measure(lambda rows, _: 2_000 + 100 * rows)
    assert profile == CostProfile.from_line(beta_us=2_000, alpha_us=100, size_max=64)


def test_an_outlier_is_forgiven() -> None:
    """One slow batch of each size changes nothing."""
    slow: set[int] = set()

    def stumbling(rows: int, _: int) -> int:
        first = rows not in slow
        slow.add(rows)
        return 50_000 if first else 2_000

    profile, _, _ = measure(stumbling)
    assert profile is not None
    assert set(profile.times_us) == {2_000}


def test_the_profile_never_falls() -> None:
    """A size that measured faster than a smaller one is taken to cost the same."""
    profile, _, _ = measure(lambda rows, _: 3_000 if rows == 8 else 1_000 + 10 * rows)
    assert profile is not None
    assert list(profile.times_us) == sorted(profile.times_us)
    assert profile.time_us(16) == profile.time_us(8) == 3_000


@pytest.mark.parametrize(
    ("each_us", "repeats"), [(0, REPEATS_MAX), (500, 10), (2_000, REPEATS_MIN), (20_000, REPEATS_MIN)]
)
def test_short_batches_are_repeated_more_often(each_us: int, repeats: int) -> None:
    """Repeats go on for 5 ms, but are at least three and at most twenty-five; every size is measured alike."""
    _, calls, _ = measure(lambda _rows, _: each_us)
    assert [calls.count(size) for size in SIZES] == [repeats] * len(SIZES)


@pytest.mark.parametrize("each_us", [60_000, 400_000, 5_000_000])
def test_a_slow_model_is_measured_at_both_ends_at_least(each_us: int) -> None:
    """After a second no further size is begun; the smallest and the largest are never left out."""
    profile, calls, took_us = measure(lambda _rows, _: each_us)
    assert profile is not None
    assert {1, 64} <= set(profile.rows) < set(SIZES)
    assert took_us < max(MEASURE_US_MAX, 2 * REPEATS_MIN * each_us) + REPEATS_MIN * each_us
    assert len(calls) == REPEATS_MIN * len(profile.rows)


def test_without_batching_one_request_is_measured() -> None:
    """A model without a batch dimension has the cost of one request."""
    profile, calls, _ = measure(lambda _rows, _: 7_000, spec=WHOLE)
    assert profile == CostProfile((1,), (7_000,))
    assert len(calls) == REPEATS_MIN


@pytest.mark.parametrize("error", [InvalidInput("input 'x': expected positive values, got 0"), RuntimeError("boom")])
def test_a_model_that_does_not_run_the_canary_has_no_profile(error: Exception) -> None:
    """Whoever refuses zeros is not known by the time the refusal takes."""

    def refusing(x: Array) -> Mapping[str, Array]:
        raise error

    executor, runtime, clock, _ = executor_of(refusing)
    assert measure_profile(executor, SUM, now_us=clock) is None
    assert len(runtime.calls) == 1


def test_input_and_output_are_part_of_the_cost() -> None:
    """A device is busy with a batch from reading it to packing its outputs, not only while the model runs."""
    ticks = iter(range(1, 1_000_000))
    executor = Executor(FunctionRuntime(SUM, sum_rows), now_us=lambda: next(ticks), log=list[str]().append)
    (reply,) = executor.execute([batch_of([[1, 2]], [1])])
    profile = measure_profile(executor, SUM, now_us=lambda: 0)
    assert profile is not None
    assert profile.time_us(1) == reply.meta.input_us + reply.meta.execute_us + reply.meta.output_us
    assert profile.time_us(1) > reply.meta.execute_us
