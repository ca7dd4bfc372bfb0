"""A seeded stream of requests that no server should accept, and of clients that leave in the middle.

For a live server: send each, see a 4xx where one is due, and nobody else disturbed. Every request follows from the
seed and the number of those before it. Not here: sending, judging, and damage to our own frames (`strategies.py`).
Source: RFC 9112 sections 2 to 7 and 11.2 (smuggling); Open Inference Protocol v2; the OpenAI API reference.
"""

import gzip
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from math import prod
from random import Random
from typing import Any

from penstock.core.tensors import DATATYPES, TensorSpec

__all__ = ["Ending", "Malformed", "Target", "malformed_requests", "valid_request"]

# What a bomb becomes when decompressed: more than a careful server allows, less than hurts one that is not.
BOMB_BYTES = 80 * 1024 * 1024
# What breaks JSON parsers: depth, length, numbers past every width, half characters, things that are not JSON.
_HOSTILE_JSON = (
    b"[" * 50_000,
    b'{"inputs":' * 50_000,
    b"9" * 5_000,
    b"-1e999",
    b"NaN",
    b'"\\ud800"',
    b"\xff\xfe\x00",
    b"\xc3",
    b"null",
    b"true",
    b"[]",
    b'""',
    b"{}",
    b"",
    b"{'inputs': []}",
    b'{"inputs": [}',
    b"\xef\xbb\xbf{}",
)
# Terms that no header may state: no class, no tenant's name, no time.
_BAD_TERMS = {
    "Penstock-Class": ("", "urgent", "Batch", "interactive, batch", "0", "batch;q=1", "x" * 5_000),
    "Penstock-Tenant": ("", "a b", "x" * 65, "a/b", "../..", "\u00e9", "a,b", "\xff\xfe", "{}", "x" * 5_000),
    "Penstock-Timeout-Ms": (
        "",
        "0",
        "-1",
        "+5",
        "1e3",
        "NaN",
        "inf",
        ".5",
        "5.",
        "0x10",
        "1_0",
        "86400001",
        "9" * 5_000,
    ),
}
_NAMES = ("", "nothing", "%00", "%ff%fe", "..", "a" * 4_000, "x%2Fy", "'; drop table", "\u00e9")


class Ending(Enum):
    """What the client does after it has sent the bytes."""

    WAIT = "wait"  # waits for the answer, which is a 4xx
    LOOK = "look"  # waits for the answer, which may be any but a 5xx
    SHUT = "shut"  # says that it sends no more, and reads what comes until the end, if anything
    LEAVE = "leave"  # closes at once
    RESET = "reset"  # resets the connection at once
    HOLD = "hold"  # sends no more and waits until the server loses patience: 408


@dataclass(frozen=True, slots=True)
class Malformed:
    """One misbehaviour.

    Args:
        kind: What is wrong, for statistics and messages.
        data: What to send.
        ending: What to do then.
        is_framing: Where the request ends is in doubt: the answer must be the only one and close the connection.
    """

    kind: str
    data: bytes
    ending: Ending = Ending.WAIT
    is_framing: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A model to molest: its name and inputs, as its metadata says, and how many rows it takes at most."""

    name: str
    inputs: tuple[TensorSpec, ...]
    rows_max: int = 32


def _head(path: str, headers: Sequence[str], *, method: str = "POST", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", *headers, "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def _post(path: str, body: bytes, *headers: str) -> bytes:
    return _head(path, ["Host: t", f"Content-Length: {len(body)}", *headers]) + body


def _infer_path(target: Target) -> str:
    return f"/v2/models/{target.name}/infer"


def _post_binary(target: Target, text: bytes, data: bytes, length: str) -> bytes:
    return _post(_infer_path(target), text + data, f"Inference-Header-Content-Length: {length}")


def _elements(rng: Random, tensor: TensorSpec, count: int) -> list[Any]:
    if tensor.datatype == "BYTES":
        return ["".join(rng.choices("abc \u00e9", k=rng.randint(1, 8))) for _ in range(count)]
    if tensor.datatype == "BOOL":
        return [rng.random() < 0.5 for _ in range(count)]
    return [rng.randint(0, 16) for _ in range(count)]


def _pack(tensor: TensorSpec, values: list[Any]) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)
    return struct.pack(f"<{len(values)}{DATATYPES[tensor.datatype].code}", *values)


def _valid_document(rng: Random, target: Target) -> dict[str, Any]:
    """Return an inference request as a document: required inputs, or the first if all are optional."""
    rows = rng.randint(1, min(3, target.rows_max))
    inputs = []
    for tensor in [t for t in target.inputs if not t.optional] or target.inputs[:1]:
        shape = [rows, *(rng.randint(1, 4) if d == -1 else d for d in tensor.shape[1:])]
        values = _elements(rng, tensor, prod(shape))
        inputs.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": values})
    return {"id": str(rng.randint(0, 999)), "inputs": inputs}


def _write_binary(target: Target, document: dict[str, Any]) -> tuple[bytes, bytes]:
    """Turn a valid document's data into binary; return the JSON and what follows it."""
    pieces = []
    for item in document["inputs"]:
        tensor = next(t for t in target.inputs if t.name == item["name"])
        pieces.append(_pack(tensor, item.pop("data")))
        item["parameters"] = {"binary_data_size": len(pieces[-1])}
    return json.dumps(document).encode(), b"".join(pieces)


