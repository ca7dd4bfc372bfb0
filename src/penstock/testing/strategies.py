"""Hypothesis strategies for what crosses the wire: models, inference requests, frames, control messages, and damage.

Everything generated is valid unless its name says otherwise, so that a test may assert success and mean it. Not here:
what the right answer is; each test brings its own oracle.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

from hypothesis import strategies as st

from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.core.models import Batching, ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import BatchStatistics, GatewayStatistics, Histogram, ModelStatistics, TenantStatistics
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.wire import control
from penstock.wire.frame import BatchMeta, Failure, FrameTensor, ReplyMeta

__all__ = [
    "JSON_DATATYPES",
    "InferenceExample",
    "batches",
    "control_messages",
    "cost_profiles",
    "damaged",
    "elements",
    "hostile_bytes",
    "inference_examples",
    "model_specs",
    "nest",
    "replies",
    "splits",
    "statistics",
]

# Datatypes that have a JSON form.
JSON_DATATYPES = tuple(name for name in DATATYPES if name != "FP16")

_FLOAT_BITS = {"FP16": 16, "FP32": 32, "FP64": 64}
_names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=8)
_counts = st.integers(0, 2**40)
_scalars = st.one_of(st.text(max_size=8), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False))
# What breaks parsers: depth, length, numbers past every width, half characters, lies about what follows.
_HOSTILE = (
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 400,
    b"9" * 5_000,
    b"-1e999",
    b"1e-999",
    b"NaN",
    b'"\\ud800"',
    b"\xff\xfe",
    b"\xc3",
    b"\x00",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b"\x91" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
)


def elements(datatype: str) -> st.SearchStrategy[Any]:
    """Return single elements of a datatype as JSON writes them: finite numbers, booleans, strings for BYTES."""
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(max_size=12)
    if datatype in _FLOAT_BITS:
        bits: Any = _FLOAT_BITS[datatype]
        return st.floats(width=bits, allow_nan=False, allow_infinity=False)
    bits = DATATYPES[datatype].itemsize * 8
    if datatype.startswith("U"):
        return st.integers(0, 2**bits - 1)
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@st.composite
def _tensor_specs(draw: st.DrawFn, name: str, *, is_batched: bool, datatypes: tuple[str, ...]) -> TensorSpec:
    inner = draw(st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=2))
    if not is_batched and inner[:1] == [-1]:
        inner[0] = 2
    return TensorSpec(
        name,
        draw(st.sampled_from(datatypes)),
        (-1, *inner) if is_batched else tuple(inner),
        optional=draw(st.booleans()),
    )


@st.composite
def model_specs(draw: st.DrawFn, *, datatypes: tuple[str, ...] = tuple(DATATYPES)) -> ModelSpec:
    """Return models of one to three inputs and outputs, batched or not, with fixed and open dimensions."""
    is_batched = draw(st.booleans())
    kinds: list[tuple[TensorSpec, ...]] = []
    for _ in ("inputs", "outputs"):
        names = draw(st.lists(_names, min_size=1, max_size=3, unique=True))
        kinds.append(tuple(draw(_tensor_specs(n, is_batched=is_batched, datatypes=datatypes)) for n in names))
    return ModelSpec(
        name=draw(_names),
        version=str(draw(st.integers(1, 99))),
        inputs=kinds[0],
        outputs=kinds[1],
        batching=Batching(size_max=draw(st.integers(4, 64))),
    )


def nest(values: list[Any], shape: tuple[int, ...]) -> Any:
    """Nest a row-major list of `prod(shape)` values as lists of `shape`; without dimensions return the one value."""
    if not shape:
        return values[0]
    step = prod(shape[1:])
    return [nest(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


@dataclass(frozen=True)
class InferenceExample:
    """One valid inference request as nouns, to be written in each form of the protocol.

    Args:
        spec: The model asked.
        shapes: For each input sent its shape, in the order sent.
        values: For each of them its elements, row-major.
    """

    spec: ModelSpec
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, list[Any]]

    def datatype(self, name: str) -> str:
        """Return the datatype of an input."""
        return next(t.datatype for t in self.spec.inputs if t.name == name)

    def to_bytes(self, name: str) -> bytes:
        """Return an input's data in binary: row-major little-endian, BYTES with their lengths."""
        datatype = self.datatype(name)
        if datatype == "BYTES":
            encoded = [value.encode() for value in self.values[name]]
            return b"".join(struct.pack("<I", len(e)) + e for e in encoded)
        return struct.pack(f"<{len(self.values[name])}{DATATYPES[datatype].code}", *self.values[name])

    def to_json(self, *, nested: bool = False, **members: Any) -> bytes:
        """Write the request as JSON only, data flat or nested; `members` are further members of the document."""
        inputs = []
        for name, shape in self.shapes.items():
            data = nest(self.values[name], shape) if nested and shape else self.values[name]
            inputs.append({"name": name, "shape": shape, "datatype": self.datatype(name), "data": data})
        return json.dumps({"inputs": inputs, **members}).encode()

    def to_binary(self, **members: Any) -> tuple[bytes, int]:
        """Write the request with binary data; return it and the length of its JSON part."""
        pieces = {name: self.to_bytes(name) for name in self.shapes}
        inputs = [
            {
                "name": name,
                "shape": shape,
                "datatype": self.datatype(name),
                "parameters": {"binary_data_size": len(pieces[name])},
            }
            for name, shape in self.shapes.items()
        ]
        document = json.dumps({"inputs": inputs, **members}).encode()
        return document + b"".join(pieces.values()), len(document)


