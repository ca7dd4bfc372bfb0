"""Laws of the inference port: order, bounds, refusals, timeouts, draining. Splits and known heads: tests/property."""

import gzip
import tracemalloc
import zlib
from typing import Any

import httptools
import pytest

from penstock.core.launch import HttpLimits
from penstock.gateway.http import HEADS_MAX, LINGER_US, Exchange
from tests.unit.gateway.fakes import Client, FakeHandler, FakeWork, read_responses

HOST = b"Host: a\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def get(url: bytes = b"/", *lines: bytes, version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    """Return a request without a body."""
    head = b"%b %b HTTP/%b\r\n" % (method, url, version)
    return head + b"".join(line + b"\r\n" for line in (b"Host: a", *lines)) + b"\r\n"


def post(body: bytes, *lines: bytes, url: bytes = b"/") -> bytes:
    """Return a request with a body of known length."""
    return get(url, b"Content-Length: %d" % len(body), *lines, method=b"POST") + body


def post_chunked(*chunks: bytes, tail: bytes = b"0\r\n\r\n") -> bytes:
    """Return a request with a chunked body."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + body + tail


def refused_as(client: Client) -> int:
    """Check that the connection was refused with one last answer that says so; return its status."""
    *_, last = client.read()
    assert client.is_refused
    assert last.headers["connection"] == "close"
    assert last.body
    return last.status


# -- refusals --------------------------------------------------------------------------------------------------------

