"""Laws of the routing table: every documented URL, every wrong one, and the form of what is answered to it."""

import json
from typing import Any

import pytest

from penstock.core.statistics import GatewayStatistics, ModelStatistics
from penstock.gateway.http import Exchange
from penstock.gateway.routes import ROUTES_MAX
from tests.unit.gateway.room import EMBEDDER, INFER, House, entry


@pytest.fixture(name="house")
def make_house() -> House:
    """Return a gateway with `sum` (1 and 2), an embedder, and a model that is still loading."""
    house = House()
    house.apply(
        entry("a"),
        entry("b", version="2"),
        entry("c", name="minilm", spec=EMBEDDER),
        entry(name="late", spec=None, state="LOADING"),
    )
    house.silent.update({"unix:c"})  # its outputs are not `SPEC`'s
    house.tend()
    return house


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "key"),
    [
        ("GET", "/v2", "extensions"),
        ("GET", "/v2/", "extensions"),
        ("GET", "/v2?a=b", "extensions"),
        ("GET", "http://host:1/v2?a=b", "extensions"),
        ("GET", "/v2/health/live", "live"),
        ("GET", "/v2/models/sum", "versions"),
        ("GET", "/v2/models/sum/", "versions"),
        ("GET", "/v2/models/s%75m", "versions"),
        ("GET", "/v2/models/sum?x", "versions"),
        ("GET", "/v2/models/sum/versions/1", "versions"),
        ("GET", "/v2/models/sum/ready", "ready"),
        ("GET", "/v2/models/sum/versions/1/ready", "ready"),
        ("GET", "/v2/models/sum/config", "max_batch_size"),
        ("GET", "/v2/models/sum/versions/2/config", "max_batch_size"),
        ("GET", "/v2/models/sum/stats", "model_stats"),
        ("GET", "/v2/models/sum/versions/1/stats", "model_stats"),
        ("GET", "/v2/models/stats", "model_stats"),
        ("POST", "/v2/repository/index", None),
        ("GET", "/v1/models", "data"),
        ("GET", "/v1/models/sum", "owned_by"),
        ("POST", "/v2/models/sum/infer", "outputs"),
        ("POST", "/v2/models/sum/infer/?q", "outputs"),
        ("POST", "/v2/models/sum/versions/1/infer", "outputs"),
    ],
)
def test_routes_lead_somewhere(house: House, method: str, url: str, key: str | None) -> None:
    """Every route answers 200 with its document, the second time as the first; HEAD answers as GET without the body."""
    body = INFER if "infer" in url else b""
    first, response = house.ask(method, url, body), house.ask(method, url, body)
    assert first.status == 200
    assert response.status == 200
    assert key is None or key in json.loads(response.body)
    assert response.headers["content-type"] == "application/json"
    if method == "GET":
        head = house.ask("HEAD", url)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == response.headers["content-length"]
    assert not house.bugs


@pytest.mark.parametrize(
    ("method", "url", "status", "says"),
    [
        ("GET", "/", 404, "no such route: /"),
        ("GET", "/v3", 404, "no such route: /v3"),
        ("GET", "//v2", 404, "no such route"),
        ("GET", "/v2/model/sum", 404, "no such route"),
        ("GET", "/v2/models", 404, "no such route"),
        ("GET", "/v2/models/", 404, "no such route"),
        ("GET", "/v2/models//ready", 404, "no such model: ''"),
        (
            "GET",
            "/v2/models/none",
            404,
            "served: late (version 1), minilm (version 1), sum (version 1), sum (version 2)",
        ),
        ("GET", "/v2/models/none/ready", 404, "no such model: 'none'"),
        ("GET", "/v2/models/none/stats", 404, "no such model: 'none'"),
        ("POST", "/v2/models/none/infer", 404, "no such model: 'none'"),
        ("GET", "/v2/models/sum/versions/3", 404, "no such model: 'sum' version 3"),
        ("GET", "/v2/models/sum/versions/01", 404, "no such model: 'sum' version 01"),
        ("GET", "/v2/models/sum/versions/x", 400, "model version: expected digits"),
        ("GET", "/v2/models/sum/versions", 400, "model version: expected digits"),
        ("GET", "/v2/models/sum/versions/%31", 400, "model version: expected digits"),
        ("GET", "/v2/models/sum/versions/-1", 400, "model version: expected digits"),
        ("POST", "/v2/models/sum/versions/" + "9" * 5_000 + "/infer", 404, "no such model"),
        ("GET", "/v2/models/sum/fly", 404, "no such route"),
        ("POST", "/v2/models/sum/infer/more", 404, "no such route"),
        ("GET", "/v2/models/late", 503, "'late' is LOADING: because"),
        ("POST", "/v2/models/late/infer", 503, "'late' is LOADING: because"),
        ("GET", "/v2/models/%ff%00%22", 404, "no such model"),
        ("OPTIONS", "*", 404, "no such route: *"),
        ("GET", "/v2/models/sum/versions/1/infer/x", 404, "no such route"),
        ("POST", "/v2/repository/models/sum/load", 404, "no such route"),
    ],
)
def test_wrong_urls_say_what_is_wrong(house: House, method: str, url: str, status: int, says: str) -> None:
    """A URL that leads nowhere gets its status and what was got, in the protocol's form, however often it comes."""
    assert house.ask(method, url).status == status
    response = house.ask(method, url)
    assert response.status == status
    assert says in json.loads(response.body)["error"]
    assert not house.bugs
    assert (status == 503) == ("retry-after" in response.headers)