def _valid_parts(rng: Random, target: Target) -> tuple[bytes, tuple[str, ...]]:
    """Return the body of a valid request, in JSON or binary, and the headers it needs but its length."""
    document = _valid_document(rng, target)
    if rng.random() < 0.5:
        return json.dumps(document).encode(), ()
    text, data = _write_binary(target, document)
    return text + data, (f"Inference-Header-Content-Length: {len(text)}",)


def valid_request(rng: Random, target: Target) -> bytes:
    """Return a request that is right in every part: what others are made from by damage."""
    body, headers = _valid_parts(rng, target)
    return _post(_infer_path(target), body, *headers)


# -- HTTP -----------------------------------------------------------------------------------------------------------

_BODY = b'{"inputs":[]}'
_SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"


def _broken_http(rng: Random, target: Target) -> Malformed:
    """Break the request line or a header so that no parser could guess what was meant."""
    path = _infer_path(target)
    line, length = f"POST {path} HTTP/1.1", f"Content-Length: {len(_BODY)}"
    whole = [line, "Host: t", length]
    broken: list[list[str]] = [
        ["GXTX / HTTP/1.1", "Host: t"],
        [f"post {path} HTTP/1.1", "Host: t", length],
        [f"POST {path}\x00 HTTP/1.1", "Host: t", length],
        [f"POST {path} HTTP/1.1.1", "Host: t", length],
        [f"POST {path} HTTP/7.3", "Host: t", length],
        [f"POST {path} HTCPCP/1.0", "Host: t", length],
        ["PRI * HTTP/2.0", "", "SM"],
        [line, length],
        [*whole, "Host: other"],
        [*whole, "No colon here"],
        [*whole, "Space : before colon"],
        [*whole, "Nul: a\x00b"],
        [*whole, "N\u00e4me: x"],
        [*whole, ": no name"],
        [*whole, "Expect: 200-ok"],
        [*whole, "Upgrade: h2c", "Connection: Upgrade"],
        ["\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
        ["".join(chr(rng.randint(1, 255)) for _ in range(40))],
    ]
    lines = rng.choice(broken)
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + _BODY
    return Malformed("broken HTTP", data, is_framing=True)


def _broken_framing(rng: Random, target: Target) -> Malformed:
    """Leave it open where the body ends: the forms of request smuggling, each with a request hidden in it."""
    lengths = ("-1", "+5", "0x10", "5 5", "5,5", "1e1", "", " ", str(2**64), "9" * 5_000, "\u0665")
    codings = ("chunked, identity", "xchunked", "identity", "chunked\x0b", "gzip, chunked", "CHUNKED;q=1")
    cases = [
        [f"Content-Length: {rng.choice(lengths)}"],
        [f"Content-Length: {len(_BODY)}", f"Content-Length: {rng.choice([0, len(_BODY), 99])}"],
        [f"Content-Length: {rng.choice([0, 5, len(_BODY)])}", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", f"Content-Length: {len(_BODY)}"],
        [f"Transfer-Encoding: {rng.choice(codings)}"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        [],
    ]
    head = _head(_infer_path(target), ["Host: t", *rng.choice(cases)])
    return Malformed("smuggling", head + b"0\r\n\r\n" + _SMUGGLED, is_framing=True)


def _broken_chunks(rng: Random, target: Target) -> Malformed:
    """Break the chunked coding."""
    chunks = rng.choice(
        (
            b"zz\r\n",
            b"-5\r\nhello\r\n",
            b"5\r\nhelloworld\r\n",
            b"5\nhello\r\n",
            b"ffffffffffffffffff\r\nx",
            b"5\r\nhello",
            b" 5\r\nhello\r\n",
            b"5;" + b"x" * 1_000_000 + b"\r\nhello\r\n",
            b"0\r\n" + b"Trailer: x\r\n" * 4_000,
        )
    )
    data = _head(_infer_path(target), ["Host: t", "Transfer-Encoding: chunked"]) + chunks + b"0\r\n\r\n" + _SMUGGLED
    return Malformed("bad chunk", data, is_framing=True)


def _too_large(rng: Random, target: Target) -> Malformed:
    """Go past the bounds of the head, or announce a body past every bound."""
    path, length = _infer_path(target), f"Content-Length: {len(_BODY)}"
    many = [f"X-{k}: y" for k in range(2_000)]
    data = rng.choice(
        (
            _head(path, ["Host: t", length, "X: " + "y" * 100_000]),
            _head(path, ["Host: t", length, *many]),
            _head(path + "?" + "q" * 100_000, ["Host: t", length]),
            _head(path, ["Host: t", "Content-Length: 900000000000"]),
        )
    )
    return Malformed("too large", data, is_framing=True)


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(BOMB_BYTES), 9, mtime=0)


def _broken_coding(rng: Random, target: Target) -> Malformed:
    """Say that a body is compressed when it is not, not whole, not alone, or of a kind nobody knows."""
    packed = gzip.compress(json.dumps(_valid_document(rng, target)).encode(), 1, mtime=0)
    path = _infer_path(target)
    data = rng.choice(
        (
            _post(path, packed, "Content-Encoding: br"),
            _post(path, packed, "Content-Encoding: deflate"),
            _post(path, packed[:-9], "Content-Encoding: gzip"),
            _post(path, packed + b"more", "Content-Encoding: gzip"),
            _post(path, rng.randbytes(40), "Content-Encoding: gzip"),
            _post(path, packed, "Content-Encoding: gzip, gzip"),
            _post(path, _bomb(), "Content-Encoding: gzip"),
        )
    )
    return Malformed("bad coding", data)


def _wrong_route(rng: Random, target: Target) -> Malformed:
    """Ask for what is not there, or in a way that is not offered."""
    name = rng.choice(_NAMES)
    path, method = rng.choice(
        (
            (f"/v2/models/{name}/infer", "POST"),
            (f"/v2/models/{name}/ready/more", "GET"),
            (f"/v2/models/{target.name}/versions/999999/infer", "POST"),
            (f"/v2/models/{target.name}/versions/{'9' * 3_000}/infer", "POST"),
            (f"/v2/models/{target.name}/versions/one/infer", "POST"),
            (f"/v2/models/{target.name}/versions/-1", "GET"),
            (f"/v2/models/{target.name}/infer", rng.choice(("GET", "PUT", "DELETE", "PATCH"))),
            (f"/v1/models/{name}x", "GET"),
            (f"/{rng.getrandbits(64):x}", "GET"),
            ("/v2/models/stats/..", "POST"),
        )
    )
    return Malformed("wrong route", _head(path, ["Host: t", "Content-Length: 2"], method=method) + b"{}")


# -- the protocols --------------------------------------------------------------------------------------------------


def _not_json(rng: Random, target: Target) -> Malformed:
    """Send what is not JSON, or JSON that is no request."""
    body = rng.choice(_HOSTILE_JSON)
    if rng.random() < 0.5:
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%b}]}' % (body or b" ")
    path = rng.choice((_infer_path(target), "/v1/embeddings"))
    return Malformed("not JSON", _post(path, body))


