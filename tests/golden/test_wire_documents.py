"""The wire's documents are the reviewed ones, member for member and in order."""

import pytest

from tests.golden.wire_documents import REFRESH, directory, render, wire_documents

DOCUMENTS = wire_documents()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_the_reviewed_one(name: str) -> None:
    """Each document equals its golden file; a change is deliberate and reviewed."""
    golden = (directory() / f"{name}.json").read_text()
    assert render(DOCUMENTS[name]) == golden, f"if the change is meant, run: {REFRESH}"


def test_no_golden_file_is_left_over() -> None:
    """Every golden file belongs to a document."""
    assert {path.stem for path in directory().glob("*.json")} == set(DOCUMENTS)
