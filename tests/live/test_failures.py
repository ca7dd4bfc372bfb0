"""What dies, hangs or misbehaves, one part at a time, and that nobody who asked goes without an answer.

Processes are real and killed with -9. The model `hazardous` fails on demand; see `hazardous.py`.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.live.hazardous import DIE, HANG, RAISE, WRONG_DTYPE, WRONG_SHAPE
from tests.live.loading import run_load
from tests.live.serving import (
    EXAMPLES,
    Answer,
    Caller,
    Server,
    infer_body,
    is_alive,
    make_server,
    open_server,
    wait_until,
)

pytestmark = pytest.mark.live

RATE = 2_000
DURATION_S = 6.0
HAZARDOUS = Path(__file__).with_name("hazardous.py")


@contextmanager
def open_hazardous(tmp_path: Path, *options: str, replicas: int = 1, settings: str = "") -> Iterator[Server]:
    """Serve `hazardous`; `settings` are further lines of its section."""
    with open_server(write_config(tmp_path, replicas, settings), *options) as server:
        yield server


def write_config(tmp_path: Path, replicas: int, settings: str = "") -> Path:
    """Write a configuration that serves `hazardous` and `sum`, and return its path."""
    config = tmp_path / "penstock.toml"
    config.write_text(
        f'[models.sum]\npath = "{EXAMPLES / "sum.py"}"\nreplicas.min = {replicas}\n'
        f'[models.hazardous]\npath = "{HAZARDOUS}"\nreplicas.min = {replicas}\n{settings}\n'
    )
    return config


def x_of(*values: float) -> bytes:
    """Write a request to `hazardous`."""
    return infer_body("x", "FP32", [[value] for value in values])


def ask(caller: Caller, *values: float) -> Answer:
    """Ask `hazardous`."""
    return caller.infer("hazardous", x_of(*values))


def ask_side_by_side(server: Server, values: list[float]) -> list[Answer]:
    """Ask `hazardous` for each value on a connection of its own, all at once."""
    with ExitStack() as stack:
        callers = [stack.enter_context(server.caller()) for _ in values]
        for caller, value in zip(callers, values, strict=True):
            caller.send("POST", "/v2/models/hazardous/infer", x_of(value))
        return [caller.wait_answer() for caller in callers]


def http_request(model: str, body: bytes) -> bytes:
    """Write a whole inference request, head and body."""
    return b"POST /v2/models/%b/infer HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%b" % (
        model.encode(),
        len(body),
        body,
    )


def sum_request(index: int) -> bytes:
    """Write a request to `sum` whose answer names it."""
    return http_request("sum", infer_body("x", "FP32", [[index, 0, 0, 0, 0, 0, 0, 0]]))


def hazardous_request(index: int) -> bytes:
    """Write a request to `hazardous` whose answer names it."""
    return http_request("hazardous", x_of(index % 10_000))


def is_sum(index: int, body: bytes) -> bool:
    """Return True if `body` answers `sum_request(index)`."""
    return bool(json.loads(body)["outputs"][0]["data"] == [index])


def is_double(index: int, body: bytes) -> bool:
    """Return True if `body` answers `hazardous_request(index)`."""
    return bool(json.loads(body)["outputs"][0]["data"] == [index % 10_000 * 2])


# -- replicas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "replicas", "request_of", "is_right"),
    [("sum", 1, sum_request, is_sum), ("hazardous", 2, hazardous_request, is_double)],
)
def test_killed_replicas_cost_no_request(
    tmp_path: Path,
    model: str,
    replicas: int,
    request_of: Callable[[int], bytes],
    is_right: Callable[[int, bytes], bool],
) -> None:
    """Two kill -9 under 2,000 requests per second: every request gets its right answer, none an error."""
    # 2 ms a batch keep both replicas of `hazardous` busy, so that a kill always falls into a batch.
    with open_hazardous(tmp_path, replicas=replicas, settings="options.pause_ms = 2.0") as server:
        first, *_, last = (replica_pids := server.replica_pids(model)) and (replica_pids[0], replica_pids[-1])

        def kill_again() -> None:
            pid = last if last != first else server.replica_pids(model)[0]
            os.kill(pid, signal.SIGKILL)

        events = {2.0: lambda: os.kill(first, signal.SIGKILL), 4.0: kill_again}
        report = run_load(server.http, request_of, is_right, events=events, rate=RATE, duration_s=DURATION_S)
        assert report.wrong == []
        assert (report.unanswered, dict(report.statuses)) == (0, {200: report.sent})
        assert report.sent == RATE * DURATION_S
        assert server.restarts(model) == 2
        if replicas > 1:
            wait_until(lambda: server.metrics().value("penstock_retries_total", model=model) > 0, "counted as retried")


def test_a_poison_request_kills_two_replicas_at_most(tmp_path: Path) -> None:
    """A request that kills its replica is tried once more, alone, and refused with 503; its neighbours succeed."""
    with open_hazardous(tmp_path, replicas=2) as server:
        # The first two keep both replicas busy, so that the others share a batch with the poison.
        values = [-0.5, -0.5, *range(1, 6), DIE, *range(6, 11)]
        answers = ask_side_by_side(server, values)
        for value, answer in zip(values, answers, strict=True):
            if value == DIE:
                assert answer.status == 503
                assert "lost twice" in answer.json()["error"]
                assert int(answer.headers["retry-after"]) >= 1
            else:
                assert answer.data("y") == [value * 2]
        assert server.restarts("hazardous") == 2
        with server.caller() as caller:
            assert ask(caller, 21).data("y") == [42]


def test_a_hung_replica_is_replaced(tmp_path: Path) -> None:
    """A batch that never ends costs its replica, and its request 503 or 504; others beside it are answered."""
    settings = "execution_timeout_ms = 500"
    with open_hazardous(tmp_path, replicas=2, settings=settings) as server:
        before = set(server.replica_pids("hazardous"))
        answers = ask_side_by_side(server, [HANG, 1, 2, 3])
        assert answers[0].status in {503, 504}
        assert [answer.data("y") for answer in answers[1:]] == [[2], [4], [6]]
        wait_until(lambda: server.model("hazardous")["ready"], "ready again")
        assert not any(is_alive(pid) for pid in before & set(server.replica_pids("hazardous")) ^ before)
        assert "did not finish within 0.5 s" in server.log()
        with server.caller() as caller:
            assert ask(caller, 21).data("y") == [42]


def test_a_slow_replica_is_not_taken_for_a_hung_one(tmp_path: Path) -> None:
    """Batches that wait behind others in the replica are not late: only a batch's own run counts."""
    settings = "execution_timeout_ms = 700\nbatching.size_max = 1"
    with open_hazardous(tmp_path, settings=settings) as server:
        before = server.replica_pids("hazardous")
        answers = ask_side_by_side(server, [-0.5] * 5)
        assert [answer.data("y") for answer in answers] == [[-1]] * 5
        assert server.replica_pids("hazardous") == before


