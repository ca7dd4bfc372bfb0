"""Request bytes, made before the run: every request different, at the price of joining three or four byte strings.

A body is head + fragment + tail: the fragment is the first few elements of the first input, written in a fixed number
of bytes, and (head, tail) is everything else. Pairing F fragments with T tails gives F * T different requests. With API
keys the request line and the key's header come before: one such opening for each key.
Not here: what a model expects (`discovery.py`), sending (`driver.py`). Randomness comes in as a generator.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from penstock.core.errors import ConfigError
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.policy.identifying import KEY_PREFIX, parse_key

__all__ = ["RequestPool", "Target", "build_request_pool", "format_key_header", "read_keys", "read_request_pool"]

FRAGMENT_COUNT = 4096
TAIL_COUNT_MAX = 1024
TAIL_BYTES_MAX = 32 * 1024 * 1024  # all tails together, per process; bigger inputs get fewer tails
OPEN_DIMENSION = 8  # elements along an inner dimension of -1
KEYS_MAX = 100_000  # twice as many as a server here holds; their openings take 30 MB per process
KEY_BYTES_MAX = 1_024  # signed tokens have some hundred
_KEY = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # token68 of RFC 9110 section 11.2, which RFC 6750 has callers send

# Common English words of five letters, so that a fragment of words has a fixed length.
_WORDS = """
about above again apple beach begin black blood board brain bread bring brown build cause chain chair cheap child
clean clear climb clock close cloud coast count cover cross dance death dream dress drink drive early earth eight
empty enjoy enter equal event every exact extra faith field fight final first floor force fresh front fruit glass
grass green group guess happy heart heavy horse hotel house human image issue judge knife large laugh learn level
light limit local lucky lunch major march match metal money month mouth music night noise north ocean offer order
other owner paint paper party peace phone piece place plain plant plate point pound power press price proud queen
quick quiet radio raise range reach ready right river round scale scene sense serve seven shape share sharp sheep
shelf shirt short sight skill sleep small smart smile smoke solid sound south space speak speed spend sport staff
""".split()  # noqa: SIM905 -- a page of quotes is no easier to read


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: host and port to connect to, `base` a path prefix without trailing slash, and the model.

    `headers` are further header lines of each request, `name: value`.
    """

    host: str
    port: int
    base: str
    model: str
    headers: tuple[str, ...] = ()

    @property
    def authority(self) -> str:
        """Return the value of the Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def infer_path(self) -> str:
        """Return the path of the infer endpoint; the model name is already safe in a URL."""
        return f"{self.base}/v2/models/{self.model}/infer"


class RequestPool:
    """All the requests of a run. `request(i)` differs for every i below `distinct_count`, then they repeat.

    Args:
        heads: What comes before a fragment; without `openings` from the request line on.
        fragments: All of one length.
        tails: What comes after; each belongs to the head of the same index.
        openings: What comes before the head, taken in turn; none if the heads are whole.
    """

    __slots__ = ("_fragments", "_heads", "_openings", "_tails", "distinct_count")

    def __init__(
        self,
        heads: Sequence[bytes],
        fragments: Sequence[bytes],
        tails: Sequence[bytes],
        openings: Sequence[bytes] = (),
    ) -> None:
        assert len(heads) == len(tails) > 0
        assert len({len(fragment) for fragment in fragments}) == 1
        self._openings = list(openings)
        self._heads = list(heads)
        self._fragments = list(fragments)
        self._tails = list(tails)
        self.distinct_count = len(self._tails) * len(self._fragments)

    def request(self, index: int) -> bytes:
        """Return the complete bytes of request `index` (>= 0), head and body."""
        fragments = self._fragments
        tails = self._tails
        lap, at = divmod(index, len(fragments))
        tail_index = (at + lap) % len(tails)  # a Latin square: all pairs, and neighbours differ in both parts
        if openings := self._openings:
            return openings[index % len(openings)] + self._heads[tail_index] + fragments[at] + tails[tail_index]
        return self._heads[tail_index] + fragments[at] + tails[tail_index]

    def body(self, index: int) -> bytes:
        """Return only the body of request `index`."""
        return self.request(index).partition(b"\r\n\r\n")[2]


def build_request_pool(
    target: Target,
    inputs: Sequence[TensorSpec],
    rng: np.random.Generator,
    *,
    is_same: bool = False,
    rows: int = 1,
    keys: Sequence[bytes] = (),
) -> RequestPool:
    """Make random requests that fit a model: FP in [0, 1) with 4 digits, integers 10-99, words for BYTES.

    Args:
        target: For the request line and headers.
        inputs: What the model declares. Optional ones are left out unless all are; an inner -1 is 8.
        rng: Consumed. The same state gives the same pool.
        is_same: One request for all, to see what a cache does.
        rows: Length of the batch dimension, where there is one.
        keys: API keys, of which each request is sent with the next.

    Raises:
        ConfigError: There is no input to vary.
    """
    chosen = [t for t in inputs if not t.optional] or list(inputs[:1])
    if not chosen:
        raise ConfigError("--model: expected a model with declared inputs, got none. Give a request with --input FILE.")
    first, count = chosen[0], _element_count(chosen[0], rows)
    fragment_elements = min(count, _FRAGMENT_ELEMENTS.get(first.datatype, 2))
    fragments = _draw_fragments(first.datatype, fragment_elements, rng, is_alone=fragment_elements == count)
    common, openings = _openings(target, keys)
    heads: list[bytes] = []
    tails: list[bytes] = []
    tail_count = 1 if is_same else TAIL_COUNT_MAX
    while len(tails) < tail_count:
        opening = f'{{"inputs":[{_describe(first, rows)},"data":['
        rest = _draw_elements(first.datatype, count - fragment_elements, rng)
        closing = ("," if rest else "") + ",".join(rest) + "]}"
        if first.datatype == "BYTES":  # the fragment is the beginning of the first text
            closing = f' {" ".join(_draw_words(int(rng.integers(3, 9)), rng))}"{closing}'
        for spec in chosen[1:]:
            data = ",".join(_draw_elements(spec.datatype, _element_count(spec, rows), rng))
            closing += f',{_describe(spec, rows)},"data":[{data}]}}'
        closing += "]}"
        heads.append(common + _head_end(len(opening) + len(fragments[0]) + len(closing)) + opening.encode())
        tails.append(closing.encode())
        tail_count = min(tail_count, max(4, TAIL_BYTES_MAX // len(closing)))
    if is_same:
        return RequestPool(heads, fragments[:1], tails, openings)
    unique = dict(zip(tails, heads, strict=True))
    return RequestPool(list(unique.values()), fragments, list(unique), openings)


def read_request_pool(target: Target, path: str, *, is_same: bool = False, keys: Sequence[bytes] = ()) -> RequestPool:
    """Read infer requests from a JSON file: one object with `inputs`, or a list of such.

    Args:
        target: For the request line and headers.
        path: Of the file.
        is_same: Send the first of them alone.
        keys: API keys, of which each request is sent with the next.

    Raises:
        ConfigError: The file cannot be read, is not JSON, or holds something else.
    """
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ConfigError(f"--input: expected a readable JSON file, got {path!r} ({fault}).") from fault
    items = loaded if isinstance(loaded, list) else [loaded]
    if not items or not all(isinstance(item, dict) and isinstance(item.get("inputs"), list) for item in items):
        raise ConfigError(
            f"--input: expected an infer request {{'inputs': [...]}} or a list of them in {path!r}, got something else."
            " Write what you would POST to /v2/models/NAME/infer."
        )
    bodies = list(dict.fromkeys(json.dumps(item, separators=(",", ":")).encode() for item in items))
    if is_same:
        bodies = bodies[:1]
    common, openings = _openings(target, keys)
    return RequestPool([common + _head_end(len(body)) for body in bodies], [b""], bodies, openings)


def read_keys(path: str) -> list[bytes]:
    """Return the API keys in a file: one a line; blank lines and lines that begin with # are left out.

    Raises:
        ConfigError: The file cannot be read, or a line is no key. The message names the line and shows nothing of it.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as fault:
        raise ConfigError(f"--keys: expected a readable file, got {path!r} ({fault.strerror}).") from fault
    keys = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        if wrong := _find_key_fault(text):
            raise ConfigError(
                f"--keys: expected one API key on line {number} of {path!r}, got {wrong}."
                " Write each as `penstock keys create` prints it, on a line of its own."
            )
        keys.append(text)
    if not 1 <= len(keys) <= KEYS_MAX:
        raise ConfigError(f"--keys: expected 1 to {KEYS_MAX:,} keys in {path!r}, got {len(keys):,}.")
    return keys


