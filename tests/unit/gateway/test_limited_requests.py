"""Requests under limits, from bytes in to bytes out: what callers are told, and what is left as it was."""

import json

from penstock.core.limits import ConcurrencyLimit, Cost, Level, LimitSettings, RateLimit
from tests.unit.gateway.fakes import Client
from tests.unit.gateway.room import EMBEDDER, INFER, House, entry

INFER_URL = "/v2/models/sum/infer"
FOUR_ROWS = json.dumps({"inputs": [{"name": "x", "shape": [4, 2], "datatype": "FP32", "data": [1] * 8}]}).encode()
S = 1_000_000


def house_of(*limits: RateLimit | ConcurrencyLimit) -> House:
    house = House(settings=LimitSettings(limits=limits))
    house.apply(entry("a"), entry("b", name="embedder", spec=EMBEDDER))
    return house


def test_an_admitted_answer_says_what_is_left() -> None:
    """A 200 carries the state of the tightest of the caller's limits."""
    house = house_of(RateLimit("all", Level.GLOBAL, 10, S, 3), RateLimit("per-user", Level.USER, 10, S, 30))
    response = house.ask("POST", INFER_URL, INFER)
    assert response.status == 200
    assert response.headers["ratelimit"] == '"all";r=2;t=1'
    assert response.headers["x-ratelimit-remaining"] == "2"


def test_a_rejected_answer_says_when_to_come_back() -> None:
    """A 429 names the limit, its level and the wait; waiting so long is enough."""
    house = house_of(RateLimit("per-user", Level.USER, 10, S, 1))
    assert house.ask("POST", INFER_URL, INFER).status == 200
    response = house.ask("POST", INFER_URL, INFER)
    assert response.status == 429
    assert response.headers["retry-after"] == "1"
    wait_ms = int(response.headers["retry-after-ms"])
    assert 0 < wait_ms <= 100
    assert "'per-user' (level user" in json.loads(response.body)["error"]
    house.clock.advance_us(wait_ms * 1_000)
    assert house.ask("POST", INFER_URL, INFER).status == 200


def test_a_wrong_request_costs_nothing() -> None:
    """What is answered with 400 is charged to nobody."""
    house = house_of(RateLimit("all", Level.GLOBAL, 1, S, 1))
    assert house.ask("POST", INFER_URL, b"{").status == 400
    assert house.ask("POST", INFER_URL, INFER).status == 200


def test_rows_are_counted() -> None:
    """Under cost = rows a request of four takes four; one of more than the burst can never pass."""
    house = house_of(RateLimit("rows", Level.MODEL, 1, S, 5, Cost.ROWS, models=("sum",)))
    assert house.ask("POST", INFER_URL, FOUR_ROWS).status == 200
    assert house.ask("POST", INFER_URL, FOUR_ROWS).status == 429
    assert house.ask("POST", INFER_URL, INFER).status == 200
    small = house_of(RateLimit("rows", Level.MODEL, 1, S, 3, Cost.ROWS))
    response = small.ask("POST", INFER_URL, FOUR_ROWS)
    assert response.status == 400
    assert "3" in json.loads(response.body)["error"]


def test_a_limit_of_one_model_leaves_others_alone() -> None:
    """Requests for other models are not counted."""
    house = house_of(RateLimit("one", Level.GLOBAL, 1, S, 1, models=("embedder",)))
    assert [house.ask("POST", INFER_URL, INFER).status for _ in range(3)] == [200] * 3
    assert "ratelimit" not in house.ask("POST", INFER_URL, INFER).headers


def test_slots_come_free_with_the_answer() -> None:
    """A request in progress holds a slot, and no longer."""
    house = house_of(ConcurrencyLimit("two", Level.GLOBAL, 2))
    assert [house.ask("POST", INFER_URL, INFER).status for _ in range(5)] == [200] * 5


def test_who_leaves_while_waiting_is_not_executed() -> None:
    """A client that goes away before the authority has answered costs no execution, and its slot comes free."""
    house = house_of(ConcurrencyLimit("one", Level.GLOBAL, 1))
    house.client.send(
        b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (INFER_URL.encode(), len(INFER), INFER)
    )
    house.client.connection.connection_lost(None)
    house.turn()
    assert house.model().statistics.execution_count == 0
    house.client = Client(house.port)
    assert house.ask("POST", INFER_URL, INFER).status == 200


def test_unreachable_is_503() -> None:
    """While nobody answers, a limit that is closed refuses and says so."""
    house = house_of(RateLimit("all", Level.GLOBAL, 10, S, 3))
    house.authority.is_down = True
    response = house.ask("POST", INFER_URL, INFER)
    assert response.status == 503
    assert "retry-after" in response.headers
    house.authority.is_down = False
    assert house.ask("POST", INFER_URL, INFER).status == 200
