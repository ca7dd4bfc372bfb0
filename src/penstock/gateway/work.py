"""What waits in a gateway: one request from submission to its end, why it has no result, the outputs of its batch.

Not here: queues and their order (`policy/queueing.py`), when a batch is closed and who gets it (`scheduling.py` there).
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol

from penstock.policy.admission import RefusalReason
from penstock.policy.balancing import Dispatch, Replica
from penstock.policy.queueing import INTERACTIVE, QUEUED, Entry, RequestClass
from penstock.wire.oip import InferenceRequest
from penstock.wire.oip_outputs import OutputTensor

__all__ = ["BatchResult", "Link", "Refusal", "Work"]


class Refusal:
    """Why a request has no result, for the caller's protocol to put into words.

    Attributes:
        status: HTTP status.
        message: What happened and what to do.
        reason: Metric label; None if the model itself failed the request.
        retry_after_us: When to come back, 0 if unknown or useless.
    """

    __slots__ = ("message", "reason", "retry_after_us", "status")

    def __init__(self, status: int, message: str, reason: RefusalReason | None = None, retry_after_us: int = 0) -> None:
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after_us = retry_after_us


class BatchResult:
    """Outputs of one executed batch, shared by its requests.

    Attributes:
        outputs: Tensors of all successful requests.
        values: Cache of decoded elements for JSON, one per output (see `InferenceCodec.encode`).
        timing: The part of `Server-Timing` that is the same for all requests of the batch.
    """

    __slots__ = ("outputs", "timing", "values")

    def __init__(self, outputs: list[OutputTensor], timing: bytes) -> None:
        self.outputs = outputs
        self.values: list[list[Any] | None] = [None] * len(outputs)
        self.timing = timing


class Work(Entry, ABC):
    """One request (or one chunk of one) from submission to its end.

    Whoever submits one derives from this. Exactly one of `finish` and `refuse` is called, once, unless the work is
    abandoned first.

    Args:
        request: What to run.
        arrived_us: When the first byte of it was handled.
        deadline_us: When the answer is of no use any more.
        request_class: `INTERACTIVE` or `BATCH`.
        tenant: On whose account it runs.
        weight: See `Entry`.
    """

    __slots__ = ("request",)

    def __init__(
        self,
        request: InferenceRequest,
        arrived_us: int,
        deadline_us: int,
        request_class: RequestClass = INTERACTIVE,
        tenant: str = "",
        weight: float = 0.0,
    ) -> None:
        # What `Entry` does, without the call: one is made for each request.
        self.rows = request.rows
        self.nbytes = request.nbytes
        self.arrived_us = arrived_us
        self.deadline_us = deadline_us
        self.request_class = request_class
        self.tenant = tenant
        self.weight = weight
        self.attempts = 0
        self.is_tolerated = False
        self.state = QUEUED
        self.request = request

    @abstractmethod
    def finish(self, result: BatchResult, row: int, now_us: int) -> bool:
        """Take the result: rows `row .. row + rows`. Return False if it could not be encoded for the client."""

    @abstractmethod
    def refuse(self, refusal: Refusal, now_us: int) -> None:
        """There is no result."""


class Link(Protocol):
    """A live connection to one replica, as the batcher sees it.

    Attributes:
        replica: What the scheduler knows it as, from when it joins.
    """

    address: str
    replica: Replica | None

    def send(self, batch: Dispatch, frame: bytes) -> None:
        """Send a batch; it is in flight until the reply or the loss of the link."""
        ...
