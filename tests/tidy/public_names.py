"""Record the public names: `python -m tests.tidy.public_names` writes public_names.json, and the diff is the review."""

import json
from pathlib import Path

from tests.tidy.reach import public_names
from tests.tidy.tree import ROOT, module_name, python_files

__all__ = ["REFRESH", "read_public_names"]

REFRESH = ".venv/bin/python -m tests.tidy.public_names"


def read_public_names() -> dict[str, list[str]]:
    """Return each package's `__all__` as it stands in the source, sorted."""
    packages = [path for path in python_files("src") if path.endswith("__init__.py")]
    return {module_name(path): public_names((ROOT / path).read_text()) for path in packages}


if __name__ == "__main__":
    record = Path(__file__).with_suffix(".json")
    record.write_text(json.dumps(read_public_names(), indent=2, sort_keys=True) + "\n")
