"""The house rules, held over every file of the project. Each failure carries its cure."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tidy.public_names import REFRESH, read_public_names
from tests.tidy.reach import find_dead_modules
from tests.tidy.rules import (
    Complaint,
    complain_about_clocks,
    complain_about_doc_strings,
    complain_about_function_length,
    complain_about_module_docstring,
    complain_about_module_name,
    complain_about_patching,
    complain_about_sleep_in_tests,
    complain_about_test_docstrings,
    complain_about_text,
)
from tests.tidy.tree import ROOT, entry_points, module_name, python_files, read_json, text_files

CODE = python_files("src", "tests", "bench", "examples", "scripts")
SOURCE = python_files("src")
TESTS = python_files("tests")


def complain(paths: list[str], rule: Callable[[str, str], list[Complaint]]) -> None:
    """Fail with every complaint that `rule(path, text)` has about the files."""
    complaints = [f"{path}:{c.line}: {c.message}" for path in paths for c in rule(path, (ROOT / path).read_text())]
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def test_time_and_chance_are_arguments() -> None:
    """Outside adapters no source reads a clock, sleeps or rolls dice."""
    outside = [path for path in SOURCE if not path.startswith("src/penstock/adapters/")]
    complain(outside, lambda _, text: complain_about_clocks(text))


def test_functions_fit_a_screen() -> None:
    """No function is longer than the limit, and the ratchet only ever tightens."""
    ratchet = read_json("ratchet.json")
    allowed: dict[str, dict[str, int]] = {}
    for key, lines in ratchet.items():
        path, _, name = key.partition("::")
        assert path in CODE, f"ratchet.json names {path}, which does not exist: delete the entry"
        assert isinstance(lines, int)
        allowed.setdefault(path, {})[name] = lines
    complain(CODE, lambda path, text: complain_about_function_length(text, allowed.get(path, {})))


def test_nothing_is_patched() -> None:
    """No test mocks or patches."""
    complain(TESTS, lambda _, text: complain_about_patching(text))


def test_nothing_sleeps() -> None:
    """No test sleeps, but for the bounded polls of tests/live."""
    complain(TESTS, lambda path, text: complain_about_sleep_in_tests(text, is_live=path.startswith("tests/live/")))


def test_modules_state_their_charter() -> None:
    """Every module opens with a docstring of at most ten lines."""
    complain(CODE, lambda _, text: complain_about_module_docstring(text))


def test_public_names_state_their_contract() -> None:
    """Every public class, function and method in src has a docstring."""
    complain(SOURCE, lambda _, text: complain_about_doc_strings(text))


def test_module_names_say_what_they_do() -> None:
    """No module is called utils, helpers, manager, base, common or misc."""
    complain(CODE, lambda path, _: complain_about_module_name(Path(path).stem))


def test_every_test_states_its_law() -> None:
    """Every test has a docstring of one line."""
    complain(TESTS, lambda _, text: complain_about_test_docstrings(text))


def test_text_is_finished_and_stands_alone() -> None:
    """No file holds unfinished thoughts, ticket numbers or paths of one machine."""
    complain(text_files(), lambda _, text: complain_about_text(text))


def test_no_module_is_dead() -> None:
    """Every module in src is reached from a command, the public package or a process that they start."""
    sources = {module_name(path): (ROOT / path).read_text() for path in SOURCE}
    packages = {module_name(path) for path in SOURCE if path.endswith("__init__.py")}
    users = {path: (ROOT / path).read_text() for path in CODE if path not in SOURCE}
    dead = find_dead_modules(sources, packages, entry_points(), users)
    assert not dead, f"nothing alive imports {', '.join(dead)}: wire it into the composition root (cli) or delete it"


def test_public_names_are_pinned() -> None:
    """What each package exports is what public_names.json records: a change is deliberate."""
    found, recorded = read_public_names(), read_json("public_names.json")
    changed = sorted(name for name in found.keys() | recorded.keys() if found.get(name) != recorded.get(name))
    assert not changed, f"the public names of {', '.join(changed)} changed; if that is meant, run: {REFRESH}"


def test_tests_need_no_packages() -> None:
    """No test tree holds an `__init__.py`: files are imported by path, so that names cannot clash."""
    packages = [path for path in TESTS if path.endswith("__init__.py")]
    assert not packages, f"delete {', '.join(packages)}: pytest runs with --import-mode=importlib"


def test_unit_tests_mirror_the_source() -> None:
    """Every tests/unit/<room> is a room of src, so that a module's tests are found from its name."""
    rooms = {path.split("/")[2] for path in SOURCE}
    strays = sorted({path for path in TESTS if path.startswith("tests/unit/") and path.split("/")[2] not in rooms})
    assert not strays, f"move {', '.join(strays)} to tests/unit/<room>/ of the room they test"


def test_pytest_is_strict() -> None:
    """Warnings are errors, xfail is strict, and no test may hang."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["filterwarnings"][0] == "error", "put `error` first in filterwarnings"
    assert options["xfail_strict"] is True, "set xfail_strict = true"
    assert options["timeout"] == 120, "set timeout = 120 (seconds); a longer test is a benchmark"
    assert "--import-mode=importlib" in options["addopts"], "add --import-mode=importlib to addopts"


def test_constraints_hold_names_and_versions_only() -> None:
    """The constraints file is sorted and names no host, file or option."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines == sorted(lines, key=str.lower), "sort constraints.txt, ignoring case"
    odd = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)]
    assert not odd, f"write name==version, nothing else: {odd}"


def test_ci_runs_what_people_run() -> None:
    """Continuous integration runs `make check` and `make test`, and nothing else."""
    script = (ROOT / ".ci/run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands == ["set -eu", 'cd "$(dirname "$0")/.."', "make check", "make test"]


def test_make_lists_its_targets() -> None:
    """`make` alone lists every verb of the workshop."""
    listing = subprocess.run(["make", "--silent"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for verb in ("setup", "serve", "test", "check", "fmt", "bench"):
        assert f"make {verb}" in listing
