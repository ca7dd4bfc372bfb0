"""The digits example: what set-up built is what `model.toml` declares, and it can read."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from examples.digits.train import build, split_digits

DATATYPES = {"FP32": "tensor(float)", "INT64": "tensor(int64)"}


@pytest.fixture(scope="module")
def session(built_file: Callable[[str], Path]) -> ort.InferenceSession:
    """The built classifier."""
    return ort.InferenceSession(built_file("examples/digits/model.onnx"), providers=["CPUExecutionProvider"])


def test_held_out_accuracy(session: ort.InferenceSession) -> None:
    """The exported file reads at least 95 % of the digits that training never saw."""
    _, pixels, _, labels = split_digits()
    (got,) = session.run(["label"], {"pixels": pixels})
    assert (got == labels).mean() >= 0.95


def test_probabilities_agree_with_the_label(session: ort.InferenceSession) -> None:
    """Each row of probabilities sums to one and is largest at the label."""
    _, pixels, _, _ = split_digits()
    label, probabilities = session.run(["label", "probabilities"], {"pixels": pixels})
    assert probabilities.shape == (len(pixels), 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(axis=1) == label).all()


@pytest.mark.parametrize("batch", [1, 64])
def test_declaration_matches_the_file(
    session: ort.InferenceSession, built_file: Callable[[str], Path], batch: int
) -> None:
    """Names, datatypes and shapes in `model.toml` are those of the ONNX file, at any batch size."""
    declared = tomllib.loads(built_file("examples/digits/model.toml").read_text())
    for tensors, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        want = [(t["name"], DATATYPES[t["datatype"]], t["shape"][1:]) for t in declared[tensors]]
        assert [(f.name, f.type, f.shape[1:]) for f in found] == want
    results = session.run([t["name"] for t in declared["outputs"]], {"pixels": np.zeros((batch, 64), np.float32)})
    assert [list(r.shape) for r in results] == [[batch, *t["shape"][1:]] for t in declared["outputs"]]


def test_training_is_deterministic(built_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Training again gives the very file that set-up built, and says how accurate it is."""
    summary = build(tmp_path, lambda _: None)
    assert "held-out accuracy 0.9" in summary
    assert (tmp_path / "model.onnx").read_bytes() == built_file("examples/digits/model.onnx").read_bytes()


def test_poor_training_is_refused(tmp_path: Path) -> None:
    """Accuracy under the minimum is an error that says so, and nothing is written."""
    with pytest.raises(ValueError, match=r"held-out accuracy: expected >= 1\.01, got 0\.9"):
        build(tmp_path, lambda _: None, accuracy_min=1.01)
    assert list(tmp_path.iterdir()) == []
