"""Fixtures of the live tests: the quickstart, served once for all tests that only ask it questions."""

from collections.abc import Iterator

import pytest

from tests.live.serving import EXAMPLES, Server, open_server


@pytest.fixture(scope="session")
def quickstart() -> Iterator[Server]:
    """`penstock serve examples/quickstart.toml`: digits, minilm, sum and emulated. Do it no harm: it is shared."""
    with open_server(EXAMPLES / "quickstart.toml") as server:
        yield server
