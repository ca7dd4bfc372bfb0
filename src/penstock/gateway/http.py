"""The inference port's HTTP/1.1: bytes in, exchanges out, answers back in order.

Parsing is llhttp's (through httptools), strict mode; bounds, pipelining, timeouts and refusals are ours. On the hot
path there is no task, no timer, no lock and no log line per request: one Exchange object and a few callbacks.

    IDLE -> HEADER -> BODY -> (handler) -> answered in order -> IDLE        any -> REFUSED -> closed

Not here: what a request means (`routes.py`). Source: RFC 9112; the reasons for each refusal stand beside it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools

from penstock.core.errors import CallerError
from penstock.core.launch import HttpLimits
from penstock.core.ports import Clock
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.content_coding import COMPRESS_BYTES_MIN, compress, decompress, shown

__all__ = ["Exchange", "Handler", "Head", "HttpConnection", "Port"]

# After a refusal the client may still be sending; reading on for a moment lets it receive the answer (RFC 9112 9.6).
LINGER_US = 1_000_000
# Heads remembered by their bytes, and how long they may be: clients repeat theirs, give or take the content length, and
# each has a key of its own. As many as callers are remembered (`identity.py`), of some 1.5 KB with all that they led
# to; past the number all are forgotten, so a client that varies its own gains nothing.
HEADS_MAX = 16_384
HEAD_BYTES_MAX = 1_024
# 2^64 has 20 digits; more are leading zeros or padding, which no client sends.
LENGTH_CHARS_MAX = 32

_KNOWN = frozenset(
    {
        b"accept-encoding",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"inference-header-content-length",
        b"penstock-class",
        b"penstock-tenant",
        b"penstock-timeout-ms",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
    }
)


class _Reasons(dict[int, bytes]):
    """Status lines; a replica may choose a status that has no registered phrase, which RFC 9112 section 4 allows."""

    def __missing__(self, status: int) -> bytes:
        return b"HTTP/1.1 %d \r\n" % status


_REASONS = _Reasons({s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus})
_OK = _REASONS[200]
_JSON = b"content-type: application/json\r\n"


class Handler(Protocol):
    """What the connection hands whole requests to, and asks for the form of its own refusals."""

    def handle(self, exchange: "Exchange") -> None:
        """Answer now or later, exactly once, by `exchange.respond`. Must not raise for anything a client can send."""
        ...

    def encode_refusal(self, url: bytes, status: int, message: str) -> bytes:
        """Return the JSON body of an error in the form of the protocol that `url` belongs to."""
        ...


class Abandonable(Protocol):
    """Work that goes on for an exchange and is told when its client is gone."""

    def abandon(self) -> None:
        """The client is gone."""
        ...


class Head:
    """The head of a request as llhttp understood it: what the same bytes mean when they come again.

    Attributes:
        memory: What the handler keeps with it, so that it need not find out again who asks for what.
    """

    __slots__ = ("body_bytes", "headers", "memory", "method", "url")

    def __init__(self, method: str, url: bytes, headers: dict[bytes, bytes], body_bytes: int) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body_bytes = body_bytes
        self.memory: Any = None


class _Phase(IntEnum):
    IDLE = 0
    HEADER = 1
    BODY = 2
    REFUSED = 3


class Port:
    """What all connections of one gateway share.

    Args:
        handler: Gets the requests.
        limits: Bounds and timeouts.
        statistics: Where to count.
        now_us: Monotonic clock.
        log: Called with one dict per answered request, or None for no access log.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: HttpLimits,
        statistics: GatewayStatistics,
        now_us: Clock,
        log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.statistics = statistics
        self.now_us = now_us
        self.log = log
        self.connections: set[HttpConnection] = set()
        self.is_draining = False
        self.heads: dict[bytes, Head] = {}
        self.date = b""  # the `date` header line, renewed every second by the gateway

    def sweep(self) -> None:
        """Call regularly: close connections whose header, body, idle or linger time is over."""
        now_us = self.now_us()
        for connection in list(self.connections):
            if not connection.deadline_us:
                connection.start_idle(now_us)
            elif now_us >= connection.deadline_us:
                connection.time_out()

    def start_drain(self) -> None:
        """From now on close each connection after its next answer, and say so in it."""
        self.is_draining = True

    def drain(self, idle_us: int) -> bool:
        """Close what has been idle for `idle_us`; return whether an answer is due or a request may be on its way."""
        assert self.is_draining
        before_us = self.now_us() - idle_us
        open_still = [connection.close_if_idle(before_us) for connection in list(self.connections)]
        return any(open_still)


