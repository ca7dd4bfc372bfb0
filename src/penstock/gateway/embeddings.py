"""OpenAI `/v1/embeddings` over a model of task `embedding`: one HTTP request, one or more batches.

Inputs are cut into chunks that hold one length bucket each, so that a short text never pays for a long neighbour; the
answer goes out when the last chunk is back. Not here: the JSON (`wire/openai.py`).
"""

from math import prod

from penstock.core.ports import Clock
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.http import Exchange
from penstock.gateway.inference import retry_headers
from penstock.gateway.terms import Terms
from penstock.gateway.work import BatchResult, Refusal, Work
from penstock.policy.admission import RefusalReason
from penstock.wire.oip import InferenceRequest, length_bucket
from penstock.wire.openai import (
    EmbeddingsRequest,
    encode_embeddings_response,
    encode_openai_error,
    pack_texts,
    pack_token_ids,
    plan_embedding_chunks,
)

__all__ = ["Embedding"]

_FP32_BYTES = 4


class Embedding:
    """One embeddings request: its chunks, and what is back already."""

    __slots__ = (
        "_batcher",
        "_embeddings",
        "_exchange",
        "_now_us",
        "_request",
        "_tokens",
        "_waiting",
        "allowed_us",
        "request_class",
        "tenant",
    )

    def __init__(
        self, exchange: Exchange, request: EmbeddingsRequest, batcher: ModelBatcher, terms: Terms, now_us: Clock
    ) -> None:
        self._exchange = exchange
        self._request = request
        self._batcher = batcher
        self._now_us = now_us
        self._embeddings: list[memoryview] = [memoryview(b"")] * (len(request.texts) or len(request.tokens))
        self._tokens = 0
        self._waiting: set[_Chunk] = set()
        self.request_class, self.allowed_us = terms.settle(batcher.spec)
        self.tenant = terms.tenant

    def submit(self, arrived_us: int) -> None:
        """Cut the inputs into chunks and queue them all."""
        inputs = self._request.texts or self._request.tokens
        plan = plan_embedding_chunks([len(item) for item in inputs], self._batcher.spec.batching.size_max)
        chunks = [_Chunk(self, indexes, self._tensor(indexes), arrived_us) for indexes in plan]
        self._exchange.work = self
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
        if "token_count" in outputs:
            self._tokens += sum(outputs["token_count"].data.cast("q")[row : row + chunk.rows])
        self._waiting.discard(chunk)
        if self._waiting:
            return
        request = self._request
        body = encode_embeddings_response(
            request.model, self._embeddings, as_base64=request.as_base64, prompt_tokens=self._tokens
        )
        headers = b"server-timing: queue;dur=%.3f, %b, total;dur=%.3f\r\n" % (
            (chunk.sent_us - chunk.queued_us) / 1_000,
            result.timing,
            (now_us - chunk.arrived_us) / 1_000,
        )
        self._exchange.respond(200, body, headers=headers)

    def refuse(self, chunk: "_Chunk", refusal: Refusal) -> None:
        """Answer with OpenAI's error; the other chunks are of no use any more."""
        self._waiting.discard(chunk)
        self._abandon(refusal.reason)
        if not self._exchange.is_answered:
            body = encode_openai_error(refusal.message, refusal.status)
            self._exchange.respond(refusal.status, body, headers=retry_headers(refusal))


class _Chunk(Work):
    """Inputs of one embeddings request that run together; `indexes` are their places in it."""

    __slots__ = ("_owner", "indexes")

    def __init__(self, owner: Embedding, indexes: list[int], request: InferenceRequest, arrived_us: int) -> None:
        deadline_us = arrived_us + owner.allowed_us
        super().__init__(request, arrived_us, deadline_us, request_class=owner.request_class, tenant=owner.tenant)
        self.indexes = indexes
        self._owner = owner

    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        """See `Work`."""
        self._owner.take(self, result, row, now_us)
        return True

    def refuse(self, refusal: Refusal, now_us: int) -> None:
        """See `Work`."""
        self._owner.refuse(self, refusal)