ATTACKS: dict[str, tuple[int, bytes]] = {
    "no such thing as HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 4),
    "method in lower case": (400, b"get / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space before the request": (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space in the url": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "two equal hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
    "two content types": (400, get(b"/", b"Content-Type: a", b"Content-Type: b")),
    "two authorizations": (400, get(b"/", b"Authorization: a", b"Authorization: b")),
    "CL and TE": (400, get(b"/", b"Content-Length: 5", b"Transfer-Encoding: chunked", method=b"POST") + b"0\r\n\r\n"),
    "TE and CL": (400, get(b"/", b"Transfer-Encoding: chunked", b"Content-Length: 5", method=b"POST") + b"0\r\n\r\n"),
    "two CL": (400, get(b"/", b"Content-Length: 3", b"Content-Length: 4", method=b"POST") + b"abc"),
    "two equal CL": (400, get(b"/", b"Content-Length: 3", b"Content-Length: 3", method=b"POST") + b"abc"),
    "CL list": (400, get(b"/", b"Content-Length: 3, 3", method=b"POST") + b"abc"),
    "CL negative": (400, get(b"/", b"Content-Length: -3", method=b"POST") + b"abc"),
    "CL plus": (400, get(b"/", b"Content-Length: +3", method=b"POST") + b"abc"),
    "CL underscore": (400, get(b"/", b"Content-Length: 1_0", method=b"POST") + b"abc"),
    "CL hex": (400, get(b"/", b"Content-Length: 0x3", method=b"POST") + b"abc"),
    "CL empty": (400, get(b"/", b"Content-Length:", method=b"POST") + b"abc"),
    "CL past 64 bits": (400, get(b"/", b"Content-Length: 18446744073709551619", method=b"POST") + b"abc"),
    "CL of thousands of zeros": (413, get(b"/", b"Content-Length: " + b"0" * 5_000 + b"3", method=b"POST") + b"abc"),
    "obs-fold": (400, b"GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n"),
    "space before colon": (400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    "bare LF after the request line": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF after a header": (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
    "bare LF at the end": (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
    "NUL in a header": (400, b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n"),
    "header without a name": (400, b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n"),
    "bad chunk size": (400, post_chunked(tail=b"zz\r\n")),
    "negative chunk": (400, post_chunked(tail=b"-1\r\n")),
    "0x chunk": (400, post_chunked(tail=b"0x3\r\nabc\r\n0\r\n\r\n")),
    "chunk past 64 bits": (400, post_chunked(tail=b"fffffffffffffffff\r\n")),
    "chunk with bare LF": (400, post_chunked(tail=b"3\nabc\n0\n\n")),
    "chunk longer than it says": (400, post_chunked(tail=b"3\r\nabcdef\r\n0\r\n\r\n")),
    "chunk and space": (400, post_chunked(tail=b"3 \r\nabc\r\n0\r\n\r\n")),
    "TE on HTTP/1.0": (400, get(b"/", b"Transfer-Encoding: chunked", method=b"POST", version=b"1.0") + b"0\r\n\r\n"),
    "TE gzip": (400, get(b"/", b"Transfer-Encoding: gzip", method=b"POST")),
    "TE gzip, chunked": (400, get(b"/", b"Transfer-Encoding: gzip, chunked", method=b"POST") + b"0\r\n\r\n"),
    "TE twice": (400, get(b"/", *[b"Transfer-Encoding: chunked"] * 2, method=b"POST") + b"0\r\n\r\n"),
    "TE with VT": (400, get(b"/", b"Transfer-Encoding: \x0bchunked", method=b"POST") + b"0\r\n\r\n"),
    "TE empty": (400, get(b"/", b"Transfer-Encoding:", method=b"POST") + b"0\r\n\r\n"),
    "TE chunked, identity": (400, get(b"/", b"Transfer-Encoding: chunked, identity", method=b"POST") + b"0\r\n\r\n"),
    "no length": (411, get(b"/", method=b"POST")),
    "body too large": (413, get(b"/", b"Content-Length: 101", method=b"POST")),
    "chunked body too large": (413, post_chunked(b"x" * 60, b"x" * 41)),
    "expectation": (417, get(b"/", b"Content-Length: 3", b"Expect: miracles", method=b"POST") + b"abc"),
    "too many headers": (431, get(b"/", *[b"X: y"] * 10)),
    "header too large": (431, get(b"/", b"X: " + b"y" * 10_000)),
    "url too large": (431, get(b"/" + b"y" * 10_000)),
    "HTTP/2.0": (400, get(version=b"2.0")),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "upgrade with a body": (
        400,
        post(b"abc", b"Connection: Upgrade", b"Upgrade: h2c"),
    ),
}
LIMITS = HttpLimits(body_bytes_max=100, headers_max=10, header_bytes_max=10_000, pipeline_max=4)


@pytest.mark.parametrize(("status", "attack"), ATTACKS.values(), ids=ATTACKS)
def test_what_is_not_safe_is_refused_and_closed(status: int, attack: bytes) -> None:
    """A malformed or ambiguous request gets its status, the connection closes, and nothing after it is a request."""
    for pieces in ([attack + NEXT], [attack, NEXT], [bytes([b]) for b in attack + NEXT]):
        client = Client(limits=LIMITS)
        client.send(*pieces)
        assert refused_as(client) == status
        assert not client.handler.seen
        client.send(NEXT, NEXT)
        assert not client.handler.seen
        assert not client.transport.take()


def test_earlier_requests_are_answered_before_a_refusal() -> None:
    """Requests before a malformed one get their answers first; the refusal is last."""
    client = Client(is_slow=True)
    client.send(get(b"/1") + get(b"/2") + b"\x00")
    assert not client.transport.written
    client.handler.answer(client.handler.exchanges[1])
    client.handler.answer(client.handler.exchanges[0])
    assert [r.status for r in client.read()] == [200, 200, 400]
    assert client.is_refused


def test_a_refused_head_has_no_body() -> None:
    """The answer to a HEAD has no body though it is a refusal."""
    client = Client()
    client.send(get(method=b"HEAD", version=b"2.0"))
    (response,) = client.read(heads=(0,))
    assert response.status == 400
    assert int(response.headers["content-length"]) > 0


def test_after_a_refusal_the_gateway_lingers_then_cuts() -> None:
    """A refused client may read its answer for a moment; then the connection is cut though it goes on sending."""
    client = Client()
    client.send(b"\x00")
    assert client.transport.wrote_eof
    assert not client.transport.is_closing()
    client.send(b"more" * 1_000)
    client.wait(LINGER_US)
    assert client.transport.is_aborted


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_a_dribbled_header_is_bounded() -> None:
    """A header that never ends is refused with 431 as soon as it is past the bound, however it arrives."""
    client = Client(limits=LIMITS)
    client.send(b"GET / HTTP/1.1\r\nX: ")
    sent = 0
    while not client.is_refused:
        client.send(b"y" * 100)
        sent += 100
        assert sent <= LIMITS.header_bytes_max
    assert refused_as(client) == 431


@pytest.mark.parametrize("tail", [b"0\r\nX: ", b"5;x="], ids=["trailer", "chunk extension"])
def test_chunk_framing_is_bounded(tail: bytes) -> None:
    """A chunk extension or trailer that never ends is refused with 431 long before the body's time is over."""
    client = Client(limits=LIMITS)
    client.send(post_chunked(b"abc", tail=tail))
    sent = 0
    while not client.is_refused:
        client.send(b"y" * 100)
        sent += 100
        assert sent <= LIMITS.header_bytes_max + 100
    assert refused_as(client) == 431


def test_framing_is_counted_for_one_request_at_a_time() -> None:
    """However much is read at once, the bytes of requests before a chunked one do not count as its framing."""
    client = Client(limits=LIMITS)
    client.send(post_chunked(b"abc", tail=b""))
    client.send(b"0\r\n\r\n" + get(b"/2") * 500 + post_chunked(tail=b""))
    client.send(b"0\r\n\r\n")
    assert len(client.handler.seen) == 502
    assert not client.is_refused


def test_trailers_are_read_and_ignored() -> None:
    """A trailer changes nothing, not even if it is named like a header."""
    client = Client()
    client.send(post_chunked(b"abc", b"de", tail=b"0\r\nHost: evil\r\nExpect: x\r\n\r\n") + get(b"/next"))
    assert [(url, body) for _, url, _, body in client.handler.seen] == [(b"/", b"abcde"), (b"/next", b"")]
    assert client.handler.seen[0][2][b"host"] == b"a"


def test_the_largest_body_is_taken() -> None:
    """A body of exactly the bound is taken, declared or chunked."""
    client = Client(limits=LIMITS)
    client.send(post(b"x" * 100) + post_chunked(b"x" * 50, b"x" * 50))
    assert [len(body) for *_, body in client.handler.seen] == [100, 100]


def test_pipelining_is_bounded() -> None:
    """With as many requests in progress as allowed reading pauses; it resumes when half of them are answered."""
    client = Client(is_slow=True, limits=LIMITS)
    for k in range(4):
        client.send(get(b"/%d" % k))
    assert not client.transport.is_reading()
    client.handler.answer(client.handler.exchanges[0])
    assert not client.transport.is_reading()
    client.handler.answer(client.handler.exchanges[1])
    assert client.transport.is_reading()


@pytest.mark.parametrize("pipeline_max", [1, 2, 3, 8])
@pytest.mark.parametrize("is_slow", [True, False])
def test_pipelined_requests_survive_pausing(pipeline_max: int, *, is_slow: bool) -> None:
    """Requests that arrive in one piece are handled once each, in order, however few may be in progress."""
    client = Client(is_slow=is_slow, limits=HttpLimits(pipeline_max=pipeline_max))
    for _ in range(2):  # the second time by their known heads
        client.send(b"".join(get(b"/%d" % k) for k in range(20)))
        answered = 0
        while answered < len(client.handler.exchanges):
            exchange = client.handler.exchanges[answered]
            answered += 1
            if not exchange.is_answered:
                client.handler.answer(exchange)
        assert [url for _, url, _, _ in client.handler.seen] == [b"/%d" % k for k in range(20)]
        assert [r.body for r in client.read()] == [b"GET /%d 0" % k for k in range(20)]
        assert client.transport.is_reading()
        client.handler.exchanges.clear()
        client.handler.seen.clear()


def test_reads_that_come_while_paused_keep_their_order() -> None:
    """Bytes that were on their way when reading paused are handled after those before them, answered at once or not."""
    client = Client(limits=HttpLimits(pipeline_max=1))
    client.send(get(b"/0"))
    client.handler.is_slow = True
    client.send(get(b"/0"))
    client.connection.data_received(get(b"/1") + get(b"/2"))
    client.connection.data_received(get(b"/3") + get(b"/4"))
    client.handler.is_slow = False
    client.handler.answer(client.handler.exchanges[-1])
    assert [url for _, url, _, _ in client.handler.seen] == [b"/0", b"/0", b"/1", b"/2", b"/3", b"/4"]
    assert len(client.read()) == 6
    assert client.transport.is_reading()


def test_known_heads_are_bounded_by_the_pause() -> None:
    """By their known heads no more requests are in progress than allowed, and what was read waits its turn."""
    client = Client(is_slow=True, limits=LIMITS)
    client.send(get(b"/"))
    client.handler.answer(client.handler.exchanges[0])
    client.send(get(b"/") * 10)
    assert len(client.connection.pending) == 4
    assert not client.transport.is_reading()


def test_the_cache_of_heads_is_bounded() -> None:
    """However many different heads come, no more than the bound are remembered, and none that is too long."""
    client = Client()
    for k in range(HEADS_MAX + 10):
        client.send(get(b"/%d" % k))
        assert len(client.port.heads) <= HEADS_MAX
    client.send(get(b"/" + b"y" * 2_000))
    assert all(len(head) <= 1_024 for head in client.port.heads)


def test_connections_are_bounded() -> None:
    """One connection too many is closed at once, and counted."""
    first = Client(limits=HttpLimits(connections_max=1))
    second = Client(first.port)
    assert second.transport.is_aborted
    second.connection.connection_lost(None)
    assert first.port.statistics.connections == 1
    assert first.port.statistics.protocol_errors == {"connections_max": 1}
    first.connection.connection_lost(None)
    assert first.port.statistics.connections == 0


# -- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2), (2, 0, 1)])
def test_answers_leave_in_the_order_of_requests(order: tuple[int, ...]) -> None:
    """Whatever order handlers answer in, the client reads the answers in the order it asked."""
    client = Client(is_slow=True)
    client.send(get(b"/0") + get(b"/1") + get(b"/2"))
    for k in order:
        client.handler.answer(client.handler.exchanges[k])
    assert [r.body for r in client.read()] == [b"GET /0 0", b"GET /1 0", b"GET /2 0"]


def test_a_request_is_answered_once() -> None:
    """A second answer to one exchange is a bug, and said to be one."""
    client = Client()
    client.send(get())
    with pytest.raises(AssertionError, match="answered twice"):
        client.handler.answer(client.handler.exchanges[0])


def test_head_has_no_body() -> None:
    """The answer to a HEAD has the headers of the GET's, its content-length included, and no body."""
    client = Client()
    client.send(get(b"/abc", method=b"HEAD") + get(b"/abc"))
    head, full = client.read(heads=(0,))
    assert head.body == b""
    assert head.headers == {**full.headers, "content-length": str(len(full.body) + 1)}


@pytest.mark.parametrize(
    "request_bytes", [get(b"/", b"Connection: close"), get(version=b"1.0")], ids=["connection: close", "HTTP/1.0"]
)
def test_close_is_honoured(request_bytes: bytes) -> None:
    """A client that asks for it, or speaks HTTP/1.0, gets `connection: close` and a closed connection."""
    for _ in range(2):
        client = Client()
        client.send(request_bytes + NEXT)
        (response,) = client.read()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert client.transport.is_closing()
        assert not client.transport.is_aborted
        assert len(client.handler.seen) == 1


def test_http_1_0_may_keep_alive() -> None:
    """HTTP/1.0 with `connection: keep-alive` stays open."""
    client = Client()
    client.send(get(b"/", b"Connection: keep-alive", version=b"1.0") * 2)
    assert len(client.read()) == 2
    assert not client.is_refused


@pytest.mark.parametrize(
    "request_bytes",
    [
        get(b"/", b"Upgrade: websocket", b"Connection: Upgrade"),
        get(b"/", b"Upgrade: websocket"),
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    ],
    ids=["upgrade", "upgrade without connection", "CONNECT"],
)
@pytest.mark.parametrize("is_slow", [False, True])
def test_upgrades_are_answered_then_closed(request_bytes: bytes, *, is_slow: bool) -> None:
    """A request to change protocols is answered in HTTP/1.1, and what follows in that protocol is not a request."""
    for _ in range(2):
        client = Client(is_slow=is_slow)
        client.send(request_bytes + NEXT)
        client.send(NEXT)
        for exchange in client.handler.exchanges:
            if not exchange.is_answered:
                client.handler.answer(exchange)
        (response,) = client.read()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert client.is_refused
        assert len(client.handler.seen) == 1


# -- expectations ----------------------------------------------------------------------------------------------------

EXPECTING = get(b"/", b"Content-Length: 3", b"Expect: 100-continue", method=b"POST")


def test_a_client_that_expects_it_is_told_to_continue() -> None:
    """`Expect: 100-continue` gets its 100 before the body is there, then its answer."""
    client = Client()
    client.send(EXPECTING)
    assert client.transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    assert [r.body for r in client.read()] == [b"POST / 3"]


def test_continue_waits_behind_pending_answers() -> None:
    """The 100 of a pipelined request comes after the answers to the requests before it."""
    client = Client(is_slow=True)
    client.send(get(b"/0") + EXPECTING)
    assert not client.transport.written
    client.handler.answer(client.handler.exchanges[0])
    assert [r.status for r in client.read()] == [200, 100]
    client.send(b"abc")
    client.handler.answer(client.handler.exchanges[1])
    assert [r.status for r in client.read()] == [200]


def test_a_client_that_does_not_wait_gets_no_late_continue() -> None:
    """If the body comes while the 100 still waits its turn, the 100 is not sent any more."""
    client = Client(is_slow=True)
    client.send(get(b"/0") + EXPECTING + b"abc")
    for exchange in client.handler.exchanges:
        client.handler.answer(exchange)
    assert [r.status for r in client.read()] == [200, 200]


def test_a_body_too_large_is_not_asked_for() -> None:
    """`Expect: 100-continue` for a body past the bound gets 413 and no 100."""
    client = Client(limits=LIMITS)
    client.send(get(b"/", b"Content-Length: 101", b"Expect: 100-continue", method=b"POST"))
    assert [r.status for r in client.read()] == [413]


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "which", "limit_us"),
    [
        (b"GET / HTTP/1.1\r\nHo", "header", LIMITS.header_timeout_us),
        (get(b"/", b"Content-Length: 3", method=b"POST") + b"ab", "body", LIMITS.body_timeout_us),
        (post_chunked(b"abc", tail=b""), "body", LIMITS.body_timeout_us),
    ],
    ids=["header", "body", "chunked"],
)
def test_slow_requests_time_out(sent: bytes, which: str, limit_us: int) -> None:
    """A request whose header or body takes too long gets 408, not before its time, and is counted."""
    client = Client(limits=LIMITS)
    client.send(sent)
    client.wait(limit_us - 250_000)
    assert not client.transport.written
    client.wait(250_000)
    assert refused_as(client) == 408
    assert client.port.statistics.timeouts == {which: 1}


def test_dribbling_does_not_buy_time() -> None:
    """A header sent a byte at a time has the same time as one that does not arrive at all."""
    client = Client(limits=LIMITS)
    for byte in get(b"/", b"X: " + b"y" * 300):
        client.send(bytes([byte]))
        client.wait(250_000)
        if client.is_refused:
            break
    assert refused_as(client) == 408


@pytest.mark.parametrize("request_count", [0, 1])
def test_idle_connections_time_out(request_count: int) -> None:
    """A connection that says nothing, from the start or after an answer, is closed after the idle time."""
    client = Client(limits=LIMITS)
    client.send(get() * request_count)
    client.wait(LIMITS.idle_timeout_us - 250_000)
    assert not client.transport.is_closing()
    client.wait(500_000)
    assert client.transport.is_closing()
    assert client.port.statistics.timeouts == {"idle": 1}


def test_a_waiting_client_is_not_idle() -> None:
    """While an answer is due no timeout runs, whatever came before it."""
    client = Client(is_slow=True, limits=LIMITS)
    client.send(get(b"/0"))
    client.wait(10 * LIMITS.idle_timeout_us)
    client.handler.answer(client.handler.exchanges[0])
    assert [r.status for r in client.read()] == [200]
    assert not client.is_refused


@pytest.mark.parametrize(("rest", "status"), [(b"POST / HT", 408), (post_chunked(tail=b"zz\r\n"), 400)])
def test_a_refusal_behind_pending_answers_waits_for_them(rest: bytes, status: int) -> None:
    """A refusal behind an answer that is due does not cut that answer off, however long it takes."""
    client = Client(is_slow=True, limits=LIMITS)
    client.send(get(b"/0") + rest)
    client.wait(10 * LIMITS.idle_timeout_us)
    assert not client.transport.is_closing()
    client.handler.answer(client.handler.exchanges[0])
    assert [r.status for r in client.read()] == [200, status]


# -- slow readers and leavers ----------------------------------------------------------------------------------------


def test_a_slow_reader_is_not_read() -> None:
    """While a client does not read its answers nothing of it is read; when it does, reading goes on."""
    client = Client()
    client.send(get())
    client.connection.pause_writing()
    assert not client.transport.is_reading()
    client.connection.resume_writing()
    assert client.transport.is_reading()
    client.send(get())
    assert len(client.handler.seen) == 2


def test_a_client_that_never_reads_is_cut() -> None:
    """A client that does not read its answers is cut off after as long as it may take to send a body."""
    client = Client(limits=LIMITS)
    client.send(get())
    client.connection.pause_writing()
    client.wait(LIMITS.body_timeout_us)
    assert client.transport.is_aborted


def test_reading_again_leaves_the_header_its_deadline() -> None:
    """A client that stops and goes on reading in the middle of a header gets no more time for the rest of it."""
    client = Client(is_slow=True, limits=LIMITS)
    client.send(get(b"/0") + b"GET / HT")
    client.connection.pause_writing()
    client.connection.resume_writing()
    client.wait(LIMITS.body_timeout_us)
    client.handler.answer(client.handler.exchanges[0])
    assert [r.status for r in client.read()] == [200, 408]


def test_a_slow_reader_gets_all_of_its_last_answer() -> None:
    """Closing after an answer leaves a slow reader the time to read it; lingering is for refusals."""
    client = Client(limits=LIMITS)
    client.send(get(b"/", b"Connection: close"))
    client.wait(LIMITS.body_timeout_us - 250_000)
    assert client.transport.is_closing()
    assert not client.transport.is_aborted


@pytest.mark.parametrize("leave", ["eof", "reset"])
def test_leaving_abandons_work_once(leave: str) -> None:
    """When the client goes, each request that it waits for is abandoned exactly once, and late answers go nowhere."""
    client = Client(is_slow=True)
    client.send(get(b"/0") + get(b"/1") + get(b"/2"))
    client.handler.answer(client.handler.exchanges[1])
    exchanges = client.handler.exchanges
    works = [exchange.work for exchange in exchanges]
    if leave == "eof":
        assert not client.connection.eof_received()
    client.connection.connection_lost(None)
    client.connection.connection_lost(None)
    assert [w.abandoned if isinstance(w, FakeWork) else None for w in works] == [1, None, 1]
    for exchange in (exchanges[0], exchanges[2]):
        client.handler.answer(exchange)
    assert not client.transport.written
    assert client.port.statistics.connections == 0


def test_answered_work_is_not_abandoned() -> None:
    """A request that was answered is not abandoned when the client goes later."""
    client = Client(is_slow=True)
    client.send(get())
    work = client.handler.exchanges[0].work
    client.handler.answer(client.handler.exchanges[0])
    client.connection.connection_lost(None)
    assert isinstance(work, FakeWork)
    assert work.abandoned == 0


# -- draining --------------------------------------------------------------------------------------------------------


def drain(client: Client) -> bool:
    """Drain the client's port as a gateway does that has told balancers long ago."""
    client.port.start_drain()
    return client.port.drain(0)


def test_draining_closes_idle_connections() -> None:
    """A drain closes what is idle."""
    client = Client()
    client.send(get())
    client.wait(250_000)
    client.transport.take()
    assert not drain(client)
    assert client.transport.is_closing()


def test_draining_answers_everything_pending() -> None:
    """All requests in flight are answered, the last one with `connection: close`, then the connection closes."""
    client = Client(is_slow=True)
    client.send(get(b"/0") + get(b"/1") + get(b"/2"))
    assert drain(client)
    client.send(NEXT)
    for exchange in client.handler.exchanges:
        assert not client.transport.is_closing()
        client.handler.answer(exchange)
    responses = client.read()
    assert [r.body for r in responses] == [b"GET /0 0", b"GET /1 0", b"GET /2 0"]
    assert [r.headers.get("connection") for r in responses] == [None, None, "close"]
    assert client.transport.is_closing()
    assert not drain(client)


@pytest.mark.parametrize("at", [5, 40, 50])
def test_draining_lets_an_arriving_request_finish(at: int) -> None:
    """A request of which a part is here when the drain begins is answered with `connection: close`."""
    request = post(b"abcdef")
    client = Client()
    client.send(request[:at])
    drain(client)
    client.send(request[at:])
    (response,) = client.read()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert client.transport.is_closing()


def test_draining_says_so_in_the_next_answer() -> None:
    """From the start of a drain the next answer carries `connection: close`, known head or not, and is the last."""
    client = Client()
    client.send(get())
    client.transport.take()
    client.port.start_drain()
    client.send(get() + NEXT)
    (response,) = client.read()
    assert response.headers["connection"] == "close"
    assert client.transport.is_closing()
    assert len(client.handler.seen) == 2


def test_a_connection_that_comes_while_draining_is_served_once() -> None:
    """A client that a balancer sends during a drain gets its answer, with `connection: close`."""
    client = Client()
    client.port.start_drain()
    late = Client(client.port)
    late.send(get())
    assert [r.headers["connection"] for r in late.read()] == ["close"]
    assert late.transport.is_closing()


# -- encodings -------------------------------------------------------------------------------------------------------

BODY = b'{"inputs": []}' * 6


def send_encoded(body: bytes, encoding: bytes, *, limits: HttpLimits = LIMITS) -> tuple[int, bytes | None]:
    """Post a body in an encoding; return the status and the body that the handler saw."""
    client = Client(limits=limits)
    client.send(post(body, b"Content-Encoding: " + encoding))
    (response,) = client.read()
    assert not client.is_refused
    return response.status, client.handler.seen[0][3] if client.handler.seen else None


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(BODY), b"gzip"),
        (gzip.compress(BODY), b"x-gzip"),
        (gzip.compress(BODY), b" GZip "),
        (zlib.compress(BODY), b"deflate"),
        (BODY, b"identity"),
    ],
)
def test_encoded_bodies_are_decoded(body: bytes, encoding: bytes) -> None:
    """A handler sees the plain body, whatever it was encoded with."""
    assert send_encoded(body, encoding) == (200, BODY)


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(BODY), b"br", 415),
        (gzip.compress(BODY), b"gzip, gzip", 415),
        (gzip.compress(BODY), b"", 415),
        (gzip.compress(BODY), b"deflate", 400),
        (BODY, b"gzip", 400),
        (b"", b"gzip", 400),
        (gzip.compress(BODY)[:-1], b"gzip", 400),
        (gzip.compress(BODY) + b"x", b"gzip", 400),
        (gzip.compress(BODY[:1]) * 2, b"gzip", 400),
        (zlib.compress(BODY)[:-1], b"deflate", 400),
        (gzip.compress(b"x" * 101), b"gzip", 413),
        (gzip.compress(b"x" * 40_000), b"gzip", 413),
        (zlib.compress(b"x" * 40_000), b"deflate", 413),
    ],
)
def test_bad_encodings_are_refused(body: bytes, encoding: bytes, status: int) -> None:
    """An unknown encoding, a broken, truncated or trailed stream and a bomb get a 4xx; the connection stays good."""
    assert send_encoded(body, encoding) == (status, None)


