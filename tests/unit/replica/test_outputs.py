"""Laws of checking outputs: nothing wrong passes, the message says what, and what passes round-trips."""

from typing import Any

import numpy as np
import pytest

from penstock.core.models import ModelSpec
from penstock.core.tensors import TensorSpec
from penstock.replica.outputs import OutputMistake, check_outputs, pack_outputs, plan_outputs

SPEC = ModelSpec(
    "m",
    (TensorSpec("x", "FP32", (-1, 1)),),
    (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("t", "BYTES", (-1, -1))),
)
PLAN = plan_outputs(SPEC)
Y = np.array([[1, 2], [3, 4]], dtype=np.float32)
T = np.array([[b"a"], [b"bc"]], dtype=object)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"y": Y}, "outputs: expected a dict of y, t, got y"),
        ({"y": Y, "t": T, "z": Y}, "got y, t, z"),
        ([Y, T], "expected a dict of y, t, got list"),
        (None, "got NoneType"),
        ({"y": Y, "z": T}, "output 't': expected a numpy array, got none"),
        ({"y": [[1.0, 2.0]], "t": T}, "output 'y': expected a numpy array, got list"),
        ({"y": Y.astype(np.float64), "t": T}, r"output 'y': expected FP32 \(float32\), got float64"),
        ({"y": Y.astype(">f4"), "t": T}, r"output 'y': expected FP32 \(float32\), got >f4"),
        ({"y": Y[:1], "t": T}, r"output 'y': expected shape \[2,2\], got \[1,2\]"),
        ({"y": Y[:, :1], "t": T}, r"output 'y': expected shape \[2,2\], got \[2,1\]"),
        ({"y": Y[0], "t": T}, r"output 'y': expected shape \[2,2\], got \[2\]"),
        ({"y": Y, "t": T[:, 0]}, r"output 't': expected shape \[2,-1\], got \[2\]"),
        (
            {"y": Y, "t": np.array([["a"], [b"b"]], dtype=object)},
            "output 't': expected elements of type bytes, got str",
        ),
        ({"y": Y, "t": np.array([[None], [b"b"]], dtype=object)}, "type bytes, got NoneType"),
    ],
)
def test_mistake_is_named(outputs: Any, message: str) -> None:
    """Each mistake of a model is refused with the tensor, expected and got."""
    with pytest.raises(OutputMistake, match=message):
        check_outputs(PLAN, outputs, (2,))


def test_right_outputs_pass_in_declared_order_and_pack_by_rows() -> None:
    """Rows packed in two parts hold the same bytes as the whole; memory layout does not matter."""
    arrays = check_outputs(PLAN, {"t": T, "y": np.asfortranarray(Y)}, (2,))
    _, whole = pack_outputs(PLAN, arrays, 0, 2)
    (tensors, first), (_, second) = pack_outputs(PLAN, arrays, 0, 1), pack_outputs(PLAN, arrays, 1, 2)
    assert [bytes(a) + bytes(b) for a, b in zip(first, second, strict=True)] == [bytes(w) for w in whole]
    assert whole == [Y.tobytes(), b"\x01\0\0\0a\x02\0\0\0bc"]
    assert [(t.name, t.shape, t.nbytes) for t in tensors] == [("y", (2,), 8), ("t", (1,), 5)]
