"""What the target expects: address from the URL, inputs from the model's metadata, and one trial request.

Blocking, before the run. Not here: the load itself (`driver.py`).
Source: Open Inference Protocol v2, model metadata and repository index.
"""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlsplit

from penstock.core.errors import ConfigError
from penstock.core.tensors import DATATYPES, TensorSpec
from penstock.load.inputs import Target

__all__ = ["check_accepted", "fetch_inputs", "parse_target"]

_TIMEOUT_S = 10.0
_KEY_HEADERS = ("authorization:", "x-api-key:")


def parse_target(url: str, model: str) -> Target:
    """Read `http://HOST[:PORT][/PREFIX]` and a model name.

    Raises:
        ConfigError: The URL is not of that form.
    """
    wrong_url = ConfigError(f"URL: expected http://HOST:PORT, got {url!r}. Use e.g. http://127.0.0.1:8000.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as fault:
        raise wrong_url from fault
    if not host or parts.scheme != "http" or parts.query or parts.fragment or parts.username is not None:
        raise wrong_url
    if not model:
        raise ConfigError("--model: expected a model name, got ''. Use the name in the server's repository index.")
    return Target(host, port, parts.path.rstrip("/"), quote(model, safe=""))


def fetch_inputs(target: Target) -> list[TensorSpec]:
    """Ask the server what the model's inputs are.

    Raises:
        ConfigError: No server answers there, it does not know the model (the message lists those it knows), it wants
            another API key, or its metadata cannot be understood.
    """
    status, body = _exchange(target, "GET", f"{target.base}/v2/models/{target.model}")
    _check_allowed(target, status, body)
    if status == 404:
        known = ", ".join(_list_models(target)) or "none"
        raise ConfigError(f"--model: expected a model that {target.authority} knows ({known}), got {target.model!r}.")
    if status != 200:
        raise ConfigError(f"URL: expected model metadata from {target.authority}, got {status}: {_excerpt(body)}.")
    try:
        return [_read_input(entry) for entry in json.loads(body)["inputs"]]
    except (ValueError, KeyError, TypeError) as fault:
        raise ConfigError(
            f"URL: expected Open Inference Protocol metadata at {target.authority}, got {_excerpt(body)} ({fault!r})."
            " Give a request with --input FILE.json."
        ) from fault


def check_accepted(target: Target, body: bytes, timeout_s: float = _TIMEOUT_S) -> None:
    """Send one request before the run, so that a wrong input shows as bad usage and not as a failed server.

    Raises:
        ConfigError: The server calls it the caller's fault (4xx but 429), or does not answer at all.
    """
    status, answer = _exchange(target, "POST", target.infer_path, body, timeout_s)
    _check_allowed(target, status, answer)
    if 400 <= status < 500 and status != 429:
        raise ConfigError(
            f"--input: expected an input that {target.model!r} accepts, got {status}: {_excerpt(answer)}."
            " Give one that fits with --input FILE.json."
        )


def _check_allowed(target: Target, status: int, body: bytes) -> None:
    if status in (401, 403):
        raise ConfigError(
            f"--keys: expected an API key that {target.authority} accepts for {target.model!r},"
            f" got {status}{_excerpt_without_keys(target, body)}. Give a file of good ones with --keys FILE."
        )


def _excerpt_without_keys(target: Target, body: bytes) -> str:
    """Return what a server says of a key, nothing if it repeats it."""
    keys = (line.split()[-1].encode() for line in target.headers if line.lower().startswith(_KEY_HEADERS))
    return "" if any(key in body for key in keys) else f": {_excerpt(body)}"


def _read_input(entry: dict[str, Any]) -> TensorSpec:
    datatype = entry["datatype"]
    if datatype not in DATATYPES:
        raise ValueError(f"unknown datatype {datatype!r}")
    shape = tuple(int(d) for d in entry["shape"])
    return TensorSpec(entry["name"], datatype, shape, optional=bool(entry.get("optional", False)))


def _list_models(target: Target) -> list[str]:
    status, body = _exchange(target, "POST", f"{target.base}/v2/repository/index", b"{}")
    try:
        return sorted({str(entry["name"]) for entry in json.loads(body)}) if status == 200 else []
    except (ValueError, KeyError, TypeError):
        return []  # only a hint in an error message; an index we cannot read must not hide that message


def _exchange(
    target: Target, method: str, path: str, body: bytes | None = None, timeout_s: float = _TIMEOUT_S
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
    headers = dict(line.split(": ", 1) for line in target.headers)
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as fault:
        raise ConfigError(
            f"URL: expected a server at http://{target.authority}, got {type(fault).__name__} ({fault})."
            " Start one with `penstock serve`, or correct the URL."
        ) from fault
    finally:
        connection.close()


def _excerpt(body: bytes) -> str:
    return repr(body[:200].decode("utf-8", "replace"))