def _wrong_member(rng: Random, target: Target) -> Malformed:
    """Spoil one member of a valid request."""
    document = _valid_document(rng, target)
    item = rng.choice(document["inputs"])
    spoil: list[Callable[[], Any]] = [
        lambda: item.update(name=rng.choice(("", "nothing", 7, None, "a" * 9_000))),
        lambda: item.update(datatype=rng.choice(("FP99", "", "fp32", None, 32, "INT8"))),
        lambda: item.update(shape=rng.choice(([], [0, 0], [-1, 2], [2**70, 1], "1", None, [1.5], [True], {}))),
        lambda: item["shape"].append(1),
        lambda: item["shape"].__setitem__(0, item["shape"][0] + 1),
        item["data"].pop,
        lambda: item["data"].append(item["data"][0]),
        lambda: item["data"].__setitem__(0, rng.choice((None, {}, [], [[1]], 10**400))),
        lambda: item.update(data=rng.choice((None, 5, "text", {}, [], [[[]]]))),
        lambda: item.pop("data"),
        lambda: item.pop(rng.choice(("name", "shape", "datatype"))),
        lambda: document.update(inputs=rng.choice(([], None, {}, "inputs", [None], [[]]))),
        lambda: document.pop("inputs"),
        lambda: document["inputs"].append(item),
        lambda: document.update(outputs=rng.choice(([{"name": "nothing"}], [{}], [7], "all", {}))),
        lambda: document.update(id=rng.choice((7, [], {}, True))),
        lambda: document.update(parameters=rng.choice(([], "x", 5))),
        lambda: document.update(parameters={"timeout": rng.choice((-1, "soon", 1.5, 2**80, None, True, [], {}))}),
        lambda: document.update(parameters={"priority": rng.choice((-1, "high", 2**40, 1.5, [], {}, True))}),
        lambda: document.update(parameters={"deep": {"er": []}}),
    ]
    rng.choice(spoil)()
    return Malformed("wrong member", _post(_infer_path(target), json.dumps(document).encode()))


