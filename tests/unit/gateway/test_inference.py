"""Laws of one inference over the whole gateway in memory: right rows to the right client, honest refusals."""

import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.gateway.inference import retry_headers
from penstock.gateway.work import Refusal
from penstock.policy.queueing import BATCH, INTERACTIVE
from penstock.wire.frame import Failure
from tests.unit.gateway.fakes import SPEC, Client, encode_reply
from tests.unit.gateway.room import INFER, House, entry


def infer(rows: int = 1, **members: Any) -> bytes:
    """Return an infer request of so many rows; `members` are further members of the document."""
    tensor = {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": [0.5] * (2 * rows)}
    return json.dumps({"inputs": [tensor], **members}).encode()


def post(body: bytes, *lines: str) -> bytes:
    """Return an infer request as HTTP."""
    head = "".join(f"{line}\r\n" for line in ("POST /v2/models/sum/infer HTTP/1.1", "Host: a", *lines))
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture(name="house")
def make_house() -> House:
    """Return a gateway with one model and one replica that has proved itself and now answers only when told."""
    house = House()
    house.apply(entry("a"))
    house.tend()
    house.silent.add("unix:a")
    return house


def replica(house: House) -> Any:
    """Return the one replica."""
    return house._replicas[0]


def test_each_client_gets_its_rows(house: House) -> None:
    """Requests of several clients that share a batch each get their own rows, whatever their order of arrival."""
    clients = [Client(house.port) for _ in range(3)]
    for rows, client in zip((1, 2, 1), clients, strict=True):
        client.send(post(infer(rows, id=f"c{rows}")))
    house.turn()
    ((frame_id, _, meta),) = replica(house).take()
    assert meta.rows == (1, 2, 1)
    replica(house).say(encode_reply(frame_id, 4, values=(10.0, 20.0, 21.0, 30.0)))
    found = [json.loads(client.read()[0].body)["outputs"][0]["data"] for client in clients]
    assert found == [[10.0], [20.0, 21.0], [30.0]]


def test_answers_say_where_the_time_went(house: House) -> None:
    """An answer's Server-Timing has the time in queue, in the model and in all, in milliseconds."""
    house.client.send(post(INFER))
    house.turn()
    house.clock.advance_us(1_500)
    ((frame_id, _, _),) = replica(house).take()
    replica(house).say(encode_reply(frame_id, 1))
    (response,) = house.client.read()
    timing = response.headers["server-timing"]
    assert timing == 'queue;dur=0.000, execute;dur=0.003, batch;desc="1 rows, idle", total;dur=1.500'


def test_binary_answers_say_where_the_json_ends(house: House) -> None:
    """A binary answer carries the length of its JSON part and is no JSON."""
    house.client.send(post(infer(id="é", parameters={"binary_data_output": True})))
    house.turn()
    ((frame_id, _, _),) = replica(house).take()
    replica(house).say(encode_reply(frame_id, 1, values=(7.0,)))
    (response,) = house.client.read()
    json_bytes = int(response.headers["inference-header-content-length"])
    assert response.headers["content-type"] == "application/octet-stream"
    assert json.loads(response.body[:json_bytes])["id"] == "é"
    assert struct.unpack("<f", response.body[json_bytes:]) == (7.0,)


def test_raw_binary_requests_work(house: House) -> None:
    """A request of no JSON at all (header length 0) is answered in binary."""
    house.client.send(post(bytes(8), "Inference-Header-Content-Length: 0"))
    house.turn()
    ((frame_id, _, _),) = replica(house).take()
    replica(house).say(encode_reply(frame_id, 1))
    assert house.client.read()[0].headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("value", ["-1", "x", "1e3", "+5", "1_0", "", "9" * 5_000, "\N{SUPERSCRIPT TWO}", "999999"])
def test_a_senseless_header_length_is_refused(house: House, value: str) -> None:
    """Inference-Header-Content-Length that is no number within the body gets a 400, however long it is."""
    house.client.send(post(INFER).replace(b"Host: a", b"Host: a\r\nInference-Header-Content-Length: " + value.encode()))
    (response,) = house.client.read()
    assert response.status == 400
    assert "Inference-Header-Content-Length" in json.loads(response.body)["error"]
    assert not house.bugs


def test_an_id_stays_in_the_body(house: House) -> None:
    """A request's id is echoed in the body, escaped, and nowhere else."""
    for key in ({"id": 'x"\r\nZZQ: y\r\n\r\nZZQ'}, {"id": "ZZQ", "parameters": {"binary_data_output": True}}):
        house.client.send(post(infer(**key)))
        house.turn()
        ((frame_id, _, _),) = replica(house).take()
        replica(house).say(encode_reply(frame_id, 1))
        head, _, body = house.client.transport.take().partition(b"\r\n\r\n")
        assert b"ZZQ" not in head
        assert b"ZZQ" in body


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", INFER[:-1], b"\xff", infer(rows=5), infer(outputs=[{"name": "z"}])]
)
def test_wrong_bodies_are_refused_and_counted(house: House, body: bytes) -> None:
    """A body that is not a request for this model gets 400 at once in the protocol's form, and is counted."""
    house.client.send(post(body))
    (response,) = house.client.read()
    assert response.status == 400
    assert json.loads(response.body)["error"]
    assert "total;dur=" in response.headers["server-timing"]
    assert house.model().statistics.refusals == {"invalid": 1}
    assert house.model().statistics.failures == {"OTHER": 1}


