"""Stopping in good order: readiness goes first, what was sent is answered, what is idle is closed, the status is 0."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.live.serving import Answer, Caller, Server, infer_body, is_alive, open_server, wait_until

pytestmark = pytest.mark.live

HAZARDOUS = Path(__file__).with_name("hazardous.py")
PATH = "/v2/models/hazardous/infer"
CLIENTS = 32
STOP_AFTER_S = 0.5


@pytest.fixture(params=[1, 2], ids=["one-gateway", "two-gateways"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of `hazardous`, whose batches take as long as they are asked to."""
    with open_server(HAZARDOUS, "--gateways", str(request.param)) as opened:
        yield opened


def x_of(value: float) -> bytes:
    """Write a request to `hazardous`."""
    return infer_body("x", "FP32", [[value]])


def send(caller: Caller, value: float) -> None:
    """Send a request to `hazardous` without waiting for its answer."""
    caller.send("POST", PATH, x_of(value))


def test_what_is_in_flight_is_finished(server: Server) -> None:
    """Requests running, staged and queued at SIGTERM are answered and told to go; every process ends, status 0."""
    pids = server.gateway_pids() + server.replica_pids()
    with ExitStack() as stack:
        callers = [stack.enter_context(server.caller()) for _ in range(CLIENTS)]
        for caller in callers:
            send(caller, -0.4)
        wait_until(lambda: server.metrics().value("penstock_connections") == CLIENTS, "connected")
        server.terminate()
        answers: list[Answer] = [caller.wait_answer() for caller in callers]
    assert [answer.data("y") for answer in answers] == [[pytest.approx(-0.8)]] * CLIENTS
    # The first batch may have been answered before the signal arrived.
    assert answers[-1].headers["connection"] == "close"
    assert server.wait_exit() == 0
    assert not any(is_alive(pid) for pid in pids)


def test_readiness_goes_first_and_idle_connections_last(server: Server) -> None:
    """After SIGTERM the server says 503 to a readiness probe and still answers; then idle connections are closed."""
    with server.caller() as probe, server.caller() as worker, server.caller() as idle:
        for caller in (probe, worker, idle):
            assert caller.call("GET", "/v2/health/ready").status == 200
        send(worker, -1.0)
        wait_until(lambda: server.metrics().value("penstock_connections") == 3, "connected")
        server.terminate()
        raw: socket.socket = idle.connection.sock

        def is_unready() -> bool:
            answer = probe.call("GET", "/v2/health/ready")
            return (answer.status, answer.headers.get("connection")) == (503, "close")

        wait_until(is_unready, "unready")
        raw.settimeout(10)
        assert raw.recv(1) == b""
        assert worker.wait_answer().data("y") == [-2]
    assert server.wait_exit() == 0


async def _ask_until_told_to_go(url: str, seen: Counter[str]) -> None:
    """One client: ask again and again; when told to go, or found closed before asking, come back until refused."""
    address = urlsplit(url)
    body = x_of(-0.002)
    request = b"POST %b HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%b" % (PATH.encode(), len(body), body)
    while True:
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError:
            seen["refused"] += 1  # the listener is closed: whoever comes now goes elsewhere
            return
        is_told = False
        try:
            while not is_told and not reader.at_eof():
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                seen[head.split(b" ")[1].decode()] += 1
                is_told = b"connection: close" in head.lower()
        except (OSError, asyncio.IncompleteReadError) as error:
            seen[f"lost: {type(error).__name__}"] += 1
            return
        finally:
            writer.close()
        seen["told to go"] += is_told


def test_nobody_is_cut_off_under_load(server: Server) -> None:
    """Clients that ask without pause see every request answered 200 until they are told to go or turned away."""
    seen: Counter[str] = Counter()

    async def load() -> None:
        clients = [_ask_until_told_to_go(server.http, seen) for _ in range(CLIENTS)]
        asyncio.get_running_loop().call_later(STOP_AFTER_S, server.terminate)
        await asyncio.gather(*clients)

    asyncio.run(load())
    assert server.wait_exit() == 0
    assert seen["200"] > CLIENTS
    assert seen["told to go"] >= CLIENTS, seen
    assert set(seen) == {"200", "refused", "told to go"}, seen
