"""Prints as JSON which models a Python file declares: `python -m penstock.cli.discover FILE`.

It runs in a process of its own, because importing a user's file may do anything. Whatever that prints goes to
stderr. On stdout: `{"models": [{"class", "name", "version"}]}`, or `{"error": "..."}` and exit status 1.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.core.models import declaration_of

__all__ = ["find_models", "main"]

_MODULE_NAME = "penstock_user_model"


def find_models(module: ModuleType) -> list[dict[str, str]]:
    """Return the models among a module's names, in the order they were bound; an alias of a class counts once."""
    found: dict[int, dict[str, str]] = {}
    for attribute, candidate in vars(module).items():
        declaration = declaration_of(candidate)
        if declaration is not None and id(candidate) not in found:
            found[id(candidate)] = {
                "class": attribute,
                "name": declaration.name,
                "version": declaration.spec.version,
            }
    return list(found.values())


def _import_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses and pickle look a class's module up, and where siblings of the file are found.
    sys.modules[_MODULE_NAME] = module
    sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)
    return module


def _discover(file: Path) -> dict[str, Any]:
    try:
        return {"models": find_models(_import_file(file))}
    except BaseException as error:  # noqa: BLE001 - a user's file may raise anything, SystemExit included
        at = error.__traceback__
        line = 0
        while at is not None:
            if at.tb_frame.f_code.co_filename == str(file):
                line = at.tb_lineno
            at = at.tb_next
        where = f" (line {line})" if line else ""
        return {"error": f"{type(error).__name__}: {error}{where}"}


def main() -> int:
    """Print the models of the file named by the only argument. Return the exit status."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    found = _discover(Path(sys.argv[1]).resolve())
    json.dump(found, answers)
    answers.close()
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