def test_a_bomb_is_never_unpacked() -> None:
    """A body that would decode to far more than the bound takes no more memory than the bound, as it is refused."""
    bomb = gzip.compress(bytes(30_000_000))
    tracemalloc.start()
    try:
        assert send_encoded(bomb, b"gzip", limits=HttpLimits(body_bytes_max=100_000)) == (413, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_the_largest_decoded_body_is_taken() -> None:
    """A body that decodes to exactly the bound is taken."""
    assert send_encoded(gzip.compress(b"x" * 100), b"gzip") == (200, b"x" * 100)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"deflate, gzip;q=0.5", "gzip"),
        (b"GZIP ; Q=1", "gzip"),
        (b"gzip;q=0, deflate", "deflate"),
        (b"gzip;q=0.000", None),
        (b"gzip;q=0.001", "gzip"),
        (b"br, zstd", None),
        (b"", None),
        (b"*", None),
    ],
)
def test_answers_are_encoded_as_accepted(accepted: bytes, encoding: str | None) -> None:
    """A large answer is compressed if and only if the client takes gzip or deflate; q=0 is a no."""
    client = Client(is_slow=True)
    client.send(get(b"/", b"Accept-Encoding: " + accepted))
    client.handler.exchanges[0].respond(200, b"y" * 5_000)
    (response,) = client.read()
    assert response.headers.get("content-encoding") == encoding
    undo: Any = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[encoding]
    assert undo(response.body) == b"y" * 5_000


