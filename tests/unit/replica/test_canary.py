"""Laws of warming up: both ends of the batch sizes are run, and a model that cannot answer does not start."""

from collections.abc import Mapping

import pytest

from penstock.core.errors import ConfigError, InvalidInput
from penstock.replica.canary import warm_up
from penstock.replica.runtimes import Array
from tests.unit.replica.fakes import SUM, WHOLE, executor_of


def test_warm_up_runs_one_and_size_max() -> None:
    """A batched model sees one row and size_max rows before anyone else sees it."""
    executor, runtime, clock, _ = executor_of()
    warm_up(executor, SUM, now_us=clock)
    assert runtime.calls == [1, 64]


def test_warm_up_without_batching_runs_once() -> None:
    """A model without batching sees its whole shape once."""
    executor, runtime, clock, _ = executor_of(lambda x: {"y": x[0]}, spec=WHOLE)
    warm_up(executor, WHOLE, now_us=clock)
    assert runtime.calls == [2]


def test_model_that_raises_does_not_start() -> None:
    """The reason is the model's own exception."""

    def raising(x: Array) -> Mapping[str, Array]:
        raise RuntimeError("no device")

    executor, _, clock, _ = executor_of(raising)
    with pytest.raises(ConfigError, match="canary of 1 rows: model 'sum': RuntimeError: no device"):
        warm_up(executor, SUM, now_us=clock)


def test_model_that_refuses_zeros_starts() -> None:
    """InvalidInput is an answer."""

    def refusing(x: Array) -> Mapping[str, Array]:
        raise InvalidInput("input 'x': expected positive values, got 0")

    executor, _, clock, _ = executor_of(refusing)
    warm_up(executor, SUM, now_us=clock)
