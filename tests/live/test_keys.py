"""API keys on a running server: made, used by real clients, revoked under load, while gateways are stopped or killed.

Not here: what each command prints (`tests/unit/cli/test_keys.py`), which headers are read (`tests/unit/gateway`).
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

from tests.live.serving import EXAMPLES, PENSTOCK, Answer, Server, infer_body, make_server, wait_until

pytestmark = pytest.mark.live

BODY = infer_body("x", "FP32", [[1.0] * 8])
CONFIG = f"""
[server]
gateways = 2
access_log = true
[identity]
required = true
[models.sum]
path = "{EXAMPLES}/sum.py"
[models.minilm]
path = "{EXAMPLES}/minilm/model.py"
"""


def make_served(config: str = CONFIG) -> Server:
    """Return a server of a configuration, not started."""
    server = make_server(Path("penstock.toml"))
    file = server.home / "penstock.toml"
    file.write_text(config)
    server._command[2] = str(file)
    return server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two gateways that require keys, shared by tests that leave it whole."""
    made = make_served()
    try:
        yield made.start().wait_ready()
    finally:
        made.end()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """The same, for one test to hurt."""
    made = make_served()
    try:
        yield made.start().wait_ready()
    finally:
        made.end()


def start_keys(server: Server, *arguments: str) -> "subprocess.Popen[str]":
    """Start `penstock keys` on a server's state directory."""
    command = [str(PENSTOCK), "keys", *arguments, "--state", str(server.home / "state")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_keys(server: Server, *arguments: str) -> tuple[int, str, str]:
    """Run `penstock keys` to its end: exit status, stdout and stderr."""
    command = start_keys(server, *arguments)
    out, said = command.communicate(timeout=60)
    return command.returncode, out, said


def create(server: Server, *options: str) -> tuple[str, str]:
    """Make a key; return its text and its id."""
    status, out, said = run_keys(server, "create", "--tenant", "acme", "--user", "alice", *options)
    assert status == 0, said
    return out.strip(), out.split("_")[1]


def infer(server: Server, **headers: str) -> Answer:
    """Send one inference over a connection of its own, to whichever gateway the kernel chooses."""
    with server.caller() as caller:
        return caller.call("POST", "/v2/models/sum/infer", BODY, {k.replace("_", "-"): v for k, v in headers.items()})


def statuses(server: Server, key: str, *, count: int = 40) -> set[int]:
    """Return how inferences with a key are answered over so many connections: enough to meet every gateway."""
    return {infer(server, authorization=f"Bearer {key}").status for _ in range(count)}


def test_a_key_is_good_when_it_has_been_made(server: Server) -> None:
    """As soon as `create` has returned every gateway accepts the key, by either header; without one there is 401."""
    key, _ = create(server)
    assert statuses(server, key) == {200}
    assert infer(server, x_api_key=key).status == 200
    refused = infer(server)
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert "expected an API key in Authorization: Bearer KEY or in X-API-Key: KEY, got none" in refused.json()["error"]
    assert infer(server, authorization=f"Bearer {key[:-1]}!").status == 401
    assert infer(server, authorization=key).status == 401
    assert infer(server, authorization=f"Bearer {key}", x_api_key="another").status == 400


def test_health_needs_no_key(server: Server) -> None:
    """Whoever watches the server has no key to give."""
    with server.caller() as caller:
        assert caller.call("GET", "/v2/health/ready").status == 200
        assert caller.call("GET", "/v2/health/live").status == 200


def test_a_key_allows_what_it_says(server: Server) -> None:
    """Another model, another tenant and the class of a batch key's betters get 403, each naming what was wrong."""
    key, _ = create(server, "--model", "minilm")
    refused = infer(server, authorization=f"Bearer {key}")
    assert refused.status == 403
    assert "expected one of those that this key is for (minilm)" in refused.json()["error"]
    key, _ = create(server, "--class", "batch")
    assert infer(server, authorization=f"Bearer {key}", penstock_tenant="acme").status == 200
    assert infer(server, authorization=f"Bearer {key}", penstock_tenant="other").status == 403
    assert infer(server, authorization=f"Bearer {key}", penstock_class="interactive").status == 403
    labels = {"model": "sum", "class": "batch"}
    wait_until(lambda: server.metrics().value("penstock_requests_by_class_total", **labels) == 1, "counted")


def test_the_openai_client_speaks_to_it(server: Server) -> None:
    """openai-python's api_key is a key of ours, and its errors are the ones it has for these statuses."""
    key, key_id = create(server)
    with OpenAI(base_url=f"{server.http}/v1", api_key=key, max_retries=0) as client:
        assert len(client.embeddings.create(model="minilm", input="water").data[0].embedding) == 384
        assert run_keys(server, "revoke", key_id, "--wait")[0] == 0
        with pytest.raises(openai.AuthenticationError) as refused:
            client.embeddings.create(model="minilm", input="water")
        assert refused.value.code == "invalid_api_key"
    key, _ = create(server, "--model", "sum")
    with (
        OpenAI(base_url=f"{server.http}/v1", api_key=key, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.embeddings.create(model="minilm", input="water")


def test_no_request_is_let_in_after_a_revocation_has_returned(server: Server) -> None:
    """Under load on both gateways, what is sent after `revoke --wait` has returned is refused, all of it."""
    key, key_id = create(server)
    answers: list[tuple[float, int]] = []
    is_over = threading.Event()

    # In one piece, as fast clients write it: then the gateway knows the head by its bytes, and the caller with it.
    head = f"POST /v2/models/sum/infer HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
    request = f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY
    address = urlsplit(server.http)

    def load() -> None:
        while not is_over.is_set():
            with socket.create_connection((address.hostname, address.port)) as link:
                for _ in range(20):
                    sent_s = time.monotonic()
                    link.sendall(request)
                    with http.client.HTTPResponse(link) as response:
                        response.begin()
                        response.read()
                        answers.append((sent_s, response.status))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(answers) > 200, "loaded")
        status, _, said = run_keys(server, "revoke", key_id, "--wait")
        revoked_s = time.monotonic()
        count = len(answers)
        wait_until(lambda: len(answers) > count + 200, "loaded after the revocation")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert (status, "no gateway accepts it" in said) == (0, True)
    assert {status for sent_s, status in answers if sent_s > revoked_s} == {401}
    assert {status for _, status in answers[:100]} == {200}


def test_a_stopped_gateway_is_waited_for_and_named(server: Server) -> None:
    """A gateway that cannot answer might accept the key when it goes on: status 1 and its name; then it confirms."""
    key, key_id = create(server)
    gateway = server.status()["gateways"][1]
    os.kill(gateway["pid"], signal.SIGSTOP)
    try:
        status, out, said = run_keys(server, "revoke", key_id, "--wait", "--timeout", "1.5", "--json")
    finally:
        os.kill(gateway["pid"], signal.SIGCONT)
    assert status == 1
    assert json.loads(out)["waiting_for"] == [f"gateway-1 (pid {gateway['pid']})"]
    assert "not yet everywhere" in said
    assert run_keys(server, "revoke", key_id, "--wait")[0] == 0
    assert statuses(server, key) == {401}


def test_a_gateway_killed_meanwhile_is_not_waited_for(own_server: Server) -> None:
    """A gateway that is stopped and then killed accepts nothing any more; its successor never knew the key."""
    key, key_id = create(own_server)
    pid = own_server.gateway_pids()[0]
    os.kill(pid, signal.SIGSTOP)
    command = start_keys(own_server, "revoke", key_id, "--wait", "--timeout", "60")
    listed = own_server.home / "state"
    wait_until(lambda: '"revoked_at": null' not in run_keys(own_server, "list", "--all", "--json")[1], f"in {listed}")
    assert command.poll() is None
    os.kill(pid, signal.SIGKILL)
    _, said = command.communicate(timeout=60)
    assert (command.returncode, "no gateway accepts it" in said) == (0, True)
    wait_until(lambda: own_server.status()["ready"], "ready again")
    assert statuses(own_server, key) == {401}


def test_without_a_head_a_revocation_is_not_claimed(own_server: Server) -> None:
    """With the head gone gateways go on with their keys, and that is said; a successor tells them of the change."""
    key, key_id = create(own_server)
    gateways = own_server.gateway_pids()
    own_server.kill_head()
    assert statuses(own_server, key) == {200}
    status, _, said = run_keys(own_server, "revoke", key_id, "--wait")
    assert status == 1
    assert "they go on with the keys they have. Start `penstock serve` on this state directory again" in said
    assert all(f"(pid {pid})" in said for pid in gateways)
    assert statuses(own_server, key) == {200}
    own_server.start().wait_ready()
    assert own_server.gateway_pids() == gateways
    assert run_keys(own_server, "revoke", key_id, "--wait")[0] == 0
    assert statuses(own_server, key) == {401}


def test_keys_are_made_and_revoked_where_no_server_runs() -> None:
    """What was done before the server started holds from its first request, and nothing it writes has a key's text."""
    server = make_served()
    try:
        key, _ = create(server)
        gone, gone_id = create(server)
        assert run_keys(server, "revoke", gone_id, "--wait")[0] == 0
        server.start().wait_ready()
        assert statuses(server, key) == {200}
        assert statuses(server, gone) == {401}
        server.terminate()
        assert server.wait_exit() == 0
        written = [path.read_bytes() for path in server.home.rglob("*") if path.is_file()]
        assert b'"status":401' in b"".join(written)  # the access log is on
        for text in (key, gone):
            assert not any(text.split("_")[2].encode() in content for content in written)
    finally:
        server.end()


def test_a_server_without_keys_takes_placeholders_until_there_is_a_key() -> None:
    """Where none is required or was made, any credential is as good as none; afterwards only none and keys are."""
    server = make_served(CONFIG.replace("required = true", "required = false"))
    try:
        server.start().wait_ready()
        assert statuses(server, "sk-unused", count=5) == {200}
        assert infer(server, authorization="Basic dTpw").status == 401
        key, key_id = create(server)
        assert statuses(server, "sk-unused") == {401}
        assert statuses(server, key, count=5) == {200}
        assert infer(server).status == 200
        run_keys(server, "revoke", key_id, "--wait")
        assert statuses(server, "sk-unused") | statuses(server, key) == {401}
    finally:
        server.end()


def test_a_broken_store_is_a_clear_end() -> None:
    """A head that cannot tell right keys from wrong ones does not start: status 2, and it says which file."""
    server = make_served()
    try:
        (server.home / "state").mkdir()
        (server.home / "state" / "keys.db").write_bytes(b"x" * 999)
        server.start()
        assert server.wait_exit() == 2
        assert "keys.db: expected a store of keys" in server.log()
    finally:
        server.end()