def test_a_model_that_raises_fails_its_own_request(tmp_path: Path) -> None:
    """An exception is the answer to the request that caused it; those beside it and the replica are unharmed."""
    with open_hazardous(tmp_path) as server:
        before = server.replica_pids("hazardous")
        first, *answers = ask_side_by_side(server, [-0.5, 1, RAISE, 2])
        assert first.status == 200
        assert [answer.status for answer in answers] == [200, 500, 200]
        assert "RuntimeError: asked to raise" in answers[1].json()["error"]
        assert server.replica_pids("hazardous") == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (WRONG_DTYPE, "output 'y': expected FP32 (float32), got float64"),
        (WRONG_SHAPE, "output 'y': expected shape [1,1], got [1,2]"),
    ],
)
def test_a_wrong_output_fails_its_own_request(tmp_path: Path, value: float, message: str) -> None:
    """An output of another datatype or shape is named, with expected and got; the replica goes on."""
    with open_hazardous(tmp_path) as server, server.caller() as caller:
        before = server.replica_pids("hazardous")
        answer = ask(caller, value)
        assert answer.status == 500
        assert message in answer.json()["error"]
        assert ask(caller, 3).data("y") == [6]
        assert server.replica_pids("hazardous") == before


# -- callers --------------------------------------------------------------------------------------------------------


