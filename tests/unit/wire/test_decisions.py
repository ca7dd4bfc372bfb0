"""The decision log's lines: what is written is what is read, and what is no line says so."""

import json

import pytest

from penstock.core.limits import ConcurrencyLimit, Level, RateLimit
from penstock.wire.decisions import Decision, Definition, Line, Refund, decode_line, encode_line

DECISION = Decision(
    5,
    0,
    11,
    "checked",
    {"per-user": 1},
    {"per-user": "penstock:{acme}:per-user:alice"},
    tenant="acme",
    user="alice",
    key_id="k",
    model="digits",
    asked_us=3,
    authority_us=9,
)


@pytest.mark.parametrize(
    "line",
    [
        DECISION,
        Refund(7, 1, 12, "g:1", "tokens", "penstock:{acme}:tokens:alice", 10, 90),
        Refund(7, 1, 12, "g:1", "tokens", "penstock:{acme}:tokens:alice", 10, None),
        Definition(1, 0, 11, RateLimit("per-user", Level.USER, 100, 1_000_000, 200)),
        Definition(1, 0, 11, ConcurrencyLimit("slots", Level.TENANT, 4), key_id="k"),
    ],
)
def test_a_line_is_read_as_it_was_written(line: Line) -> None:
    """Each kind of line comes back whole, from one line of text."""
    text = encode_line(line)
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    assert decode_line(text) == line


def test_every_field_is_always_there() -> None:
    """Scripts find the kind first and every other field, whether it says anything or not."""
    document = json.loads(encode_line(Decision(5, 0, 11, "local", {}, {})))
    assert list(document) == [
        "kind",
        "at_us",
        "gateway",
        "pid",
        "outcome",
        "limits",
        "keys",
        "limit",
        "tenant",
        "user",
        "key_id",
        "model",
        "asked_us",
        "authority_us",
        "hold",
    ]


def test_a_decision_was_made_between_asking_and_knowing() -> None:
    """What the authority decided may have been decided since it was asked; the rest was decided when it was known."""
    assert DECISION.since_us == 3
    assert Decision(5, 0, 11, "local", {}, {}).since_us == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "truncated"),
        (b"[1]", "expected `object`"),
        (b'{"at_us":1}', "missing required field `kind`"),
        (b'{"kind":"verdict"}', "invalid value 'verdict'"),
        (b'{"kind":"decision","at_us":"now"}', "expected `int`, got `str` - at `$.at_us`"),
        (b"\xff", "malformed"),
        (encode_line(DECISION)[:40], "truncated"),
        (
            b'{"kind":"limit","at_us":1,"gateway":0,"pid":1,"defines":{"type":"concurrency","level":"user","slots":0}}',
            "missing required field `name`",
        ),
        (
            encode_line(Definition(1, 0, 11, ConcurrencyLimit("a", Level.USER, 7))).replace(b":7,", b":0,"),
            "expected at least 1, got 0",
        ),
    ],
)
def test_what_is_no_line_says_why(text: bytes, expected: str) -> None:
    """The error names what was expected and where."""
    with pytest.raises(ValueError, match="expected a line of a decision log: ") as caught:
        decode_line(text)
    assert expected.lower() in str(caught.value).lower()
