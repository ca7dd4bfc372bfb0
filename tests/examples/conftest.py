"""What set-up must have built. Nothing here skips: in an unbuilt tree these tests fail and say `make setup`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from examples.minilm.model import MiniLM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def built_file() -> Callable[[str], Path]:
    """Find a file that set-up builds, by its path in the repository; fail with the cure if it is not there."""

    def find(path: str) -> Path:
        found = ROOT / path
        if not found.is_file():
            pytest.fail(f"{path} is not built: run `make setup`", pytrace=False)
        return found

    return find


@pytest.fixture(scope="session")
def minilm(built_file: Callable[[str], Path]) -> MiniLM:
    """A loaded `MiniLM`."""
    built_file("examples/minilm/model.onnx")
    built_file("examples/minilm/tokenizer.json")
    model = MiniLM()
    model.load()
    return model
