"""The sum example."""

import numpy as np

from examples import sum as sum_file
from penstock.core.models import declaration_of


def test_sums_each_row() -> None:
    """`y` is the sum of each row of `x`, of the declared shape and datatype."""
    model = sum_file.Sum()
    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    y = model(x=x)
    assert y.dtype == np.float32
    assert y.tolist() == [[28.0], [92.0], [156.0]]


def test_is_published_as_sum() -> None:
    """The file publishes exactly one model, called `sum`, that takes batches."""
    declarations = [d for c in vars(sum_file).values() if (d := declaration_of(c))]
    assert [d.name for d in declarations] == ["sum"]
    assert declarations[0].spec.is_batched
