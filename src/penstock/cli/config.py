"""penstock.toml and model.toml: what an operator may write, checked whole at start, turned into the nouns of `core`.

Every mistake of a file is reported at once, each with its key, its value and what was expected. Run as a module it
prints the JSON Schema that `docs/config.schema.json` holds for editors.
Not here: which command line options override a setting (`serve.py`), loading a model (`replica/`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from penstock.cli.config_reading import Problems, read_file
from penstock.cli.config_sections import Address, ConfigFile, ModelFile, ModelSection, parse_address
from penstock.cli.limit_reading import read_limits
from penstock.cli.redis_url import resolve_redis_url
from penstock.core.errors import ConfigError
from penstock.core.launch import HttpLimits
from penstock.core.limits import LimitSettings
from penstock.core.models import ModelSource, ModelSpec, declaration_of, model
from penstock.core.tensors import TensorSpec

__all__ = [
    "ServeConfig",
    "check_exposure",
    "config_schema",
    "load_config",
    "load_target",
    "with_overrides",
]

MODEL_FILE = "model.toml"
ONNX_FILE = "model.onnx"
# Long enough for a file that imports a deep-learning framework from a cold disk.
DISCOVERY_TIMEOUT_S = 120
_HTTP = Address("127.0.0.1", 8000)
_ADMIN = Address("127.0.0.1", 8002)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A checked configuration: what `penstock serve` runs, in the units of the inside."""

    http: Address = _HTTP
    admin: Address = _ADMIN
    gateways: int = 1
    allow_anonymous: bool = False
    state: Path | None = None
    drain_us: int = 30_000_000
    access_log: bool = False
    canary_age_us_max: int = 10_000_000
    orphan_us: int = 300_000_000
    http_limits: HttpLimits = field(default_factory=HttpLimits)
    requires_key: bool = False
    limits: LimitSettings = field(default_factory=LimitSettings)
    sources: tuple[ModelSource, ...] = ()


def load_target(target: str, *, discover: Callable[[Path], bytes] | None = None) -> ServeConfig:
    """Read whatever the user asked to serve.

    Args:
        target: A .toml configuration, a .py file with `@penstock.model` classes, or a directory with model.toml.
        discover: Runs `penstock.cli.discover` on a Python file and returns what it printed.

    Raises:
        ConfigError: It is none of these or something in it is wrong; the message lists everything to change.
    """
    path = Path(target)
    if path.is_dir() or path.name == MODEL_FILE:
        return _load_directory(path if path.is_dir() else path.parent)
    if path.suffix == ".py" and path.is_file():
        return ServeConfig(sources=_discover_sources(path.resolve(), discover or _run_discovery))
    if path.is_file():
        return load_config(path)
    raise ConfigError(
        f"{target}: expected a penstock.toml, a .py file with @penstock.model classes or a directory with {MODEL_FILE},"
        f" got {'a file of another kind' if path.exists() else 'nothing of that name'}"
    )


def load_config(file: Path) -> ServeConfig:
    """Read and check a penstock.toml and every model.toml it names.

    Raises:
        ConfigError: Something is wrong; the message lists everything to change.
    """
    problems = Problems()
    parsed = read_file(file, ConfigFile, problems)
    problems.check()
    assert parsed is not None
    sources = []
    if not parsed.models:
        problems.add(file, "models", "expected at least one [models.NAME] section, got none")
    for name, section in parsed.models.items():
        source = _to_source(file, name, section, problems)
        if source is not None:
            sources.append(source)
    limits = read_limits(file, parsed, problems)
    problems.check()
    server = parsed.server
    return ServeConfig(
        http=parse_address(server.http),
        admin=parse_address(server.admin),
        gateways=server.gateways,
        allow_anonymous=server.allow_anonymous,
        state=None if server.state is None else (file.parent / Path(server.state).expanduser()).resolve(),
        drain_us=round(server.drain_s * 1_000_000),
        access_log=server.access_log,
        canary_age_us_max=round(server.canary_age_s_max * 1_000_000),
        orphan_us=round(server.orphan_s * 1_000_000),
        http_limits=server.limits.to_limits(),
        requires_key=parsed.identity.required,
        limits=limits,
        sources=tuple(sources),
    )


