"""Laws of the python runtime: it finds the class that was meant, or says which there are."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.core.errors import ConfigError
from penstock.core.models import ModelSource, SpecOverrides
from penstock.replica.runtimes import load_runtime

HEAD = """
import numpy as np
import penstock
T = penstock.Tensor
DECLARED = dict(inputs=[T("x", "FP32", (-1, 2))], outputs=[T("y", "FP32", (-1, 1))], size_max=8)
"""


@pytest.fixture(autouse=True)
def _restore_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("penstock_model_", "sibling_")):
            del sys.modules[name]


def _write(directory: Path, body: str, name: str = "some_model.py") -> str:
    path = directory / name
    path.write_text(HEAD + textwrap.dedent(body))
    return str(path)


ONE = """
@penstock.model(**DECLARED)
class Sum:
    def __call__(self, x):
        return x.sum(axis=1, keepdims=True)
"""


def test_sole_model_is_found_and_takes_the_configured_name(tmp_path: Path) -> None:
    """One declared class needs no name; the spec gets the configured name and overrides."""
    overrides = SpecOverrides(size_max=3, timeout_us=7)
    runtime = load_runtime(ModelSource("other", _write(tmp_path, ONE), overrides=overrides))
    assert (runtime.spec.name, runtime.spec.platform) == ("other", "python")
    assert (runtime.spec.batching.size_max, runtime.spec.timeout_us) == (3, 7)
    outputs = runtime.run({"x": np.ones((2, 2), dtype=np.float32)}, {})
    assert outputs["y"].tolist() == [[2], [2]]


TWO = (
    ONE
    + """
@penstock.model(name="twice", **DECLARED)
class Double:
    def __call__(self, x):
        return {"y": 2 * x[:, :1]}

class Child(Double):
    pass

Alias = Double
"""
)


@pytest.mark.parametrize(("name", "attribute"), [("twice", None), ("any", "Double"), ("any", "Alias")])
def test_one_of_several_is_found(tmp_path: Path, name: str, attribute: str | None) -> None:
    """By declared name or by attribute; an alias or an undecorated child is no second candidate."""
    runtime = load_runtime(ModelSource(name, _write(tmp_path, TWO), attribute=attribute))
    assert runtime.run({"x": np.ones((1, 2), dtype=np.float32)}, {})["y"].tolist() == [[2]]


@pytest.mark.parametrize(
    ("body", "attribute", "message"),
    [
        (TWO, None, r"declared as 'm', got Double \(twice\), Sum \(sum\)"),
        (TWO, "Triple", r"expected a class 'Triple' .*, got Double \(twice\), Sum \(sum\)"),
        (TWO, "Child", r"expected a class 'Child' decorated"),
        ("", None, "got none"),
    ],
)
def test_unclear_class_names_the_candidates(tmp_path: Path, body: str, attribute: str | None, message: str) -> None:
    """The error says what was looked for and what the file has."""
    with pytest.raises(ConfigError, match=message):
        load_runtime(ModelSource("m", _write(tmp_path, body), attribute=attribute))


def test_options_load_parameters_and_siblings(tmp_path: Path) -> None:
    """The constructor gets the options, load() is called once, siblings import, `parameters` is passed on."""
    (tmp_path / "sibling_weights.py").write_text("FACTOR = 3")
    body = """
    from sibling_weights import FACTOR

    @penstock.model(**DECLARED)
    class Scaled:
        def __init__(self, *, bias: float = 0.0):
            self.bias = bias
            self.loads = 0

        def load(self):
            self.loads += 1

        def __call__(self, x, parameters):
            y = x[:, :1] * FACTOR * self.loads + self.bias + parameters.get("plus", 0)
            return {"y": y.astype(np.float32)}
    """
    runtime = load_runtime(ModelSource("m", _write(tmp_path, body), options={"bias": 0.5}))
    assert runtime.run({"x": np.ones((1, 2), dtype=np.float32)}, {"plus": 10})["y"].tolist() == [[13.5]]


@pytest.mark.parametrize("options", [{"biass": 1.0}, {}])
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    """An unknown or missing option is the operator's error, with those that exist."""
    body = """
    @penstock.model(**DECLARED)
    class Scaled:
        def __init__(self, bias):
            pass

        def __call__(self, x):
            return x
    """
    with pytest.raises(ConfigError, match=r"model 'm': options: expected those of Scaled \(bias\), got .*'bias"):
        load_runtime(ModelSource("m", _write(tmp_path, body), options=options))


@pytest.mark.parametrize("call", ["def __call__(self, pixels): ...", "def __call__(self, x, y): ...", "pass"])
def test_call_must_take_the_declared_inputs(tmp_path: Path, call: str) -> None:
    """A `__call__` that cannot be called as declared is found at load, not at the first request."""
    body = f"@penstock.model(**DECLARED)\nclass Wrong:\n    {call}\n"
    with pytest.raises(ConfigError, match=r"model 'm': .*__call__"):
        load_runtime(ModelSource("m", _write(tmp_path, body)))


def test_optional_input_needs_a_default(tmp_path: Path) -> None:
    """An input that requests may leave out must be one that the call may leave out."""
    body = """
    DECLARED["inputs"] += [T("z", "FP32", (-1, 1), optional=True)]

    @penstock.model(**DECLARED)
    class Wrong:
        def __call__(self, x, z):
            return x
    """
    with pytest.raises(ConfigError, match="missing a required argument: 'z'"):
        load_runtime(ModelSource("m", _write(tmp_path, body)))


def test_file_named_like_a_module_does_not_replace_it(tmp_path: Path) -> None:
    """A model in random.py is not `random` to the rest of the process."""
    load_runtime(ModelSource("m", _write(tmp_path, ONE, "random.py")))
    assert not hasattr(sys.modules["random"], "Sum")


@pytest.mark.parametrize("path", ["/nowhere/model.py", "/"])
def test_missing_file_is_named(path: str) -> None:
    """A path that is not a file is the operator's error."""
    with pytest.raises(ConfigError, match="path: expected a Python file, got"):
        load_runtime(ModelSource("m", path))


def test_unknown_runtime_is_named() -> None:
    """Only the runtimes that exist can be asked for."""
    with pytest.raises(ConfigError, match="expected 'python' or 'onnx', got 'torch'"):
        load_runtime(ModelSource("m", "/m.pt", runtime="torch"))
