"""House rules as functions from source text to complaints, so that each can be tried on a snippet.

Every complaint names the line and the cure. Not here: which files a rule applies to (`test_tree.py`), what ruff, mypy
and import-linter already check, and the import graph (`reach.py`).
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "BANNED_MODULE_NAMES",
    "FUNCTION_LINES_MAX",
    "MODULE_DOCSTRING_LINES_MAX",
    "Complaint",
    "complain_about_clocks",
    "complain_about_doc_strings",
    "complain_about_function_length",
    "complain_about_module_docstring",
    "complain_about_module_name",
    "complain_about_patching",
    "complain_about_sleep_in_tests",
    "complain_about_test_docstrings",
    "complain_about_text",
    "count_function_lines",
]

FUNCTION_LINES_MAX = 60  # one screen: STYLE's limit; TigerBeetle's tidy uses 70
MODULE_DOCSTRING_LINES_MAX = 10
BANNED_MODULE_NAMES = frozenset({"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"})

# Dotted names whose mere mention reads a clock, sleeps or rolls dice. A trailing `.` bans everything under the name.
_CLOCKS_AND_DICE = frozenset(
    {f"time.{name}" for name in ("asctime", "ctime", "gmtime", "localtime", "sleep", "strftime", "time", "time_ns")}
    | {
        f"time.{name}{suffix}"
        for name in ("clock_gettime", "monotonic", "perf_counter", "process_time", "thread_time")
        for suffix in ("", "_ns")
    }
    | {f"datetime.datetime.{name}" for name in ("now", "today", "utcnow")}
    | {"datetime.date.today", "os.urandom", "uuid.uuid1", "uuid.uuid4", "secrets.", "random.", "numpy.random."}
)
# Seeded streams are how chance comes in: the class is a type, and calling it with a seed is a value.
_SEEDED = frozenset({"random.Random", "numpy.random.Generator", "numpy.random.default_rng"})
_MOCKS = frozenset({"unittest.mock", "mock", "pytest_mock"})
_PATCHERS = frozenset({"setattr", "setitem", "delattr", "delitem"})

_TEXT_BANS = (
    (re.compile(r"\bT[O]DO\b|\bFI[X]ME\b|\bXX[X]\b"), "an unfinished thought: finish it, or file it and delete it"),
    (
        re.compile(r"(?<![\w&/#])#\d{1,5}\b|\b(?i:issue|ticket)s? \d+\b"),
        "a ticket number: say the reason itself, not its history",
    ),
    (re.compile(r"/wor[k]/|\.\./share[d]\b"), "a path of one machine: the project stands alone; use a path inside it"),
)


@dataclass(frozen=True, slots=True)
class Complaint:
    """One broken rule: where, and what to do about it."""

    line: int
    message: str


def complain_about_clocks(source: str) -> list[Complaint]:
    """Complain of clocks, sleeping and dice: for src outside `adapters`, where time and chance are arguments."""
    cure = "take `now_us` or an `rng` as an argument; the only clock and dice are in penstock/adapters"
    tree = ast.parse(source)
    names = _imported_names(tree)
    seeded_calls = {
        id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and (node.args or node.keywords)
    }
    bare_calls = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)} - seeded_calls
    complaints = []
    for node, dotted in _dotted_uses(tree, names):
        if dotted in _SEEDED:
            if id(node) in bare_calls:
                complaints.append(Complaint(node.lineno, f"{dotted}() without a seed: {cure}"))
        elif _is_banned(dotted, _CLOCKS_AND_DICE):
            complaints.append(Complaint(node.lineno, f"{dotted}: {cure}"))
    complaints += [
        Complaint(call.lineno, "asyncio.sleep of more than 0: use loop.call_later, or take the wait as an argument")
        for call in _sleeps(tree, names)
        if _dotted(call.func, names) == "asyncio.sleep"
    ]
    return sorted(complaints, key=lambda c: c.line)


def complain_about_patching(source: str) -> list[Complaint]:
    """Complain of mocks and patches in tests: a port has a fake, and a fault has a place to be injected."""
    cure = "write a small fake of the port and pass it in; patching tests the test"
    tree = ast.parse(source)
    complaints = [Complaint(line, f"{name}: {cure}") for line, name in _imports(tree) if _is_banned(name, _MOCKS)]
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg == "mocker":
            complaints.append(Complaint(node.lineno, f"mocker: {cure}"))
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "monkeypatch"
            and node.attr in _PATCHERS
        ):
            complaints.append(Complaint(node.lineno, f"monkeypatch.{node.attr}: {cure}"))
    return complaints


def complain_about_sleep_in_tests(source: str, *, is_live: bool = False) -> list[Complaint]:
    """Complain of sleeping in tests. In `tests/live` a function called `wait_*` may, between two looks."""
    cure = (
        "drive a manual clock; with real processes, poll a condition inside a bounded `wait_*` function of tests/live"
    )
    tree = ast.parse(source)
    excused: set[int] = set()
    if is_live:
        for function in _functions(tree):
            if function.name.lstrip("_").startswith("wait_"):
                excused |= {id(node) for node in ast.walk(function)}
    sleeps = _sleeps(tree, _imported_names(tree))
    return [Complaint(call.lineno, f"sleeping: {cure}") for call in sleeps if id(call) not in excused]


def count_function_lines(source: str) -> dict[str, tuple[int, int]]:
    """Measure each function: qualified name to (first line, lines from `def` to the end without its docstring)."""
    found: dict[str, tuple[int, int]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}" if prefix else child.name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (child.end_lineno or child.lineno) - child.lineno + 1
                docstring = child.body[0] if ast.get_docstring(child, clean=False) is not None else None
                if docstring is not None:
                    lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
                while name in found:  # overloads and property setters share a name
                    name += "'"
                found[name] = (child.lineno, lines)
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def complain_about_function_length(source: str, allowed: dict[str, int]) -> list[Complaint]:
    """Complain of functions over the limit, or over what the ratchet allows them; and of a ratchet that is slack.

    Args:
        source: The module.
        allowed: The ratchet's entries for this module: qualified name to lines.
    """
    measured = count_function_lines(source)
    complaints = []
    for name, (line, lines) in measured.items():
        limit = max(FUNCTION_LINES_MAX, allowed.get(name, 0))
        if lines > limit:
            message = (
                f"{name} has {lines} lines, at most {limit} allowed: move one thing it does into a function of its own"
            )
            complaints.append(Complaint(line, message))
    for name, limit in allowed.items():
        line, lines = measured.get(name, (1, 0))
        if lines < limit:
            cure = f"set it to {lines}" if lines > FUNCTION_LINES_MAX else "delete the entry"
            complaints.append(
                Complaint(line, f"ratchet allows {name} {limit} lines, it has {lines}: {cure} in ratchet.json")
            )
    return complaints


def complain_about_module_docstring(source: str) -> list[Complaint]:
    """Complain of a module without a docstring, or with one of too many lines (blank ones are free)."""
    docstring = ast.get_docstring(ast.parse(source))
    if docstring is None:
        return [Complaint(1, "no module docstring: say its charter, what is not here, and the source of its algorithm")]
    lines = sum(1 for line in docstring.splitlines() if line.strip())
    if lines > MODULE_DOCSTRING_LINES_MAX:
        cure = "keep charter, what is not here, source; move the rest to docs/ or to the function it explains"
        return [Complaint(1, f"module docstring has {lines} lines, at most {MODULE_DOCSTRING_LINES_MAX}: {cure}")]
    return []


def complain_about_doc_strings(source: str) -> list[Complaint]:
    """Complain of public classes, functions and methods without a docstring."""
    cure = "state its contract: what for, units, errors and what to do about them"
    return [
        Complaint(node.lineno, f"{name} has no docstring: {cure}")
        for node, name in _public_definitions(ast.parse(source), "")
        if ast.get_docstring(node) is None
    ]


def complain_about_module_name(stem: str) -> list[Complaint]:
    """Complain of a module name that says nothing."""
    if stem.strip("_") in BANNED_MODULE_NAMES:
        return [
            Complaint(
                1, f"module name {stem!r} says nothing: name it for the one thing it does, as in batching/batcher"
            )
        ]
    return []


def complain_about_test_docstrings(source: str) -> list[Complaint]:
    """Complain of tests without exactly one line that states the law they check."""
    complaints = []
    for function in _functions(ast.parse(source)):
        if not function.name.startswith("test"):
            continue
        lines = (ast.get_docstring(function) or "").splitlines()
        if len(lines) != 1:
            cure = "write the law it checks as a one-line docstring"
            complaints.append(Complaint(function.lineno, f"{function.name} has {len(lines)} docstring lines: {cure}"))
    return complaints


def complain_about_text(text: str) -> list[Complaint]:
    """Complain of unfinished thoughts, ticket numbers and paths of one machine, in any text."""
    return [
        Complaint(number, f"{found[0]!r} is {cure}")
        for number, line in enumerate(text.splitlines(), start=1)
        for ban, cure in _TEXT_BANS
        if (found := ban.search(line))
    ]


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """Map each local name an import binds to the dotted name it stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """Return the dotted name an expression stands for, '' if it does not start at an import."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        head = _dotted(node.value, names)
        return f"{head}.{node.attr}" if head else ""
    return ""


def _dotted_uses(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[ast.expr, str]]:
    """Yield the outermost attribute chains and names that start at an import."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner and (dotted := _dotted(node, names)):
            yield node, dotted


def _is_banned(dotted: str, bans: frozenset[str]) -> bool:
    """Return True if a ban is `dotted` or a parent of it; a ban that ends in `.` is of what is below it only."""
    parts = dotted.split(".")
    prefixes = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(p in bans for p in prefixes) or any(f"{p}." in bans for p in prefixes[:-1])


def _sleeps(tree: ast.AST, names: dict[str, str]) -> list[ast.Call]:
    """Return calls that sleep; `asyncio.sleep(0)` only yields and is not one."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call
        for call in calls
        if _dotted(call.func, names) in ("time.sleep", "asyncio.sleep", "gevent.sleep")
        and not (len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0)
    ]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _public_definitions(
    node: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, str]]:
    """Yield public definitions, and the public methods of public classes; overloads and setters repeat another."""
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        decorators = {d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in child.decorator_list}
        if decorators & {"overload", "setter", "deleter", "override"}:
            continue
        yield child, prefix + child.name
        if isinstance(child, ast.ClassDef):
            yield from _public_definitions(child, f"{prefix}{child.name}.")