def check_exposure(config: ServeConfig) -> None:
    """Refuse to be reachable from other machines by callers nobody knows, unless the operator said so.

    Raises:
        ConfigError: A port is beyond loopback, `allow_anonymous` is false, and callers need no key: on the admin port
            they never do. Bind to 127.0.0.1 behind something that identifies callers, require keys, or allow it.
    """
    if config.allow_anonymous:
        return
    served = "expected a loopback address, because anyone who reaches it is served"
    allow = "server.allow_anonymous = true"
    if not config.http.is_loopback and not config.requires_key:
        raise ConfigError(
            f"server.http = {config.http}: {served}; set identity.required = true in penstock.toml to serve only those"
            f" who have a key, or {allow} to allow that"
        )
    if not config.admin.is_loopback:
        raise ConfigError(f"server.admin = {config.admin}: {served}; set {allow} in penstock.toml to allow that")


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of penstock.toml, for editors."""
    schema = ConfigFile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "penstock.toml"}


def _load_directory(directory: Path) -> ServeConfig:
    problems = Problems()
    file = directory / MODEL_FILE
    published = read_file(file, ModelFile, problems)
    problems.check()
    assert published is not None
    section = ModelSection.model_validate({"path": str(directory.resolve())})
    source = _to_source(file, published.name, section, problems)
    problems.check()
    assert source is not None
    return ServeConfig(sources=(source,))


def _to_source(file: Path, name: str, section: ModelSection, problems: Problems) -> ModelSource | None:
    """Turn one [models.NAME] section into a source; None if that added problems."""
    key = f"models.{name}"
    path = (file.parent / Path(section.path).expanduser()).resolve()
    runtime = "python" if path.suffix == ".py" else "onnx"
    before = len(problems.found)
    if section.runtime not in (None, runtime):
        expected = "a .py file" if section.runtime == "python" else f"a .onnx file or a directory with {MODEL_FILE}"
        problems.add(file, f"{key}.path", f"{section.path!r}: expected {expected} for runtime {section.runtime}")
        return None
    if runtime == "python":
        _check_python(file, key, section, path, problems)
    elif section.class_ is not None or section.options:
        only = "class" if section.class_ is not None else "options"
        problems.add(
            file, f"{key}.{only}", "expected only with a .py file; session settings belong in its [onnx] table"
        )
    spec, options = None, section.options
    if runtime == "onnx":
        graph, published = _read_published(file, key, section, path, problems)
        if published is None:
            return None
        path = graph
        spec = _to_spec(graph.parent / MODEL_FILE, name, section.version, published, problems)
        threads = section.onnx.intra_op_threads or published.onnx.intra_op_threads
        options = {} if threads is None else {"intra_op_threads": threads}
    if len(problems.found) > before:
        return None
    return ModelSource(
        name=name,
        path=str(path),
        runtime=runtime,
        attribute=section.class_,
        options=options,
        spec=spec,
        overrides=section.to_overrides(),
        replicas_min=section.replicas.min,
    )


def _check_python(file: Path, key: str, section: ModelSection, path: Path, problems: Problems) -> None:
    if not path.is_file():
        problems.add(file, f"{key}.path", f"{section.path!r}: expected a file, got nothing at {path}")
    if section.version is not None:
        problems.add(
            file, f"{key}.version", "expected only with an ONNX model; a Python class declares its own version"
        )
    if section.onnx.intra_op_threads is not None:
        problems.add(file, f"{key}.onnx", "expected only with an ONNX model; a Python class takes [options]")


def _read_published(
    file: Path, key: str, section: ModelSection, path: Path, problems: Problems
) -> tuple[Path, ModelFile | None]:
    """Return the ONNX file and the model.toml beside it, or None for the latter if that added problems."""
    graph = path / ONNX_FILE if path.is_dir() else path
    if not path.exists():
        problems.add(file, f"{key}.path", f"{section.path!r}: expected a file or directory, got nothing at {path}")
    elif not path.is_dir() and path.suffix != ".onnx":
        wanted = f"a .py file, a .onnx file or a directory with {MODEL_FILE}"
        problems.add(file, f"{key}.path", f"{section.path!r}: expected {wanted}")
    elif not (graph.parent / MODEL_FILE).is_file():
        problems.add(file, f"{key}.path", f"{section.path!r}: expected {MODEL_FILE} in {graph.parent}, got none")
    elif not graph.is_file():
        problems.add(file, f"{key}.path", f"{section.path!r}: expected an ONNX file at {graph}, got none")
    else:
        return graph, read_file(graph.parent / MODEL_FILE, ModelFile, problems)
    return graph, None


def _to_spec(file: Path, name: str, version: str | None, published: ModelFile, problems: Problems) -> ModelSpec | None:
    """Turn a model.toml into a spec by the same checks as the decorator of a Python model."""
    tensors: dict[str, list[TensorSpec]] = {"inputs": [], "outputs": []}
    for kind, declared in tensors.items():
        for index, section in enumerate(getattr(published, kind)):
            try:
                declared.append(
                    TensorSpec(section.name, section.datatype, tuple(section.shape), section.optional, section.finite)
                )
            except ValueError as error:
                problems.add(file, f"{kind}[{index}]", str(error))
    if any(len(declared) != len(getattr(published, kind)) for kind, declared in tensors.items()):
        return None
    declare = published.batching.model_dump(exclude_none=True)
    try:
        decorated = model(
            inputs=tensors["inputs"],
            outputs=tensors["outputs"],
            name=name,
            version=version or published.version,
            task=published.task,
            dimensions=published.dimensions,
            description=published.description,
            platform="onnx_onnxruntime",
            slo_ms=published.slo_ms,
            **declare,
        )(type(name, (), {}))
    except ValueError as error:
        problems.add(file, "", str(error))
        return None
    declaration = declaration_of(decorated)
    assert declaration is not None
    return declaration.spec


def _discover_sources(file: Path, discover: Callable[[Path], bytes]) -> tuple[ModelSource, ...]:
    """Make a source of every model that a Python file declares.

    Raises:
        ConfigError: It cannot be imported, or declares no model, or two of one name.
    """
    try:
        found = msgspec.json.decode(discover(file))
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: expected to import it, but the interpreter died: {error}") from error
    if "error" in found:
        raise ConfigError(f"{file}: expected to import it, got {found['error']}")
    models: list[dict[str, str]] = found["models"]
    if not models:
        raise ConfigError(f"{file}: expected at least one class decorated with @penstock.model, got none")
    names = [m["name"] for m in models]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise ConfigError(f"{file}: expected models with distinct names, got {', '.join(doubled)} more than once")
    return tuple(ModelSource(name=m["name"], path=str(file), attribute=m["class"]) for m in models)


def _run_discovery(file: Path) -> bytes:
    """Import a user's file in a process of its own, so that its side effects stay out of the head."""
    command = [sys.executable, "-P", "-m", "penstock.cli.discover", str(file)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=DISCOVERY_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{file}: expected to be imported within {DISCOVERY_TIMEOUT_S} s, it still runs") from error
    return done.stdout


def with_overrides(
    config: ServeConfig,
    *,
    http: str | None,
    admin: str | None,
    gateways: int | None,
    state: Path | None,
    redis: str | None = None,
) -> ServeConfig:
    """Return the configuration with what the command line says instead; None keeps what it has.

    Raises:
        ConfigError: An option does not parse. The message names it.
    """
    changes: dict[str, Any] = {}
    for option, text in (("http", http), ("admin", admin)):
        if text is not None:
            try:
                changes[option] = parse_address(text)
            except ValueError as error:
                raise ConfigError(f"--{option}: {error}, got {text!r}") from error
    if gateways is not None:
        if not 1 <= gateways <= 256:
            raise ConfigError(f"--gateways: expected 1-256, got {gateways}")
        changes["gateways"] = gateways
    if state is not None:
        changes["state"] = state.expanduser().resolve()
    if redis is not None:
        try:
            resolve_redis_url(redis, os.environ)
        except ValueError as error:
            raise ConfigError(f"--redis: {error}") from error
        changes["limits"] = replace(config.limits, redis=redis)
    return replace(config, **changes)


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=2))
