"""What the documents say about the project's files is so: links, file names, functions, tests, figures, lengths."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from scripts.render_figures import (
    FIGURES,
    HISTORY,
    MISSING,
    README,
    newest_records,
    render_figures,
    render_readme,
    replace_section,
)
from tests.docs.pages import PAGES, ROOT, code_spans, links, prose, read_page, snippets, table_rows

DECISIONS = [page for page in PAGES if page.startswith("docs/decisions/")]
HEADINGS = ["Context", "Options", "Measurement", "Decision", "Consequence", "What would change our mind"]
ARCHITECTURE_LINES_MAX = 400
DECISION_LINES_MAX = 90
_FILE = re.compile(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|toml|md|json|ndjson|lua|txt)")
_SHORT_FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.py)` `(\w+)`")


def resolve(page: str, name: str) -> Path | None:
    """Return the file that a page means by `name`, or None."""
    bases = (ROOT / page).parent, ROOT, ROOT / "src/penstock", ROOT / "docs"
    return next((base / name for base in bases if (base / name).exists()), None)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Every link to a file of the project resolves."""
    targets = [t.partition("#")[0] for t in links(page) if "://" not in t]
    missing = [t for t in targets if t and not ((ROOT / page).parent / t).exists()]
    assert not missing, f"{page}: no such files: {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    """Every path in code type names a file of the project, or one that the page itself writes."""
    written = {s.argument for s in snippets(page) if s.verb == "file"} | {"bench/history.ndjson"}  # measuring makes it
    named = {name for span in code_spans(prose(page)) for name in _FILE.findall(span)}
    missing = sorted(name for name in named - written if resolve(page, name) is None)
    assert not missing, f"{page}: no such files: {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_functions_that_are_named_exist(page: str) -> None:
    """Where a page names a function after its file, the file has it."""
    for name, function in _SHORT_FILE.findall(prose(page)):
        path = resolve(page, name)
        assert path is not None, f"{page}: no such file: {name}"
        assert re.search(rf"\b{function}\b", path.read_text()), f"{page}: {name} has no {function}"


def test_every_page_is_reached_from_the_readme() -> None:
    """README.md names every page below docs, decision records by their folder."""
    targets = set(links("README.md"))
    missing = [page for page in PAGES if page.startswith("docs/") and page not in DECISIONS and page not in targets]
    assert not missing
    assert "docs/decisions" in targets


def test_architecture_is_short() -> None:
    """ARCHITECTURE.md stays within its bound."""
    assert len(read_page("ARCHITECTURE.md").splitlines()) <= ARCHITECTURE_LINES_MAX


@pytest.mark.parametrize("page", DECISIONS)
def test_a_decision_has_its_six_headings(page: str) -> None:
    """Each record says the same six things, in order, on a page."""
    text = read_page(page)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert len(text.splitlines()) <= DECISION_LINES_MAX
    number = Path(page).name[:4]
    assert text.startswith(f"# {number}: "), f"{page}: expected the title to begin with its number"


def test_decisions_are_numbered_without_gaps() -> None:
    """Records are 0001, 0002 and so on, each number once."""
    assert [int(Path(page).name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_tests_that_are_named_exist() -> None:
    """Each failure mode names a test that is there, or says that there is none."""
    rows = table_rows("docs/failure-modes.md")
    assert rows
    for cells in rows:
        assert len(cells) == 3, f"expected three cells, got {cells}"
        if cells[2] == "none yet":
            continue
        (named,) = code_spans(cells[2])
        path, _, function = named.partition("::")
        assert (ROOT / path).is_file(), f"no such file: {path}"
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE), f"no such test: {named}"


def test_the_glossary_is_sorted_and_has_one_meaning_each() -> None:
    """Terms stand in order, each once, each with a meaning."""
    rows = table_rows("docs/glossary.md")
    terms = [cells[0].lower() for cells in rows]
    assert terms == sorted(terms)
    assert len(set(terms)) == len(terms)
    assert all(len(cells) == 2 and cells[1].endswith(".") for cells in rows)


def test_every_dependency_has_its_row() -> None:
    """The record of dependencies lists exactly those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[\[<>=!~ ]", requirement)[0] for group in groups for requirement in group}
    listed = {code_spans(cells[0])[0] for cells in table_rows("docs/decisions/0007-dependencies.md")}
    assert listed == declared


# -- figures --------------------------------------------------------------------------------------------------------


def record(bench: str, results: object, *, at: str = "2026-01-01T00:00:00+00:00", **more: object) -> str:
    """Write one line of the history."""
    machine = {"cpu": "A CPU", "mhz": "2500.0", "cores": 2, "kernel": "6.1", "python": "3.11.7"}
    return json.dumps({"bench": bench, "at": at, "commit": "abc", "machine": machine, "results": results, **more})


MINILM = {"rows_per_batch": 32, "texts_per_s": 500.0, "bare_texts_per_s": 520.0, "ratio": 0.96}
PEER = {"name": "peer", "version": "1", "configuration": "c"}


def test_the_figures_are_those_of_the_history() -> None:
    """README.md is what scripts/render_figures.py makes of it and of bench/history.ndjson."""
    assert README.read_text() == render_readme(), "run: python scripts/render_figures.py"


def test_what_is_not_measured_is_said_to_be() -> None:
    """Without a record every row says so, and still names its command."""
    section = render_figures({})
    assert section.count(MISSING) == len(FIGURES) + 1
    assert all(figure.command in section for figure in FIGURES)


def test_the_newest_record_counts() -> None:
    """Of several records of a bench the latest is shown, whatever the order of lines."""
    lines = [record("minilm", MINILM, at="2026-02-02"), record("minilm", MINILM | {"ratio": 0.5}, at="2026-01-01")]
    section = render_figures(newest_records([*lines, ""]))
    assert "ratio 0.96" in section
    assert "`abc`, 2026-02-02" in section
    assert "2 cores of A CPU at 2.50 GHz, Linux 6.1, Python 3.11.7" in section


def test_peers_have_a_row_each() -> None:
    """A peer that was measured shows figures, one that was not shows why."""
    figures = {"rps": 1234.5, "p50_ms": 1.0, "p99_ms": 2.0, "non_2xx": 0, "socket_errors": 0, "timeouts": 0}
    rows = [PEER | figures, PEER | {"version": None, "not_measured": "a | b"}]
    section = render_figures(newest_records([record("peers", rows, load={"seconds": 10})]))
    assert "| peer | 1 | c | 1,234 | 1.0 | 2.0 | 0 | 0 | 0 |" in section
    assert r"not measured: a \| b" in section


@pytest.mark.parametrize("line", ["{}", "[]", record("minilm", {})])
def test_a_record_that_cannot_be_shown_is_named(line: str) -> None:
    """A line that is no record, or lacks a figure, is an error that says which."""
    with pytest.raises(ValueError, match=r"history line 1|the newest minilm record"):
        render_figures(newest_records([line]))


@pytest.mark.parametrize("text", ["", "<!-- figures:begin -->", "<!-- figures:end --><!-- figures:begin -->"])
def test_markers_must_be_there(text: str) -> None:
    """Without its markers the README is left alone."""
    with pytest.raises(ValueError, match="expected one"):
        replace_section(text, "x")


def test_rendering_again_changes_nothing() -> None:
    """The section replaces the one before it."""
    text = "a\n<!-- figures:begin --><!-- figures:end -->\nb"
    once = replace_section(text, "figures")
    assert replace_section(once, "figures") == once
    assert once.startswith("a\n")
    assert once.endswith("\nb")


def test_the_history_can_be_read() -> None:
    """Every line of the history that there is, is a record."""
    if HISTORY.is_file():
        newest_records(HISTORY.read_text().splitlines())
