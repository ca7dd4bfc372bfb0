"""`penstock limits`: what a user is told of their limits, and what a decision log says of other limits."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from penstock.cli.limits import fetch_limits, register
from penstock.core.errors import ConfigError, UpstreamError
from penstock.core.limits import ConcurrencyLimit, Cost, Level, RateLimit
from penstock.wire.decisions import Decision, Definition, Line, encode_line

S = 1_000_000
DOCUMENT: dict[str, Any] = {
    "user": "alice",
    "tenant": "",
    "model": "",
    "callers": [{"key": "a1", "tenant": "acme", "user": "alice", "tier": "gold"}],
    "limits": [
        {
            "name": "per-user",
            "level": "user",
            "rule": "10/s burst 20",
            "subject": "alice",
            "models": ["digits"],
            "keys": ["a1"],
            "size": 20,
            "left": 0,
            "lent": 4,
            "leases": 1,
            "full_after_s": 1.9,
        },
        {
            "name": "slots",
            "level": "tenant",
            "rule": "3 at once",
            "subject": "acme",
            "models": ["digits"],
            "keys": ["a1"],
            "size": 3,
            "left": 2,
            "lent": 0,
            "leases": 0,
            "full_after_s": None,
        },
    ],
    "refuses_first": {"name": "slots", "level": "tenant", "subject": "acme"},
}


def run(*arguments: str, document: dict[str, Any] | Exception = DOCUMENT) -> tuple[int, str, str]:
    """Run the command over a given document: exit status, stdout and stderr."""

    def fetch(*_asked: str) -> dict[str, Any]:
        if isinstance(document, Exception):
            raise document
        return document

    app = typer.Typer()
    app.callback()(lambda: None)  # a program of one command would swallow the command's name
    register(app, fetch=fetch)
    result = CliRunner().invoke(app, ["limits", *arguments], env={"COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


def rows_of(out: str, *names: str) -> list[str]:
    """Return the rows of a table that begin with a name, single-spaced."""
    return [" ".join(line.split()) for line in out.splitlines() if line.split()[:1] and line.split()[0] in names]


# -- explain


def test_what_is_left_is_a_row_for_each_limit() -> None:
    """A limit's row has its level, whom it is for, what it allows, what is left and lent, and when it is full."""
    status, out, err = run("explain", "alice")
    assert (status, err) == (0, "")
    assert "acme/alice: key a1, tier gold" in out
    assert rows_of(out, "per-user") == ["per-user user alice 10/s burst 20 0 of 20 4 1.9 s"]
    assert [row for row in rows_of(out, "slots") if "at once" in row] == ["slots tenant acme 3 at once 2 of 3 - -"]
    assert "slots (tenant acme) would refuse first." in out


def test_models_are_a_column_where_they_differ() -> None:
    """Limits of some models only are told apart."""
    first, second = DOCUMENT["limits"]
    mixed = DOCUMENT | {"limits": [first | {"models": ["digits", "ranker"]}, second]}
    assert "digits, ranker" in run("explain", "alice", document=mixed)[1]
    assert "digits" not in run("explain", "alice")[1]


def test_what_is_not_known_is_said() -> None:
    """Without an answer from who counts, nothing is made up; without limits there is nothing to show."""
    blank = [limit | {"left": None, "full_after_s": None} for limit in DOCUMENT["limits"]]
    out = run("explain", "alice", document=DOCUMENT | {"limits": blank, "refuses_first": None})[1]
    assert rows_of(out, "per-user")[0].endswith("? 4 -")
    assert "did not answer: what is left is not known" in out
    assert "no limits" in run("explain", "alice", document=DOCUMENT | {"limits": []})[1]


def test_json_is_the_servers_own_document() -> None:
    """`explain --json` prints what the server says, unchanged."""
    assert json.loads(run("explain", "alice", "--json")[1]) == DOCUMENT


@pytest.mark.parametrize(("error", "code"), [(UpstreamError("nobody"), 1), (ConfigError("user: expected"), 2)])
def test_an_error_is_told_on_stderr(error: Exception, code: int) -> None:
    """No server, or one that cannot ask, is status 1; a user who does not exist is 2; stdout stays empty."""
    assert run("explain", "alice", "--json", document=error) == (code, "", f"penstock limits: {error}\n")


