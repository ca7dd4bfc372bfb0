"""Laws of published models: what a declaration records, what an operator may change, what is refused."""

from dataclasses import fields, replace
from typing import Any

import pytest

from penstock.core.models import (
    MODES,
    POLICIES,
    Batching,
    ModelSpec,
    QueueBounds,
    SpecOverrides,
    declaration_of,
    model,
)
from penstock.core.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1, 8))
Y = TensorSpec("y", "FP32", (-1, 1))
SPEC = ModelSpec("sum", (X,), (Y,))


def test_a_declaration_is_recorded() -> None:
    """`@model` records what it is told, with milliseconds as microseconds, and leaves the class as it was."""

    class Plain:
        pass

    declared = model(inputs=[X], outputs=[Y], name="other", version="7", size_max=5, wait_ms_max=1.5)(Plain)
    assert declared is Plain
    found = declaration_of(Plain)
    assert found is not None
    assert found.name == found.spec.name == "other"
    assert found.spec == ModelSpec("other", (X,), (Y,), version="7", batching=Batching(size_max=5, wait_us_max=1_500))


def test_a_declaration_says_how_it_is_scheduled() -> None:
    """Policy, mode and SLO are recorded; left out, the policy is `deadline`, the mode `latency`, and no SLO stated."""

    @model(inputs=[X], outputs=[Y], slo_ms=12.5, policy="size_or_timeout", mode="fair", eager=False)
    class Told:
        pass

    @model(inputs=[X], outputs=[Y])
    class Untold:
        pass

    told, untold = declaration_of(Told), declaration_of(Untold)
    assert told is not None
    assert untold is not None
    assert told.spec.batching == Batching("size_or_timeout", "fair", eager=False)
    assert (told.spec.slo_us, untold.spec.slo_us) == (12_500, 0)
    assert untold.spec.batching == Batching()
    assert (Batching().policy, Batching().mode) == ("deadline", "latency")


def test_the_name_is_that_of_the_class_by_default() -> None:
    """Without a name a model is called like its class, in lower case."""

    @model(inputs=[X], outputs=[Y])
    class Summing:
        pass

    found = declaration_of(Summing)
    assert found is not None
    assert found.name == "summing"


def test_a_declaration_is_not_inherited() -> None:
    """A subclass of a model, an instance and a class without a declaration are no models."""

    @model(inputs=[X], outputs=[Y])
    class Parent:
        pass

    class Child(Parent):
        pass

    assert declaration_of(Child) is None
    assert declaration_of(Parent()) is None
    assert declaration_of(int) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "v1"}, "version: expected digits"),
        ({"version": ""}, "version: expected digits"),
        ({"size_max": 0}, "size_max: expected >= 1"),
        ({"wait_ms_max": -1}, "wait_ms_max: expected >= 0"),
        ({"wait_ms_max": float("inf")}, "wait_ms_max: expected >= 0"),
        ({"slo_ms": 0}, "slo_ms: expected more than 0"),
        ({"slo_ms": float("nan")}, "slo_ms: expected more than 0"),
        ({"slo_ms": 86_400_001}, "slo_ms: expected more than 0 and at most 86400000"),
        ({"policy": "fifo"}, "policy: expected one of deadline, size_or_timeout, adaptive, got 'fifo'"),
        ({"mode": ""}, "mode: expected one of latency, throughput, fair, got ''"),
        ({"policy": "deadline", "wait_ms_max": 2}, "wait_ms_max: expected only with policy 'size_or_timeout'"),
        ({"policy": "adaptive", "eager": True}, "eager: expected only with policy 'size_or_timeout'"),
        ({"task": "chat"}, "task: expected 'embedding'"),
        ({"inputs": []}, "inputs: expected one or more"),
        ({"outputs": [Y, Y]}, "outputs: expected one or more tensors with distinct names"),
        ({"task": "embedding"}, "expected an input 'text'"),
    ],
)
def test_inconsistent_declarations_are_refused(changes: dict[str, Any], message: str) -> None:
    """A declaration that contradicts itself is refused, naming the field."""
    with pytest.raises(ValueError, match=message):
        model(**{"inputs": [X], "outputs": [Y], **changes})


@pytest.mark.parametrize(
    ("tensor", "is_batched"), [(X, True), (TensorSpec("x", "FP32", (8,)), False), (TensorSpec("x", "FP32", ()), False)]
)
def test_batching_needs_every_tensor(tensor: TensorSpec, *, is_batched: bool) -> None:
    """A model can be batched if and only if all its tensors have a batch dimension."""
    assert replace(SPEC, inputs=(X, tensor)).is_batched is is_batched
    assert replace(SPEC, outputs=(Y, tensor)).is_batched is is_batched


def test_no_override_changes_nothing() -> None:
    """An operator who says nothing changes nothing."""
    assert SpecOverrides().apply(SPEC) == SPEC


def test_each_override_reaches_its_field() -> None:
    """Each setting changes exactly the field of its name, zero included."""
    places = {
        "batching": ("policy", "mode", "size_max", "wait_us_max", "eager"),
        "queue": ("requests_max", "bytes_max"),
    }
    values: dict[str, tuple[Any, ...]] = {
        "policy": POLICIES,
        "mode": MODES,
        "eager": (False, True),
        "weights": ((), (("a", 2.0),)),
    }
    for field in fields(SpecOverrides):
        for value in values.get(field.name, (0, 12_345)):
            changed = SpecOverrides(**{field.name: value}).apply(SPEC)
            part = next((part for part, names in places.items() if field.name in names), None)
            expected: Any = value if part is None else replace(getattr(SPEC, part), **{field.name: value})
            assert changed == replace(SPEC, **{part or field.name: expected})


def test_bounds_hold_by_default() -> None:
    """A model that declares nothing has bounds all the same."""
    assert QueueBounds() == SPEC.queue
    assert SPEC.queue.requests_max > 0
    assert SPEC.timeout_us > 0
    assert SPEC.execution_timeout_us > 0
