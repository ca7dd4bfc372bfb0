"""Build the example models that are missing or out of date: `python scripts/build_examples.py [--force]`.

A model is up to date while its build script, the versions of the packages it names, and the files it wrote are all
unchanged; their digests are kept in `build/examples/`. Not here: how each model is built (`examples/digits/train.py`,
`examples/minilm/build.py`).
"""

import argparse
import hashlib
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "build" / "examples"
SCRIPTS = {"digits": ROOT / "examples" / "digits" / "train.py", "minilm": ROOT / "examples" / "minilm" / "build.py"}


def declared_names(script: Path, constant: str) -> tuple[str, ...]:
    """Read a one-line tuple of strings out of a build script without importing it, which costs seconds."""
    found = re.search(rf"^{constant} = \((.*)\)$", script.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{script}: expected one line `{constant} = (...)` of file or package names, got none")
    return tuple(re.findall(r'"([^"]+)"', found[1]))


def digest_inputs(script: Path) -> str:
    """Digest what the result depends on: the script, and the versions of the packages it names."""
    digest = hashlib.sha256(script.read_bytes())
    for package in declared_names(script, "PACKAGES"):
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()


def digest_outputs(folder: Path, names: Sequence[str]) -> str | None:
    """Digest the built files, or return None if one is missing."""
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        if not path.is_file():
            return None
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def recorded_summary(name: str, script: Path, records: Path) -> str | None:
    """Return what the last build said of itself if its result still stands, else None."""
    path = records / f"{name}.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    outputs = digest_outputs(script.parent, declared_names(script, "OUTPUTS"))
    is_current = (record["inputs"], record["outputs"]) == (digest_inputs(script), outputs)
    return str(record["summary"]) if is_current else None


def load_script(script: Path) -> ModuleType:
    """Import a build script by its path."""
    spec = importlib.util.spec_from_file_location(f"build_{script.parent.name}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_example(name: str, script: Path, records: Path, report: Callable[[str], None]) -> str:
    """Build one model beside its script and record that; a build that fails or is interrupted leaves the old files.

    Returns:
        One line about what was built.
    """
    report("importing")
    records.mkdir(parents=True, exist_ok=True)
    outputs = declared_names(script, "OUTPUTS")
    with tempfile.TemporaryDirectory(dir=records) as folder:
        summary = str(load_script(script).build(Path(folder), report))
        for output in outputs:
            (Path(folder) / output).replace(script.parent / output)
    record = {
        "inputs": digest_inputs(script),
        "outputs": digest_outputs(script.parent, outputs),
        "summary": summary,
    }
    (records / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return summary


def build_examples(scripts: dict[str, Path], records: Path, console: Console, *, is_forced: bool) -> None:
    """Bring every model up to date, showing progress on `console`, one line for each in the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    for name, script in scripts.items():
        summary = None if is_forced else recorded_summary(name, script, records)
        if summary is not None:
            console.print(f"{name}: up to date ({summary})", soft_wrap=True)
            continue
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(name, total=None)

            def report(step: str, *, name: str = name, progress: Progress = progress, task: TaskID = task) -> None:
                progress.update(task, description=f"{name}: {step}")

            summary = build_example(name, script, records, report)
        console.print(f"{name}: built ({summary})", soft_wrap=True)


def main(arguments: Sequence[str], *, scripts: dict[str, Path] = SCRIPTS, records: Path = RECORDS) -> int:
    """Run the command line; returns the exit status: 0, or 1 if a model could not be built."""
    parser = argparse.ArgumentParser(description="Build the example models that are missing or out of date.")
    parser.add_argument("--force", action="store_true", help="build even what is up to date")
    options = parser.parse_args(arguments)
    try:
        build_examples(scripts, records, Console(), is_forced=options.force)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        Console(stderr=True).print(f"example models: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
