"""Laws of `/v1/embeddings`: inputs in chunks of like length, answers in the order asked, one ending for all chunks."""

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from penstock.core.limits import Cost, Level, LimitSettings, RateLimit
from penstock.core.models import Batching, QueueBounds
from penstock.core.tensors import TensorSpec
from penstock.policy.limiting import remaining
from penstock.policy.queueing import BATCH, INTERACTIVE
from penstock.wire.frame import (
    Failure,
    FrameDecoder,
    FrameKind,
    FrameTensor,
    ReplyMeta,
    decode_batch_meta,
    encode_frame,
    encode_meta,
)
from penstock.wire.oip_elements import rows_of_bytes
from tests.unit.gateway.fakes import FakeReplica
from tests.unit.gateway.room import EMBEDDER, House, entry

MODEL = replace(
    EMBEDDER,
    inputs=(
        TensorSpec("text", "BYTES", (-1, 1), optional=True),
        TensorSpec("token_ids", "INT32", (-1, -1), optional=True),
    ),
    outputs=(TensorSpec("embedding", "FP32", (-1, 2)), TensorSpec("token_count", "INT64", (-1, 1))),
    batching=Batching(size_max=2, wait_us_max=0),
    queue=QueueBounds(),
)
SHORT, LONG = "ab", "x" * 100


class Embedder(FakeReplica):
    """A replica whose embedding of a text is its length and its first byte; a token list's, its sum and length."""

    def read(self) -> list[tuple[int, list[list[float]]]]:
        """Return each batch that came: its id and the embeddings of its rows."""
        found = []
        for frame in self._decoder.feed(self.transport.take()):
            payload = bytes(frame.payload)
            if b"token_ids" in bytes(frame.meta):
                (tensor,) = decode_batch_meta(frame).inputs
                width = tensor.shape[0]
                rows = [struct.unpack_from(f"<{width}i", payload, at) for at in range(0, len(payload), width * 4)]
                kept = [[token for token in row if token != -1] for row in rows]
                found.append((frame.id, [[float(sum(row)), float(len(row))] for row in kept]))
            else:
                texts = rows_of_bytes(payload)
                found.append((frame.id, [[float(len(text)), float(text[0])] for text in texts]))
        return found

    def embed(self, frame_id: int, rows: list[list[float]], *, failures: tuple[Failure, ...] = ()) -> None:
        """Answer a batch."""
        values = [value for row in rows for value in row]
        payload = struct.pack(f"<{len(values)}f", *values) + struct.pack(f"<{len(rows)}q", *[3] * len(rows))
        outputs: tuple[FrameTensor, ...] = ()
        if rows:
            outputs = (
                FrameTensor("embedding", "FP32", (2,), len(values) * 4),
                FrameTensor("token_count", "INT64", (1,), len(rows) * 8),
            )
        meta = ReplyMeta(outputs, failures, 1, 2, 3, 4, len(rows) or 1)
        self.say(encode_frame(FrameKind.REPLY, frame_id, encode_meta(meta), [payload]))


