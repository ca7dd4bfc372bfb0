"""Answers: the forms a server may use, and the ones that end a connection."""

import pytest

from penstock.load.parsing import AnswerParser, MalformedAnswer, parse_whole

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer-Timing: a;dur=1\r\n\r\n{}"


def test_a_whole_answer_takes_the_short_way() -> None:
    """An answer with a length, all in one piece, is parsed without llhttp."""
    assert parse_whole(WHOLE) == (200, b"{}", True)
    assert AnswerParser().feed(WHOLE) == (200, b"{}", True)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", (200, b"{}", True)),
        (b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", (503, b"{}", False)),
        (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}", True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}", False)),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}", True)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True)),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n", (429, b"", True)),
    ],
)
def test_other_forms(data: bytes, expected: tuple[int, bytes, bool]) -> None:
    """Chunked, closing, HTTP/1.0, interim and empty answers all parse, and the parser is ready again."""
    parser = AnswerParser()
    assert parser.feed(data) == expected
    if expected[2]:
        assert parser.feed(WHOLE) == (200, b"{}", True)


def test_an_answer_without_length_ends_with_the_connection() -> None:
    """Without a length the end of the connection is the end of the answer; with one it is not an answer."""
    parser = AnswerParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\n{") is None
    assert parser.feed(b"}") is None
    assert parser.feed_eof() == (200, b"{}", False)
    cut = AnswerParser()
    assert cut.feed(WHOLE[:-1]) is None
    assert cut.feed_eof() is None
    assert AnswerParser().feed_eof() is None


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        WHOLE + WHOLE,
        WHOLE + b"x",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    ],
)
def test_what_is_not_one_answer_is_malformed(data: bytes) -> None:
    """Other protocols, two answers to one request, and contradictory lengths end the connection."""
    with pytest.raises(MalformedAnswer):
        AnswerParser().feed(data)