def _wrong_terms(rng: Random, target: Target) -> Malformed:
    """State terms in the headers of a valid request that are none, or the same ones twice."""
    name = rng.choice(list(_BAD_TERMS))
    line = f"{name}: {rng.choice(_BAD_TERMS[name])}"
    lines = [line]
    if rng.random() < 0.2:
        lines = [f"{name}: {value}" for value in ("batch", "interactive")]
    body, headers = _valid_parts(rng, target)
    path = _infer_path(target)
    if rng.random() < 0.2:
        path, body, headers = "/v1/embeddings", json.dumps({"model": target.name, "input": "text"}).encode(), ()
    return Malformed("wrong terms", _post(path, body, *headers, *lines))


def _too_many_rows(rng: Random, target: Target) -> Malformed:
    """Send one row more than the model takes at once."""
    document = _valid_document(rng, target)
    for item in document["inputs"]:
        rows = item["shape"][0]
        item["data"] = item["data"][: len(item["data"]) // rows] * (target.rows_max + 1)
        item["shape"][0] = target.rows_max + 1
    return Malformed("too many rows", _post(_infer_path(target), json.dumps(document).encode()))


def _lying_binary(rng: Random, target: Target) -> Malformed:
    """Lie about how long the JSON or a tensor is."""
    document = _valid_document(rng, target)
    text, data = _write_binary(target, document)
    size = document["inputs"][0]["parameters"]["binary_data_size"]
    whole = len(text) + len(data)
    match rng.randrange(5):
        case 0:
            length = rng.choice((str(whole + 1), str(len(text) - 1), "-1", "x", "9" * 5_000, "1e3", ""))
            return Malformed("lying length", _post_binary(target, text, data, length))
        case 1:
            lies: tuple[Any, ...] = (size + 1, size - 1, 0, -size, 2**63, 2**70, str(size), None, True, 1.5, [], {})
            document["inputs"][0]["parameters"]["binary_data_size"] = rng.choice(lies)
            text = json.dumps(document).encode()
        case 2:
            data += bytes(rng.randint(1, 9))
        case 3:
            data = data[: rng.randrange(len(data))]
        case _ if target.inputs[0].datatype != "BYTES":
            # The raw form: no JSON, only data, here of no whole number of elements.
            return Malformed("lying length", _post_binary(target, b"", data + b"\0", "0"))
        case _:
            text = text[:-1]
    return Malformed("lying sizes", _post_binary(target, text, data, str(len(text))))


def _lying_elements(rng: Random, target: Target) -> Malformed | None:
    """BYTES whose element lengths do not add up; None for a target without such an input."""
    tensor = next((t for t in target.inputs if t.datatype == "BYTES"), None)
    if tensor is None:
        return None
    shape = [1, *(1 if d == -1 else d for d in tensor.shape[1:])]
    data = rng.choice((b"\xff\xff\xff\xffabc", b"\x04\x00\x00\x00abc", b"\x01\x00\x00\x00abc", b"\x01\x00"))
    item = {"name": tensor.name, "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": [item]}).encode()
    return Malformed("lying elements", _post_binary(target, text, data, str(len(text))))


