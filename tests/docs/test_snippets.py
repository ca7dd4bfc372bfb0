"""The snippets of the documents are run as a reader would run them, against real servers on free ports.

The ports of the documents are replaced by those of the server; what a page tells to save is saved. A page's snippets
run in order in one directory.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.fleet.status import to_status
from tests.docs.fleet import full_view
from tests.docs.pages import PAGES, Snippet, code_spans, snippets, table_rows
from tests.live.serving import EXAMPLES, PENSTOCK, Server, open_server

pytestmark = pytest.mark.live

RUN_S_MAX = 60
INFERENCE, ADMIN = "127.0.0.1:8000", "127.0.0.1:8002"


@pytest.fixture(scope="module")
def quickstart() -> Iterator[Server]:
    """What `make serve` serves."""
    with open_server(EXAMPLES / "quickstart.toml") as server:
        yield server


def run_snippet(snippet: Snippet, server: Server, folder: Path) -> str:
    """Run a snippet in `folder`; return its stdout, or fail with what it said."""
    text = snippet.text.replace(INFERENCE, server.http.removeprefix("http://"))
    text = text.replace(ADMIN, server.admin.removeprefix("http://"))
    shell = ["bash", "-eu", "-o", "pipefail", "-c"]
    command = [*shell, text] if snippet.language == "sh" else [sys.executable, "-W", "error", "-c", text]
    environment = os.environ | {"PATH": f"{PENSTOCK.parent}:{os.environ['PATH']}"}
    # A state directory of its own, short enough for sockets: keys that a page makes are for nobody's server.
    with tempfile.TemporaryDirectory(prefix="ps-") as state:
        environment["XDG_STATE_HOME"] = state
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=RUN_S_MAX
        )
    where = f"{snippet.page}:{snippet.line}"
    assert done.returncode == 0, f"{where}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert '{"error"' not in done.stdout, f"{where}: {done.stdout}"
    assert done.stdout.strip() or snippet.language != "sh", f"{where}: expected to print something"
    return done.stdout


def runnable(page: str) -> list[Snippet]:
    """Return the snippets of a page that are code, in order."""
    return [s for s in snippets(page) if s.language in ("sh", "python") or s.verb == "file"]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_snippets_run(page: str, tmp_path: Path, quickstart: Server) -> None:
    """Every snippet that is not marked otherwise succeeds and meets no error."""
    assert shutil.which("curl"), "the snippets need curl, which `make test` installs"
    with ExitStack() as stack:
        served: dict[str, Server] = {}
        for snippet in runnable(page):
            if snippet.verb == "file":
                path = tmp_path / snippet.argument
                path.parent.mkdir(exist_ok=True)
                path.write_text(snippet.text)
            elif snippet.verb == "with":
                target = snippet.argument
                if target not in served:
                    served[target] = stack.enter_context(open_server(tmp_path / target))
                run_snippet(snippet, served[target], tmp_path)
            elif snippet.verb != "skip":
                run_snippet(snippet, quickstart, tmp_path)


def test_the_first_answer_is_as_shown(quickstart: Server, tmp_path: Path) -> None:
    """The JSON below the README's first request is what that request is answered with."""
    blocks = snippets("README.md")
    shown = next(index for index, block in enumerate(blocks) if block.language == "json")
    assert json.loads(run_snippet(blocks[shown - 1], quickstart, tmp_path)) == json.loads(blocks[shown].text)


@pytest.mark.parametrize("page", PAGES)
def test_json_in_the_documents_is_json(page: str) -> None:
    """Every block marked as JSON parses."""
    for block in snippets(page):
        if block.language == "json":
            json.loads(block.text)


# What the page writes for keys that are names of this server's, by the end of what holds them.
PLACEHOLDERS = {".profile": "BUCKET", ".tenants": "NAME"}


def keys_in(document: Any, prefix: str = "") -> Iterator[str]:
    """Yield the path of every value; dicts by reason are values, and lists and names show their first element."""
    if isinstance(document, dict) and not prefix.endswith(("_by_reason", "_by_class", "batch_closes")):
        placeholder = next((name for end, name in PLACEHOLDERS.items() if prefix.endswith(end)), None)
        for key, value in list(document.items())[: 1 if placeholder else None]:
            yield from keys_in(value, f"{prefix}.{placeholder or key}" if prefix else key)
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        yield from keys_in(document[0], f"{prefix}[]")
    else:
        yield prefix


def test_the_status_document_has_the_documented_fields(quickstart: Server) -> None:
    """docs/metrics.md lists exactly the fields of /api/status."""
    rows = table_rows("docs/metrics.md", "## The status document")
    documented = [span for cells in rows for span in code_spans(cells[0])]
    # The examples have no limits, whose fields a whole fleet in memory shows.
    served = [key for key in keys_in(quickstart.status()) if not key.startswith("limits")]
    limited = [key for key in keys_in(to_status(full_view())) if key.startswith("limits")]
    assert sorted(documented) == sorted(served + limited)


def test_the_report_of_bench_has_the_documented_keys(quickstart: Server) -> None:
    """docs/command-line.md lists exactly the keys of `penstock bench --json`."""
    command = [str(PENSTOCK), "bench", quickstart.http, "--model", "sum", "--rate", "50", "--duration", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_S_MAX)
    report = json.loads(done.stdout)
    rows = table_rows("docs/command-line.md", "## penstock bench")
    documented = [span for cells in rows if not cells[0].startswith("`--") for span in code_spans(cells[0])]
    assert sorted(documented) == sorted(report)
    (latency,) = [cells for cells in rows if cells[0] == "`latency_ms`"]
    assert code_spans(latency[1]) == list(report["latency_ms"])
    (verdict,) = [cells for cells in rows if cells[0] == "`verdict`"]
    assert code_spans(verdict[1]) == list(report["verdict"])