@st.composite
def inference_examples(draw: st.DrawFn, *, datatypes: tuple[str, ...] = JSON_DATATYPES) -> InferenceExample:
    """Return valid requests: inputs in any order, optional ones sometimes left out."""
    spec = draw(model_specs(datatypes=datatypes))
    rows = draw(st.integers(1, 3))
    present = [t for t in spec.inputs if not t.optional or draw(st.booleans())] or [spec.inputs[0]]
    missing = [t for t in spec.inputs if not t.optional and t not in present]
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, list[Any]] = {}
    for tensor in draw(st.permutations(present + missing)):
        open_length = st.integers(1, 3)
        shape = [d if d != -1 else draw(open_length) for d in tensor.shape]
        if spec.is_batched:
            shape[0] = rows
        count = prod(shape)
        shapes[tensor.name] = tuple(shape)
        values[tensor.name] = draw(st.lists(elements(tensor.datatype), min_size=count, max_size=count))
    return InferenceExample(spec, shapes, values)


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Return `data` cut anywhere into pieces, as a stream may deliver it; some may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a message with one to three injuries: bytes cut out, repeated, replaced, or hostile ones put in."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(len(data), begin + 16)))
        middle = draw(
            st.one_of(st.just(b""), st.just(data[begin:end] * 2), st.binary(max_size=8), st.sampled_from(_HOSTILE))
        )
        data = data[:begin] + middle + data[end:]
    return data


def hostile_bytes() -> st.SearchStrategy[bytes]:
    """Return bytes that are no message, from noise to nesting a hundred thousand deep."""
    return st.one_of(st.binary(max_size=256), st.sampled_from(_HOSTILE))


@st.composite
def _frame_tensors(draw: st.DrawFn, rows: int) -> tuple[tuple[FrameTensor, ...], bytes]:
    tensors: list[FrameTensor] = []
    payload = b""
    for name in draw(st.lists(_names, max_size=3, unique=True)):
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
        datatype = draw(st.sampled_from([name for name in DATATYPES if name != "BYTES"]))
        nbytes = rows * prod(shape) * DATATYPES[datatype].itemsize
        tensors.append(FrameTensor(name, datatype, shape, nbytes))
        payload += draw(st.binary(min_size=nbytes, max_size=nbytes))
    return tuple(tensors), payload


@st.composite
def batches(draw: st.DrawFn) -> tuple[BatchMeta, bytes]:
    """Return descriptions of batches and the payloads they describe."""
    rows = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    tensors, payload = draw(_frame_tensors(sum(rows)))
    budgets_us = tuple(draw(st.lists(st.integers(0, 2**40), min_size=len(rows), max_size=len(rows))))
    return BatchMeta(tensors, rows, budgets_us, draw(st.dictionaries(_names, _scalars, max_size=3))), payload


@st.composite
def replies(draw: st.DrawFn) -> tuple[ReplyMeta, bytes]:
    """Return descriptions of replies and the payloads they describe."""
    tensors, payload = draw(_frame_tensors(draw(st.integers(1, 4))))
    failed = draw(st.lists(st.integers(0, 8), unique=True, max_size=3))
    failures = tuple(Failure(i, draw(st.integers(400, 599)), draw(st.text(max_size=12))) for i in failed)
    wait_us, input_us, execute_us, output_us, executed_rows, backlog_us = (draw(_counts) for _ in range(6))
    gateways = draw(st.integers(1, 64))
    meta = ReplyMeta(tensors, failures, wait_us, input_us, execute_us, output_us, executed_rows, backlog_us, gateways)
    return meta, payload


