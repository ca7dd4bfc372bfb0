"""Train the digits classifier and export it to ONNX. Deterministic: the same packages give the same model.

Multinomial logistic regression, because it is fast: two ONNX nodes, and a batch of 64 costs ten microseconds.
Intensities go in as they are (0 to 16), so no scaling is left to run at inference. Not here: what is served
(`model.toml`).

Source: UCI Optical Recognition of Handwritten Digits, as shipped inside scikit-learn; no download.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

ACCURACY_MIN = 0.95
PACKAGES = ("scikit-learn", "skl2onnx")
OUTPUTS = ("model.onnx",)


def split_digits() -> tuple[Any, Any, Any, Any]:
    """Split the data, the same way every time: a quarter of each class is held out.

    Returns:
        Training pixels, held-out pixels (float32, shape (n, 64)), training labels, held-out labels (int64, shape (n,)).
    """
    pixels, labels = load_digits(return_X_y=True)
    return tuple(train_test_split(pixels.astype(np.float32), labels, test_size=0.25, random_state=0, stratify=labels))


def build(directory: Path, report: Callable[[str], None], *, accuracy_min: float = ACCURACY_MIN) -> str:
    """Train, measure the exported file on the held-out quarter, and write `model.onnx` into `directory`.

    Args:
        directory: Where to write; must exist.
        report: Told what is being done.
        accuracy_min: Least held-out accuracy that is good enough, 0 to 1.

    Returns:
        One line with the held-out accuracy.

    Raises:
        ValueError: Accuracy is under `accuracy_min`; nothing is written. A package update changed the training.
    """
    report("training")
    train_pixels, held_pixels, train_labels, held_labels = split_digits()
    # C=0.02 is strong regularisation: the inputs are not scaled down, so the weights must be small.
    classifier = LogisticRegression(C=0.02, max_iter=2_000).fit(train_pixels, train_labels)
    report("exporting")
    exported = to_onnx(
        classifier,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={id(classifier): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    ).SerializeToString()
    session = ort.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (labels,) = session.run(["label"], {"pixels": held_pixels})
    accuracy = float((labels == held_labels).mean())
    if accuracy < accuracy_min:
        raise ValueError(f"held-out accuracy: expected >= {accuracy_min}, got {accuracy:.4f}")
    (directory / "model.onnx").write_bytes(exported)
    return f"held-out accuracy {accuracy:.4f} on {len(held_labels)} images"


if __name__ == "__main__":
    console = Console()
    console.print(build(Path(__file__).parent, console.print))