def test_a_full_queue_says_when_to_come_back(house: House) -> None:
    """Past the queue's bound a client gets 503 with Retry-After in seconds and in milliseconds."""
    house.apply(entry("a", spec=replace(SPEC, queue=QueueBounds(requests_max=2))))
    for _ in range(6):
        house.client.send(post(infer(4)))
        house.turn()
    others = Client(house.port)
    others.send(post(INFER))
    (response,) = others.read()
    assert response.status == 503
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "50")


def test_what_cannot_be_done_in_time_is_answered_at_once() -> None:
    """A client whose deadline cannot be met is told so in the turn it asked, with when to come back."""
    house = House()
    spec = replace(SPEC, batching=Batching(size_max=4))
    house.apply(entry("a", spec=spec, profile=CostProfile.from_line(beta_us=8_000, alpha_us=500, size_max=4)))
    house.tend()
    house.silent.add("unix:a")
    house.client.send(post(infer(4)))
    house.turn()
    hurried = Client(house.port)
    hurried.send(post(INFER, "Penstock-Timeout-Ms: 15"))
    (response,) = hurried.read()
    assert response.status == 503
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "50")
    assert "expected to be done within 15.0 ms of its arrival, predicted 18.5 ms" in json.loads(response.body)["error"]
    assert house.model().statistics.refusals == {"predicted_late": 1}
    patient = Client(house.port)
    patient.send(post(INFER, "Penstock-Timeout-Ms: 25"))
    assert not patient.read()


@pytest.mark.parametrize(
    ("lines", "parameters", "request_class", "tenant", "allowed_us"),
    [
        ((), {}, INTERACTIVE, "", 40_000),
        (("Penstock-Class: interactive",), {"priority": 255}, INTERACTIVE, "", 40_000),
        (("penstock-class: batch",), {"priority": 1}, BATCH, "", SPEC.timeout_us),
        ((), {"priority": 3}, BATCH, "", SPEC.timeout_us),
        (("Penstock-Tenant: search.eu-1",), {"priority": 2}, INTERACTIVE, "search.eu-1", 40_000),
        (("Penstock-Timeout-Ms: 2.5",), {"timeout": 2_501}, INTERACTIVE, "", 2_500),
        (("Penstock-Timeout-Ms: 2.5",), {"timeout": 2_499}, INTERACTIVE, "", 2_499),
        (("Penstock-Timeout-Ms: 60000", "PENSTOCK-CLASS: batch", "penstock-tenant: a"), {}, BATCH, "a", 60_000_000),
    ],
)
def test_a_request_is_queued_on_its_own_terms(
    house: House, lines: tuple[str, ...], parameters: Any, request_class: int, tenant: str, allowed_us: int
) -> None:
    """Class, tenant and deadline of what is queued are those that headers, parameters and model say, each time."""
    house.apply(entry("a", spec=replace(SPEC, slo_us=40_000)))
    for _ in range(3):  # parsed in full, then by a remembered head, form and terms
        client = Client(house.port)
        house.clock.advance_us(17)
        client.send(post(infer(parameters=parameters), *lines))
        work: Any = client.connection.pending[0].work
        assert (work.request_class, work.tenant) == (request_class, tenant)
        assert (work.arrived_us, work.deadline_us) == (house.clock(), house.clock() + allowed_us)