def test_small_answers_are_not_compressed() -> None:
    """A small answer is sent as it is."""
    client = Client()
    client.send(get(b"/", b"Accept-Encoding: gzip"))
    assert "content-encoding" not in client.read()[0].headers


def test_accept_encoding_may_be_repeated() -> None:
    """Accept-Encoding is a list: several fields are one."""
    client = Client(is_slow=True)
    client.send(get(b"/", b"Accept-Encoding: br", b"Accept-Encoding: gzip"))
    client.handler.exchanges[0].respond(200, b"y" * 5_000)
    assert client.read()[0].headers["content-encoding"] == "gzip"


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 404, 499, 599])
def test_any_status_can_be_sent(status: int) -> None:
    """A status without a registered phrase goes out all the same: replicas may choose any from 400 to 599."""
    client = Client(is_slow=True)
    client.send(get())
    client.handler.exchanges[0].respond(status, b"x")
    assert [r.status for r in client.read()] == [status]


def test_nothing_of_the_request_reaches_the_head_of_an_answer() -> None:
    """No byte of a url or a header value is reflected in an answer's head."""
    client = Client()
    client.port.date = b"date: then\r\n"
    client.send(get(b"/ZZQ%0d%0aZZQ:x?ZZQ", b"X: ZZQ", b"Content-Type: ZZQ", b"Accept-Encoding: ZZQ"))
    head, _, body = client.transport.take().partition(b"\r\n\r\n")
    assert b"ZZQ" not in head
    assert b"ZZQ" in body
    assert b"date: then\r\n" in head