@contextmanager
def answering(code: int, body: bytes, asked: list[str]) -> Iterator[str]:
    """Run a server on a free port that gives one answer to everything; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

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


def test_the_server_is_asked_for_whom_was_named() -> None:
    """What was named goes into the query, escaped; what was not is left out."""
    asked: list[str] = []
    with answering(200, json.dumps(DOCUMENT).encode(), asked) as url:
        assert fetch_limits(url, "a&b", "acme", "") == DOCUMENT
    assert asked == ["/api/limits?user=a%26b&tenant=acme"]


@pytest.mark.parametrize(
    ("code", "body", "error", "expected"),
    [
        (404, b'{"error":"user: expected another"}', ConfigError, "user: expected another"),
        (503, b'{"error":"redis.url: expected an answer"}', UpstreamError, "redis.url: expected an answer"),
        (404, b"Not Found", UpstreamError, "expected a Penstock admin port at .*status 404"),
        (200, b"[]", UpstreamError, "expected a Penstock admin port at"),
    ],
)
def test_whose_fault_it_is(code: int, body: bytes, error: type[Exception], expected: str) -> None:
    """The server's words are handed on: what was asked for wrongly, or what it cannot reach; another server is said."""
    with answering(code, body, []) as url, pytest.raises(error, match=expected):
        fetch_limits(url, "alice", "", "")


# -- replay

PER_USER = RateLimit("per-user", Level.USER, 10, S, 10)


def decide(at_us: int, user: str, *, is_in: bool = True, limit: str = "per-user") -> Decision:
    return Decision(
        at_us,
        0,
        1,
        "local" if is_in else "rejected",
        {"per-user": 1},
        {"per-user": f"penstock:{{acme}}:per-user:{user}"},
        "" if is_in else limit,
        "acme",
        user,
    )


LINES: list[Line] = [
    Definition(1, 0, 1, PER_USER),
    Definition(1, 0, 1, ConcurrencyLimit("slots", Level.USER, 4)),
    *(decide(S + number, "alice", is_in=number < 10) for number in range(16)),
    *(decide(2 * S + number, "bob") for number in range(4)),
    decide(3 * S, "bob", is_in=False, limit="slots"),
]


def write(tmp_path: Path, lines: list[Line], more: bytes = b"") -> str:
    path = tmp_path / "decisions.ndjson"
    path.write_bytes(b"".join(map(encode_line, lines)) + more)
    return str(path)


def test_a_replay_tells_who_would_gain(tmp_path: Path) -> None:
    """Tables of all requests, of each limit and of the users, as recorded, before and after."""
    log = write(tmp_path, LINES)
    status, out, err = run("replay", log, "--with", "per-user: 10/s burst 12")
    assert (status, err) == (0, "")
    assert "20 requests in 2.0 s" in out
    assert "left out, because concurrency limits rejected them: 1" in out
    assert rows_of(out, "admitted", "rejected") == ["admitted 20 14 14 16 +2", "rejected 20 6 6 4 -2"]
    assert rows_of(out, "per-user") == ["per-user 10/s 10/s burst 12 6 6 4 100% 100%"]
    assert "Users who would gain: 1; who would lose: 0." in out
    assert rows_of(out, "acme/alice", "acme/bob") == ["acme/alice 16 10 10 12 +2"]


def test_json_has_every_number(tmp_path: Path) -> None:
    """`replay --json` has all limits and all users, those with the most change first."""
    log = write(tmp_path, LINES)
    document = json.loads(run("replay", log, "--with", "per-user: 10/s burst 3", "--json")[1])
    assert document == {
        "log": log,
        "requests": 20,
        "duration_s": 2.0,
        "others": 1,
        "late_lines": 0,
        "torn_lines": 0,
        "recorded": 14,
        "before": 14,
        "after": 6,
        "limits": [
            {
                "name": "per-user",
                "level": "user",
                "before": "10/s",
                "after": "10/s burst 3",
                "requests": 20,
                "rejected": 6,
                "rejected_before": 6,
                "rejected_after": 14,
                "excess_tokens": 0,
                "peak_before": pytest.approx(1.0, abs=1e-4),
                "peak_after": pytest.approx(1.0, abs=1e-4),
            }
        ],
        "users": [
            {"tenant": "acme", "user": "alice", "requests": 16, "recorded": 10, "before": 10, "after": 3},
            {"tenant": "acme", "user": "bob", "requests": 4, "recorded": 4, "before": 4, "after": 3},
        ],
    }


def test_an_excess_in_the_record_stands_out(tmp_path: Path) -> None:
    """A log in which more was admitted than allowed says so, whatever was asked."""
    log = write(tmp_path, [*LINES, *(decide(9 * S, "carol") for _ in range(13))])
    assert "per-user: as recorded, 3 more than its bound in the worst window" in run("replay", log)[1]
    assert "No user would gain or lose." in run("replay", log)[1]


