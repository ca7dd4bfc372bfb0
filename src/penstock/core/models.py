"""What a published model is: its tensors, its batching, its bounds; and the decorator that declares one in Python.

Not here: loading or running it (`replica/`), the operator's TOML (`cli/config.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, TypeVar

from penstock.core.tensors import TensorSpec

__all__ = [
    "MODES",
    "POLICIES",
    "TENANT_PATTERN",
    "TIMEOUT_MS_MAX",
    "Batching",
    "ModelDeclaration",
    "ModelSource",
    "ModelSpec",
    "QueueBounds",
    "SpecOverrides",
    "declaration_of",
    "model",
]

# How a batch is closed (`policy/batching.py`), and what is favoured where not all can be had.
POLICIES = ("deadline", "size_or_timeout", "adaptive")
MODES = ("latency", "throughput", "fair")

# A tenant's name goes into headers, TOML keys and metric labels without escaping; 64 hold a UUID and a prefix.
TENANT_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
# A day: the longest that any timeout may be, whoever states it.
TIMEOUT_MS_MAX = 86_400_000

_ATTRIBUTE = "__penstock_model__"
_C = TypeVar("_C", bound=type)


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests for one model are put together.

    Args:
        policy: One of `POLICIES`.
        mode: One of `MODES`: what is favoured.
        size_max: Rows in one batch, >= 1.
        wait_us_max: `size_or_timeout` only: how long a request may wait for company, µs.
        eager: `size_or_timeout` only: a replica that is idle takes what waits at once; else it waits, too.
    """

    policy: str = "deadline"
    mode: str = "latency"
    size_max: int = 32
    wait_us_max: int = 2_000
    eager: bool = True


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How much may wait for one model in one gateway. Past either bound new requests get 503 with Retry-After.

    The defaults hold 0.8 s of arrivals at 10,000 requests per second, about as long as a replica takes to restart.
    """

    requests_max: int = 8_192
    bytes_max: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything the gateway must know about one immutable model version.

    Args:
        name: As in the URL.
        version: Digits, as in `/versions/{version}`.
        platform: What OIP metadata reports, e.g. `onnx_onnxruntime` or `python`.
        inputs, outputs: Declared tensors, in order.
        batching: Batch formation.
        queue: Bounds of the waiting room.
        slo_us: Latency to be met, µs from arrival: the deadline of an interactive request that names none. 0 means
            none is stated, and `timeout_us` takes its place.
        timeout_us: Deadline of every other request that names none, µs from arrival.
        execution_timeout_us: A batch that runs longer than this means the replica hangs; it is replaced.
        weights: Share of device time by tenant, > 0, while several wait; a tenant that is not here has 1.
        task: `embedding` if the model answers `/v1/embeddings`; else ''.
        dimensions: Embedding lengths the model can honestly give, the default first.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    version: str = "1"
    platform: str = "python"
    description: str = ""
    batching: Batching = field(default_factory=Batching)
    queue: QueueBounds = field(default_factory=QueueBounds)
    slo_us: int = 0
    timeout_us: int = 30_000_000
    execution_timeout_us: int = 30_000_000
    weights: tuple[tuple[str, float], ...] = ()
    task: str = ""
    dimensions: tuple[int, ...] = ()

    @property
    def is_batched(self) -> bool:
        """True if every tensor has a batch dimension; otherwise each request runs alone, with the shape it came in."""
        return all(t.is_batched for t in self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class SpecOverrides:
    """What the operator's configuration changes in a published ModelSpec; None leaves it as published."""

    policy: str | None = None
    mode: str | None = None
    size_max: int | None = None
    wait_us_max: int | None = None
    eager: bool | None = None
    requests_max: int | None = None
    bytes_max: int | None = None
    slo_us: int | None = None
    timeout_us: int | None = None
    execution_timeout_us: int | None = None
    weights: tuple[tuple[str, float], ...] | None = None

    def apply(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec` with these changes."""

        def changes(*names: str) -> dict[str, Any]:
            return {name: value for name in names if (value := getattr(self, name)) is not None}

        return replace(
            spec,
            batching=replace(spec.batching, **changes("policy", "mode", "size_max", "wait_us_max", "eager")),
            queue=replace(spec.queue, **changes("requests_max", "bytes_max")),
            **changes("slo_us", "timeout_us", "execution_timeout_us", "weights"),
        )


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model version comes from and how many replicas it should have: what a replica is started with.

    Args:
        name: As in the URL.
        path: Absolute path of a Python file (runtime `python`) or of an ONNX file (runtime `onnx`).
        runtime: `python` or `onnx`.
        attribute: Class name in the Python file; None if the file declares one model, or one of this name.
        options: Keyword arguments for the class (python), or session options (onnx): `intra_op_threads`.
        spec: Declared in `model.toml` for `onnx`; None for `python`, whose class declares it.
        overrides: The operator's changes to the spec.
        replicas_min: How many replicas to keep, >= 1.
    """

    name: str
    path: str
    runtime: str = "python"
    attribute: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    spec: ModelSpec | None = None
    overrides: SpecOverrides = field(default_factory=SpecOverrides)
    replicas_min: int = 1


@dataclass(frozen=True, slots=True)
class ModelDeclaration:
    """What `@penstock.model` recorded on a class. The operator's configuration may override the batching."""

    name: str
    spec: ModelSpec


def model(
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    name: str | None = None,
    version: str = "1",
    slo_ms: float | None = None,
    policy: str | None = None,
    mode: str | None = None,
    size_max: int = 32,
    wait_ms_max: float | None = None,
    eager: bool | None = None,
    task: str = "",
    dimensions: Sequence[int] = (),
    description: str = "",
    platform: str = "python",
) -> Callable[[_C], _C]:
    """Publish a class as a model.

    The class may define `__init__(**options)` (the model's `options` from configuration), `load()` (called once in
    each replica, before it is ready) and must define `__call__`. It is called with one keyword per input present in
    the request: a numpy array of shape (batch, *inner), BYTES as an object array of `bytes`. It returns a dict of
    arrays by output name, or the bare array if there is one output. A parameter called `parameters`, if it has one,
    receives the request parameters (requests in one batch share them).

    Args:
        inputs: Declared inputs; give each a leading -1 to allow batching.
        outputs: Declared outputs. What the model returns is checked against them.
        name: Model name; the class name in lower case by default.
        version: Digits.
        slo_ms: Latency to be met, ms from arrival: the deadline of an interactive request that names none.
        policy: When a batch is closed, one of `POLICIES`; `deadline` by default.
        mode: What is favoured, one of `MODES`; `latency` by default.
        size_max: Most rows in one call, >= 1.
        wait_ms_max: `size_or_timeout` only: longest wait for company, ms; 2 by default.
        eager: `size_or_timeout` only: a replica that is idle takes what waits at once; true by default.
        task: `embedding` to answer `/v1/embeddings`: needs an input `text` (BYTES [-1,1]), an output `embedding`
            (FP32 [-1,n]), and may have an input `token_ids` (INT32 [-1,-1], -1 padded) and an output `token_count`
            (INT64 [-1,1]).
        dimensions: Embedding lengths that can be asked for, the default first. Asked for another, `__call__` gets it
            as the request parameter `dimensions` and must return that length.
        description: One line for people.
        platform: What OIP metadata reports.

    Raises:
        ValueError: The declaration is inconsistent; the message names the field.
    """
    if not (version.isascii() and version.isdigit()):
        raise ValueError(f"version: expected digits, got {version!r}")
    if slo_ms is not None and not 0 < slo_ms <= TIMEOUT_MS_MAX:
        raise ValueError(f"slo_ms: expected more than 0 and at most {TIMEOUT_MS_MAX}, got {slo_ms}")
    batching = _declare_batching(policy, mode, size_max, wait_ms_max, eager=eager)
    if task not in ("", "embedding"):
        raise ValueError(f"task: expected 'embedding' or '', got {task!r}")
    for kind, tensors in (("inputs", inputs), ("outputs", outputs)):
        names = [t.name for t in tensors]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{kind}: expected one or more tensors with distinct names, got {names}")
    if task == "embedding" and ("text" not in {t.name for t in inputs} or "embedding" not in {t.name for t in outputs}):
        raise ValueError("task 'embedding': expected an input 'text' and an output 'embedding'")

    def declare(cls: _C) -> _C:
        model_name = name or cls.__name__.lower()
        spec = ModelSpec(
            name=model_name,
            version=version,
            platform=platform,
            description=description,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            batching=batching,
            slo_us=0 if slo_ms is None else max(round(slo_ms * 1_000), 1),
            task=task,
            dimensions=tuple(dimensions),
        )
        setattr(cls, _ATTRIBUTE, ModelDeclaration(model_name, spec))
        return cls

    return declare


def _declare_batching(
    policy: str | None, mode: str | None, size_max: int, wait_ms_max: float | None, *, eager: bool | None
) -> Batching:
    for field_name, value, known in (("policy", policy, POLICIES), ("mode", mode, MODES)):
        if value is not None and value not in known:
            raise ValueError(f"{field_name}: expected one of {', '.join(known)}, got {value!r}")
    if size_max < 1:
        raise ValueError(f"size_max: expected >= 1, got {size_max}")
    if wait_ms_max is not None and not 0 <= wait_ms_max < inf:
        raise ValueError(f"wait_ms_max: expected >= 0, got {wait_ms_max}")
    for field_name, setting in (("wait_ms_max", wait_ms_max), ("eager", eager)):
        if setting is not None and policy not in (None, "size_or_timeout"):
            raise ValueError(f"{field_name}: expected only with policy 'size_or_timeout', got it with {policy!r}")
    default = Batching()
    return Batching(
        policy=policy or default.policy,
        mode=mode or default.mode,
        size_max=size_max,
        wait_us_max=default.wait_us_max if wait_ms_max is None else round(wait_ms_max * 1_000),
        eager=default.eager if eager is None else eager,
    )


def declaration_of(candidate: Any) -> ModelDeclaration | None:
    """Return what `@model` recorded on this very class (not on a parent), or None."""
    found = vars(candidate).get(_ATTRIBUTE) if isinstance(candidate, type) else None
    return found if isinstance(found, ModelDeclaration) else None