class Desk(House):
    """A gateway with one embedding model and replicas that answer when told."""

    def __init__(self, spec: Any = MODEL, *, replicas: int = 4, settings: LimitSettings | None = None) -> None:
        super().__init__(settings=settings)
        self.silent.update(f"unix:{k}" for k in range(replicas))
        self.apply(entry(*map(str, range(replicas)), name="m", spec=spec))
        self.replicas = [Embedder(*connection[1:]) for connection in self.loop.connections]

    def send(self, *lines: bytes, **document: Any) -> None:
        """Post one embeddings request, with these header lines, and end the turn."""
        body = json.dumps({"model": "m", **document}).encode()
        head = b"".join(b"%b\r\n" % line for line in (b"POST /v1/embeddings HTTP/1.1", b"Host: a", *lines))
        self.client.send(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        self.turn()

    def left(self, limit: RateLimit) -> int:
        """Return how many tokens of a limit that has one bucket are left."""
        kept = list(self.authority.book._entries.values())
        return limit.burst if not kept else remaining(kept[0].bucket, limit.quota())

    def run(self) -> int:
        """Let all replicas answer until nothing is left to do; return how many batches there were."""
        count = 0
        while batches := [(replica, *batch) for replica in self.replicas for batch in replica.read()]:
            count += len(batches)
            for replica, frame_id, rows in batches:
                replica.embed(frame_id, rows)
                self.turn()
        return count

    def document(self, status: int = 200) -> Any:
        """Return the one response's document."""
        (response,) = self.client.read()
        assert response.status == status
        assert not self.bugs
        return json.loads(response.body)


def test_a_text_gets_its_embedding() -> None:
    """One string gives one embedding, with the model's own count of tokens."""
    desk = Desk()
    desk.send(input=SHORT)
    desk.run()
    document = desk.document()
    assert document["data"] == [{"object": "embedding", "index": 0, "embedding": [2.0, float(ord("a"))]}]
    assert document["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert document["model"] == "m"


@pytest.mark.parametrize(
    ("lines", "request_class", "tenant", "allowed_us"),
    [
        ((), INTERACTIVE, "", 40_000),
        ((b"penstock-class: batch", b"Penstock-Tenant: t"), BATCH, "t", MODEL.timeout_us),
        ((b"Penstock-Timeout-Ms: 0.5",), INTERACTIVE, "", 500),
    ],
)
def test_every_chunk_is_queued_on_the_requests_terms(
    lines: tuple[bytes, ...], request_class: int, tenant: str, allowed_us: int
) -> None:
    """Class, tenant and deadline are those of the request's headers and of the model, for each of its chunks."""
    desk = Desk(replace(MODEL, slo_us=40_000))
    desk.send(*lines, input=[SHORT, LONG])
    owner: Any = desk.client.connection.pending[0].work
    found = [(chunk.request_class, chunk.tenant, chunk.deadline_us - chunk.arrived_us) for chunk in owner._waiting]
    assert found == [(request_class, tenant, allowed_us)] * 2


def test_wrong_terms_are_refused_in_openais_form() -> None:
    """A header that is wrong gets 400 with its name, and nothing is queued."""
    desk = Desk()
    desk.send(b"Penstock-Timeout-Ms: soon", input=SHORT)
    assert desk.run() == 0
    error = desk.document(400)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("penstock-timeout-ms: expected a number more than 0")


def test_embeddings_come_in_the_order_asked() -> None:
    """However inputs are put into chunks and whichever chunk is back first, embeddings keep their inputs' order."""
    desk = Desk()
    texts = [LONG, SHORT, LONG * 3, "b", LONG + "y", "cde", "f" * 70]
    desk.send(input=texts)
    assert desk.run() > 1
    assert [e["embedding"] for e in desk.document()["data"]] == [[float(len(t)), float(ord(t[0]))] for t in texts]


def test_a_short_text_never_shares_a_batch_with_a_long_one() -> None:
    """Each batch holds texts of one length bucket, and no more than `size_max`."""
    desk = Desk(replicas=8)
    desk.send(input=[SHORT, LONG] * 3)
    sizes = [[row[0] for row in rows] for replica in desk.replicas for _, rows in replica.read()]
    assert all(len(rows) <= 2 and len(set(rows)) == 1 for rows in sizes)
    assert sum(map(len, sizes)) == 6


def test_base64_is_the_same_numbers() -> None:
    """As base64 an embedding is its little-endian FP32."""
    desk = Desk()
    desk.send(input=SHORT, encoding_format="base64")
    desk.run()
    encoded = desk.document()["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(encoded)) == (2.0, float(ord("a")))


@pytest.mark.parametrize(("asked", "told"), [({}, {}), ({"dimensions": 2}, {}), ({"dimensions": 1}, {"dimensions": 1})])
def test_a_length_other_than_the_default_is_told_to_the_model(asked: dict[str, int], told: dict[str, int]) -> None:
    """The model learns of a length only when it differs from what it gives unasked."""
    desk = Desk(replace(MODEL, dimensions=(2, 1)), replicas=1)
    desk.send(input=SHORT, **asked)
    (frame,) = FrameDecoder().feed(desk.replicas[0].transport.take())
    assert decode_batch_meta(frame).parameters == told


def test_token_lists_are_inputs_too() -> None:
    """Lists of tokens reach the model as token ids, each row padded to its chunk's width."""
    desk = Desk()
    desk.send(input=[[1, 2, 3], [10]])
    desk.run()
    assert [e["embedding"] for e in desk.document()["data"]] == [[6.0, 3.0], [10.0, 1.0]]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"input": []}, "between 1 and"),
        ({"input": ""}, "non-empty"),
        ({"input": 5}, "input"),
        ({"input": "a", "dimensions": 3}, "dimensions: expected 2"),
        ({"input": "a", "model": "none"}, "no such model"),
    ],
)
def test_wrong_requests_are_refused(document: dict[str, Any], says: str) -> None:
    """A request that makes no sense gets OpenAI's error, and nothing runs."""
    desk = Desk()
    desk.send(**document)
    assert says in desk.document(404 if "model" in document else 400)["error"]["message"]
    assert not desk.run()


def test_models_that_do_not_embed_say_so() -> None:
    """A model of another task, or one that takes no tokens, refuses with 400 and says what it takes."""
    desk = Desk(replace(MODEL, task=""))
    desk.send(input=SHORT)
    assert "/v2/models/m/infer" in desk.document(400)["error"]["message"]
    desk = Desk(EMBEDDER)
    desk.send(input=[1, 2])
    assert "takes no token ids" in desk.document(400)["error"]["message"]


# -- endings ---------------------------------------------------------------------------------------------------------


