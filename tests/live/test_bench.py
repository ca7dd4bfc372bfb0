"""`penstock bench` as a process against a small real server: honest numbers, honest verdicts, honest exit statuses.

The server is a socket loop in a process of its own that can be told to stall, refuse or vanish; it is not Penstock.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCH = (
    "import typer; from penstock.cli.bench import register; app = typer.Typer(); app.callback()(lambda: None);"
    " register(app); app()"
)

# Knobs by command line: stall from/for (s after the first inference of the load), status of every answer.
SERVER = """
import asyncio, json, sys
import httptools, uvloop

stall_from_s, stall_for_s, status = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
META = {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}], "outputs": []}
seen = 0

class Door(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.parser = transport, httptools.HttpRequestParser(self)
        self.body = b""
    def data_received(self, data):
        self.parser.feed_data(data)
    def on_url(self, url):
        self.url, self.key = url, b""
    def on_header(self, name, value):
        if name.lower() == b"authorization":
            self.key = value.removeprefix(b"Bearer ")
    def on_body(self, body):
        self.body += body
    def answer(self, status, value):
        text = json.dumps(value).encode()
        self.transport.write(b"HTTP/1.1 %d X\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (status, len(text), text))
    def on_message_complete(self):
        global seen, stall_at
        loop, body, self.body = asyncio.get_running_loop(), self.body, b""
        if self.url == b"/v2/models/m":
            return self.answer(200, META)
        if self.url == b"/v2/repository/index":
            return self.answer(200, [{"name": "m"}, {"name": "other"}])
        if self.url != b"/v2/models/m/infer":
            return self.answer(404, {"error": "no such model"})
        if len(json.loads(body)["inputs"][0]["data"]) != 8:
            return self.answer(400, {"error": "x: expected 8 elements"})
        if self.key in (b"unknown", b"limited"):
            return self.answer(401 if self.key == b"unknown" else 429, {"error": "key " + self.key.decode()})
        seen += 1
        if seen == 1:  # the trial request
            return self.answer(200, {"outputs": []})
        if seen == 2:
            stall_at = loop.time() + stall_from_s
        left_s = stall_at + stall_for_s - loop.time()
        if stall_for_s and stall_at <= loop.time() and left_s > 0:
            return loop.call_later(left_s, self.answer, status, {"outputs": []})
        self.answer(status, {"outputs": []} if status == 200 else {"error": "busy"})

async def main():
    server = await asyncio.get_running_loop().create_server(Door, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

uvloop.run(main())
"""


@contextmanager
def serving(*, stall_from_s: float = 0.0, stall_for_s: float = 0.0, status: int = 200) -> Iterator[str]:
    """Run the server; yield its URL."""
    command = [sys.executable, "-c", SERVER, str(stall_from_s), str(stall_for_s), str(status)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def bench(url: str, *arguments: str, model: str = "m") -> tuple[int, str, str]:
    """Run `bench`; return exit status, stdout, stderr."""
    command = [sys.executable, "-c", BENCH, "bench", url, "--model", model, "--warmup", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return done.returncode, done.stdout, done.stderr


def bench_json(url: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run `bench --json`; return exit status and report."""
    status, out, err = bench(url, *arguments, "--json")
    assert err == ""
    report: dict[str, Any] = json.loads(out)
    return status, report


def test_a_quick_server_holds_its_slo() -> None:
    """Every planned request is sent once and answered; all inputs differ; exit status and verdict agree."""
    with serving() as url:
        status, report = bench_json(url, "--rate", "500", "--duration", "2", "--processes", "2", "--seed", "7")
    assert report["completed"] == report["planned"] == report["sent"] == report["distinct_inputs"]
    assert report["failed"] == report["shed"] == 0
    assert report["status_counts"] == {"200": report["planned"]}
    assert report["planned"] == pytest.approx(1_000, abs=4 * 1_000**0.5)
    assert report["cpu_s"]["generator"] > 0
    assert status == (0 if report["valid"] and report["slo_held"] else 1)


def test_the_plan_depends_on_the_seed_alone() -> None:
    """One process or three, the same seed plans the same number of requests."""
    with serving() as url:
        counts = {
            bench_json(url, "--rate", "300", "--duration", "1", "--processes", count)[1]["planned"]
            for count in ("1", "3")
        }
    assert len(counts) == 1


def test_a_stall_cannot_hide() -> None:
    """A server that stands still for 300 ms of 2 s shows it in p95 and p99: who was due then waited for its end."""
    with serving(stall_from_s=0.5, stall_for_s=0.3) as url:
        _, report = bench_json(url, "--rate", "200", "--duration", "2", "--arrivals", "constant", "--slo-ms", "50")
    latency = report["latency_ms"]
    assert report["completed"] == 400
    assert latency["max"] >= 290
    assert latency["p99"] >= 260  # 15 % of all requests waited, evenly from 0 to 300 ms
    assert latency["p95"] >= 180
    assert report["slo_attainment"] <= 0.9


def test_few_connections_cannot_hide_a_stall() -> None:
    """With two connections the requests wait in the generator instead, and their clocks run there."""
    with serving(stall_from_s=0.5, stall_for_s=0.3) as url:
        arguments = ("--rate", "200", "--duration", "2", "--arrivals", "constant", "--connections", "2")
        _, report = bench_json(url, *arguments)
    assert report["held"] > 40
    assert report["connections"] == 2
    assert report["latency_ms"]["p99"] >= 260


def test_refusals_are_shed_and_fail_the_slo() -> None:
    """503 answers are shed, not failed; a server that only refuses holds no SLO."""
    with serving(status=503) as url:
        status, report = bench_json(url, "--rate", "100", "--duration", "1")
    assert status == 1
    assert report["shed"] == report["planned"] > 0
    assert report["failed"] == 0
    assert report["slo_held"] is False


def test_refused_requests_are_sent_again() -> None:
    """With retries each refusal but the last is followed by another attempt; both are in the report."""
    with serving(status=503) as url:
        arguments = ("--rate", "100", "--duration", "1", "--retries", "2", "--retry-after-ms", "3")
        _, report = bench_json(url, *arguments, "--processes", "2", "--header", "penstock-tenant: a")
    assert report["attempts"] == 3 * report["planned"] > 0
    assert report["shed"] == report["planned"]
    assert report["status_counts"] == {"503": report["attempts"]}
    assert 0 < report["refusal_ms"]["p50"] <= report["refusal_ms"]["p99"]


def test_the_table_says_it_in_words() -> None:
    """Without --json a person reads latency, verdict and distribution; without a terminal there is no bar."""
    with serving() as url:
        _, out, err = bench(url, "--rate", "200", "--duration", "1", "--arrivals", "gamma:2")
    assert all(word in out for word in ("latency ms", "p999", "SLO", "every input different", "99 % confidence"))
    assert err == ""


def test_one_input_on_demand(tmp_path: Path) -> None:
    """--same-input and --input FILE send what they say, and the report counts it."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1] * 8}]}))
    with serving() as url:
        _, same = bench_json(url, "--rate", "100", "--duration", "1", "--same-input")
        _, given = bench_json(url, "--rate", "100", "--duration", "1", "--input", str(path))
    assert same["distinct_inputs"] == given["distinct_inputs"] == 1
    assert same["failed"] == given["failed"] == 0


def test_many_keys_are_many_callers(tmp_path: Path) -> None:
    """Each request has the next key, over all processes; 429 is an outcome of its own, 401 a failure."""
    path = tmp_path / "keys"
    path.write_text("# callers\none\nlimited\ntwo\nunknown\n")
    with serving() as url:
        arguments = ("--rate", "400", "--duration", "1", "--arrivals", "constant", "--processes", "3")
        status, report = bench_json(url, *arguments, "--keys", str(path))
        _, table, _ = bench(url, *arguments, "--keys", str(path))
    assert status == 1
    assert [report[name] for name in ("keys", "completed", "limited", "shed", "failed")] == [4, 200, 100, 0, 100]
    assert report["status_counts"] == {"200": 200, "401": 100, "429": 100}
    assert "4 API keys in turn" in table
    assert "200 completed, 0 shed, 100 limited, 100 failed" in table


def test_keys_are_never_shown(tmp_path: Path) -> None:
    """A key that the server does not accept, and a line that is none, are bad usage; neither is in the message."""
    path = tmp_path / "keys"
    arguments = ("--rate", "10", "--duration", "1", "--keys", str(path))
    with serving() as url:
        path.write_text("unknown\n")
        refused = bench(url, *arguments)
        path.write_text("one\nsecret words\n")
        malformed = bench(url, *arguments)
        both = bench(url, *arguments, "--header", "Authorization: Bearer secret")
        missing = bench(url, *arguments[:-1], str(tmp_path / "none"))
    found = (refused, malformed, both, missing)
    assert [status for status, _, _ in found] == [2, 2, 2, 2]
    assert not any(word in out + err for _, out, err in found for word in ("unknown", "secret"))
    assert refused[2].startswith("error: --keys: expected an API key that 127.0.0.1:")
    assert ", got 401. Give" in refused[2]
    assert malformed[2].startswith("error: --keys: expected one API key on line 2 of")
    assert missing[2].startswith("error: --keys: expected a readable file, got")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--rate", "0", "--duration", "1"), "--rate: expected a number > 0, got 0"),
        (("--rate", "nan", "--duration", "1"), "--rate: expected a number > 0, got nan"),
        (("--rate", "1", "--duration", "-3"), "--duration: expected a number > 0, got -3"),
        (("--rate", "1e9", "--duration", "100"), "--duration: expected at most"),
        (("--rate", "1", "--duration", "1", "--arrivals", "tide"), "--arrivals: expected poisson"),
        (("--rate", "1", "--duration", "1", "--arrivals", "trace:none.csv"), "--arrivals: expected a readable CSV"),
        (("--rate", "1", "--duration", "1", "--connections", "0"), "--connections: expected"),
        (("--rate", "1", "--duration", "1", "--input", "none.json"), "--input: expected a readable JSON file"),
        (("--rate", "1", "--duration", "1", "--retries", "-1"), "--retries: expected an integer from 0 to 100, got -1"),
        (("--rate", "1", "--duration", "1", "--retry-after-ms", "-1"), "--retry-after-ms: expected a number >= 0"),
        (("--rate", "1", "--duration", "1", "--header", "tenant"), "--header: expected 'name: value'"),
    ],
)
def test_bad_usage_names_the_option(arguments: tuple[str, ...], expected: str) -> None:
    """Bad options give status 2 and one line that says what was expected and got; nothing is sent."""
    with serving() as url:
        status, out, err = bench(url, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: " + expected)


def test_an_unknown_model_lists_the_known() -> None:
    """The server's own models are named when the asked one is not among them."""
    with serving() as url:
        status, _, err = bench(url, "--rate", "1", "--duration", "1", model="mm")
    assert status == 2
    assert "knows (m, other), got 'mm'" in err


def test_an_input_the_model_refuses_is_bad_usage(tmp_path: Path) -> None:
    """A 400 on the trial request is the operator's input, not the server's failure; its message is passed on."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}))
    with serving() as url:
        status, _, err = bench(url, "--rate", "1", "--duration", "1", "--input", str(path))
    assert status == 2
    assert "expected 8 elements" in err


@pytest.mark.parametrize("url", ["ftp://x", "http://127.0.0.1:1", "http://no-such-host.invalid"])
def test_a_wrong_url_is_bad_usage(url: str) -> None:
    """A URL of another form, or without a server behind it, gives status 2 and says so."""
    status, _, err = bench(url, "--rate", "1", "--duration", "1")
    assert status == 2
    assert err.startswith("error: URL: expected")
