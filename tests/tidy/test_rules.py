"""The rules themselves, on snippets: each one catches its fault, and lets pass what only looks like it."""

import pytest

from tests.tidy.reach import find_dead_modules, imported_modules, public_names
from tests.tidy.rules import (
    FUNCTION_LINES_MAX,
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
    count_function_lines,
)


def lines_of(complaints: list[Complaint]) -> list[int]:
    """Return where the complaints are."""
    return [complaint.line for complaint in complaints]


@pytest.mark.parametrize(
    "snippet",
    [
        "import time\ntime.monotonic_ns()",
        "import time as t\nt.time()",
        "from time import perf_counter as tick\ntick()",
        "import time\nclock = time.monotonic",
        "import time\ntime.sleep(1)",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.now()",
        "import random\nrandom.random()",
        "from random import choice\nchoice([1])",
        "import random\nrandom.Random()",
        "import numpy as np\nnp.random.rand()",
        "import numpy as np\nnp.random.default_rng()",
        "import os\nos.urandom(8)",
        "from uuid import uuid4\nuuid4()",
        "import secrets\nsecrets.token_hex()",
        "import asyncio\nasyncio.sleep(0.1)",
    ],
)
def test_clocks_and_dice_are_caught(snippet: str) -> None:
    """Under any name it was imported by, a clock, a sleep or a die is a complaint on its line."""
    assert lines_of(complain_about_clocks(snippet)) == [2]


@pytest.mark.parametrize(
    "snippet",
    [
        "def f(now_us: int, time: float) -> float:\n    return time.sleep",
        "import random\ndef f(rng: random.Random) -> float:\n    return rng.random()",
        "import random\nrng = random.Random(7)",
        "import numpy as np\nrng = np.random.default_rng([7, 1])",
        "import asyncio\nasyncio.sleep(0)",
        "from datetime import datetime\ndatetime.fromtimestamp(0)",
        "import time\ntime.get_clock_info('monotonic')",
        "import os\nos.getpid()",
    ],
)
def test_arguments_and_seeds_pass(snippet: str) -> None:
    """Injected clocks, seeded streams and their types are how time and chance come in."""
    assert complain_about_clocks(snippet) == []


@pytest.mark.parametrize(
    "snippet",
    [
        "from unittest import mock",
        "from unittest.mock import MagicMock",
        "import unittest.mock",
        "def test_x(mocker): ...",
        "def test_x(monkeypatch):  monkeypatch.setattr('a.b', 1)",
    ],
)
def test_patching_is_caught(snippet: str) -> None:
    """Every way to a mock is a complaint."""
    assert lines_of(complain_about_patching(snippet)) == [1]


def test_environment_may_be_set() -> None:
    """The environment is an input, so setting it is not patching."""
    assert complain_about_patching("def test_x(monkeypatch):\n    monkeypatch.setenv('A', '1')") == []


def test_sleep_passes_only_in_bounded_polls_of_live_tests() -> None:
    """A `wait_*` function may sleep in tests/live and nowhere else; no other function may."""
    poll = "import time\ndef wait_ready():\n    time.sleep(0.01)"
    plain = "import time\ndef test_ready():\n    time.sleep(0.01)"
    assert lines_of(complain_about_sleep_in_tests(poll)) == [3]
    assert complain_about_sleep_in_tests(poll, is_live=True) == []
    assert lines_of(complain_about_sleep_in_tests(plain, is_live=True)) == [3]


def function_of(lines: int, docstring_lines: int = 0) -> str:
    """Write a function of so many lines, `def` included, and a docstring of so many beside them."""
    docstring = ['    """Say.', *["    more"] * (docstring_lines - 2), '    """'] if docstring_lines else []
    return "\n".join(["def f():", *docstring, *["    x = 1"] * (lines - 1)]) + "\n"


def test_function_length_counts_code_and_not_docstrings() -> None:
    """A function is as long as its lines from `def` to the end, without the docstring."""
    assert count_function_lines(function_of(10, docstring_lines=5)) == {"f": (1, 10)}


def test_function_length_has_an_exact_limit() -> None:
    """The limit itself passes and one line more does not."""
    assert complain_about_function_length(function_of(FUNCTION_LINES_MAX), {}) == []
    assert lines_of(complain_about_function_length(function_of(FUNCTION_LINES_MAX + 1), {})) == [1]


def test_ratchet_only_tightens() -> None:
    """An entry excuses exactly what it measured: longer fails, and so does an entry with slack."""
    source = function_of(70)
    assert complain_about_function_length(source, {"f": 70}) == []
    assert "at most 69" in complain_about_function_length(source, {"f": 69})[0].message
    assert "set it to 70" in complain_about_function_length(source, {"f": 71})[0].message
    assert "delete the entry" in complain_about_function_length(function_of(20), {"f": 70})[0].message
    assert "delete the entry" in complain_about_function_length("x = 1", {"f": 70})[0].message


