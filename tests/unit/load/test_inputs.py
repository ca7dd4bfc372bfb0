"""Requests: they fit the model, all differ, and their lengths are right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.core.errors import ConfigError
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.load.inputs import RequestPool, Target, build_request_pool, read_keys, read_request_pool

TARGET = Target("127.0.0.1", 8000, "", "m")


def build(*inputs: TensorSpec, seed: int = 1, is_same: bool = False) -> RequestPool:
    return build_request_pool(TARGET, inputs, np.random.default_rng(seed), is_same=is_same)


def body_of(request: bytes) -> dict[str, Any]:
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    decoded: dict[str, Any] = json.loads(body)
    return decoded


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 7), (-1, -1), (3, 2), (5,)])
def test_requests_fit_the_declaration(datatype: str, shape: tuple[int, ...]) -> None:
    """Every body is JSON with the declared name and type, batch 1, open dimensions 8, and as many elements."""
    pool = build(TensorSpec("x", datatype, shape))
    for index in (0, 1, pool.distinct_count - 1, pool.distinct_count):
        (tensor,) = body_of(pool.request(index))["inputs"]
        assert (tensor["name"], tensor["datatype"]) == ("x", datatype)
        assert tensor["shape"] == [1 if i == 0 and d == -1 else 8 if d == -1 else d for i, d in enumerate(shape)]
        assert len(tensor["data"]) == np.prod(tensor["shape"])


def test_a_model_with_eight_floats_gets_millions_of_different_requests() -> None:
    """A run of 600,000 requests to a small model repeats none, as bytes and as float32."""
    pool = build(TensorSpec("x", "FP32", (-1, 8)))
    assert pool.distinct_count >= 4_000_000
    bodies = {pool.body(i) for i in range(0, 600_000, 7)}
    assert len(bodies) == len(range(0, 600_000, 7))
    values = {np.float32(body_of(pool.request(i))["inputs"][0]["data"]).tobytes() for i in range(5_000)}
    assert len(values) == 5_000


def test_one_float_alone_still_varies() -> None:
    """An input of a single element gets as many values as there are fragments, and says so."""
    pool = build(TensorSpec("x", "FP32", (-1, 1)))
    values = {np.float32(body_of(pool.request(i))["inputs"][0]["data"][0]) for i in range(4096)}
    assert pool.distinct_count == len(values) == 4096


def test_texts_are_words() -> None:
    """BYTES elements are lines of plain words, different in each request."""
    pool = build(TensorSpec("text", "BYTES", (-1, 1)))
    texts = [body_of(pool.request(i))["inputs"][0]["data"][0] for i in range(2_000)]
    assert len(set(texts)) == 2_000
    assert all(6 <= len(text.split()) <= 11 and text.replace(" ", "").isalpha() for text in texts)


def test_optional_inputs_are_left_out() -> None:
    """Optional inputs stay away unless all are optional; then the first goes."""
    text, ids = TensorSpec("text", "BYTES", (-1, 1), optional=True), TensorSpec("ids", "INT32", (-1, -1), optional=True)
    needed = TensorSpec("x", "FP32", (-1, 2))
    assert [t["name"] for t in body_of(build(text, needed).request(0))["inputs"]] == ["x"]
    assert [t["name"] for t in body_of(build(text, ids).request(0))["inputs"]] == ["text"]


def test_several_inputs_are_all_filled() -> None:
    """Each required input is present with its own data."""
    body = body_of(build(TensorSpec("a", "BYTES", (-1, 2)), TensorSpec("b", "INT64", (-1, 3))).request(9))
    assert [(t["name"], len(t["data"])) for t in body["inputs"]] == [("a", 2), ("b", 3)]


def test_same_input_means_one() -> None:
    """With the same input asked for, every request is equal."""
    pool = build(TensorSpec("x", "FP32", (-1, 8)), is_same=True)
    assert pool.distinct_count == 1
    assert pool.request(0) == pool.request(123_456)


def test_a_seed_decides_the_pool() -> None:
    """The same seed makes the same requests in every process; another seed makes others."""
    spec = TensorSpec("x", "FP32", (-1, 8))
    assert build(spec, seed=3).request(5_000) == build(spec, seed=3).request(5_000)
    assert build(spec, seed=3).request(5_000) != build(spec, seed=4).request(5_000)


def test_big_inputs_use_bounded_memory() -> None:
    """An image-sized input gets fewer tails, not gigabytes, and still thousands of different requests."""
    pool = build(TensorSpec("image", "FP32", (-1, 3, 224, 224)))
    assert len(pool._tails) * len(pool.request(0)) < 40 * 1024 * 1024
    assert pool.distinct_count >= 10_000


def test_requests_from_a_file(tmp_path: Path) -> None:
    """A file gives one request or a list; duplicates count once."""
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.5]}]}
    other = {**request, "id": "b"}
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([request, other, request]))
    pool = read_request_pool(TARGET, str(path))
    assert pool.distinct_count == 2
    assert [body_of(pool.request(i)) for i in range(3)] == [request, other, request]
    path.write_text(json.dumps(request))
    assert body_of(read_request_pool(TARGET, str(path)).request(7)) == request


@pytest.mark.parametrize("content", ["", "[]", "3", '{"data": 1}', '[{"inputs": 3}]', "[1]"])
def test_a_useless_input_file_is_refused(tmp_path: Path, content: str) -> None:
    """A file that holds no infer request is the operator's error, by option name."""
    path = tmp_path / "requests.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="--input: expected"):
        read_request_pool(TARGET, str(path))


