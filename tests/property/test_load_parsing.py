"""Laws of the answer parser: cutting the bytes anywhere changes nothing, and no bytes make it fail another way."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from penstock.load.parsing import Answer, AnswerParser, MalformedAnswer

names = st.text("abcdefghijklmnopqrstuvwxyzABC-", min_size=1, max_size=12).map(lambda name: "X-" + name)
values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
bodies = st.binary(max_size=300)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """A legal answer as bytes, its status and its body; by length or in chunks, perhaps after an interim one."""
    status = draw(st.sampled_from([200, 201, 400, 404, 429, 500, 503, 504]))
    body = draw(bodies)
    lines = [f"{name}: {value}".encode() for name, value in draw(st.lists(st.tuples(names, values), max_size=4))]
    if draw(st.booleans()):
        lines.append(
            draw(st.sampled_from([b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH:  %d "])) % len(body)
        )
        payload = body
    else:
        lines.append(b"Transfer-Encoding: chunked")
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if b > a]
        payload = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    lines = draw(st.permutations(lines))
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" if draw(st.booleans()) else b""
    head = b"HTTP/1.1 %d Reason\r\n%s\r\n\r\n" % (status, b"\r\n".join(lines))
    return interim + head + payload, status, body


def feed_pieces(parser: AnswerParser, pieces: list[bytes]) -> list[Answer]:
    """Feed piece by piece; return the answers."""
    return [answer for piece in pieces if piece and (answer := parser.feed(piece)) is not None]


@given(answers())
def test_every_cut_gives_the_same_answer(case: tuple[bytes, int, bytes]) -> None:
    """An answer cut in two at any byte equals the whole one, and the parser is ready for the next."""
    data, status, body = case
    expected = [(status, body, True, -1)]
    parser = AnswerParser()
    assert feed_pieces(parser, [data]) == expected
    for cut in range(1, len(data)):
        assert feed_pieces(parser, [data[:cut], data[cut:]]) == expected


@given(st.lists(answers(), min_size=1, max_size=3), st.integers(1, 7))
def test_a_trickle_gives_the_same_answers(cases: list[tuple[bytes, int, bytes]], size: int) -> None:
    """Answers one after another in pieces of any size come out in order, none early, none late."""
    parser = AnswerParser()
    for data, status, body in cases:
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert feed_pieces(parser, pieces[:-1]) == []
        assert feed_pieces(parser, pieces[-1:]) == [(status, body, True, -1)]


@given(
    st.lists(
        st.binary(min_size=1, max_size=60)
        | st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n", b"content-length: 2\r\n"]),
        max_size=6,
    )
)
def test_any_bytes_are_an_answer_or_malformed(pieces: list[bytes]) -> None:
    """Whatever arrives, the parser returns or raises MalformedAnswer."""
    parser = AnswerParser()
    with contextlib.suppress(MalformedAnswer):
        for piece in pieces:
            parser.feed(piece)
        parser.feed_eof()