@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/sum", "GET, HEAD"),
        ("GET", "/v2/models/sum/infer", "POST"),
        ("HEAD", "/v2/models/sum/infer", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("GET", "/v2/repository/index", "POST"),
    ],
)
def test_wrong_methods_say_which_are_right(house: House, method: str, url: str, allowed: str) -> None:
    """A method that a route does not have gets 405 and the methods that it has."""
    response = house.ask(method, url)
    assert response.status == 405
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("method", "url", "status", "code"),
    [
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v1/nothing", 404, None),
        ("DELETE", "/v1/models", 405, None),
        ("POST", "/v1/embeddings", 400, None),
    ],
)
def test_openai_clients_get_openai_errors(house: House, method: str, url: str, status: int, code: str | None) -> None:
    """Under /v1 an error has OpenAI's form, with its code where it has one."""
    response = house.ask(method, url)
    assert response.status == status
    error = json.loads(response.body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["code"] == code


def test_refusals_have_the_form_of_their_protocol(house: House) -> None:
    """What HTTP itself refuses is told in the form of the protocol that the URL belongs to."""
    for url, form in (("/v1/models", dict), ("/v2", str)):
        response = house.ask("GET", url, b"x", "Content-Encoding: br")
        assert response.status == 415
        assert isinstance(json.loads(response.body)["error"], form)


def test_names_are_percent_decoded(house: House) -> None:
    """A model's name in a URL may hold any character, percent-encoded."""
    house.apply(entry("a", name="a/b c"))
    assert json.loads(house.ask("GET", "/v2/models/a%2Fb%20c").body)["name"] == "a/b c"
    assert json.loads(house.ask("GET", "/v1/models/a/b%20c").body)["id"] == "a/b c"


def test_nothing_of_a_url_reaches_the_head_of_an_answer(house: House) -> None:
    """No URL can put a line or a word of its own into an answer's head."""
    for url in ("/v2/models/%0d%0aZZQ:%20x", "/v2/ZZQ", "/v1/models/%0d%0aZZQ", "/v2/models/sum/versions/%0aZZQ"):
        house.client.send(f"GET {url} HTTP/1.1\r\nHost: ZZQ\r\n\r\n".encode())
        head = house.client.transport.take().partition(b"\r\n\r\n")[0]
        assert b"ZZQ" not in head


# -- what depends on the catalogue -----------------------------------------------------------------------------------


def test_before_the_first_snapshot_clients_are_told_to_wait() -> None:
    """Until the catalogue is here a model is not unknown but not known yet: 503 and when to come back."""
    house = House()
    response = house.ask("POST", "/v2/models/sum/infer", INFER)
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert house.ask("GET", "/v2/health/live").status == 200
    assert house.ask("GET", "/v2/health/ready").status == 503


def test_a_snapshot_changes_where_urls_lead(house: House) -> None:
    """A URL that was resolved before is resolved anew after each snapshot."""
    assert house.ask("POST", "/v2/models/sum/infer", INFER).status == 200
    assert json.loads(house.ask("POST", "/v2/models/sum/infer", INFER).body)["model_version"] == "2"
    house.apply(entry("a"))
    assert json.loads(house.ask("POST", "/v2/models/sum/infer", INFER).body)["model_version"] == "1"
    house.apply()
    assert house.ask("POST", "/v2/models/sum/infer", INFER).status == 404


def test_remembered_urls_are_bounded(house: House) -> None:
    """However many URLs lead somewhere, so many are remembered, and none that is very long."""
    for k in range(ROUTES_MAX + 10):
        assert house.ask("GET", f"/v2?{k}").status == 200
        assert len(house.routes._routes) <= ROUTES_MAX
    house.ask("GET", "/v2?" + "y" * 5_000)
    assert all(len(url) < 1_024 for _, url in house.routes._routes)


def test_readiness_is_told() -> None:
    """Ready is 200 and true, not ready 503 and false, for the gateway and for each model, and off while draining."""
    house = House()
    house.apply(entry("a"), entry("b", name="other"))
    house.silent.add("unix:b")
    house.tend()
    assert house.ask("GET", "/v2/models/sum/ready").status == 200
    assert house.ask("GET", "/v2/models/other/ready").status == 503
    response = house.ask("GET", "/v2/health/ready")
    assert (response.status, json.loads(response.body)) == (503, {"ready": False})
    house.silent.clear()
    house.tend()
    assert house.ask("GET", "/v2/health/ready").status == 200
    house.routes.is_draining = True
    assert house.ask("GET", "/v2/health/ready").status == 503
    assert house.ask("GET", "/v2/models/sum/ready").status == 503
    assert house.ask("GET", "/v2/health/live").status == 200
    assert house.ask("POST", "/v2/models/sum/infer", INFER).status == 200


def test_the_repository_index_lists_all_or_what_is_ready(house: House) -> None:
    """The index lists every version, or only the ready ones if asked to; a senseless question is a 400."""
    everything = json.loads(house.ask("POST", "/v2/repository/index").body)
    assert [(e["name"], e["version"]) for e in everything] == [
        ("late", "1"),
        ("minilm", "1"),
        ("sum", "1"),
        ("sum", "2"),
    ]
    ready = json.loads(house.ask("POST", "/v2/repository/index", b'{"ready": true}').body)
    assert {e["name"] for e in ready} == {"minilm", "sum"}
    assert house.ask("POST", "/v2/repository/index", b'{"ready": 1}').status == 400


# -- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_the_heads(house: House) -> None:
    """Statistics are the sum over all gateways; a model that has none yet is listed with zeros."""
    house.head_statistics = GatewayStatistics(models={"sum:1": ModelStatistics(inference_count=42)})
    entries = json.loads(house.ask("GET", "/v2/models/stats").body)["model_stats"]
    counts = {(e["name"], e["version"]): e["inference_count"] for e in entries}
    assert counts == {("late", "1"): 0, ("minilm", "1"): 0, ("sum", "1"): 42, ("sum", "2"): 0}
    entries = json.loads(house.ask("GET", "/v2/models/sum/stats").body)["model_stats"]
    assert [e["version"] for e in entries] == ["1", "2"]
    entries = json.loads(house.ask("GET", "/v2/models/sum/versions/2/stats").body)["model_stats"]
    assert [e["version"] for e in entries] == ["2"]


def test_late_statistics_keep_their_place(house: House) -> None:
    """While the head is asked, later requests on the connection wait their turn; a client that goes harms nobody."""
    house.head_statistics = None
    house.client.send(b"GET /v2/models/stats HTTP/1.1\r\nHost: a\r\n\r\nGET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not house.client.read()
    (answer,) = house.waiting_for_head
    answer(GatewayStatistics())
    first, second = house.client.read()
    assert "model_stats" in json.loads(first.body)
    assert "extensions" in json.loads(second.body)
    house.client.send(b"GET /v2/models/stats HTTP/1.1\r\nHost: a\r\n\r\n")
    house.client.connection.connection_lost(None)
    house.waiting_for_head[1](GatewayStatistics())
    assert not house.client.read()


# -- bugs ------------------------------------------------------------------------------------------------------------


class Broken:
    """A statistics query that fails as no query should."""

    def __call__(self, answer: Any) -> None:
        raise RuntimeError("bug")


def test_a_bug_in_a_route_is_answered_and_reported(house: House) -> None:
    """An exception that should not have happened gives 500 without its words, is reported, and harms nobody else."""
    house.routes._query_statistics = Broken()
    response = house.ask("GET", "/v2/models/stats")
    assert response.status == 500
    assert "bug" not in json.loads(response.body)["error"]
    assert [str(bug) for bug in house.bugs] == ["bug"]
    assert house.ask("GET", "/v2").status == 200


def test_a_bug_after_submission_answers_once(house: House) -> None:
    """If a route fails with work under way, the work is abandoned: the client gets the 500 and nothing after it."""
    url = "/v2/models/sum/versions/1/infer"
    assert house.ask("POST", url, INFER).status == 200
    route = house.routes._routes["POST", url.encode()]

    def submit_and_fail(exchange: Exchange) -> None:
        route(exchange)
        raise RuntimeError("bug")

    house.routes._routes["POST", url.encode()] = submit_and_fail
    house.port.heads.clear()  # or what its head led to is used again
    assert house.ask("POST", url, INFER).status == 500
    house.routes.forget()
    assert house.ask("POST", url, INFER).status == 200
    assert house.model(version="1").statistics.success == 2
