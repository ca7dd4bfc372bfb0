"""The catalogue: a model's state and reason follow from its replicas' lives and nothing else."""

from dataclasses import replace

import pytest

from penstock.core.launch import GatewayLaunch, ReplicaLaunch
from penstock.core.models import ModelSource, ModelSpec, SpecOverrides
from penstock.core.profiles import CostProfile
from penstock.core.tensors import TensorSpec
from penstock.fleet.catalogue import describe_model, fingerprint, name_replica
from penstock.fleet.supervisor import Child, ChildState, Launch, Role
from penstock.policy.restarting import RestartState

SPEC = ModelSpec("m", (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), version="4")
PYTHON = ModelSource("m", "/m.py")
ONNX = ModelSource("m", "/m.onnx", runtime="onnx", spec=SPEC, overrides=SpecOverrides(size_max=3))
LAUNCH = ReplicaLaunch("m#0", "unix:/r-0.sock", "/control.sock", PYTHON)


def make(
    state: ChildState, *, spec: ModelSpec | None = None, unready: int = 0, reason: str = "", deaths: int = 0
) -> Child:
    """Return a replica in the middle of its life."""

    def make_launch() -> Launch:
        return LAUNCH

    return Child(
        "m#0",
        Role.REPLICA,
        make_launch,
        launch=LAUNCH,
        state=state,
        spec=spec,
        unready_lives=unready,
        reason=reason,
        restart=RestartState(failures=deaths),
    )


@pytest.mark.parametrize(
    ("children", "state", "reason"),
    [
        ([make(ChildState.LOADING)], "LOADING", ""),
        ([make(ChildState.READY, spec=SPEC)], "READY", ""),
        ([make(ChildState.READY, spec=SPEC), make(ChildState.WAITING, unready=2, reason="bad")], "READY", ""),
        ([make(ChildState.LOADING, reason="killed by SIGKILL", deaths=1)], "LOADING", "killed by SIGKILL"),
        ([make(ChildState.LOADING, unready=1, reason="bad")], "UNAVAILABLE", "bad"),
        ([make(ChildState.LOADING), make(ChildState.WAITING, unready=1, reason="bad")], "UNAVAILABLE", "bad"),
        ([make(ChildState.LOADING, reason="killed by SIGSEGV", deaths=3)], "UNAVAILABLE", "killed by SIGSEGV"),
        ([make(ChildState.STOPPING, spec=SPEC, reason="hangs")], "LOADING", "hangs"),
    ],
)
def test_the_state_follows_from_the_replicas(children: list[Child], state: str, reason: str) -> None:
    """One ready replica makes READY, a failed load UNAVAILABLE with its reason, a crash after service LOADING."""
    entry = describe_model(PYTHON, children)
    assert (entry.state, entry.reason) == (state, reason)
    assert len(entry.replicas) == sum(c.state is ChildState.READY for c in children)


def test_the_spec_is_what_a_replica_said_else_what_was_published() -> None:
    """An ONNX model has its spec, overrides applied, before a replica runs; a Python model after one has, for good."""
    published = describe_model(ONNX, [make(ChildState.LOADING)])
    assert published.spec is not None
    assert (published.version, published.spec.batching.size_max) == ("4", 3)
    assert describe_model(PYTHON, [make(ChildState.LOADING)]).spec is None
    assert describe_model(PYTHON, [make(ChildState.WAITING, spec=SPEC)]).version == "4"


def test_the_profile_is_the_first_that_is_known_and_outlives_its_replica() -> None:
    """Gateways get one measurement for the model, also while the replica that made it is away."""
    silent, first, second = make(ChildState.READY), make(ChildState.WAITING), make(ChildState.READY)
    assert describe_model(PYTHON, [silent]).profile is None
    first.profile, second.profile = CostProfile((1,), (5,)), CostProfile((1,), (9,))
    assert describe_model(PYTHON, [silent, first, second]).profile == first.profile


def test_replicas_are_named_by_model_version_and_index() -> None:
    """The name has the version as soon as the configuration knows it."""
    assert (name_replica(ONNX, 2), name_replica(PYTHON, 0)) == ("m:4#2", "m#0")


def test_a_fingerprint_ignores_the_address_and_nothing_else() -> None:
    """Two lives of one child have one fingerprint; a changed setting makes another."""
    first = fingerprint(LAUNCH)
    assert fingerprint(replace(LAUNCH, address="unix:/r-9.sock")) == first
    assert fingerprint(replace(LAUNCH, source=replace(PYTHON, options={"a": 1}))) != first
    assert fingerprint(replace(LAUNCH, orphan_us=1)) != first
    gateway = GatewayLaunch(0, "127.0.0.1:1", "/control.sock")
    assert fingerprint(gateway) != fingerprint(replace(gateway, http="127.0.0.1:2"))