class Exchange:
    """One request and its answer.

    Attributes:
        method, url: As received, upper case method, raw path with query.
        headers: The known ones, names in lower case.
        body: Decompressed.
        started_us: When its first byte was handled.
        head: What is remembered of its head, None if it is not one to be remembered.
        work: Set by the handler if somebody must be told when the client goes away.
    """

    __slots__ = ("_close", "_connection", "_response", "body", "head", "headers", "method", "started_us", "url", "work")

    def __init__(
        self,
        connection: "HttpConnection",
        method: str,
        url: bytes,
        headers: dict[bytes, bytes],
        head: Head | None = None,
    ) -> None:
        self._connection = connection
        self.head = head
        self._response: bytes | None = None
        self._close = False
        self.method = method
        self.url = url
        self.headers = headers
        self.body = b""
        self.started_us = 0
        self.work: Abandonable | None = None

    @property
    def is_answered(self) -> bool:
        """True once `respond` was called."""
        return self._response is not None

    def respond(self, status: int, body: bytes, *, headers: bytes = b"", content_type: bytes = _JSON) -> None:
        """Answer. The bytes leave when all earlier requests of the connection have been answered.

        Args:
            status: HTTP status.
            body: The body, uncompressed.
            headers: Further header lines, each ending in CRLF.
            content_type: The content-type line, ending in CRLF.
        """
        assert self._response is None, "answered twice"
        self.work = None
        connection = self._connection
        port = connection.port
        if len(body) >= COMPRESS_BYTES_MIN and b"accept-encoding" in self.headers:
            body, encoding = compress(body, self.headers[b"accept-encoding"])
            headers += encoding
        if self._close:
            headers += b"connection: close\r\n"
        self._response = b"%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
            _OK if status == 200 else _REASONS[status],
            port.date,
            content_type,
            headers,
            len(body),
            body if self.method != "HEAD" else b"",
        )
        responses = port.statistics.responses
        responses[status] = responses.get(status, 0) + 1
        if port.log is not None:
            self._log(status, len(body))
        connection.flush(self)

    def _log(self, status: int, nbytes: int) -> None:
        port = self._connection.port
        assert port.log is not None
        port.log(
            {
                "method": self.method,
                "path": self.url.decode("ascii", "backslashreplace"),
                "status": status,
                "request_bytes": len(self.body),
                "response_bytes": nbytes,
                "duration_us": port.now_us() - self.started_us,
                "peer": self._connection.peer,
            }
        )