def test_who_gives_up_is_not_executed(tmp_path: Path) -> None:
    """A request whose client disconnects or whose timeout passes in the queue leaves it unexecuted, and is counted."""
    journal = tmp_path / "journal"
    settings = f'batching.size_max = 1\noptions.journal = "{journal}"'
    with open_hazardous(tmp_path, settings=settings) as server, ExitStack() as stack:
        busy = [stack.enter_context(server.caller()) for _ in range(2)]  # one running, one staged
        for caller in busy:
            caller.send("POST", "/v2/models/hazardous/infer", x_of(-1))
        wait_until(lambda: "-1" in journal.read_text().split(), "running")
        gone, late, patient = (stack.enter_context(server.caller()) for _ in range(3))
        gone.send("POST", "/v2/models/hazardous/infer", x_of(111))
        patient.send("POST", "/v2/models/hazardous/infer", x_of(333))
        late_body = infer_body("x", "FP32", [[222]], parameters={"timeout": 100_000})
        late.send("POST", "/v2/models/hazardous/infer", late_body)
        answer = late.wait_answer()  # by now the two before it are queued too
        assert answer.status == 504
        gone.connection.close()
        assert "before execution" in answer.json()["error"]
        assert patient.wait_answer().data("y") == [666]
        assert [caller.wait_answer().status for caller in busy] == [200, 200]
        executed = journal.read_text().split()
        assert {"111", "222"}.isdisjoint(executed)
        assert executed.count("333") == 1

        def refused(reason: str) -> float:
            return server.metrics().value("penstock_refusals_total", model="hazardous", reason=reason)

        wait_until(lambda: (refused("disconnected"), refused("expired")) == (1, 1), "counted")


# -- gateways and the head ------------------------------------------------------------------------------------------


def owner_of(caller: Caller, pids: list[int]) -> int:
    """Return which of the processes holds the other end of a connection over IPv4."""
    name = caller.connection.sock.getsockname()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) == name[1]:
            target = f"socket:[{fields[9]}]"
            for pid in pids:
                if any(target == str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()):
                    return pid
    raise AssertionError(f"no process of {pids} is connected to {name}")


def test_a_killed_gateway_takes_only_its_own_connections(tmp_path: Path) -> None:
    """After kill -9 of one gateway of two connections to the other go on, and it comes back to the same port."""
    with open_hazardous(tmp_path, "--gateways", "2") as server, ExitStack() as stack:
        pids = server.gateway_pids()
        held: dict[int, list[Caller]] = {pid: [] for pid in pids}
        for _ in range(32):
            caller = stack.enter_context(server.caller())
            assert ask(caller, 1).status == 200
            held[owner_of(caller, pids)].append(caller)
        victim, witness = sorted(pids, key=lambda pid: len(held[pid]))
        assert held[victim], "32 connections all went to one gateway: the port is not shared"
        os.kill(victim, signal.SIGKILL)
        for caller in held[witness]:
            assert ask(caller, 2).data("y") == [4]
        for caller in held[victim]:
            with pytest.raises(OSError, match=r"reset|closed|without response|[Bb]roken pipe"):
                ask(caller, 2)
        wait_until(lambda: server.status()["ready"] and is_alive(server.gateway_pids()[0]), "ready again")
        after = server.gateway_pids()
        assert witness in after
        assert victim not in after
        fresh = [stack.enter_context(server.caller()) for _ in range(32)]
        assert all(ask(caller, 3).data("y") == [6] for caller in fresh)
        assert {owner_of(caller, after) for caller in fresh} == set(after)


def test_without_a_head_serving_goes_on_and_the_next_head_adopts(tmp_path: Path) -> None:
    """After kill -9 of the head all goes on; a new head on its directory takes over the same processes."""
    server = make_server(write_config(tmp_path, 1))
    try:
        server.start().wait_ready()
        url = server.http
        pids = sorted(server.gateway_pids() + server.replica_pids())
        events = {0.5: server.kill_head}
        report = run_load(url, sum_request, is_sum, events=events, rate=500, duration_s=2.0)
        assert (report.unanswered, dict(report.statuses)) == (0, {200: report.sent})
        assert all(is_alive(pid) for pid in pids)
        with server.caller() as caller:
            server.start().wait_ready()
            assert server.http == url
            assert sorted(server.gateway_pids() + server.replica_pids()) == pids
            assert ask(caller, 21).data("y") == [42]
            assert caller.call("GET", "/v2/health/ready").status == 200
            # The adopted are looked after like the started.
            victim = server.replica_pids("hazardous")[0]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: server.replica_pids("hazardous") not in ([victim], [None]), "started again")
            assert ask(caller, 4).data("y") == [8]
        server.terminate()
        assert server.wait_exit() == 0
        assert not any(is_alive(pid) for pid in pids)
    finally:
        server.end()


def test_two_heads_do_not_share_a_port(tmp_path: Path) -> None:
    """The port in use by one fleet is refused to another with status 2, and the first serves on."""
    with open_hazardous(tmp_path) as server:
        port = urlsplit(server.http).port
        other = make_server(write_config(tmp_path, 1), "--http", f"127.0.0.1:{port}")
        try:
            assert other.start().wait_exit() == 2
            assert "expected a free port" in other.log()
        finally:
            other.end()
        with server.caller() as caller:
            assert ask(caller, 1).data("y") == [2]
