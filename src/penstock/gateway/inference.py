"""One inference over the Open Inference Protocol, from a parsed exchange to its answer.

Not here: JSON and binary tensors (`wire/oip.py`), queues (`batcher.py`).
"""

from penstock.core.errors import CallerError, InvalidInput
from penstock.core.ports import Clock
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.callers import Caller
from penstock.gateway.http import Exchange
from penstock.gateway.limit_plans import Plan
from penstock.gateway.limiter import Limiter, Permit, Waiting
from penstock.gateway.work import BatchResult, Refusal, Work
from penstock.policy.queueing import RUNNING, RequestClass
from penstock.wire.oip import InferenceCodec, encode_error
from penstock.wire.oip_outputs import count_tokens
from penstock.wire.ratelimit import Rejection

__all__ = ["Bound", "Inference", "Target", "estimate_tokens", "retry_headers"]

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


def estimate_tokens(rows: int, nbytes: int) -> int:
    """Return about how many tokens of a model its input has: four bytes each, as ids always and English text mostly."""
    return max(rows, nbytes // 4)


class Inference(Work):
    """One OIP request on its way through the queue."""

    __slots__ = ("exchange", "permit", "plan", "target", "waiting")

    exchange: Exchange
    target: "Target"
    plan: Plan | None
    waiting: Waiting | None
    permit: Permit | None

    def abandon(self) -> None:
        """The client is gone."""
        if self.waiting is not None:
            self.waiting.leave()
            return
        if self.permit is not None:
            # What already runs has its cost, and nobody will count it: the estimate stands.
            self.permit.end(None if self.state is RUNNING else 0)
        self.target.batcher.abandon(self, self.target.now_us())

    def proceed(self, rejection: Rejection | None, permit: Permit | None) -> None:
        """The authority over limits has answered."""
        now_us = self.target.now_us()
        self.waiting = None
        self.permit = permit
        if rejection is None:
            self.target.batcher.submit(self, now_us)
        else:
            self.reject(rejection, now_us)

    def reject(self, rejection: Rejection, now_us: int) -> None:
        """Answer that a limit is in the way."""
        headers = b"server-timing: total;dur=%.3f\r\n" % ((now_us - self.arrived_us) / 1_000)
        self.exchange.respond(rejection.status, encode_error(rejection.message), headers=headers + rejection.headers)

    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        """Answer with this request's rows."""
        if self.permit is not None:
            self.permit.end(count_tokens(result.outputs, row, self.rows))
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
        if self.plan is not None:
            timing += self.plan.headers(now_us)
        if json_bytes is None:
            self.exchange.respond(200, body, headers=timing)
        else:
            headers = timing + b"inference-header-content-length: %d\r\n" % json_bytes
            self.exchange.respond(200, body, headers=headers, content_type=_BINARY)
        return True

    def refuse(self, refusal: Refusal, now_us: int) -> None:
        """Answer with the protocol's error."""
        if self.permit is not None:
            self.permit.end(0)
        headers = b"server-timing: total;dur=%.3f\r\n" % ((now_us - self.arrived_us) / 1_000)
        self.exchange.respond(refusal.status, encode_error(refusal.message), headers=headers + retry_headers(refusal))


class Bound:
    """What all requests of one caller for one model have in common, if they say nothing else in their parameters."""

    __slots__ = ("allowed_us", "caller", "plan", "request_class")

    def __init__(self, caller: Caller, plan: Plan | None, request_class: RequestClass, allowed_us: int) -> None:
        self.caller = caller
        self.plan = plan
        self.request_class = request_class
        self.allowed_us = allowed_us


class Target:
    """What a resolved infer URL needs of its model: looked up once per URL, used for every request.

    Args:
        codec: Of the model version.
        batcher: Of the model version.
        limiter: Knows whether there is room for it within its caller's limits.
        now_us: Clock.
    """

    __slots__ = ("batcher", "codec", "limiter", "now_us")

    def __init__(self, codec: InferenceCodec, batcher: ModelBatcher, limiter: Limiter, now_us: Clock) -> None:
        self.codec = codec
        self.batcher = batcher
        self.limiter = limiter
        self.now_us = now_us

    def refuse(self, exchange: Exchange, error: CallerError, headers: bytes = b"") -> None:
        """Answer what is wrong with a request, and count it."""
        elapsed_us = self.now_us() - exchange.started_us
        self.batcher.count_invalid(elapsed_us)
        headers += b"server-timing: total;dur=%.3f\r\n" % (elapsed_us / 1_000)
        exchange.respond(error.status, encode_error(error.message), headers=headers)

    def bind(self, caller: Caller, plan: Plan | None) -> "Bound":
        """Return what all requests of a caller for this model have in common."""
        request_class, allowed_us = caller.terms.settle(self.batcher.spec)
        return Bound(caller, plan, request_class, allowed_us)

    def start(self, exchange: Exchange, bound: "Bound") -> None:
        """Decode an infer request and queue it, or answer what is wrong with it or which limit is in its way."""
        header = exchange.headers.get(b"inference-header-content-length")
        try:
            if header is not None and not (header.isdigit() and len(header) <= DIGITS_MAX):
                shown = header[:64].decode("ascii", "backslashreplace")
                raise InvalidInput(f"Inference-Header-Content-Length: expected up to {DIGITS_MAX} digits, got {shown}")
            request = self.codec.decode(exchange.body, None if header is None else int(header))
        except InvalidInput as error:
            self.refuse(exchange, error)
            return
        arrived_us = exchange.started_us
        batcher, plan = self.batcher, bound.plan
        terms = bound.caller.terms
        request_class, allowed_us = bound.request_class, bound.allowed_us
        if request.priority or request.timeout_us:
            request_class, allowed_us = terms.settle(
                batcher.spec, priority=request.priority, timeout_us=request.timeout_us
            )
        deadline_us = arrived_us + allowed_us
        work = Inference(request, arrived_us, deadline_us, request_class, terms.tenant, bound.caller.principal.weight)
        work.exchange = exchange
        work.target = self
        work.plan = plan
        work.waiting = work.permit = None
        exchange.work = work
        if plan is None:
            batcher.submit(work, self.now_us())
            return
        tokens = estimate_tokens(request.rows, request.nbytes) if plan.is_settled else 0
        verdict = self.limiter.admit(plan, work, request.rows, tokens)
        if verdict is None:
            batcher.submit(work, self.now_us())
        elif isinstance(verdict, Waiting):
            work.waiting = verdict
        else:
            work.reject(verdict, self.now_us())
