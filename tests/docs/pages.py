"""The documents as the tests read them: pages, snippets with their directives, tables, links.

A snippet is a fenced block. The comment `<!-- snippet: DIRECTIVE -->` on the line before it says what to do with it:
`skip WHY`, `file NAME` (write it instead of running it), `with TARGET` (run it against a server of that target).
Not here: running anything (`test_snippets.py`).
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Snippet", "code_spans", "links", "prose", "read_page", "snippets", "table_rows"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md")))
)

_FENCE = re.compile(r"^```(\w*)$")
_DIRECTIVE = re.compile(r"^<!-- snippet: (skip|file|with) (.+) -->$")
_LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Snippet:
    """One fenced block. `line` is where it opens; `verb` is '' without a directive."""

    page: str
    line: int
    language: str
    text: str
    verb: str
    argument: str


def read_page(page: str) -> str:
    """Return a page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def snippets(page: str) -> list[Snippet]:
    """Return a page's fenced blocks in order.

    Raises:
        ValueError: A block is not closed.
    """
    found: list[Snippet] = []
    lines = read_page(page).splitlines()
    opened: tuple[int, str] | None = None
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened = (number, fence[1])
            continue
        begin, language = opened
        directive = _DIRECTIVE.match(lines[begin - 2]) if begin > 1 else None
        verb, argument = (directive[1], directive[2]) if directive else ("", "")
        found.append(Snippet(page, begin, language, "\n".join(lines[begin : number - 1]) + "\n", verb, argument))
        opened = None
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: expected the block to be closed")
    return found


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read_page(page), flags=re.MULTILINE | re.DOTALL)


def links(page: str) -> list[str]:
    """Return the targets of a page's links."""
    return _LINK.findall(prose(page))


def code_spans(text: str) -> list[str]:
    """Return what stands between backquotes."""
    return _SPAN.findall(text)


def table_rows(page: str, heading: str = "") -> list[list[str]]:
    """Return the cells of every table row below a heading, up to the next of its level or above; of the page if ''.

    Head and rule rows are left out.
    """
    text = prose(page)
    if heading:
        _, found, text = f"\n{text}".partition(f"\n{heading}\n")
        assert found, f"{page}: expected the heading {heading!r}"
        level = len(heading.partition(" ")[0])
        text = re.split(rf"^#{{1,{level}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    lines = text.splitlines()
    heads = {index - 1 for index, line in enumerate(lines) if re.fullmatch(r"\|[-:| ]+\|", line)}
    rows = [(i, line) for i, line in enumerate(lines) if line.startswith("|")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for i, line in rows
        if i not in heads and i - 1 not in heads
    ]
