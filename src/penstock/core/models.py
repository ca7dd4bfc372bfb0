"""What a published model is: its tensors, its batching, its bounds; and the decorator that declares one in Python.

Not here: loading or running it (`replica/`), the operator's TOML (`cli/config.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from penstock.core.tensors import TensorSpec

__all__ = [
    "Batching",
    "ModelDeclaration",
    "ModelSource",
    "ModelSpec",
    "QueueBounds",
    "SpecOverrides",
    "declaration_of",
    "model",
]

_ATTRIBUTE = "__penstock_model__"
_C = TypeVar("_C", bound=type)


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests for one model are put together.

    Args:
        policy: `size_or_timeout`.
        size_max: Rows in one batch, >= 1.
        wait_us_max: How long a request may wait for company while every replica is busy, µs. A replica that is
            idle never waits.
    """

    policy: str = "size_or_timeout"
    size_max: int = 32
    wait_us_max: int = 2_000


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
        timeout_us: Deadline of a request that names none, µs from arrival.
        execution_timeout_us: A batch that runs longer than this means the replica hangs; it is replaced.
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
    timeout_us: int = 30_000_000
    execution_timeout_us: int = 30_000_000
    task: str = ""
    dimensions: tuple[int, ...] = ()

    @property
    def is_batched(self) -> bool:
        """True if every tensor has a batch dimension; otherwise each request runs alone, with the shape it came in."""
        return all(t.is_batched for t in self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class SpecOverrides:
    """What the operator's configuration changes in a published ModelSpec; None leaves it as published."""

    size_max: int | None = None
    wait_us_max: int | None = None
    requests_max: int | None = None
    bytes_max: int | None = None
    timeout_us: int | None = None
    execution_timeout_us: int | None = None

    def apply(self, spec: ModelSpec) -> ModelSpec:
        """Return `spec` with these changes."""

        def chosen(override: int | None, published: int) -> int:
            return published if override is None else override

        return replace(
            spec,
            batching=replace(
                spec.batching,
                size_max=chosen(self.size_max, spec.batching.size_max),
                wait_us_max=chosen(self.wait_us_max, spec.batching.wait_us_max),
            ),
            queue=replace(
                spec.queue,
                requests_max=chosen(self.requests_max, spec.queue.requests_max),
                bytes_max=chosen(self.bytes_max, spec.queue.bytes_max),
            ),
            timeout_us=chosen(self.timeout_us, spec.timeout_us),
            execution_timeout_us=chosen(self.execution_timeout_us, spec.execution_timeout_us),
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
    size_max: int = 32,
    wait_ms_max: float = 2.0,
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
        size_max: Most rows in one call, >= 1.
        wait_ms_max: Longest wait for company while all replicas are busy, ms.
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
    if size_max < 1:
        raise ValueError(f"size_max: expected >= 1, got {size_max}")
    if wait_ms_max < 0:
        raise ValueError(f"wait_ms_max: expected >= 0, got {wait_ms_max}")
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
            batching=Batching(size_max=size_max, wait_us_max=round(wait_ms_max * 1_000)),
            task=task,
            dimensions=tuple(dimensions),
        )
        setattr(cls, _ATTRIBUTE, ModelDeclaration(model_name, spec))
        return cls

    return declare


def declaration_of(candidate: Any) -> ModelDeclaration | None:
    """Return what `@model` recorded on this very class (not on a parent), or None."""
    found = vars(candidate).get(_ATTRIBUTE) if isinstance(candidate, type) else None
    return found if isinstance(found, ModelDeclaration) else None