def test_each_answer_is_logged() -> None:
    """With an access log every answered request is told of once, refusals included."""
    records: list[dict[str, Any]] = []
    client = Client(log=records.append)
    client.send(post(b"abc", url=b"/x") + b"\x00")
    assert [(r["method"], r["path"], r["status"], r["request_bytes"]) for r in records] == [
        ("POST", "/x", 200, 3),
        ("", "", 400, 0),
    ]
    assert records[0]["peer"] == "127.0.0.1:40000"


def test_answers_are_counted() -> None:
    """Every answer is counted by its status, and every request's parsing once, known head or not."""
    client = Client()
    for _ in range(3):
        client.send(get() * 5)
    client.send(b"\x00")
    assert client.port.statistics.responses == {200: 15, 400: 1}
    assert client.port.statistics.parse.count == 15
    assert client.port.statistics.protocol_errors == {"malformed": 1}


def test_a_bug_in_a_handler_is_not_hidden() -> None:
    """An exception out of a handler reaches the event loop, which logs it and closes the connection."""

    class Broken(FakeHandler):
        def answer(self, exchange: Exchange) -> None:
            raise RuntimeError("bug")

    client = Client()
    client.port.handler = Broken()
    with pytest.raises(httptools.HttpParserCallbackError):
        client.send(get())


def test_the_fake_client_reads_what_was_written() -> None:
    """The tests' own response reader finds each response in a stream."""
    stream = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"
    assert [(r.status, r.body) for r in read_responses(stream)] == [(100, b""), (200, b"x")]