def test_methods_and_inner_functions_are_measured_by_their_qualified_name() -> None:
    """Each function at any depth has its own entry, and a setter does not hide its getter."""
    source = (
        "class A:\n    def f(self):\n        def g(): ...\n"
        "    @property\n    def p(self): ...\n    @p.setter\n    def p(self, v): ...\n"
    )
    assert set(count_function_lines(source)) == {"A.f", "A.f.g", "A.p", "A.p'"}


@pytest.mark.parametrize(
    ("docstring", "complaints"),
    [
        ('"""Say."""', 0),
        ('"""' + "\n\n".join(["line"] * 10) + '"""', 0),
        ('"""' + "\n".join(["line"] * 11) + '"""', 1),
        ("", 1),
    ],
)
def test_module_docstring_is_short_and_present(docstring: str, complaints: int) -> None:
    """Ten lines pass, blank ones are free, eleven or none do not pass."""
    assert len(complain_about_module_docstring(docstring + "\nx = 1")) == complaints


def test_public_definitions_need_docstrings() -> None:
    """Public classes, functions and methods do; private and inner ones, overloads and setters do not."""
    source = (
        "class A:\n    def m(self): ...\n    def _p(self): ...\n    @x.setter\n    def x(self, v): ...\n"
        "def f():\n    def inner(): ...\n@overload\ndef g(): ...\nclass _B:\n    def m(self): ...\n"
    )
    assert [c.message.split()[0] for c in complain_about_doc_strings(source)] == ["A", "A.m", "f"]


@pytest.mark.parametrize("stem", ["utils", "helpers", "manager", "base", "common", "misc", "_utils"])
def test_empty_module_names_are_caught(stem: str) -> None:
    """A name that could hold anything is a complaint."""
    assert len(complain_about_module_name(stem)) == 1


def test_nouns_and_gerunds_pass() -> None:
    """A name that only contains a banned word passes."""
    assert complain_about_module_name("database") == []


def test_tests_need_one_line() -> None:
    """No docstring and two lines are complaints, one line is not; other functions are free."""
    two = 'def test_b():\n    """One.\n\n    Two.\n    """\n'
    source = f'def test_a(): ...\n{two}def test_c():\n    """One."""\ndef other(): ...\n'
    assert lines_of(complain_about_test_docstrings(source)) == [1, 2]


@pytest.mark.parametrize(
    "text",
    ["# TO" + "DO later", "FIX" + "ME", "see #" + "12", "fixes issue " + "7", "cd /wor" + "k/main", "../share" + "d/x"],
)
def test_unfinished_and_local_text_is_caught(text: str) -> None:
    """Unfinished thoughts, ticket numbers and one machine's paths are complaints on their line."""
    assert lines_of(complain_about_text(f"fine\n{text}\n")) == [2]


@pytest.mark.parametrize(
    "text",
    [
        "a replica named digits:1#" + "0",
        "# 2 cores",
        "&#" + "169;",
        "/workspace",
        "a shared port",
        "an issue of 2 parts",
    ],
)
def test_text_that_only_looks_like_it_passes(text: str) -> None:
    """Names with a hash, entities and longer paths are not complaints."""
    assert complain_about_text(text) == []


def test_complaints_carry_a_cure() -> None:
    """Each message says more than what is wrong."""
    assert "take `now_us`" in complain_about_clocks("import time\ntime.time()")[0].message
    assert "fake" in complain_about_patching("from unittest import mock")[0].message


def test_imports_are_found_in_every_form() -> None:
    """Plain, from, relative and `-m` imports all count."""
    source = "import penstock.a\nfrom penstock.b import c\nfrom . import d\nfrom ..e import f\nx = 'penstock.g.h'"
    found = imported_modules(source, "penstock.room.module")
    assert {"penstock.a", "penstock.b", "penstock.b.c", "penstock.room.d", "penstock.e", "penstock.g.h"} <= found


def test_dead_modules_are_those_no_command_reaches() -> None:
    """Imports and started processes give life; two dead modules that import each other stay dead."""
    sources = {
        "penstock": "",
        "penstock.cli": "",
        "penstock.cli.main": "import penstock.fleet.head",
        "penstock.fleet": "",
        "penstock.fleet.head": "run('penstock.replica.process')",
        "penstock.replica": "",
        "penstock.replica.process": "",
        "penstock.replica.orphan": "import penstock.replica.twin",
        "penstock.replica.twin": "import penstock.replica.orphan",
        "penstock.testing": "",
        "penstock.testing.clock": "",
    }
    packages = {"penstock", "penstock.cli", "penstock.fleet", "penstock.replica", "penstock.testing"}
    tests = {"test_x": "import penstock.testing.clock\nimport penstock.replica.twin"}
    dead = find_dead_modules(sources, packages, {"penstock.cli.main"}, tests)
    assert dead == ["penstock.replica.orphan", "penstock.replica.twin"]


def test_public_names_are_read_without_importing() -> None:
    """`__all__` is read from the text, sorted; a module without one exports nothing."""
    assert public_names("__all__ = ['b', 'a']") == ["a", "b"]
    assert public_names("import x") == []