class HttpConnection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_expects_continue",
        "_field_bytes",
        "_framing_bytes",
        "_header_bytes",
        "_header_count",
        "_headers",
        "_lingers",
        "_new_head",
        "_paused",
        "_parser",
        "_phase",
        "_started_us",
        "_transport",
        "_unread",
        "_url",
        "_write_blocked",
        "deadline_us",
        "pending",
        "port",
    )

    _transport: asyncio.Transport
    _framing_bytes: int

    def __init__(self, port: Port) -> None:
        self.port = port
        self.pending: deque[Exchange] = deque()
        self.deadline_us = 0
        self._parser = httptools.HttpRequestParser(self)
        self._phase = _Phase.IDLE
        self._paused = False
        self._write_blocked = False
        self._lingers = False
        self._unread: deque[bytes] = deque()
        self._started_us = 0
        self._new_head = b""  # bytes of a head that llhttp is about to see for the first time
        self._begin()

    @property
    def peer(self) -> str:
        """The client's address, for logs."""
        name = self._transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: a client connected."""
        self._transport = cast("asyncio.Transport", transport)
        port = self.port
        if len(port.connections) >= port.limits.connections_max:
            self._count_error("connections_max")
            self._transport.abort()
            return
        port.connections.add(self)
        port.statistics.connections += 1
        port.statistics.connections_total += 1
        self.deadline_us = port.now_us() + port.limits.idle_timeout_us

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the client is gone. What it waited for is abandoned."""
        if self in self.port.connections:
            self.port.connections.discard(self)
            self.port.statistics.connections -= 1
            del self._parser  # it refers back to this object: both are freed now, not at some distant collection
        pending, self.pending = self.pending, deque()
        self._unread.clear()
        self._phase = _Phase.REFUSED
        for exchange in pending:
            if exchange.work is not None:
                exchange.work.abandon()
                exchange.work = None

    def eof_received(self) -> bool:
        """Asyncio: the client will send no more. Closed and half-closed look the same, and most that do this are gone.

        So it is taken to be gone, as nginx and Go's net/http do: what it still waits for is abandoned, not executed.
        """
        return False

    def pause_writing(self) -> None:
        """Asyncio: the client does not read its answers. Stop reading its requests."""
        self._write_blocked = True
        self.deadline_us = self.port.now_us() + self.port.limits.body_timeout_us
        self._pause()

    def resume_writing(self) -> None:
        """Asyncio: it reads again."""
        self._write_blocked = False
        if self._phase is _Phase.IDLE:
            self.deadline_us = 0
        self._resume()

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes from the client."""
        if self._phase is _Phase.REFUSED:
            return
        if self._paused:
            # Bytes that were already on their way when reading was paused: at most one read each.
            self._unread.append(data)
            return
        if self._phase is _Phase.IDLE and not self.port.is_draining:
            data = self._receive_known(data)
            if not data:
                return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        """Give bytes to llhttp, and refuse what it refuses or what grows past its bounds."""
        headers, body_bytes = None, 0
        if self._phase is _Phase.BODY:
            headers, body_bytes = self._headers, self._body_bytes
        else:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # a bug of ours: asyncio logs it and closes the connection
        except httptools.HttpParserUpgrade:
            # `on_message_complete` has seen the request and will close after the answer: no protocol to upgrade to.
            self._phase = _Phase.REFUSED
        except httptools.HttpParserError as error:
            self._refuse_malformed(error)
        if self._phase is _Phase.HEADER:
            if self._header_bytes > self.port.limits.header_bytes_max:
                self._refuse_headers()
        elif self._phase is _Phase.BODY and self._headers is headers:
            self._check_framing(0 if self._body_bytes > body_bytes else len(data))

    def _refuse_malformed(self, error: Exception) -> None:
        if self._phase is not _Phase.REFUSED:
            self._count_error("malformed")
            self.refuse(400, f"malformed HTTP request: {error}")

    def _check_framing(self, nbytes: int) -> None:
        """Bound chunk extensions and trailers: `nbytes` came without a byte of body; 0 if there was some."""
        if nbytes:
            self._framing_bytes += nbytes
        else:
            self._framing_bytes = 0
        limit = self.port.limits.header_bytes_max
        if self._framing_bytes > limit:
            self._count_error("headers_too_large")
            self.refuse(431, f"expected at most {limit} bytes of chunk extensions and trailers, got more")

    def _receive_known(self, data: bytes) -> bytes:
        """Take whole requests whose heads llhttp has parsed before, byte for byte; return what is left for it.

        llhttp is deterministic and stands at the start of a message, so equal bytes mean the same; this only saves
        parsing them again, which is a quarter of a small request's cost.
        """
        port = self.port
        started_us = self._started_us = port.now_us()
        heads = port.heads
        at = 0
        while True:
            end = data.find(b"\r\n\r\n", at)
            head = heads.get(data[at:end]) if end > 0 else None
            if head is None:
                break
            body_at = end + 4
            body_end = body_at + head.body_bytes
            if body_end > len(data):
                break
            exchange = Exchange(self, head.method, head.url, head.headers, head)
            exchange.body = data[body_at:body_end]
            exchange.started_us = started_us
            port.statistics.parse.counts[0] += 1
            self._accept(exchange)
            at = body_end
            if at == len(data):
                self._started_us = 0
                return b""
            if self._phase is not _Phase.IDLE:  # its handler refused or closed
                return b""
            if self._paused:
                self._unread.appendleft(data[at:])
                return b""
        if end > 0 and end - at <= HEAD_BYTES_MAX:
            self._new_head = data[at:end]
        return data[at:] if at else data

    def _remember(self, head: bytes, exchange: Exchange) -> None:
        """Remember a head that led to a whole request, if the next one like it needs nothing but its length."""
        headers = exchange.headers
        if b"transfer-encoding" in headers or b"expect" in headers or b"upgrade" in headers:
            return
        heads = self.port.heads
        if len(heads) >= HEADS_MAX:
            heads.clear()
        body_bytes = int(headers.get(b"content-length", b"0"))
        heads[head] = exchange.head = Head(exchange.method, exchange.url, headers, body_bytes)

    # -- httptools -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._header_count = 0
        self._field_bytes = 0
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._framing_bytes = 0
        self._expects_continue = False

    def on_message_begin(self) -> None:
        """Httptools: the first byte of a request."""
        if self._phase is not _Phase.REFUSED:
            self._phase = _Phase.HEADER
            if not self._started_us:
                self._started_us = self.port.now_us()
            self.deadline_us = self._started_us + self.port.limits.header_timeout_us

    def on_url(self, url: bytes) -> None:
        """Httptools: a piece of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Httptools: one header field, or one trailer field, which is ignored."""
        if self._phase is not _Phase.HEADER:
            return
        self._header_count += 1
        self._field_bytes += len(name) + len(value) + 4
        key = name.lower()
        if key in _KNOWN:
            if key in self._headers:
                self._repeat(key, value)
            else:
                self._headers[key] = value

    def _repeat(self, key: bytes, value: bytes) -> None:
        if key == b"accept-encoding":
            self._headers[key] += b"," + value
        else:
            # Two of these would leave it open which one holds (RFC 9112 3.2 for Host; smuggling for the others).
            self.refuse(400, f"expected at most one {key.decode()} header, got several")

    def on_headers_complete(self) -> None:
        """Httptools: end of the headers. Refuse here what need not be read to be refused."""
        if self._phase is _Phase.REFUSED:
            return
        self._phase = _Phase.BODY
        limits = self.port.limits
        headers = self._headers
        if self._header_count > limits.headers_max or len(self._url) + self._field_bytes > limits.header_bytes_max:
            self._refuse_headers()
            return
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            # RFC 9110 offers 505 and 501 for these; but what a caller sends never counts as the server's failure here.
            self.refuse(400, f"expected HTTP/1.1 or HTTP/1.0, got HTTP/{version}")
        elif version == "1.1" and b"host" not in headers:
            self.refuse(400, "expected a Host header (RFC 9112 section 3.2), got none")
        elif b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
            self.refuse(400, f"transfer-encoding: expected chunked, got {shown(headers[b'transfer-encoding'])}")
        elif b"transfer-encoding" in headers and version == "1.0":
            self.refuse(400, "transfer-encoding: not defined for HTTP/1.0")
        elif self._parser.should_upgrade() and headers.get(b"content-length", b"0") != b"0":
            # llhttp ends such a request at its headers; taking it would lose the body and misread it as what follows.
            self.refuse(400, "expected a request with a body to come without Upgrade: this port speaks HTTP/1.1 only")
        elif b"content-length" in headers:
            self._check_length(headers[b"content-length"])
        elif b"transfer-encoding" not in headers and self._parser.get_method() in (b"POST", b"PUT", b"PATCH"):
            self.refuse(411, "expected a Content-Length header or chunked transfer encoding, got neither")
        if self._phase is _Phase.BODY and b"expect" in headers:
            self._expect(headers[b"expect"])
        if self._phase is _Phase.BODY:
            self.deadline_us = self.port.now_us() + limits.body_timeout_us

    def _check_length(self, length: bytes) -> None:
        bytes_max = self.port.limits.body_bytes_max
        # The first test is for int(), which gives up on thousands of digits, zeros included.
        if len(length) > LENGTH_CHARS_MAX or int(length) > bytes_max:
            self.refuse(413, f"expected a body of at most {bytes_max} bytes, got {shown(length)}")

    def _expect(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            self.refuse(417, f"expect: expected 100-continue, got {shown(value)}")
        elif self.pending:
            self._expects_continue = True  # its turn comes when the answers before it are out
        else:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Httptools: a piece of the body."""
        if self._phase is not _Phase.BODY:
            return
        body = self._body
        if isinstance(body, bytearray):
            body += data
        else:
            # One buffer, not a list of pieces: chunks of one byte each would take fifty times their size.
            self._body = bytearray(body + data) if body else data
        self._body_bytes += len(data)
        if self._body_bytes > self.port.limits.body_bytes_max:
            self.refuse(413, f"expected a body of at most {self.port.limits.body_bytes_max} bytes, got more")

    def on_message_complete(self) -> None:
        """Httptools: a whole request. Hand it over."""
        if self._phase is not _Phase.BODY:
            return
        port = self.port
        exchange = Exchange(self, self._parser.get_method().decode("ascii"), self._url, self._headers)
        exchange.body = bytes(self._body)
        exchange.started_us = self._started_us
        self._phase = _Phase.IDLE
        port.statistics.parse.observe(port.now_us() - self._started_us)
        self._started_us = 0
        new_head, self._new_head = self._new_head, b""
        if b"upgrade" in self._headers or self._parser.should_upgrade():  # CONNECT has no such header
            self._lingers = True  # what the client goes on to say in another protocol is read and dropped
            exchange._close = True  # noqa: SLF001 - one object in two classes
            self._phase = _Phase.REFUSED
        elif port.is_draining or not self._parser.should_keep_alive():
            exchange._close = True  # noqa: SLF001
            self._phase = _Phase.REFUSED
        elif new_head:
            self._remember(new_head, exchange)
        self._begin()
        self._accept(exchange)

    def _accept(self, exchange: Exchange) -> None:
        """A whole request is here: put it in line and hand it over."""
        port = self.port
        self.pending.append(exchange)
        self.deadline_us = 0
        if len(self.pending) >= port.limits.pipeline_max:
            self._pause()
        if b"content-encoding" in exchange.headers:
            encoding = exchange.headers[b"content-encoding"]
            try:
                exchange.body = decompress(exchange.body, encoding, port.limits.body_bytes_max)
            except CallerError as error:
                exchange.respond(error.status, port.handler.encode_refusal(exchange.url, error.status, error.message))
                return
        port.handler.handle(exchange)

    # -- answering -----------------------------------------------------------------------------------------------

    def flush(self, exchange: Exchange) -> None:
        """Write the answers that are next in order. `exchange` has just been answered."""
        pending = self.pending
        if not pending or pending[0] is not exchange:
            return
        write = self._transport.write
        while pending:
            first = pending[0]
            response = first._response  # noqa: SLF001 - one object in two classes
            if response is None:
                break
            pending.popleft()
            write(response)
            if first._close:  # noqa: SLF001
                self._finish()
                return
        if self._expects_continue and not pending:
            self._expects_continue = False
            write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._paused:
            self._resume()

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error after all earlier requests and close: what follows on this connection is not safe."""
        if self._phase is _Phase.REFUSED:
            return
        method = ""
        if self._phase is _Phase.BODY:
            method = self._parser.get_method().decode("ascii")  # the answer to a HEAD has no body, refused or not
        self._phase = _Phase.REFUSED
        self._lingers = True
        self.deadline_us = 0
        exchange = Exchange(self, method, self._url, {})
        exchange._close = True  # noqa: SLF001 - one object in two classes
        exchange.started_us = self._started_us
        self.pending.append(exchange)
        exchange.respond(status, self.port.handler.encode_refusal(self._url, status, message))

    def _refuse_headers(self) -> None:
        limits = self.port.limits
        self._count_error("headers_too_large")
        got_bytes = max(self._header_bytes, self._field_bytes + len(self._url))
        self.refuse(
            431,
            f"expected at most {limits.headers_max} headers and {limits.header_bytes_max} bytes of request line and"
            f" headers, got {self._header_count} headers and {got_bytes} bytes",
        )

    def _finish(self) -> None:
        """The last answer is written. If the client may still be sending, wait a moment for it to stop."""
        assert not self.pending, "answers are owed behind one that closes"
        self._phase = _Phase.REFUSED
        self._unread.clear()
        limits = self.port.limits
        if not self._lingers:
            # Closing sends what is buffered first: a slow client gets as long for it as to send a body.
            self.deadline_us = self.port.now_us() + limits.body_timeout_us
            self._transport.close()
            return
        self.deadline_us = self.port.now_us() + (limits.body_timeout_us if self._write_blocked else LINGER_US)
        if self._transport.is_closing():
            return
        if self._paused and not self._write_blocked:
            self._paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def time_out(self) -> None:
        """The deadline has passed: say which, if the client could still want to know, and close."""
        self.deadline_us = 0
        phase = self._phase
        if phase is _Phase.HEADER or phase is _Phase.BODY:
            which = phase.name.lower()
            timeouts = self.port.statistics.timeouts
            timeouts[which] = timeouts.get(which, 0) + 1
            if not self._write_blocked:
                limit_us = getattr(self.port.limits, f"{which}_timeout_us")
                self.refuse(408, f"expected the whole {which} within {limit_us / 1e6:.1f} s")
                return
        elif phase is _Phase.IDLE and not self.pending:
            self.port.statistics.timeouts["idle"] = self.port.statistics.timeouts.get("idle", 0) + 1
        self._transport.abort()

    def close_if_idle(self, before_us: int) -> bool:
        """Draining: close if idle since `before_us`; return True if an answer is due or a request may be on its way.

        A request that is still arriving closes after its own answer.
        """
        if self._phase is not _Phase.IDLE:
            return bool(self.pending)
        if self.pending:
            self._close_after_last()
            return True
        # Without a deadline its last answer is older than the drain, or it would have closed.
        if self.deadline_us and self.deadline_us - self.port.limits.idle_timeout_us > before_us:
            return True
        self._transport.close()
        return False

    def _close_after_last(self) -> None:
        """Answer what is pending and read no more requests."""
        self._phase = _Phase.REFUSED
        self.deadline_us = 0
        self._unread.clear()
        self.pending[-1]._close = True  # noqa: SLF001 - one object in two classes

    # -- flow ----------------------------------------------------------------------------------------------------

    def start_idle(self, now_us: int) -> None:
        """The sweep found no deadline: begin the idle time if nothing is under way. Cheaper than after each answer."""
        if self._phase is _Phase.IDLE and not self.pending:
            self.deadline_us = now_us + self.port.limits.idle_timeout_us

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        # Not before half of them are answered: pausing and resuming for each one would cost more than parsing it.
        if not self._paused or self._write_blocked or len(self.pending) > self.port.limits.pipeline_max // 2:
            return
        self._paused = False
        if self._unread:
            # All at once: answers given while these bytes are read may come back here and must find none left over.
            data = b"".join(self._unread)
            self._unread.clear()
            self.data_received(data)
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _count_error(self, reason: str) -> None:
        errors = self.port.statistics.protocol_errors
        errors[reason] = errors.get(reason, 0) + 1
