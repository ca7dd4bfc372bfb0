"""Copies of `penstock.policy` and `penstock.sim` with one line of policy changed: what a parity test must notice.

A copy is imported under another name, its imports of the two packages turned to itself; the real ones stay untouched.
Not here: which changes are tried (`test_mutants.py`).
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import penstock

__all__ = ["Mutation", "imported"]

_ROOT = "penstock_mutant"
_SOURCE = Path(penstock.__file__).parent
_COPIED = re.compile(r"\bpenstock\.(policy|sim)\b")


class Mutation(NamedTuple):
    """A change of one line.

    Args:
        module: Of `policy`, without the suffix.
        text: Stands in it once.
        replacement: Takes its place.
    """

    module: str
    text: str
    replacement: str


class _Loader(SourceLoader):
    """Loads modules of the copy: the originals' source, changed."""

    def __init__(self, mutation: Mutation | None) -> None:
        self._mutation = mutation

    def is_package(self, fullname: str) -> bool:
        return Path(self.get_filename(fullname)).name == "__init__.py"

    def get_filename(self, fullname: str) -> str:
        path = _SOURCE.joinpath(*fullname.split(".")[1:])
        return str(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))

    def get_data(self, path: str | bytes) -> bytes:
        assert isinstance(path, str)
        file = Path(path)
        if file.parent == _SOURCE:
            return b""  # the copy's root exports nothing
        source = file.read_text()
        mutation = self._mutation
        if mutation is not None and file == _SOURCE / "policy" / f"{mutation.module}.py":
            count = source.count(mutation.text)
            assert count == 1, f"{mutation.module}.py: expected {mutation.text!r} once, got it {count} times"
            source = source.replace(mutation.text, mutation.replacement)
        return _COPIED.sub(rf"{_ROOT}.\1", source).encode()


class _Finder(MetaPathFinder):
    """Finds modules of the copy."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _ROOT:
            return None
        return spec_from_loader(fullname, self._loader, is_package=self._loader.is_package(fullname))


@contextmanager
def imported(mutation: Mutation | None, module: str = "sim.run") -> Iterator[ModuleType]:
    """Give a module of the copy, all of whose policy is the copy's; None changes nothing."""
    finder = _Finder(_Loader(mutation))
    sys.meta_path.insert(0, finder)
    try:
        yield import_module(f"{_ROOT}.{module}")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == _ROOT]:
            del sys.modules[name]
