"""One inference over the Open Inference Protocol, from a parsed exchange to its answer.

Not here: JSON and binary tensors (`wire/oip.py`), queues (`batcher.py`).
"""

from penstock.core.errors import InvalidInput
from penstock.core.ports import Clock
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.http import Exchange
from penstock.gateway.terms import TermsReader
from penstock.gateway.work import BatchResult, Refusal, Work
from penstock.wire.oip import InferenceCodec, encode_error

__all__ = ["Inference", "Target", "retry_headers"]

# More than any body has, and far from the 4,300 at which int() gives up.
DIGITS_MAX = 18

_BINARY = b"content-type: application/octet-stream\r\n"


def retry_headers(refusal: Refusal) -> bytes:
    """Write `retry-after` (whole seconds, rounded up) and `retry-after-ms`, if the refusal knows when to come back."""
    if not refusal.retry_after_us:
        return b""
    return b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (
        -(-refusal.retry_after_us // 1_000_000),
        -(-refusal.retry_after_us // 1_000),
    )


class Inference(Work):
    """One OIP request on its way through the queue."""

    __slots__ = ("exchange", "target")

    exchange: Exchange
    target: "Target"

    def abandon(self) -> None:
        """The client is gone."""
        self.target.batcher.abandon(self, self.target.now_us())

    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        """Answer with this request's rows."""
        try:
            body, json_bytes = self.target.codec.encode(self.request, result.outputs, result.values, row, self.rows)
        except InvalidInput as error:
            self.exchange.respond(error.status, encode_error(error.message))
            return False
        timing = b"server-timing: queue;dur=%.3f, %b, total;dur=%.3f\r\n" % (
            (self.sent_us - self.queued_us) / 1_000,
            result.timing,
            (now_us - self.arrived_us) / 1_000,
        )
        if json_bytes is None:
            self.exchange.respond(200, body, headers=timing)
        else:
            headers = timing + b"inference-header-content-length: %d\r\n" % json_bytes
            self.exchange.respond(200, body, headers=headers, content_type=_BINARY)
        return True

    def refuse(self, refusal: Refusal, now_us: int) -> None:
        """Answer with the protocol's error."""
        headers = b"server-timing: total;dur=%.3f\r\n" % ((now_us - self.arrived_us) / 1_000)
        self.exchange.respond(refusal.status, encode_error(refusal.message), headers=headers + retry_headers(refusal))


class Target:
    """What a resolved infer URL needs of its model: looked up once per URL, used for every request.

    Args:
        codec: Of the model version.
        batcher: Of the model version.
        terms: Reads the headers that say on what terms a request is served.
        now_us: Clock.
    """

    __slots__ = ("batcher", "codec", "now_us", "terms")

    def __init__(self, codec: InferenceCodec, batcher: ModelBatcher, terms: TermsReader, now_us: Clock) -> None:
        self.codec = codec
        self.batcher = batcher
        self.terms = terms
        self.now_us = now_us

    def start(self, exchange: Exchange) -> None:
        """Decode an infer request and queue it, or answer what is wrong with it."""
        header = exchange.headers.get(b"inference-header-content-length")
        try:
            terms = self.terms.read(exchange.headers)
            if header is not None and not (header.isdigit() and len(header) <= DIGITS_MAX):
                shown = header[:64].decode("ascii", "backslashreplace")
                raise InvalidInput(f"Inference-Header-Content-Length: expected up to {DIGITS_MAX} digits, got {shown}")
            request = self.codec.decode(exchange.body, None if header is None else int(header))
        except InvalidInput as error:
            elapsed_us = self.now_us() - exchange.started_us
            self.batcher.count_invalid(elapsed_us)
            headers = b"server-timing: total;dur=%.3f\r\n" % (elapsed_us / 1_000)
            exchange.respond(error.status, encode_error(error.message), headers=headers)
            return
        arrived_us = exchange.started_us
        request_class, allowed_us = terms.settle(
            self.batcher.spec, priority=request.priority, timeout_us=request.timeout_us
        )
        deadline_us = arrived_us + allowed_us
        work = Inference(request, arrived_us, deadline_us, request_class=request_class, tenant=terms.tenant)
        work.exchange = exchange
        work.target = self
        exchange.work = work
        self.batcher.submit(work, self.now_us())
