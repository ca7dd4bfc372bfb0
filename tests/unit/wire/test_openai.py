"""OpenAI's API, case by case: what each mistake is told, dimensions, errors as its clients read them."""

import json
from typing import Any

import pytest

from penstock.core.models import ModelSpec
from penstock.core.tensors import TensorSpec
from penstock.wire.openai import (
    InvalidParameter,
    check_dimensions,
    decode_embeddings_request,
    encode_openai_error,
    pack_texts,
    pack_token_ids,
    plan_embedding_chunks,
)

REFUSALS: list[tuple[str, Any, str | None, str]] = [
    ("not an object", [], None, "embeddings request: Expected `object`, got `array`"),
    ("no model", {"input": "a"}, "model", "missing required field `model`"),
    ("model is empty", {"model": "", "input": "a"}, "model", "Expected `str` of length >= 1 - at `$.model`"),
    ("no input", {"model": "m"}, "input", "missing required field `input`"),
    ("input is a number", {"model": "m", "input": 1}, "input", "Expected `str | array`, got `int` - at `$.input`"),
    ("input is null", {"model": "m", "input": None}, "input", "Expected `str | array`, got `null`"),
    ("input is empty", {"model": "m", "input": ""}, "input", "input[0]: expected a non-empty string, got ''"),
    ("no inputs", {"model": "m", "input": []}, "input", "input: expected between 1 and 2048 inputs, got 0"),
    ("an empty text", {"model": "m", "input": ["a", ""]}, "input", "input[1]: expected a non-empty string, got ''"),
    ("too many", {"model": "m", "input": ["a"] * 2_049}, "input", "expected between 1 and 2048 inputs, got 2049"),
    ("an empty list of tokens", {"model": "m", "input": [[1], []]}, "input", "input[1]: expected at least one token"),
    (
        "text and tokens",
        {"model": "m", "input": ["a", [1]]},
        "input",
        "input[1]: expected a string like input[0], got list",
    ),
    (
        "tokens and text",
        {"model": "m", "input": [[1], "a"]},
        "input",
        "input[1]: expected a list of tokens like input[0]",
    ),
    ("token and text", {"model": "m", "input": [1, "a"]}, "input", "input[1]: expected a token (an integer), got str"),
    ("a negative token", {"model": "m", "input": [[-1]]}, "input", "Expected `int` >= 0"),
    ("a token too large", {"model": "m", "input": [2**31]}, "input", "Expected `int` <= 2147483647"),
    ("a token that is none", {"model": "m", "input": [[1.5]]}, "input", "got `float` - at `$.input[0][0]`"),
    ("format", {"model": "m", "input": "a", "encoding_format": "hex"}, "encoding_format", "Invalid enum value 'hex'"),
    ("dimensions", {"model": "m", "input": "a", "dimensions": 0}, "dimensions", "Expected `int` >= 1"),
    ("dimensions of a wrong type", {"model": "m", "input": "a", "dimensions": True}, "dimensions", "got `bool`"),
    ("user", {"model": "m", "input": "a", "user": 7}, "user", "Expected `str | null`, got `int` - at `$.user`"),
]


