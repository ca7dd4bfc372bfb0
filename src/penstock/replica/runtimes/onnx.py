"""The `onnx` runtime: an ONNX file in an onnxruntime session, on the GPU if its CUDA provider is installed.

One thread per replica by default: replicas scale by number, and idle threads that spin would steal their cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from penstock.core.errors import ConfigError, InvalidInput
from penstock.core.models import ModelSource, ModelSpec
from penstock.core.tensors import TensorSpec, format_shape
from penstock.replica.runtimes import Array

__all__ = ["OnnxRuntime"]

# onnxruntime's names for its element types.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxRuntime:
    """An onnxruntime session whose inputs and outputs agree with the declared spec. Request parameters are ignored.

    Raises:
        ConfigError: No spec, no such file, an unknown option, a file that is not a model onnxruntime can run, or
            declared tensors that the graph does not have. The message names the tensor, expected and got.
    """

    def __init__(self, source: ModelSource) -> None:
        if source.spec is None:
            raise ConfigError(f"model {source.name!r}: expected declared inputs and outputs (model.toml), got none")
        self.spec: ModelSpec = source.overrides.apply(
            replace(source.spec, name=source.name, platform="onnx_onnxruntime")
        )
        self._session = _open_session(source)
        _check_tensors(self.spec, "input", self.spec.inputs, self._session.get_inputs())
        _check_tensors(self.spec, "output", self.spec.outputs, self._session.get_outputs())
        self._output_names = [t.name for t in self.spec.outputs]
        self._text_inputs = [t.name for t in self.spec.inputs if t.datatype == "BYTES"]
        self._text_outputs = [t.name for t in self.spec.outputs if t.datatype == "BYTES"]

    def run(self, inputs: dict[str, Array], parameters: dict[str, Any]) -> Mapping[str, Array]:
        """Run the session. BYTES must be UTF-8, which is what ONNX strings are."""
        for name in self._text_inputs:
            if name in inputs:
                inputs[name] = _to_text(name, inputs[name])
        outputs = dict(zip(self._output_names, self._session.run(self._output_names, inputs), strict=True))
        for name in self._text_outputs:
            outputs[name] = _from_text(outputs[name])
        return outputs


def _open_session(source: ModelSource) -> Any:
    unknown = source.options.keys() - {"intra_op_threads"}
    if unknown:
        raise ConfigError(
            f"model {source.name!r}: options: expected intra_op_threads, got {', '.join(sorted(unknown))}"
        )
    threads = source.options.get("intra_op_threads", 1)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigError(f"model {source.name!r}: options.intra_op_threads: expected an integer >= 1, got {threads!r}")
    if not Path(source.path).is_file():
        raise ConfigError(f"model {source.name!r}: path: expected an ONNX file, got {source.path!r}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    available = ort.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    try:
        return ort.InferenceSession(source.path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no class of their own
        raise ConfigError(
            f"model {source.name!r}: {source.path}: expected a model onnxruntime can run, got: {error}"
        ) from error


def _check_tensors(spec: ModelSpec, kind: str, declared: Sequence[TensorSpec], actual: Sequence[Any]) -> None:
    """Check declared tensors against the graph's: names, datatypes, ranks, and dimensions fixed in both."""
    graph = {node.name: node for node in actual}
    where = f"model {spec.name!r}: {kind}"
    for tensor in declared:
        node = graph.get(tensor.name)
        if node is None:
            raise ConfigError(f"{where}s: declared {tensor.name!r}, but the graph has {', '.join(graph)}")
        datatype = _DATATYPES.get(node.type, node.type)
        if datatype != tensor.datatype:
            raise ConfigError(f"{where} {tensor.name!r}: declared {tensor.datatype}, but the graph has {datatype}")
        shape = list(node.shape)  # empty for a scalar, and also where the graph leaves even the rank open
        closed = [d if isinstance(d, int) else -1 for d in shape]
        if shape and (
            len(shape) != len(tensor.shape) or any(-1 != g != d for g, d in zip(closed, tensor.shape, strict=True))
        ):
            difference = f"declared {format_shape(tensor.shape)}, but the graph has {format_shape(closed)}"
            raise ConfigError(f"{where} {tensor.name!r}: {difference}")
    if kind == "input":
        missing = sorted(graph.keys() - {t.name for t in declared})
        if missing:
            raise ConfigError(f"{where}s: the graph needs {', '.join(missing)} too; declare them")


def _to_text(name: str, array: Array) -> Array:
    text = np.empty(array.size, dtype=object)
    for k, element in enumerate(array.flat):
        try:
            text[k] = element.decode()
        except UnicodeDecodeError as error:
            row = int(np.unravel_index(k, array.shape)[0]) if array.ndim else None
            raise InvalidInput(f"input {name!r}: expected UTF-8, got {error}", row=row) from error
    return cast("Array", text.reshape(array.shape))


def _from_text(array: Array) -> Array:
    data = np.empty(array.size, dtype=object)
    data[:] = [str(element).encode() for element in array.flat]
    return cast("Array", data.reshape(array.shape))
