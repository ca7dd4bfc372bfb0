"""Answers: the forms a server may use, and the ones that end a connection."""

import pytest

from penstock.load.parsing import Answer, AnswerParser, MalformedAnswer, parse_whole

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer-Timing: a;dur=1\r\n\r\n{}"


def test_a_whole_answer_takes_the_short_way() -> None:
    """An answer with a length, all in one piece, is parsed without llhttp."""
    assert parse_whole(WHOLE) == (200, b"{}", True, -1)
    assert AnswerParser().feed(WHOLE) == (200, b"{}", True, -1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", (200, b"{}", True, -1)),
        (b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", (503, b"{}", False, -1)),
        (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}", True, -1)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}", False, -1)),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", (200, b"{}", True, -1)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True, -1)),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n", (429, b"", True, -1)),
    ],
)
def test_other_forms(data: bytes, expected: Answer) -> None:
    """Chunked, closing, HTTP/1.0, interim and empty answers all parse, and the parser is ready again."""
    parser = AnswerParser()
    assert parser.feed(data) == expected
    if expected[2]:
        assert parser.feed(WHOLE) == (200, b"{}", True, -1)


def test_an_answer_without_length_ends_with_the_connection() -> None:
    """Without a length the end of the connection is the end of the answer; with one it is not an answer."""
    parser = AnswerParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\n{") is None
    assert parser.feed(b"}") is None
    assert parser.feed_eof() == (200, b"{}", False, -1)
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


@pytest.mark.parametrize(
    ("headers", "expected_us"),
    [
        (b"Retry-After-Ms: 40\r\nRetry-After: 1\r\n", 40_000),
        (b"Retry-After: 1\r\nretry-after-ms:  0 \r\n", 0),
        (b"Retry-After: 2\r\n", 2_000_000),
        (b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n", -1),
        (b"retry-after-ms: -5\r\n", -1),
        (b"X-Retry-After: 5\r\n", -1),
    ],
)
def test_refusals_say_when_to_come_back(headers: bytes, expected_us: int) -> None:
    """Milliseconds go before seconds, dates and nonsense are nothing said, whole and split answers alike."""
    data = b"HTTP/1.1 503 X\r\n" + headers + b"Content-Length: 2\r\n\r\n{}"
    whole = AnswerParser().feed(data)
    split = AnswerParser()
    assert split.feed(data[:30]) is None
    assert whole == split.feed(data[30:]) == (503, b"{}", True, expected_us)
