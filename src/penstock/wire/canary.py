"""The canary: a made-up batch that a model of a given spec must be able to answer, and what its answer says.

Pure. Gateways send it over their own links to find out what is ready; a replica warms its model up with it. Not here:
when to send one (`gateway/`), running it (`replica/canary.py`).
"""

from math import prod

from penstock.core.models import ModelSpec
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.wire.frame import BatchMeta, FrameTensor, ReplyMeta

__all__ = ["canary_batch", "canary_fault"]

_BYTES_ELEMENT = len(b"canary").to_bytes(4, "little") + b"canary"


def canary_batch(spec: ModelSpec, *, request_count: int = 1, budget_us: int = 0) -> tuple[BatchMeta, list[bytes]]:
    """Build a batch of `request_count` requests of one row each: zeros, and `canary` where a tensor holds BYTES.

    Open inner dimensions get length 1. Optional inputs are left out; if all are optional, the first is sent.

    Args:
        spec: The model's.
        request_count: How many requests, >= 1; a model without batching takes 1.
        budget_us: Deadline of each request, µs from sending; 0 means none.

    Returns:
        The description and the payload, in the form `encode_meta` and `encode_frame` take.
    """
    assert request_count >= 1
    assert request_count == 1 or spec.is_batched
    chosen = [t for t in spec.inputs if not t.optional] or list(spec.inputs[:1])
    tensors: list[FrameTensor] = []
    payload: list[bytes] = []
    for tensor in chosen:
        shape = _closed_shape(tensor, is_batched=spec.is_batched)
        element = _BYTES_ELEMENT if tensor.datatype == "BYTES" else bytes(DATATYPES[tensor.datatype].itemsize)
        data = element * (prod(shape) * request_count)
        tensors.append(FrameTensor(tensor.name, tensor.datatype, shape, len(data)))
        payload.append(data)
    return BatchMeta(tuple(tensors), (1,) * request_count, (budget_us,) * request_count, {}), payload


def _closed_shape(tensor: TensorSpec, *, is_batched: bool) -> tuple[int, ...]:
    inner = tensor.shape[1:] if is_batched else tensor.shape
    return tuple(1 if d == -1 else d for d in inner)


def canary_fault(reply: ReplyMeta) -> str | None:
    """Say why this answer to a canary shows an unfit model; None if it shows a fit one.

    A 4xx shows a fit one: the model ran and judged the input, and zeros may honestly be invalid.
    """
    return next((f.message for f in reply.failures if f.status >= 500), None)
