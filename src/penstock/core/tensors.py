"""Tensors as the Open Inference Protocol names them: datatype, shape, row-major little-endian bytes.

Not here: JSON (`wire/oip.py`) and numpy arrays (`replica/`).
Source: Open Inference Protocol v2, "Tensor Data Types"; BYTES elements are a uint32 length and that many bytes.
"""

from dataclasses import dataclass
from math import prod

__all__ = ["DATATYPES", "Datatype", "TensorSpec", "format_shape"]


@dataclass(frozen=True, slots=True)
class Datatype:
    """One OIP datatype: its width, the `struct`/`memoryview` code of one element, and numpy's name for it."""

    name: str
    itemsize: int  # bytes per element; 0 for BYTES, whose elements carry their own length
    code: str  # struct code, '' where struct has none we may use
    numpy: str


DATATYPES: dict[str, Datatype] = {
    d.name: d
    for d in (
        Datatype("BOOL", 1, "?", "bool"),
        Datatype("UINT8", 1, "B", "<u1"),
        Datatype("UINT16", 2, "H", "<u2"),
        Datatype("UINT32", 4, "I", "<u4"),
        Datatype("UINT64", 8, "Q", "<u8"),
        Datatype("INT8", 1, "b", "<i1"),
        Datatype("INT16", 2, "h", "<i2"),
        Datatype("INT32", 4, "i", "<i4"),
        Datatype("INT64", 8, "q", "<i8"),
        Datatype("FP16", 2, "e", "<f2"),
        Datatype("FP32", 4, "f", "<f4"),
        Datatype("FP64", 8, "d", "<f8"),
        Datatype("BYTES", 0, "", "object"),
    )
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A declared input or output of a model.

    Args:
        name: Unique among the model's inputs (or outputs).
        datatype: A key of `DATATYPES`.
        shape: Dimensions; -1 means "any length". A leading -1 is the batch dimension.
        optional: The request may leave this input out.
        finite: NaN and infinities in this input are the caller's error (float datatypes only).

    Raises:
        ValueError: The datatype is unknown or a dimension is below -1 or zero. Fix the declaration.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    finite: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("tensor name: expected a non-empty string, got ''")
        if self.datatype not in DATATYPES:
            known = ", ".join(DATATYPES)
            raise ValueError(f"tensor {self.name!r}: expected a datatype of {known}, got {self.datatype!r}")
        object.__setattr__(self, "shape", tuple(self.shape))
        if any(d == 0 or d < -1 for d in self.shape):
            raise ValueError(f"tensor {self.name!r}: expected dimensions >= 1 or -1, got {list(self.shape)}")

    @property
    def is_batched(self) -> bool:
        """True if the first dimension is the batch dimension."""
        return bool(self.shape) and self.shape[0] == -1

    @property
    def inner_count(self) -> int:
        """Elements per row, or -1 if an inner dimension is open."""
        inner = self.shape[1:]
        return -1 if -1 in inner else prod(inner)


def format_shape(shape: tuple[int, ...] | list[int]) -> str:
    """Write a shape the way OIP metadata does: `[-1,64]`."""
    return "[" + ",".join(str(d) for d in shape) + "]"