@pytest.mark.parametrize("body", [infer(), bytes(8)], ids=["json", "raw"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Penstock-Class: urgent", "penstock-class: expected interactive or batch, got 'urgent'"),
        ("Penstock-Class:", "penstock-class: expected interactive or batch, got ''"),
        ("Penstock-Tenant: a b", "penstock-tenant: expected 1 to 64 letters, digits, '.', '_' and '-', got 'a b'"),
        (
            "Penstock-Timeout-Ms: -1",
            "penstock-timeout-ms: expected a number more than 0 and at most 86400000, such as 50 or 0.5, got '-1'",
        ),
    ],
)
def test_wrong_terms_are_refused_and_counted(house: House, line: str, expected: str, body: bytes) -> None:
    """A header that is wrong gets 400 each time, in the protocol's form and with its name, and is counted."""
    lines = (line,) if body.startswith(b"{") else (line, "Inference-Header-Content-Length: 0")
    for count in (1, 2):
        house.client.send(post(body, *lines))
        (response,) = house.client.read()
        assert response.status == 400
        assert json.loads(response.body) == {"error": expected}
        assert house.model().statistics.refusals == {"invalid": count}
    assert not house.bugs


@pytest.mark.parametrize("line", ["Penstock-Class: batch", "Penstock-Tenant: a", "Penstock-Timeout-Ms: 5"])
def test_terms_may_not_be_said_twice(house: House, line: str) -> None:
    """A header said twice is refused even if both agree: it would be open which one holds."""
    house.client.send(post(INFER, line, line))
    (response,) = house.client.read()
    assert response.status == 400
    assert (
        json.loads(response.body)["error"]
        == f"expected at most one {line.partition(':')[0].lower()} header, got several"
    )


@pytest.mark.parametrize(("timeout_us", "expires_us"), [(5_000, 5_000), (0, SPEC.timeout_us)])
def test_the_timeout_of_a_request_is_its_own_or_the_models(house: House, timeout_us: int, expires_us: int) -> None:
    """A request expires after its own timeout, or the model's if it names none, counted from its arrival."""
    house.loop.connections[0][1].connection_lost(None)
    house.client.send(post(infer(parameters={"timeout": timeout_us})))
    house.turn()
    house.loop.advance_us(expires_us - 1)
    assert not house.client.read()
    house.loop.advance_us(1)
    (response,) = house.client.read()
    assert response.status == 504
    assert f"{expires_us / 1e3:.1f} ms" in json.loads(response.body)["error"]


def test_a_client_that_goes_takes_its_request_along(house: House) -> None:
    """A client that disconnects while its request waits leaves the queue, and is counted."""
    model = house.model()
    assert model.batcher is not None
    for _ in range(3):
        house.client.send(post(infer(4)))
        house.turn()
    gone = Client(house.port)
    gone.send(post(INFER))
    house.turn()
    assert model.batcher.requests == 2
    gone.connection.connection_lost(None)
    assert model.batcher.requests == 1
    assert model.statistics.refusals == {"disconnected": 1}


def test_a_model_may_fail_one_request(house: House) -> None:
    """What the model says of one request goes to its client; its neighbour gets its rows."""
    other = Client(house.port)
    house.client.send(post(INFER))
    other.send(post(INFER))
    house.turn()
    ((frame_id, _, _),) = replica(house).take()
    replica(house).say(encode_reply(frame_id, 1, failures=(Failure(0, 422, "no good"),), values=(9.0,)))
    (response,) = house.client.read()
    assert (response.status, json.loads(response.body)) == (422, {"error": "no good"})
    assert json.loads(other.read()[0].body)["outputs"][0]["data"] == [9.0]


@pytest.mark.parametrize(
    ("retry_after_us", "expected"),
    [
        (0, b""),
        (1, b"retry-after: 1\r\nretry-after-ms: 1\r\n"),
        (50_000, b"retry-after: 1\r\nretry-after-ms: 50\r\n"),
        (1_000_000, b"retry-after: 1\r\nretry-after-ms: 1000\r\n"),
        (1_000_001, b"retry-after: 2\r\nretry-after-ms: 1001\r\n"),
    ],
)
def test_retry_after_is_rounded_up(retry_after_us: int, expected: bytes) -> None:
    """A client that comes back when it was told to never comes too early."""
    assert retry_headers(Refusal(503, "", None, retry_after_us)) == expected