@st.composite
def cost_profiles(draw: st.DrawFn) -> CostProfile:
    """Return costs of batches as a replica may have measured them."""
    rows = sorted({1, *draw(st.lists(st.integers(2, 256), max_size=4))})
    return CostProfile.from_measurements(rows, [draw(st.integers(0, 2**30)) for _ in rows])


def statistics() -> st.SearchStrategy[GatewayStatistics]:
    """Return what a gateway may have counted."""
    histograms = st.builds(_histogram, st.lists(_counts, max_size=5))
    batch = st.builds(BatchStatistics, *[_counts] * 4)
    model = st.builds(
        ModelStatistics,
        success=_counts,
        success_us=_counts,
        failures=st.dictionaries(st.sampled_from(["REJECTED", "CANCELED", "BACKEND", "OTHER"]), _counts),
        queue_us=_counts,
        inference_count=_counts,
        execution_count=_counts,
        batches=st.dictionaries(st.integers(1, 64), batch, max_size=3),
        pending=_counts,
        batch_rows=histograms,
        steps=st.dictionaries(st.sampled_from(["queue", "execute"]), histograms),
        in_time=_counts,
        device_us=_counts,
        wasted_us=_counts,
        fill=histograms,
        classes=st.dictionaries(st.sampled_from(["interactive", "batch"]), _counts),
        tenants=st.dictionaries(_names, st.builds(TenantStatistics, *[_counts] * 4), max_size=3),
        limit=_counts,
        ejections=_counts,
    )
    return st.builds(
        GatewayStatistics,
        models=st.dictionaries(_names, model, max_size=2),
        responses=st.dictionaries(st.integers(100, 599), _counts, max_size=3),
        connections=_counts,
        parse=histograms,
    )


def _histogram(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    return histogram


def control_messages() -> st.SearchStrategy[control.Message]:
    """Return every kind of control message."""
    text, pid, spec = st.text(max_size=12), st.integers(1, 2**22), model_specs()
    entry = st.builds(
        control.ModelEntry,
        name=_names,
        version=st.integers(1, 99).map(str),
        state=st.sampled_from(["LOADING", "READY", "UNAVAILABLE"]),
        reason=text,
        spec=st.none() | spec,
        replicas=st.lists(text, max_size=3).map(tuple),
        profile=st.none() | cost_profiles(),
    )
    profiles = st.dictionaries(text, st.dictionaries(text, cost_profiles(), max_size=2), max_size=2)
    ready = st.dictionaries(text, st.booleans(), max_size=3)
    return st.one_of(
        st.builds(control.GatewayHello, pid=pid, index=st.integers(0, 63), http=text),
        st.builds(
            control.ReplicaHello,
            pid=pid,
            replica=text,
            address=text,
            spec=spec,
            load_us=_counts,
            profile=st.none() | cost_profiles(),
        ),
        st.builds(control.LoadFailed, pid=pid, replica=text, reason=text),
        st.builds(
            control.GatewayReport, statistics=statistics(), ready=ready, draining=st.booleans(), profiles=profiles
        ),
        st.builds(control.ReplicaFault, address=text, reason=text),
        st.builds(control.Drained, pid=pid),
        st.builds(control.StatisticsQuery, id=_counts),
        st.builds(control.Snapshot, sequence=_counts, models=st.lists(entry, max_size=3).map(tuple)),
        st.builds(control.StatisticsReply, id=_counts, statistics=statistics()),
        st.builds(control.Drain, drain_us=_counts),
        _key_messages(),
    )


def _key_messages() -> st.SearchStrategy[control.Message]:
    text = st.text(max_size=12)
    record = st.builds(KeyRecord, text, st.binary(max_size=32), text, text, weight=st.floats(0, 1_000), models=text)
    snapshot = st.builds(KeySnapshot, _counts, st.lists(record, max_size=3).map(tuple))
    return st.one_of(
        st.builds(control.Keys, sequence=_counts, snapshot=snapshot),
        st.builds(control.KeysApplied, sequence=_counts),
        st.builds(control.KeysChanged, revision=_counts),
        st.builds(control.KeysPending, gateways=st.lists(text, max_size=3).map(tuple)),
        st.builds(control.KeysConfirmed, revision=_counts),
        st.builds(control.KeysFailed, reason=text),
    )
