"""Laws of OpenAI's embeddings: texts and tokens round trip, chunks keep every input once, noise is InvalidParameter."""

import base64
import json
import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.testing.strategies import damaged, hostile_bytes
from penstock.wire.oip import length_bucket
from penstock.wire.oip_elements import rows_of_bytes
from penstock.wire.openai import (
    TOKEN_ID_MAX,
    InvalidParameter,
    decode_embeddings_request,
    encode_embeddings_response,
    pack_texts,
    pack_token_ids,
    plan_embedding_chunks,
)

TEXTS = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5)
ROWS = st.lists(st.lists(st.integers(0, TOKEN_ID_MAX), min_size=1, max_size=6), min_size=1, max_size=5)
EMBEDDINGS = st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4), max_size=4)


@given(TEXTS)
def test_texts_arrive_as_utf8(texts: list[str]) -> None:
    """A list of strings arrives in order as UTF-8; a single string is a list of one."""
    request = decode_embeddings_request(json.dumps({"model": "m", "input": texts}).encode())
    assert (request.texts, request.tokens) == (tuple(t.encode() for t in texts), ())
    single = decode_embeddings_request(json.dumps({"model": "m", "input": texts[0]}).encode())
    assert single.texts == request.texts[:1]


@given(ROWS)
def test_tokens_arrive_as_they_are(rows: list[list[int]]) -> None:
    """A list of token lists arrives in order; a single token list is a list of one."""
    request = decode_embeddings_request(json.dumps({"model": "m", "input": rows}).encode())
    assert (request.texts, request.tokens) == ((), tuple(map(tuple, rows)))
    single = decode_embeddings_request(json.dumps({"model": "m", "input": rows[0]}).encode())
    assert single.tokens == request.tokens[:1]


@given(TEXTS, st.data())
def test_a_damaged_request_is_an_invalid_parameter_at_worst(texts: list[str], data: st.DataObject) -> None:
    """No injury to a request raises anything but InvalidParameter, and its message is short."""
    body = json.dumps({"model": "m", "input": texts, "encoding_format": "base64", "user": "u", "dimensions": 3})
    refuse_or_decode(data.draw(damaged(body.encode())))


@given(hostile_bytes())
def test_any_bytes_are_an_invalid_parameter_at_worst(noise: bytes) -> None:
    """Bytes that are no request, alone or as its input, raise nothing but InvalidParameter."""
    refuse_or_decode(noise)
    refuse_or_decode(b'{"model":"m","input":' + noise + b"}")
    refuse_or_decode(b'{"model":"m","input":[' + noise + b"]}")


def refuse_or_decode(body: bytes) -> None:
    """Decode; a refusal must be short, and what is accepted must pack."""
    message = ""
    request = None
    try:
        request = decode_embeddings_request(body)
    except InvalidParameter as error:
        message = error.message
    if request is None:
        assert 0 < len(message) < 500
        return
    assert bool(request.texts) != bool(request.tokens)
    if request.texts:
        pack_texts(list(request.texts))
    else:
        pack_token_ids(list(request.tokens))


@given(st.lists(st.binary(max_size=12)))
def test_packed_texts_are_a_bytes_tensor(texts: list[bytes]) -> None:
    """Packed texts read back as the elements of a BYTES tensor."""
    assert rows_of_bytes(pack_texts(texts)) == texts


@given(ROWS)
def test_packed_tokens_are_padded_rows(rows: list[list[int]]) -> None:
    """Packed token ids read back with numpy as rows of one length, padded on the right with -1."""
    data, width = pack_token_ids([tuple(row) for row in rows])
    array = np.frombuffer(data, "<i4").reshape(len(rows), width)
    assert width == max(map(len, rows))
    for row, packed in zip(rows, array.tolist(), strict=True):
        assert packed == row + [-1] * (width - len(row))


@given(EMBEDDINGS, st.integers(0, 2**40))
def test_float_and_base64_say_the_same(embeddings: list[list[float]], prompt_tokens: int) -> None:
    """Numbers and base64 both give back exactly the FP32 values, in order, with the count of tokens."""
    packed = [memoryview(struct.pack(f"<{len(e)}f", *e)) for e in embeddings]
    for as_base64 in (False, True):
        answer = json.loads(encode_embeddings_response("m", packed, as_base64=as_base64, prompt_tokens=prompt_tokens))
        found = [d["embedding"] for d in answer["data"]]
        if as_base64:
            found = [np.frombuffer(base64.b64decode(text, validate=True), "<f4").tolist() for text in found]
        assert found == embeddings
        assert [d["index"] for d in answer["data"]] == list(range(len(embeddings)))
        assert answer["usage"] == {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}


@given(st.lists(st.integers(0, 5_000), max_size=60), st.integers(1, 8))
def test_chunks_hold_every_input_once_and_one_bucket_each(lengths: list[int], rows_max: int) -> None:
    """Every index appears exactly once, no chunk is empty or too large, and each holds one length bucket."""
    chunks = plan_embedding_chunks(lengths, rows_max)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    assert all(1 <= len(chunk) <= rows_max for chunk in chunks)
    assert all(len({length_bucket(lengths[i]) for i in chunk}) == 1 for chunk in chunks)
    buckets = [length_bucket(lengths[chunk[0]]) for chunk in chunks]
    in_bucket = [length_bucket(n) for n in lengths]
    assert all(buckets.count(b) == -(-in_bucket.count(b) // rows_max) for b in set(buckets))
