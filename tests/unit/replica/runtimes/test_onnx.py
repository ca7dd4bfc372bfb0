"""Laws of the onnx runtime: what is declared must be what the graph has, and runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.core.errors import ConfigError, InvalidInput
from penstock.core.models import ModelSource, ModelSpec, SpecOverrides
from penstock.core.tensors import TensorSpec
from penstock.replica.runtimes import load_runtime

SPEC = ModelSpec("published", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))


def _write(directory: Path, operator: str, elem_type: int, shape: Sequence[int | str]) -> str:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", elem_type, shape)],
        [helper.make_tensor_value_info("y", elem_type, shape)],
    )
    path = directory / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def _source(path: str, spec: ModelSpec | None = SPEC, **options: Any) -> ModelSource:
    return ModelSource("m", path, runtime="onnx", spec=spec, options=options, overrides=SpecOverrides(size_max=5))


def test_runs_with_name_platform_and_overrides(tmp_path: Path) -> None:
    """The session's answer comes back by name; the spec is the operator's."""
    runtime = load_runtime(_source(_write(tmp_path, "Neg", TensorProto.FLOAT, ["n", 2]), intra_op_threads=2))
    assert (runtime.spec.name, runtime.spec.platform, runtime.spec.batching.size_max) == ("m", "onnx_onnxruntime", 5)
    outputs = runtime.run({"x": np.array([[1, 2]], dtype=np.float32)}, {})
    assert outputs["y"].tolist() == [[-1, -2]]


@pytest.mark.parametrize(
    ("shape", "inputs", "outputs", "message"),
    [
        (["n", 2], [("z", "FP32", (-1, 2))], None, "inputs: declared 'z', but the graph has x"),
        (["n", 2], [("x", "FP64", (-1, 2))], None, "input 'x': declared FP64, but the graph has FP32"),
        (["n", 2], [("x", "FP32", (-1,))], None, r"input 'x': declared \[-1\], but the graph has \[-1,2\]"),
        (["n", 2], [("x", "FP32", (-1, 3))], None, r"input 'x': declared \[-1,3\], but the graph has \[-1,2\]"),
        ([1, 2], None, None, r"input 'x': declared \[-1,2\], but the graph has \[1,2\]"),
        (["n", 2], None, [("label", "FP32", (-1, 2))], "outputs: declared 'label', but the graph has y"),
    ],
)
def test_declaration_that_the_graph_belies_is_named(
    tmp_path: Path, shape: list[int | str], inputs: Any, outputs: Any, message: str
) -> None:
    """Name, datatype, rank and fixed dimensions are compared at load; the message has both sides."""
    spec = replace(
        SPEC,
        inputs=tuple(TensorSpec(*t) for t in inputs) if inputs else SPEC.inputs,
        outputs=tuple(TensorSpec(*t) for t in outputs) if outputs else SPEC.outputs,
    )
    with pytest.raises(ConfigError, match=message):
        load_runtime(_source(_write(tmp_path, "Neg", TensorProto.FLOAT, shape), spec))


def test_strings_are_bytes_here_and_text_there(tmp_path: Path) -> None:
    """BYTES round-trips through ONNX strings; what is not UTF-8 is blamed on its row."""
    spec = ModelSpec("s", (TensorSpec("x", "BYTES", (-1, 1)),), (TensorSpec("y", "BYTES", (-1, 1)),))
    runtime = load_runtime(_source(_write(tmp_path, "Identity", TensorProto.STRING, ["n", 1]), spec))
    texts = np.array([["é".encode()], [b""]], dtype=object)
    assert runtime.run({"x": texts}, {})["y"].tolist() == texts.tolist()
    with pytest.raises(InvalidInput, match="input 'x': expected UTF-8") as caught:
        runtime.run({"x": np.array([[b"ok"], [b"\xff"]], dtype=object)}, {})
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 2}, "options: expected intra_op_threads, got threads"),
        ({"intra_op_threads": 0}, "intra_op_threads: expected an integer >= 1, got 0"),
        ({"intra_op_threads": "2"}, "expected an integer >= 1, got '2'"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """An option that does not exist, or cannot be, is the operator's error."""
    with pytest.raises(ConfigError, match=message):
        load_runtime(_source(_write(tmp_path, "Neg", TensorProto.FLOAT, ["n", 2]), **options))


def test_missing_spec_missing_file_and_garbage_are_named(tmp_path: Path) -> None:
    """Each way a source can fail to be a model says so."""
    with pytest.raises(ConfigError, match="expected declared inputs and outputs"):
        load_runtime(_source("/nowhere.onnx", None))
    with pytest.raises(ConfigError, match=r"path: expected an ONNX file, got '/nowhere\.onnx'"):
        load_runtime(_source("/nowhere.onnx"))
    garbage = tmp_path / "model.onnx"
    garbage.write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="expected a model onnxruntime can run, got"):
        load_runtime(_source(str(garbage)))