@pytest.mark.parametrize(("document", "param", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_a_refusal_names_the_parameter_expected_and_got(document: Any, param: str | None, message: str) -> None:
    """Each mistake is the caller's: status 400, OpenAI's `param`, and what was expected."""
    with pytest.raises(InvalidParameter) as refused:
        decode_embeddings_request(json.dumps(document).encode())
    assert message in refused.value.message
    assert (refused.value.param, refused.value.code, refused.value.status) == (param, None, 400)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"model":"m","input":' + b"[" * 100_000])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Noise and bottomless nesting are refused as a whole: no parameter is to blame."""
    with pytest.raises(InvalidParameter) as refused:
        decode_embeddings_request(body)
    assert refused.value.message.startswith("embeddings request: ")


def test_the_defaults_are_openais() -> None:
    """Without a format numbers are meant; null is the same as absent; `user` changes nothing."""
    plain = decode_embeddings_request(b'{"model":"m","input":"a"}')
    assert (plain.model, plain.texts, plain.as_base64, plain.dimensions) == ("m", (b"a",), False, None)
    nulls = b'{"model":"m","input":"a","encoding_format":null,"dimensions":null,"user":null}'
    assert decode_embeddings_request(nulls) == plain
    full = b'{"model":"m","input":"a","encoding_format":"base64","dimensions":3,"user":"u"}'
    assert decode_embeddings_request(full).as_base64
    assert decode_embeddings_request(full).dimensions == 3


def test_as_many_inputs_as_openai_allows() -> None:
    """2048 inputs pass, and one list of tokens may be longer than that: it is one input."""
    assert len(decode_embeddings_request(json.dumps({"model": "m", "input": ["a"] * 2_048}).encode()).texts) == 2_048
    (tokens,) = decode_embeddings_request(json.dumps({"model": "m", "input": [5] * 3_000}).encode()).tokens
    assert len(tokens) == 3_000


def embedder(dimensions: tuple[int, ...], width: int) -> ModelSpec:
    """Return an embedding model."""
    text, embedding = TensorSpec("text", "BYTES", (-1, 1)), TensorSpec("embedding", "FP32", (-1, width))
    return ModelSpec("e", (text,), (embedding,), task="embedding", dimensions=dimensions)


@pytest.mark.parametrize(
    ("dimensions", "width", "asked", "message"),
    [
        ((384,), 384, None, ""),
        ((384,), 384, 384, ""),
        ((), 384, 384, ""),
        ((768, 256), -1, 256, ""),
        ((384,), 384, 100, "dimensions: expected 384 for model 'e', got 100"),
        ((), 384, 100, "dimensions: expected 384 for model 'e', got 100"),
        ((768, 256), -1, 384, "dimensions: expected 768 or 256 for model 'e', got 384"),
        ((), -1, 384, "dimensions: expected none for model 'e', got 384"),
    ],
)
def test_only_honest_dimensions_are_offered(
    dimensions: tuple[int, ...], width: int, asked: int | None, message: str
) -> None:
    """A length the model declares passes; any other is refused naming those it can give."""
    got = ""
    try:
        check_dimensions(embedder(dimensions, width), asked)
    except InvalidParameter as error:
        got = error.message
    assert got == message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_errors_have_openais_types(status: int, kind: str) -> None:
    """The error's type says whose fault the status says it was; all four members are always there."""
    error = json.loads(encode_openai_error("no", status, param="p", code="c"))
    assert error == {"error": {"message": "no", "type": kind, "param": "p", "code": "c"}}
    assert json.loads(encode_openai_error("no", status))["error"]["param"] is None


def test_packing_is_little_endian() -> None:
    """Texts carry their lengths; token rows are INT32, padded on the right with -1."""
    assert pack_texts([b"a", b""]) == b"\x01\x00\x00\x00a\x00\x00\x00\x00"
    assert pack_token_ids([(1, 258), (3,)]) == (b"\x01\0\0\0\x02\x01\0\0\x03\0\0\0\xff\xff\xff\xff", 2)


@pytest.mark.parametrize(
    ("lengths", "rows_max", "chunks"),
    [
        ([], 4, []),
        ([5, 0, 63], 4, [[1, 0, 2]]),
        ([64, 63, 127, 128], 4, [[1], [0, 2], [3]]),
        ([1, 1, 1, 1, 1], 2, [[0, 1], [2, 3], [4]]),
    ],
)
def test_chunks_follow_the_length_buckets(lengths: list[int], rows_max: int, chunks: list[list[int]]) -> None:
    """Below 64 all share a bucket, then each power of two begins another; full chunks are closed."""
    assert plan_embedding_chunks(lengths, rows_max) == chunks
