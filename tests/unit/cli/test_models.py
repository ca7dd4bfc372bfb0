"""`penstock models`: what it shows is what the server says, and it says what to do when it cannot."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from penstock.cli.models import fetch_status, register
from penstock.core.errors import ConfigError, UpstreamError
from penstock.core.models import Batching, ModelSpec
from penstock.core.tensors import TensorSpec
from penstock.fleet.status import to_status
from tests.unit.fleet.test_metrics import VIEW

SPEC = ModelSpec(
    "digits",
    (TensorSpec("x", "FP32", (-1,)),),
    (TensorSpec("y", "FP32", (-1,)),),
    platform="onnx_onnxruntime",
    batching=Batching(mode="fair", size_max=8),
    slo_us=50_000,
)
LOADING = replace(VIEW.models[0], name="big", state="LOADING", reason="killed", is_ready=False, profiles={})
STATUS = to_status(replace(VIEW, models=(replace(VIEW.models[0], spec=SPEC), LOADING)))


def run(*arguments: str, status: dict[str, Any] | Exception = STATUS) -> tuple[int, str, str]:
    """Run the command over a given status document: exit status, stdout and stderr."""

    def fetch(url: str) -> dict[str, Any]:
        asked.append(url)
        if isinstance(status, Exception):
            raise status
        return status

    asked: list[str] = []
    app = typer.Typer()
    app.callback()(lambda: None)  # a program of one command would swallow the command's name
    register(app, fetch=fetch)
    result = CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": "160"})
    return result.exit_code, result.stdout, result.stderr


def test_list_has_the_documented_keys() -> None:
    """`list --json` is a list of one object for each model, loaded or not, with the same keys."""
    status, out, _ = run("list", "--json")
    digits, big = json.loads(out)
    assert status == 0
    assert digits == {
        "name": "digits",
        "version": "1",
        "state": "READY",
        "ready": True,
        "platform": "onnx_onnxruntime",
        "policy": "deadline",
        "mode": "fair",
        "size_max": 8,
        "slo_ms": 50.0,
        "replicas": 1,
        "replicas_ready": 1,
        "requests": 9,
        "goodput_ratio": 6 / 9,
    }
    assert list(big) == list(digits)
    assert (big["ready"], big["policy"], big["size_max"], big["slo_ms"]) == (False, None, None, None)


def test_list_is_a_table_of_the_same() -> None:
    """Each model has its row; what is not known or not there is a dash."""
    status, out, _ = run("list")
    digits = next(line.split() for line in out.splitlines() if "digits:1" in line)
    big = next(line.split() for line in out.splitlines() if "big:1" in line)
    assert status == 0
    assert " ".join(digits) == "digits:1 READY 1/1 deadline (fair), 8 rows 50 ms 9 66.7%"
    assert " ".join(big) == "big:1 LOADING 1/1 - - 0 -"


@pytest.mark.parametrize("name", ["digits", "digits:1"])
def test_show_tells_what_a_batch_costs(name: str) -> None:
    """The profile is a row for each size: the time, the time of a row, the rows in a second; and its line."""
    status, out, _ = run("show", name)
    assert status == 0
    assert "β 1.000 ms + α 0.5000 ms per row" in out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["8"])]
    assert rows == [["1", "1.500", "1.5000", "667"], ["8", "5.000", "0.6250", "1,600"]]
    for fact in ("deadline (fair), 8 rows", "50 ms", "digits:1#0 ready, pid 11, restarts 2", "6 answered", "66.7%"):
        assert fact in out


def test_show_of_a_model_that_is_not_loaded_says_so() -> None:
    """Without a spec and a profile the rest is shown, and why there is no more."""
    status, out, _ = run("show", "big")
    assert status == 0
    assert "LOADING (killed), not ready" in out
    assert "cost of a batch: not measured" in out


def test_show_json_is_the_servers_own_document() -> None:
    """`show --json` prints the model's object of the status document, unchanged."""
    assert json.loads(run("show", "digits", "--json")[1]) == STATUS["models"][0]


def test_an_unknown_model_is_bad_usage_and_the_known_are_listed() -> None:
    """The error names what was asked for and what there is, on stderr alone."""
    status, out, err = run("show", "digit")
    assert (status, out) == (2, "")
    assert "NAME: expected a model that the server has (digits:1, big:1), got 'digit'" in err


@pytest.mark.parametrize(("error", "code"), [(UpstreamError("nobody"), 1), (ConfigError("--url"), 2)])
@pytest.mark.parametrize("words", [("list",), ("show", "digits", "--json")])
def test_an_error_is_told_on_stderr(words: tuple[str, ...], error: Exception, code: int) -> None:
    """No server is status 1, a wrong URL 2; stdout stays empty for scripts."""
    assert run(*words, status=error) == (code, "", f"penstock models: {error}\n")


@contextmanager
def answering(code: int, body: bytes) -> Iterator[str]:
    """Run a server on a free port that gives one answer to everything; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(self.path.encode() if body == b"path" else body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_document_is_fetched_from_the_admin_port() -> None:
    """A server's status document comes back as it is, with or without a slash at the end of the URL."""
    with answering(200, json.dumps(STATUS).encode()) as url:
        assert fetch_status(url) == json.loads(json.dumps(STATUS))
        assert fetch_status(f"{url}/") == json.loads(json.dumps(STATUS))


@pytest.mark.parametrize(("code", "body"), [(404, b"{}"), (200, b"<html>"), (200, b"[]"), (200, b"{}"), (200, b"path")])
def test_another_server_is_not_taken_for_ours(code: int, body: bytes) -> None:
    """Whatever else answers there, the error says what was expected and what to do."""
    with answering(code, body) as url, pytest.raises(UpstreamError, match=f"at {url}, got another answer.*serve"):
        fetch_status(url)


def test_no_server_says_what_to_do() -> None:
    """A refused connection is an error with its cause and its cure."""
    with answering(200, b"") as url:
        pass
    with pytest.raises(UpstreamError, match=r"got ConnectionRefusedError.*Start one with `penstock serve`"):
        fetch_status(url)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8002", "https://h:1", "http://", "http://h:x", "http://u@h", "http://h/?q"]
)
def test_a_url_of_another_form_is_bad_usage(url: str) -> None:
    """Only http://HOST:PORT is asked."""
    with pytest.raises(ConfigError, match="--url: expected http://HOST:PORT, got"):
        fetch_status(url)


@pytest.mark.parametrize("words", [(), ("list",), ("show",)])
def test_help_shows_an_example(words: tuple[str, ...]) -> None:
    """`--help` of the command and of its parts ends with something that can be copied."""
    assert f"Example: penstock models {words[0] if words else 'list'}" in run(*words, "--help")[1]