def _not_finite(rng: Random, target: Target) -> Malformed | None:
    """NaN or an infinity where the model forbids it; None for a target that allows them."""
    if not any(t.finite for t in target.inputs):
        return None
    document = _valid_document(rng, target)
    for item in document["inputs"]:
        item["data"][rng.randrange(len(item["data"]))] = rng.choice((float("nan"), float("inf"), float("-inf")))
    text, data = _write_binary(target, document)
    return Malformed("not finite", _post_binary(target, text, data, str(len(text))))


def _wrong_embeddings(rng: Random, target: Target) -> Malformed:
    """Spoil an OpenAI request."""
    body: dict[str, Any] = {"model": target.name, "input": "text"}
    body |= rng.choice(
        (
            {"model": "nothing"},
            {"model": ""},
            {"model": None},
            {"model": "m" * 5_000},
            {"input": ""},
            {"input": []},
            {"input": [""]},
            {"input": ["a", 1]},
            {"input": [[1], "a"]},
            {"input": [1.5]},
            {"input": [-1]},
            {"input": [2**40]},
            {"input": {"text": "a"}},
            {"input": ["a"] * 3_000},
            {"encoding_format": "hex"},
            {"dimensions": 0},
            {"dimensions": "many"},
            {"dimensions": 7},
        )
    )
    return Malformed("wrong embeddings", _post("/v1/embeddings", json.dumps(body).encode()))


# -- damage ---------------------------------------------------------------------------------------------------------


def _damage(rng: Random, data: bytearray) -> bytearray:
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 16)]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                data[at:at] = data[at : at + 16]
    return data


def _mutated(rng: Random, target: Target) -> Malformed:
    """Damage a valid request anywhere; where it ends is anybody's guess."""
    return Malformed("mutated", bytes(_damage(rng, bytearray(valid_request(rng, target)))), Ending.SHUT)


def _mutated_body(rng: Random, target: Target) -> Malformed:
    """Damage only the body of a valid request, in good HTTP; it may happen to be valid still."""
    body, headers = _valid_parts(rng, target)
    damaged = bytes(_damage(rng, bytearray(body)))
    return Malformed("mutated body", _post(_infer_path(target), damaged, *headers), Ending.LOOK)


def _interrupted(rng: Random, target: Target) -> Malformed:
    """Leave before the request is whole, or before the answer is there."""
    data = valid_request(rng, target)
    if rng.random() < 0.5:
        data = data[: rng.randrange(1, len(data))]
    return Malformed("interrupted", data, rng.choice((Ending.LEAVE, Ending.RESET)))


def _unfinished(rng: Random, target: Target) -> Malformed:
    """Stop in the middle and wait."""
    data = valid_request(rng, target)
    return Malformed("unfinished", data[: rng.randrange(1, len(data))], Ending.HOLD)


# How often each comes up, relative to the others. A server spends its timeouts on the unfinished, so they are rare.
_KINDS: tuple[tuple[Callable[[Random, Target], Malformed | None], int], ...] = (
    (_broken_http, 60),
    (_broken_framing, 80),
    (_broken_chunks, 40),
    (_too_large, 20),
    (_broken_coding, 40),
    (_wrong_route, 60),
    (_not_json, 60),
    (_wrong_member, 200),
    (_wrong_terms, 60),
    (_too_many_rows, 20),
    (_lying_binary, 120),
    (_lying_elements, 40),
    (_not_finite, 40),
    (_wrong_embeddings, 60),
    (_mutated, 120),
    (_mutated_body, 120),
    (_interrupted, 100),
    (_unfinished, 4),
)


def malformed_requests(rng: Random, targets: Sequence[Target]) -> Iterator[Malformed]:
    """Yield misbehaviours without end.

    Args:
        rng: A seeded stream; the same seed gives the same misbehaviours.
        targets: The models to ask, at least one, each with a batch dimension.
    """
    assert targets
    makers = [maker for maker, _ in _KINDS]
    weights = [weight for _, weight in _KINDS]
    while True:
        (maker,) = rng.choices(makers, weights)
        made = maker(rng, rng.choice(targets))
        if made is not None:
            yield made
