"""HTTP/1.1 answers from bytes, one outstanding request at a time: `feed` bytes, get an answer.

Pure: no sockets. An answer that arrives whole with a Content-Length, as nearly all do, costs a few searches; anything
else (split, chunked, interim 1xx, no length) is left to llhttp. Not here: judging what an answer means (`driver.py`).
Source: RFC 9112 sections 4 and 6.
"""

import httptools

__all__ = ["Answer", "AnswerParser", "MalformedAnswer"]

# Status, body, whether the connection may be used again, and when to come back, µs: -1 unless a refusal says so. A bare
# tuple: one is made per request.
Answer = tuple[int, bytes, bool, int]


class MalformedAnswer(Exception):
    """The bytes are not one HTTP answer. Close the connection; what follows cannot be trusted."""


class AnswerParser:
    """Parse the answers on one connection. After each answer it is ready for the next one."""

    __slots__ = ("_slow",)

    def __init__(self) -> None:
        self._slow: _SlowParser | None = None

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes as they arrive, non-empty; return the answer that they complete, or None.

        Raises:
            MalformedAnswer: The bytes are not HTTP, or go on after the answer. The parser must not be used again.
        """
        slow = self._slow
        if slow is None:
            answer = parse_whole(data)
            if answer is not None:
                return answer
            slow = self._slow = _SlowParser()
        answer = slow.feed(data)
        if answer is not None:
            self._slow = None
        return answer

    def feed_eof(self) -> Answer | None:
        """Take the end of the connection; return the answer that it completes (one without any length), or None."""
        slow, self._slow = self._slow, None
        return slow.feed_eof() if slow is not None else None


def parse_whole(data: bytes) -> Answer | None:
    """Parse `data` if it is exactly one final answer with a Content-Length; return None if it is anything else."""
    if data[:9] != b"HTTP/1.1 ":
        return None
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = data[:head_end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0 or head.find(b"\r\ncontent-length:", at + 17) >= 0 or b"\r\ntransfer-encoding:" in head:
        return None
    stop = head.find(b"\r\n", at + 17)
    length = head[at + 17 : stop if stop >= 0 else head_end].strip()
    if not length.isdigit() or len(data) != head_end + 4 + int(length):
        return None
    code = data[9:12]
    if not code.isdigit() or data[12:13] not in b" \r" or code[:1] == b"1" or code in (b"204", b"304"):
        return None
    at = head.find(b"\r\nconnection:")
    if at >= 0:
        stop = head.find(b"\r\n", at + 13)
        if head[at + 13 : stop if stop >= 0 else head_end].strip() != b"keep-alive":
            return None
    return int(code), data[head_end + 4 :], True, -1 if code[:1] == b"2" else read_retry_after_us(head)


def read_retry_after_us(head: bytes) -> int:
    """Return what `retry-after-ms`, or else `retry-after` in seconds, says in a lower-case head, µs; -1 if neither."""
    for name, unit_us in ((b"\r\nretry-after-ms:", 1_000), (b"\r\nretry-after:", 1_000_000)):
        at = head.find(name)
        if at >= 0:
            value = head[at + len(name) :].partition(b"\r\n")[0].strip()
            if value.isdigit():
                return int(value) * unit_us
    return -1


class _SlowParser:
    """One answer by llhttp; the callbacks are its interface."""

    __slots__ = ("_answer", "_body", "_has_length", "_head", "_is_head_done", "_is_over", "_parser")

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._is_over = False
        self.on_message_begin()

    def feed(self, data: bytes) -> Answer | None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as fault:
            raise MalformedAnswer("expected an answer, got a protocol upgrade") from fault
        except httptools.HttpParserError as fault:
            raise MalformedAnswer(f"expected an HTTP/1.1 answer, got bytes that are not one: {fault}") from fault
        if self._is_over:
            raise MalformedAnswer("expected one answer, got more bytes after it")
        return self._answer

    def feed_eof(self) -> Answer | None:
        if self._is_head_done and not self._has_length and self._answer is None:
            return self._parser.get_status_code(), b"".join(self._body), False, read_retry_after_us(self._head)
        return None

    def on_message_begin(self) -> None:
        if self._answer is not None:
            self._is_over = True
        self._body: list[bytes] = []
        self._head = b""
        self._has_length = False
        self._is_head_done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif name.startswith(b"retry-after"):
            self._head += b"\r\n" + name + b":" + value

    def on_headers_complete(self) -> None:
        self._is_head_done = True

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # a 1xx is only a promise of the answer
            retry_after_us = read_retry_after_us(self._head)
            self._answer = status, b"".join(self._body), bool(self._parser.should_keep_alive()), retry_after_us
