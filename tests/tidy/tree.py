"""The project's files as the rules see them: source by room, and everything else that people write."""

import json
import tomllib
from pathlib import Path

__all__ = ["ROOT", "entry_points", "module_name", "python_files", "read_json", "text_files"]

ROOT = Path(__file__).resolve().parents[2]

_WRITTEN = ("src", "tests", "bench", "docs", "examples", "scripts", ".ci")
_TEXT_SUFFIXES = frozenset({".py", ".md", ".toml", ".lua", ".html", ".js", ".css", ".sh", ".txt"})
_TEXT_NAMES = frozenset({"Makefile", "run"})


def python_files(*tops: str) -> list[str]:
    """Return the Python files under the given top directories, as sorted paths relative to the root."""
    found = [path for top in tops for path in (ROOT / top).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if not _is_skipped(path))


def text_files() -> list[str]:
    """Return every file that people write, relative to the root: code, documents, settings."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    found += [path for top in _WRITTEN for path in (ROOT / top).rglob("*") if path.is_file()]
    written = (path for path in found if path.suffix in _TEXT_SUFFIXES or path.name in _TEXT_NAMES)
    return sorted(str(path.relative_to(ROOT)) for path in written if not _is_skipped(path))


def module_name(path: str) -> str:
    """Return the dotted name of a source file, e.g. `penstock.core` for `src/penstock/core/__init__.py`."""
    parts = Path(path).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def entry_points() -> set[str]:
    """Return the modules that pyproject.toml names as commands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {target.partition(":")[0] for target in project.get("scripts", {}).values()}


def read_json(name: str) -> dict[str, object]:
    """Read one of the records that lie beside this file."""
    records = json.loads((Path(__file__).parent / name).read_text())
    assert isinstance(records, dict)
    return records


def _is_skipped(path: Path) -> bool:
    """Return True for caches, environments and build outputs."""
    inside = path.relative_to(ROOT).parts
    return any(
        p in ("__pycache__", "build", "dist", "node_modules") or p.startswith((".venv", ".cache")) for p in inside
    )
