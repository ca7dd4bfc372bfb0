"""The bench of limiters does what its tables say, on this project's own limiter over a real Redis.

Not here: other libraries, which live in environments that `make bench-limiters` builds.
"""

from collections.abc import Iterator

import pytest

from bench.limiters.catalogue import LIMITERS
from bench.limiters.crew import Crew, crew, own_python
from bench.limiters.scenarios import measure_refund, measure_trouble, measure_weight
from bench.limiters.serving import Server, redis_server

pytestmark = pytest.mark.live
OURS = [name for name, contender in LIMITERS.items() if contender.library == "penstock"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run one Redis for all of them."""
    with redis_server() as running:
        yield running


@pytest.fixture(scope="module", params=OURS)
def workers(request: pytest.FixtureRequest, server: Server) -> Iterator[Crew]:
    """Start one worker."""
    with crew(LIMITERS[request.param], own_python(), server.url, (0.0,)) as started:
        yield started


def test_a_refund_gives_back_whole_tokens(workers: Crew, server: Server) -> None:
    """Of 50 tokens 40 are taken and 30 given back: 40 are left, or one less for what drained in between."""
    found = measure_refund(workers, server)
    assert found["expected"] == 40
    assert found["left"] in {39, 40}


def test_a_heavy_request_costs_no_more_than_a_light_one(workers: Crew, server: Server) -> None:
    """For 4,000 tokens at once Redis keeps no more than for one: a few small keys."""
    found = measure_weight(workers, server)
    assert 1 <= found["keys"] <= 4
    assert found["stored_bytes"] < 1_000


def test_lost_scripts_are_loaded_again(workers: Crew, server: Server) -> None:
    """After SCRIPT FLUSH the next request is decided; who asks a silent Redis is told so."""
    found = measure_trouble(workers, server)
    assert found["flushed"] == "admitted"
    assert found["silent"] == "TimeoutError"