def assert_nothing_left(desk: Desk) -> None:
    """Check that nothing waits, and that late replies reach nobody."""
    batcher = desk.model("m").batcher
    assert batcher is not None
    assert (batcher.requests, batcher.scheduler.nbytes) == (0, 0)
    desk.run()
    assert not desk.client.transport.written
    assert not desk.bugs
    statistics = desk.model("m").statistics
    assert statistics.pending == 0


def test_the_failure_of_one_chunk_is_the_requests() -> None:
    """If the model fails one chunk the client gets that error once, and the other chunks are not executed any more."""
    desk = Desk(replicas=1)
    desk.send(input=[SHORT, LONG, LONG * 2, LONG * 4, LONG * 8])
    ((frame_id, _), *_) = desk.replicas[0].read()
    desk.replicas[0].embed(frame_id, [], failures=(Failure(0, 400, "no good"),))
    desk.turn()
    assert desk.document(400)["error"]["message"] == "no good"
    assert len(desk.replicas[0].read()) <= 1
    assert_nothing_left(desk)
    assert "disconnected" not in desk.model("m").statistics.refusals


def test_chunks_expire_together_and_once() -> None:
    """When the deadline passes, all chunks that wait leave, and the client gets one 504."""
    desk = Desk(replicas=0)
    desk.send(input=[SHORT, LONG, LONG * 2, LONG * 4])
    desk.loop.advance_us(MODEL.timeout_us)
    assert desk.document(504)["error"]["type"] == "server_error"
    assert_nothing_left(desk)
    assert desk.model("m").statistics.refusals == {"expired": 4}


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_a_request_that_does_not_fit_is_refused_whole(room: int) -> None:
    """If some chunk finds no room the client gets one 503, and the chunks before it leave the queue again."""
    desk = Desk(replace(MODEL, queue=QueueBounds(requests_max=room)), replicas=0)
    desk.send(input=[SHORT, LONG, LONG * 2, LONG * 4])
    (response,) = desk.client.read()
    assert response.status == 503
    assert "retry-after" in response.headers
    assert_nothing_left(desk)
    assert set(desk.model("m").statistics.refusals) == {"queue_full"}


def test_a_client_that_goes_takes_all_chunks_along() -> None:
    """When the client disconnects, no chunk of its request is executed any more."""
    desk = Desk(replicas=1)
    desk.send(input=[SHORT, LONG, LONG * 2, LONG * 4, LONG * 8])
    desk.client.connection.connection_lost(None)
    assert_nothing_left(desk)
    assert set(desk.model("m").statistics.refusals) == {"disconnected"}


def test_a_dead_replica_costs_the_client_nothing() -> None:
    """If a replica dies with a chunk, the chunk is tried again elsewhere and the answer is whole."""
    desk = Desk(replicas=2)
    desk.send(input=[SHORT, LONG])
    desk.replicas[0].die()
    desk.replicas = desk.replicas[1:]
    desk.run()
    assert [e["embedding"][0] for e in desk.document()["data"]] == [2.0, 100.0]


def test_a_limit_in_the_way_is_an_openai_error() -> None:
    """A request over its limit gets 429 with OpenAI's code and when to come back; the next is served after that."""
    desk = Desk(settings=LimitSettings(limits=(RateLimit("per-user", Level.USER, 10, 1_000_000, 1),)))
    desk.send(input=SHORT)
    desk.run()
    assert desk.document()["object"] == "list"
    desk.send(input=SHORT)
    (response,) = desk.client.read()
    assert (response.status, json.loads(response.body)["error"]["code"]) == (429, "rate_limit_exceeded")
    desk.clock.advance_us(int(response.headers["retry-after-ms"]) * 1_000)
    desk.send(input=SHORT)
    desk.run()
    desk.document()


def test_tokens_are_settled_by_what_the_model_counted() -> None:
    """The estimate, four bytes to a token, is corrected to the model's own count when the answer is there."""
    limit = RateLimit("tokens", Level.GLOBAL, 1, 1_000_000, 100, Cost.TOKENS)
    desk = Desk(settings=LimitSettings(limits=(limit,)))
    desk.send(input=[LONG, LONG])
    assert desk.left(limit) == 100 - 2 * 100 // 4
    desk.run()
    desk.turn()
    desk.document()
    assert desk.left(limit) == 100 - 2 * 3


def test_a_client_that_left_while_its_limits_were_asked_costs_no_execution() -> None:
    """Nothing is queued for who is gone, and what was charged on estimate is given back."""
    limit = RateLimit("tokens", Level.GLOBAL, 1, 1_000_000, 100, Cost.TOKENS)
    desk = Desk(settings=LimitSettings(limits=(limit,)))
    body = json.dumps({"model": "m", "input": LONG}).encode()
    desk.client.send(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    desk.client.connection.connection_lost(None)
    desk.turn()
    assert desk.run() == 0
    assert desk.left(limit) == 100