def _find_key_fault(text: bytes) -> str:
    """Say what is wrong with a key without showing any of it; '' if nothing is."""
    if len(text.split()) > 1:
        return "several words"
    if len(text) > KEY_BYTES_MAX:
        return f"more than {KEY_BYTES_MAX:,} bytes"
    if not _KEY.fullmatch(text):
        return "characters that no key has"
    is_ours = text.startswith(KEY_PREFIX.encode())
    return f"a part of a {KEY_PREFIX} key, or more than one" if is_ours and parse_key(text) is None else ""


def format_key_header(key: bytes) -> str:
    """Return the header line that an API key is sent in (RFC 6750 section 2.1)."""
    return f"Authorization: Bearer {key.decode('ascii')}"


_FLOATS = ("FP16", "FP32", "FP64")
_FRAGMENT_ELEMENTS = {"FP16": 1, "FP32": 1, "FP64": 1, "BYTES": 1, "BOOL": 8}  # 2 of an integer type


def _openings(target: Target, keys: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """Return what all heads begin with, and what comes before them with each key."""
    headers = "".join(f"{line}\r\n" for line in target.headers)
    common = f"POST {target.infer_path} HTTP/1.1\r\nHost: {target.authority}\r\n{headers}".encode()
    openings = [common + format_key_header(key).encode() + b"\r\n" for key in keys]
    return (b"", openings) if openings else (common, openings)


def _head_end(length: int) -> bytes:
    return f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


def _shape(spec: TensorSpec, rows: int) -> list[int]:
    inner = [OPEN_DIMENSION if d == -1 else d for d in spec.shape]
    if spec.is_batched:
        inner[0] = rows
    return inner


def _element_count(spec: TensorSpec, rows: int) -> int:
    return prod(_shape(spec, rows))


def _describe(spec: TensorSpec, rows: int) -> str:
    """Return the input's JSON object up to its data, left open."""
    described = {"name": spec.name, "shape": _shape(spec, rows), "datatype": spec.datatype}
    return json.dumps(described, separators=(",", ":"))[:-1]


def _draw_words(count: int, rng: np.random.Generator) -> list[str]:
    return [_WORDS[i] for i in rng.integers(len(_WORDS), size=count)]


def _draw_elements(datatype: str, count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` JSON values."""
    assert datatype in DATATYPES
    if datatype in _FLOATS:
        return [_DECIMALS[i] for i in rng.integers(len(_DECIMALS), size=count).tolist()]
    if datatype == "BOOL":
        return ["true" if bit else "false" for bit in rng.integers(2, size=count).tolist()]
    if datatype == "BYTES":
        return [f'"{" ".join(_draw_words(6, rng))}"' for _ in range(count)]
    return [str(number) for number in rng.integers(10, 100, size=count).tolist()]


_DECIMALS = [f"0.{i:04d}" for i in range(10_000)]


def _draw_fragments(datatype: str, element_count: int, rng: np.random.Generator, *, is_alone: bool) -> list[bytes]:
    """Return distinct fragments of one length. `is_alone`: nothing else in this input varies, so draw from more."""
    if datatype in _FLOATS:
        digits = 6 if is_alone and datatype != "FP16" else 3 if datatype == "FP16" else 4
        drawn = rng.choice(10**digits, size=min(FRAGMENT_COUNT, 10**digits), replace=False)
        return [f"0.{i:0{digits}d}".encode() for i in drawn.tolist()]
    if datatype == "BOOL":  # white space after a value is legal JSON and keeps the length
        patterns = [[bool(number >> bit & 1) for bit in range(element_count)] for number in range(2**element_count)]
        return [",".join("true " if bit else "false" for bit in pattern).encode() for pattern in patterns]
    if datatype == "BYTES":
        texts = {" ".join(_draw_words(3, rng)) for _ in range(FRAGMENT_COUNT)}
        return [f'"{text}'.encode() for text in sorted(texts)]
    drawn = rng.permutation(90**element_count)[:FRAGMENT_COUNT]
    return [",".join(str(10 + int(i) // 90**k % 90) for k in range(element_count)).encode() for i in drawn]
