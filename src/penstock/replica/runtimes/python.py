"""The `python` runtime: a decorated class in a file.

Trust: the file is code the operator chose to run, named by an absolute path in configuration. Nothing is fetched.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from penstock.core.errors import ConfigError
from penstock.core.models import ModelDeclaration, ModelSource, ModelSpec, declaration_of
from penstock.replica.runtimes import Array

__all__ = ["PythonRuntime"]


class PythonRuntime:
    """An instance of a class decorated with `@penstock.model`, its `load()` already called.

    Raises:
        ConfigError: No such file or class, several that would do, options its constructor does not take, or a
            `__call__` that does not take the declared inputs. The message names the candidates.
        BaseException: Whatever the user's module, constructor or `load()` raises.
    """

    def __init__(self, source: ModelSource) -> None:
        module = _import_file(source)
        cls, declaration = _find_class(module, source)
        self.spec: ModelSpec = source.overrides.apply(replace(declaration.spec, name=source.name))
        _check_options(cls, source)
        instance = cls(**source.options)
        self._takes_parameters = _check_call(instance, self.spec)
        load = getattr(instance, "load", None)
        if load is not None:
            load()
        self._call: Callable[..., Any] = instance
        self._sole_output = self.spec.outputs[0].name if len(self.spec.outputs) == 1 else ""

    def run(self, inputs: dict[str, Array], parameters: dict[str, Any]) -> Mapping[str, Array]:
        """Call the model with one keyword per input; a bare array becomes the only declared output."""
        result = self._call(**inputs, parameters=parameters) if self._takes_parameters else self._call(**inputs)
        if self._sole_output and not isinstance(result, Mapping):
            return {self._sole_output: result}
        return cast("Mapping[str, Array]", result)


def _import_file(source: ModelSource) -> ModuleType:
    """Import the file as a script would see itself: its directory first on the path, so that its siblings import."""
    path = Path(source.path)
    if not path.is_file():
        raise ConfigError(f"model {source.name!r}: path: expected a Python file, got {source.path!r}")
    # Not the bare stem: a model in `random.py` must not replace the standard module.
    name = "penstock_model_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"model {source.name!r}: path: expected a file ending in .py, got {source.path!r}")
    directory = str(path.parent.resolve())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _find_class(module: ModuleType, source: ModelSource) -> tuple[type, ModelDeclaration]:
    found = {id(value): (value, declared) for value in vars(module).values() if (declared := declaration_of(value))}
    candidates = list(found.values())
    names = ", ".join(sorted(f"{cls.__name__} ({declared.name})" for cls, declared in candidates)) or "none"
    if source.attribute is not None:
        wanted = [c for c in candidates if c[0] is getattr(module, source.attribute, None)]
        expected = f"a class {source.attribute!r} decorated with @penstock.model"
    else:
        wanted = [c for c in candidates if c[1].name == source.name] or candidates
        expected = f"one class decorated with @penstock.model, or one declared as {source.name!r}"
    if len(wanted) != 1:
        raise ConfigError(f"model {source.name!r}: {source.path}: expected {expected}, got {names}")
    return wanted[0]


def _check_options(cls: type, source: ModelSource) -> None:
    try:
        signature = inspect.signature(cls)
    except ValueError:  # a class written in C tells nothing; its own TypeError will have to do
        return
    try:
        signature.bind(**source.options)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "none"
        raise ConfigError(
            f"model {source.name!r}: options: expected those of {cls.__name__} ({accepted}), got {error}"
        ) from error


def _check_call(instance: Any, spec: ModelSpec) -> bool:
    """Check that the model can be called with the declared inputs; return True if it wants `parameters` too."""
    if not callable(instance):
        raise ConfigError(f"model {spec.name!r}: expected {type(instance).__name__} to define __call__")
    try:
        signature = inspect.signature(instance)
    except ValueError:  # as above
        return False
    inputs = {t.name for t in spec.inputs}
    takes_parameters = "parameters" in signature.parameters and "parameters" not in inputs
    extra: dict[str, Any] = {"parameters": {}} if takes_parameters else {}
    optional = {t.name for t in spec.inputs if t.optional}
    for given in (inputs, inputs - optional):
        try:
            signature.bind(**dict.fromkeys(given), **extra)
        except TypeError as error:
            expected = f"expected {', '.join(sorted(given))} as keywords, got {error}"
            raise ConfigError(f"model {spec.name!r}: __call__{signature}: {expected}") from error
    return takes_parameters