def test_limits_may_come_from_a_configuration(tmp_path: Path) -> None:
    """With --config the limits of the file count as those that were in force, also where the log defines none."""
    (tmp_path / "model.py").write_text("")
    config = tmp_path / "penstock.toml"
    config.write_text('[models.m]\npath = "model.py"\n[limits.per-user]\nlevel = "user"\nrate = "10/s burst 2"\n')
    log = write(tmp_path, [line for line in LINES if isinstance(line, Decision)])
    document = json.loads(run("replay", log, "--config", str(config), "--json")[1])
    assert (document["before"], document["after"]) == (4, 4)
    assert run("replay", log)[0] == 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (b"{}\n", "line 24: expected a line of a decision log: Object missing required field `kind`"),
        (b"\n", "line 24: expected a line of a decision log"),
        (b"x" * 5_000_000, "line 24: expected a line of a decision log"),
        (
            encode_line(decide(9 * S, "bob")).replace(b"per-user", b"other"),
            "line 24: expected limit 'other' to be defined before its first decision",
        ),
    ],
    ids=["no line", "empty", "another file", "not defined"],
)
def test_a_malformed_log_names_the_line(tmp_path: Path, more: bytes, expected: str) -> None:
    """Status 2, and where it is wrong."""
    status, out, err = run("replay", write(tmp_path, LINES, more))
    assert (status, out) == (2, "")
    assert f"decisions.ndjson, {expected}" in err


@pytest.mark.parametrize(("more", "requests"), [(b"", 20), (encode_line(decide(9 * S, "bob")), 21)])
def test_a_line_that_was_cut_off_is_forgiven(tmp_path: Path, more: bytes, requests: int) -> None:
    """A gateway that was killed while it wrote leaves part of a line; all else counts, what follows it too."""
    log = write(tmp_path, LINES, encode_line(decide(8 * S, "bob"))[:100] + more)
    out = run("replay", log)[1]
    assert f"{requests} requests" in out
    assert "lines that gateways left unfinished when they were killed: 1" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("no-such-file",), "LOG: expected a file that can be read, got no-such-file (No such file or directory)"),
        (("/",), "LOG: expected a file that can be read, got / (Is a directory)"),
        (("LOG", "--with", "200/s"), "--with: expected 'NAME: RATE' such as"),
        (("LOG", "--with", "per-user: 0/s"), "--with: per-user: rate: expected a whole number of 1 to"),
        (("LOG", "--with", "per-usr: 1/s"), "--with: expected a limit that the log's requests are under (per-user)"),
        (("LOG", "--with", "per-user: 1 rows/s"), "--with: per-user: expected requests, which the log's costs are in"),
        (("LOG", "--config", "no-such-file"), "no-such-file"),
    ],
)
def test_bad_usage_is_status_2(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    """The message names the option and what was expected."""
    log = write(tmp_path, LINES)
    status, out, err = run("replay", *(log if word == "LOG" else word for word in arguments))
    assert (status, out) == (2, "")
    assert expected in err


def test_an_empty_log_is_no_error(tmp_path: Path) -> None:
    """Before the first request there is nothing to tell."""
    assert run("replay", write(tmp_path, []))[:2] == (0, f"0 requests in 0.0 s ({tmp_path / 'decisions.ndjson'})\n")


def test_rows_and_tokens_are_counted_as_recorded(tmp_path: Path) -> None:
    """A limit on rows goes on counting rows; the text of the change need not say so."""
    rows = RateLimit("per-user", Level.USER, 10, S, 10, cost=Cost.ROWS)
    line = decide(S, "alice")
    costly = Decision(S, 0, 1, "local", {"per-user": 8}, line.keys, tenant="acme", user="alice")
    log = write(tmp_path, [Definition(1, 0, 1, rows), costly])
    document = json.loads(run("replay", log, "--with", "per-user: 5/s", "--json")[1])
    assert (document["before"], document["after"]) == (1, 0)
    assert document["limits"][0]["after"] == "5 rows/s"


@pytest.mark.parametrize(
    ("words", "example"),
    [
        ((), "penstock limits explain"),
        (("explain",), "penstock limits explain"),
        (("replay",), "penstock limits replay"),
    ],
)
def test_help_shows_an_example(words: tuple[str, ...], example: str) -> None:
    """`--help` of the command and of its parts ends with something that can be copied."""
    assert f"Example: {example}" in run(*words, "--help")[1]
