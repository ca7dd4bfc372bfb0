"""OpenAI `/v1/embeddings` over a model of task `embedding`: one HTTP request, one or more batches.

Inputs are cut into chunks that hold one length bucket each, so that a short text never pays for a long neighbour; the
answer goes out when the last chunk is back. Not here: the JSON (`wire/openai.py`).
"""

from math import prod

from penstock.core.ports import Clock
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.callers import Caller
from penstock.gateway.http import Exchange
from penstock.gateway.inference import estimate_tokens, retry_headers
from penstock.gateway.limit_plans import Plan
from penstock.gateway.limiter import Limiter, Permit, Waiting
from penstock.gateway.work import BatchResult, Refusal, Work
from penstock.policy.admission import RefusalReason
from penstock.wire.oip import InferenceRequest, length_bucket
from penstock.wire.oip_outputs import count_tokens
from penstock.wire.openai import (
    EmbeddingsRequest,
    encode_embeddings_response,
    encode_openai_error,
    pack_texts,
    pack_token_ids,
    plan_embedding_chunks,
)
from penstock.wire.ratelimit import Rejection

__all__ = ["Embedding"]

_FP32_BYTES = 4


class Embedding:
    """One embeddings request: its chunks, and what is back already."""

    __slots__ = (
        "_batcher",
        "_embeddings",
        "_exchange",
        "_arrived_us",
        "_limits",
        "_now_us",
        "_permit",
        "_plan",
        "_request",
        "_tokens",
        "_waiting",
        "allowed_us",
        "request_class",
        "tenant",
        "weight",
    )

    def __init__(
        self,
        exchange: Exchange,
        request: EmbeddingsRequest,
        batcher: ModelBatcher,
        caller: Caller,
        plan: Plan | None,
        now_us: Clock,
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._batcher = batcher
        self._now_us = now_us
        self._embeddings: list[memoryview] = [memoryview(b"")] * (len(request.texts) or len(request.tokens))
        self._tokens = 0
        self._waiting: set[_Chunk] = set()
        self._plan = plan
        self._limits: Waiting | None = None
        self._permit: Permit | None = None
        self._arrived_us = exchange.started_us
        self.request_class, self.allowed_us = caller.terms.settle(batcher.spec)
        self.tenant = caller.terms.tenant
        self.weight = caller.principal.weight

    def start(self, limiter: Limiter) -> None:
        """Queue it if its caller's limits have room for it, or answer which has not."""
        self._exchange.work = self
        if self._plan is None:
            self._submit()
            return
        rows = len(self._embeddings)
        nbytes = sum(map(len, self._request.texts)) or 4 * sum(map(len, self._request.tokens))
        verdict = limiter.admit(self._plan, self, rows, estimate_tokens(rows, nbytes))
        if isinstance(verdict, Waiting):
            self._limits = verdict
        else:
            self.proceed(verdict, None)

    def proceed(self, rejection: Rejection | None, permit: Permit | None) -> None:
        """The limits are decided."""
        self._limits = None
        self._permit = permit
        if rejection is None:
            self._submit()
        else:
            body = encode_openai_error(rejection.message, rejection.status, code=rejection.code)
            self._exchange.respond(rejection.status, body, headers=rejection.headers)

    def _end_permit(self, tokens: int | None) -> None:
        if self._permit is not None:
            self._permit.end(tokens)

    def _submit(self) -> None:
        """Cut the inputs into chunks and queue them all."""
        arrived_us = self._arrived_us
        inputs = self._request.texts or self._request.tokens
        plan = plan_embedding_chunks([len(item) for item in inputs], self._batcher.spec.batching.size_max)
        chunks = [_Chunk(self, indexes, self._tensor(indexes), arrived_us) for indexes in plan]
        for chunk in chunks:
            self._waiting.add(chunk)
            self._batcher.submit(chunk, self._now_us())
            if self._exchange.is_answered:
                return

    def _tensor(self, indexes: list[int]) -> InferenceRequest:
        request = InferenceRequest()
        request.id = ""
        request.rows = len(indexes)
        dimensions = self._request.dimensions
        if dimensions in self._batcher.spec.dimensions[1:]:  # one that the model gives, and not unasked
            request.parameters = {"dimensions": dimensions}
        request.outputs = ()
        request.binary_output = True
        if self._request.texts:
            payload = pack_texts([self._request.texts[i] for i in indexes])
            request.tensors = (("text", "BYTES", (1,)),)
            # One queue per length bucket: a text only ever shares a batch with its like.
            request.signature = (request.tensors, length_bucket(len(payload) // len(indexes)))
        else:
            payload, width = pack_token_ids([self._request.tokens[i] for i in indexes])
            request.tensors = (("token_ids", "INT32", (width,)),)
            request.signature = request.tensors
        if request.parameters:
            request.signature = (request.signature, dimensions)
        request.payload = (payload,)
        request.nbytes = len(payload)
        return request

    def abandon(self) -> None:
        """The client is gone: no chunk is worth running."""
        if self._limits is not None:
            self._limits.leave()
            return
        self._end_permit(None)  # some of it may have run, and nobody has counted all: the estimate stands
        self._abandon(RefusalReason.DISCONNECTED)

    def _abandon(self, reason: RefusalReason | None) -> None:
        now_us = self._now_us()
        waiting, self._waiting = self._waiting, set()
        for chunk in waiting:
            self._batcher.abandon(chunk, now_us, reason)

    def take(self, chunk: "_Chunk", result: BatchResult, row: int, now_us: int) -> None:
        """Keep a chunk's rows; answer if it was the last."""
        outputs = {output.name: output for output in result.outputs}
        embedding = outputs["embedding"]
        width = prod(embedding.shape) * _FP32_BYTES
        for offset, index in enumerate(chunk.indexes):
            start = (row + offset) * width
            self._embeddings[index] = embedding.data[start : start + width]
        tokens = count_tokens(result.outputs, row, chunk.rows)
        self._tokens += tokens or 0
        self._waiting.discard(chunk)
        if self._waiting:
            return
        self._end_permit(None if tokens is None else self._tokens)
        request = self._request
        body = encode_embeddings_response(
            request.model, self._embeddings, as_base64=request.as_base64, prompt_tokens=self._tokens
        )
        headers = b"server-timing: queue;dur=%.3f, %b, total;dur=%.3f\r\n" % (
            (chunk.sent_us - chunk.queued_us) / 1_000,
            result.timing,
            (now_us - chunk.arrived_us) / 1_000,
        )
        if self._plan is not None:
            headers += self._plan.headers(now_us)
        self._exchange.respond(200, body, headers=headers)

    def refuse(self, chunk: "_Chunk", refusal: Refusal) -> None:
        """Answer with OpenAI's error; the other chunks are of no use any more."""
        self._waiting.discard(chunk)
        self._abandon(refusal.reason)
        self._end_permit(self._tokens)
        if not self._exchange.is_answered:
            body = encode_openai_error(refusal.message, refusal.status)
            self._exchange.respond(refusal.status, body, headers=retry_headers(refusal))


class _Chunk(Work):
    """Inputs of one embeddings request that run together; `indexes` are their places in it."""

    __slots__ = ("_owner", "indexes")

    def __init__(self, owner: Embedding, indexes: list[int], request: InferenceRequest, arrived_us: int) -> None:
        deadline_us = arrived_us + owner.allowed_us
        super().__init__(request, arrived_us, deadline_us, owner.request_class, owner.tenant, owner.weight)
        self.indexes = indexes
        self._owner = owner

    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        """See `Work`."""
        self._owner.take(self, result, row, now_us)
        return True

    def refuse(self, refusal: Refusal, now_us: int) -> None:
        """See `Work`."""
        self._owner.refuse(self, refusal)
