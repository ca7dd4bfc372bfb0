"""Runtimes: what turns a `ModelSource` into something that runs on numpy arrays, behind one small port.

A runtime is loaded once, in the replica's only thread, and is called from that thread alone. Not here: what is checked
around a call (`replica/executor.py`).
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

from penstock.core.errors import ConfigError
from penstock.core.models import ModelSource, ModelSpec

__all__ = ["Array", "Runtime", "load_runtime"]

Array = npt.NDArray[Any]


class Runtime(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is, with its configured name and overrides applied."""
        ...

    def run(self, inputs: dict[str, Array], parameters: dict[str, Any]) -> Mapping[str, Array]:
        """Run the model once.

        Args:
            inputs: By name, shape (rows, *inner); a model without batching gets each tensor's whole shape. The
                arrays are the model's to change. BYTES is an object array of `bytes`.
            parameters: Request parameters, shared by all rows.

        Returns:
            What the model returned, by output name. Nothing about it is checked here.

        Raises:
            InvalidInput: The caller's input is wrong; `row` may say which.
            BaseException: Whatever else a user's model raises.
        """
        ...


def load_runtime(source: ModelSource) -> Runtime:
    """Load a model: import or open its file, construct it, call its `load()`.

    Raises:
        ConfigError: The source does not lead to a model; the message says what to change.
        BaseException: Whatever a user's module, constructor or `load()` raises.
    """
    # One runtime per process: importing onnxruntime for a Python model would cost 0.2 s and may not be installed.
    if source.runtime == "python":
        from penstock.replica.runtimes.python import PythonRuntime  # noqa: PLC0415

        return PythonRuntime(source)
    if source.runtime == "onnx":
        try:
            from penstock.replica.runtimes.onnx import OnnxRuntime  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigError(f"model {source.name!r}: {error}; run: pip install 'penstock[onnx]'") from error
        return OnnxRuntime(source)
    raise ConfigError(f"model {source.name!r}: runtime: expected 'python' or 'onnx', got {source.runtime!r}")