def test_a_model_without_inputs_is_refused() -> None:
    """Nothing declared, nothing to send: say how to go on."""
    with pytest.raises(ConfigError, match="--input FILE"):
        build()


@pytest.mark.parametrize("rows", [1, 8])
def test_requests_of_several_rows(rows: int) -> None:
    """Rows are the batch dimension of every input that has one, and of no other."""
    specs = [TensorSpec("x", "FP32", (-1, 1)), TensorSpec("y", "INT64", (-1,)), TensorSpec("z", "FP32", (3,))]
    pool = build_request_pool(TARGET, specs, np.random.default_rng(1), rows=rows)
    shapes = [(tensor["shape"], len(tensor["data"])) for tensor in body_of(pool.request(0))["inputs"]]
    assert shapes == [([rows, 1], rows), ([rows], rows), ([3], 3)]


def test_a_target_can_have_headers_of_its_own() -> None:
    """Further headers stand once in every request, and leave body and length as they were."""
    target = Target("127.0.0.1", 8000, "", "m", ("penstock-tenant: a", "x-b: "))
    spec = TensorSpec("x", "FP32", (-1, 8))
    pool = build_request_pool(target, [spec], np.random.default_rng(1))
    for index in (0, 5_000):
        head = pool.request(index).partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert (head.count(b"penstock-tenant: a"), head.count(b"x-b: ")) == (1, 1)
        assert body_of(pool.request(index)) == body_of(build(spec).request(index))


def caller_of(request: bytes) -> bytes:
    head = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    (value,) = (line.removeprefix(b"Authorization: Bearer ") for line in head if line.startswith(b"Authorization:"))
    return value


def test_each_request_has_the_next_key() -> None:
    """Keys are taken in turn, and the rest of a request is what it is without them."""
    spec, keys = TensorSpec("x", "FP32", (-1, 8)), [b"one", b"two", b"three"]
    target = Target("127.0.0.1", 8000, "", "m", ("x-b: c",))
    bare, keyed = (build_request_pool(target, [spec], np.random.default_rng(1), keys=k) for k in ((), keys))
    for index in (0, 1, 2, 3, 5_000, 4_096 * 4_096 + 1):
        request = keyed.request(index)
        assert caller_of(request) == keys[index % 3]
        assert request.replace(b"Authorization: Bearer %b\r\n" % caller_of(request), b"") == bare.request(index)
    assert keyed.distinct_count == bare.distinct_count


def test_requests_from_a_file_have_keys_too(tmp_path: Path) -> None:
    """One request sent by many callers differs in its key alone."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.5]}]}))
    pool = read_request_pool(TARGET, str(path), keys=[b"one", b"two"])
    assert [caller_of(pool.request(i)) for i in range(4)] == [b"one", b"two", b"one", b"two"]
    assert len({pool.body(i) for i in range(4)}) == 1


OURS = "pk_abcdefghij12_" + "A" * 43


def test_keys_are_read_in_order(tmp_path: Path) -> None:
    """One a line, in order and repeated if they are; blank lines and comments do not count."""
    path = tmp_path / "keys"
    path.write_text(f"# users\n{OURS}\r\n\n  sk-other/key+1==  \n{OURS}\n#sk-left-out\n")
    assert read_keys(str(path)) == [OURS.encode(), b"sk-other/key+1==", OURS.encode()]


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("alpha beta", "several words"),
        (f"Bearer {OURS}", "several words"),
        ("caf\u00e9-secret", "characters that no key has"),
        ('"secret"', "characters that no key has"),
        (OURS[:-1], "a part of a pk_ key, or more than one"),
        (OURS + "B", "a part of a pk_ key, or more than one"),
        ("s" * 1_025, "more than 1,024 bytes"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_shown(tmp_path: Path, line: str, got: str) -> None:
    """The message has the line's number and what is wrong with it, and nothing of what may be a secret."""
    path = tmp_path / "keys"
    path.write_text(f"# comment\n{OURS}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"--keys: expected one API key on line 3 of .*, got {got}\\.") as caught:
        read_keys(str(path))
    assert not any(word in str(caught.value) for word in (*line.split(), OURS))


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    """A file that is missing or holds no key is the operator's error, by option name."""
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"--keys: expected a readable file, got .*No such file"):
        read_keys(str(path))
    path.write_text("\n# nothing\n")
    with pytest.raises(ConfigError, match=r"--keys: expected 1 to 100,000 keys in .*, got 0"):
        read_keys(str(path))
