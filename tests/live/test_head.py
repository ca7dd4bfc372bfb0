"""The head with real processes that only speak its protocol: ready, restarts, faults, adoption, stopping."""

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from penstock.wire.control import ReplicaFault, encode_message
from tests.live.fake_child import ANSWERED

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
POLL_S = 0.02
LIMIT_S = 40.0


class Fleet:
    """A head in a directory of its own, with the means to look at it and to hurt it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.admin = ""
        self.head: subprocess.Popen[str] | None = None
        self.stderr: IO[str] = (directory / "stderr").open("a+")

    def write(self, *, gateways: int = 1, replicas: int = 1, options: dict[str, str] | None = None) -> None:
        """Write the configuration."""
        (self.directory / "m.py").touch()
        table = ", ".join(f'{key} = "{value}"' for key, value in (options or {}).items())
        (self.directory / "penstock.toml").write_text(
            f'[server]\nhttp = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\nstate = "state"\ngateways = {gateways}\n'
            f'drain_s = 10\n[models.m]\npath = "m.py"\noptions = {{ {table} }}\nreplicas.min = {replicas}\n'
        )

    def start(self, **environment: str) -> "subprocess.Popen[str]":
        """Start a head without waiting for anything."""
        self.head = subprocess.Popen(
            [sys.executable, "-m", "tests.live.fake_fleet", str(self.directory / "penstock.toml")],
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )
        return self.head

    def wait_ready(self) -> dict[str, Any]:
        """Read the ready line; return what it says."""
        assert self.head is not None
        assert self.head.stdout is not None
        line = self.head.stdout.readline()
        assert line, self.log()
        said: dict[str, Any] = json.loads(line)
        self.admin = said["admin"]
        return said

    def log(self) -> str:
        """Return what the head wrote to stderr."""
        return (self.directory / "stderr").read_text()

    def journal(self) -> list[str]:
        """Return what the children were told."""
        return (self.state / "journal").read_text().splitlines()

    def get(self, path: str) -> str:
        """Read a page of the admin port."""
        connection = http.client.HTTPConnection(self.admin.removeprefix("http://"), timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        document: dict[str, Any] = json.loads(self.get("/api/status"))
        return document

    def model(self) -> dict[str, Any]:
        """Return the model's part of the status."""
        found: dict[str, Any] = self.status()["models"][0]
        return found

    def replica(self) -> dict[str, Any]:
        """Return the first replica's part of the status."""
        found: dict[str, Any] = self.model()["replicas"][0]
        return found

    def answered(self) -> int:
        """Return the sum of answered requests that the metrics show."""
        prefix = 'penstock_http_responses_total{code="200"} '
        return sum(int(line.removeprefix(prefix)) for line in self.get("/metrics").splitlines() if prefix in line)

    def pids(self) -> list[int]:
        """Return the children's pids as the head wrote them down."""
        file = self.state / "fleet.json"
        return [child["pid"] for child in json.loads(file.read_text())["children"]] if file.exists() else []

    def kill_head(self) -> None:
        """End the head with kill -9, if there is one."""
        if self.head is not None:
            self.head.kill()
            self.head.wait()
            assert self.head.stdout is not None
            self.head.stdout.close()

    def clean_up(self) -> None:
        """Leave no process behind, however the test went."""
        pids = self.pids()
        self.kill_head()
        for pid in {*pids, *self.pids()}:
            if is_alive(pid) and "fake_child" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
        self.stderr.close()


def is_alive(pid: int) -> bool:
    """Return True if a process runs, zombies excluded."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until `condition` holds."""
    for _ in range(int(LIMIT_S / POLL_S)):
        if condition():
            return
        time.sleep(POLL_S)
    pytest.fail(f"after {LIMIT_S} s still not {what}")


@contextmanager
def open_fleet() -> Iterator[Fleet]:
    """Make a fleet in a directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        fleet = Fleet(Path(directory))
        try:
            yield fleet
        finally:
            fleet.clean_up()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with open_fleet() as made:
        yield made


def test_ready_is_said_once_and_not_before_every_model_is(fleet: Fleet) -> None:
    """The ready line follows the last hello and the gateways' own finding, and is all that stdout gets."""
    gate = fleet.directory / "gate"
    fleet.write(gateways=2, options={"gate": str(gate)})
    head = fleet.start()
    wait_until(lambda: fleet.log().count("gateway-") >= 4, "both gateways up")
    assert head.stdout is not None
    assert select.select([head.stdout], [], [], 0)[0] == []
    gate.touch()
    fleet.wait_ready()
    status = fleet.status()
    assert status["ready"]
    assert [g["ready"] for g in status["gateways"]] == [True, True]
    model = status["models"][0]
    assert (model["version"], model["state"], model["batching"]["size_max"]) == ("7", "READY", 4)
    head.send_signal(signal.SIGTERM)
    assert head.wait(LIMIT_S) == 0
    assert head.stdout.read() == ""


def test_a_killed_replica_is_replaced(fleet: Fleet) -> None:
    """A replica ended by kill -9 gets a successor on a new address, and readiness returns."""
    fleet.write()
    fleet.start()
    fleet.wait_ready()
    before = fleet.replica()
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: fleet.replica()["restarts"] == 1 and fleet.status()["ready"], "replaced")
    after = fleet.replica()
    assert after["pid"] != before["pid"]
    assert after["address"] != before["address"]
    assert after["last_exit"] == "killed by SIGKILL"
    assert not Path(before["address"].removeprefix("unix:")).exists()


def test_counters_survive_their_gateway(fleet: Fleet) -> None:
    """When a gateway is killed and replaced, its counts stay in the sum and its gauges leave it."""
    fleet.write(gateways=2)
    fleet.start()
    fleet.wait_ready()
    wait_until(lambda: fleet.answered() == 2 * ANSWERED, "both reported")
    os.kill(fleet.status()["gateways"][0]["pid"], signal.SIGKILL)
    seen = [0]

    def is_replaced() -> bool:
        seen.append(fleet.answered())
        return seen[-1] == 3 * ANSWERED

    wait_until(is_replaced, "replaced")
    assert seen == sorted(seen)
    wait_until(lambda: "penstock_connections 2\n" in fleet.get("/metrics"), "gauges of the living only")


def test_a_faulty_replica_is_killed_and_replaced(fleet: Fleet) -> None:
    """A replica that a gateway reports as faulty is killed although it lives, and another takes its place."""
    fleet.write(replicas=2)
    fleet.start()
    fleet.wait_ready()
    before = fleet.replica()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(fleet.state / "control.sock"))
        link.sendall(encode_message(ReplicaFault(before["address"], "answers nonsense")))
        wait_until(lambda: not is_alive(before["pid"]), "killed")
    wait_until(lambda: fleet.replica()["state"] == "ready", "replaced")
    assert fleet.replica()["pid"] != before["pid"]
    assert "answers nonsense" in fleet.log()
    assert fleet.model()["replicas"][1]["restarts"] == 0


def test_a_model_that_cannot_load_says_why_and_recovers(fleet: Fleet) -> None:
    """After it was ready once, a model that fails to load is UNAVAILABLE with its reason, and is tried again."""
    brick = fleet.directory / "brick"
    fleet.write(options={"fail_if": str(brick)})
    fleet.start()
    fleet.wait_ready()
    brick.touch()
    os.kill(fleet.replica()["pid"], signal.SIGKILL)
    wait_until(lambda: fleet.model()["reason"] == "expected a model, got a brick", "unavailable")
    wait_until(lambda: fleet.replica()["restarts"] >= 3, "retried")
    assert fleet.model()["state"] == "UNAVAILABLE"
    assert not fleet.status()["ready"]
    brick.unlink()
    wait_until(lambda: fleet.status()["ready"], "recovered")
    assert fleet.model()["reason"] == ""


def test_a_model_that_never_loads_ends_the_start(fleet: Fleet) -> None:
    """Three failures in a row before the first ready end the head with status 1 and the reason, children gone."""
    brick = fleet.directory / "brick"
    brick.touch()
    fleet.write(options={"fail_if": str(brick)})
    head = fleet.start()
    assert head.wait(LIMIT_S) == 1
    assert "cannot start: m#0: expected a model, got a brick" in fleet.log()
    assert head.stdout is not None
    assert head.stdout.read() == ""


def test_sigterm_drains_gateways_before_replicas(fleet: Fleet) -> None:
    """On SIGTERM gateways drain first, replicas after they have left; the head exits 0 and leaves nothing behind."""
    fleet.write(gateways=2, replicas=2)
    head = fleet.start()
    fleet.wait_ready()
    wait_until(lambda: all(r["state"] == "ready" for r in fleet.model()["replicas"]), "all replicas up")
    pids = fleet.pids()
    assert len(pids) == 4
    head.send_signal(signal.SIGTERM)
    assert head.wait(LIMIT_S) == 0
    told = [line.split(" ")[0].split("-")[0].split("#")[0] for line in fleet.journal()]
    assert told == ["gateway", "gateway", "m", "m"]
    assert not any(is_alive(pid) for pid in pids)
    assert sorted(p.name for p in fleet.state.iterdir()) == ["head.lock", "journal"]


def test_a_second_interrupt_ends_everything_at_once(fleet: Fleet) -> None:
    """When draining takes too long for the user, a second Ctrl-C kills the children and exits 1."""
    fleet.write()
    head = fleet.start(PENSTOCK_FAKE_DEAF="1")
    fleet.wait_ready()
    pids = fleet.pids()
    head.send_signal(signal.SIGINT)
    wait_until(lambda: (fleet.state / "journal").exists() and fleet.journal(), "draining")
    assert head.poll() is None
    head.send_signal(signal.SIGINT)
    assert head.wait(LIMIT_S) == 1
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "killed")


def test_a_restarted_head_adopts_the_children_of_a_killed_one(fleet: Fleet) -> None:
    """To kill -9 the head harms no child; the next head takes over the same processes on the same port."""
    fleet.write(gateways=2, replicas=2)
    fleet.start()
    before = fleet.wait_ready()
    pids = sorted(fleet.pids())
    fleet.kill_head()
    assert all(is_alive(pid) for pid in pids)
    fleet.start()
    after = fleet.wait_ready()
    assert after["http"] == before["http"]
    assert sorted(fleet.pids()) == pids
    assert fleet.log().count("adopted") == 4
    # From the replica's hello to the last head, by its record to this one; and from the gateways' own reports.
    times_us = {bucket: profile["times_us"] for bucket, profile in fleet.model()["profile"].items()}
    assert times_us == {"": [1_000, 2_500], "long": [9_000]}
    victim = fleet.replica()["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: fleet.replica()["pid"] not in (None, victim) and fleet.status()["ready"], "supervised")


def test_a_restarted_head_starts_only_what_is_missing(fleet: Fleet) -> None:
    """Of the children, those that died without a head are started again and the others kept."""
    fleet.write(replicas=2)
    fleet.start()
    fleet.wait_ready()
    gone, kept = (r["pid"] for r in fleet.model()["replicas"])
    fleet.kill_head()
    os.kill(gone, signal.SIGKILL)
    wait_until(lambda: not is_alive(gone), "dead")
    fleet.start()
    fleet.wait_ready()
    wait_until(lambda: fleet.replica()["state"] == "ready", "started again")
    replicas = fleet.model()["replicas"]
    assert replicas[0]["pid"] != gone
    assert replicas[1]["pid"] == kept


def test_a_restarted_head_stops_what_is_no_longer_wanted(fleet: Fleet) -> None:
    """Children started from another configuration are drained and replaced, never silently kept."""
    fleet.write(replicas=2, options={"note": "old"})
    fleet.start()
    fleet.wait_ready()
    old = [r["pid"] for r in fleet.model()["replicas"]]
    gateway = fleet.status()["gateways"][0]["pid"]
    fleet.kill_head()
    fleet.write(replicas=1, options={"note": "new"})
    fleet.start()
    fleet.wait_ready()
    wait_until(lambda: not any(is_alive(pid) for pid in old), "stopped")
    assert len(fleet.model()["replicas"]) == 1
    assert fleet.status()["gateways"][0]["pid"] == gateway


def test_a_state_directory_has_one_head(fleet: Fleet) -> None:
    """A second head on the same directory refuses with status 2 and names the first; the first is unharmed."""
    fleet.write()
    head = fleet.start()
    fleet.wait_ready()
    second = subprocess.run(
        [sys.executable, "-m", "tests.live.fake_fleet", str(fleet.directory / "penstock.toml")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=LIMIT_S,
    )
    assert second.returncode == 2
    assert f"expected no other head, got one with pid {head.pid}" in second.stderr
    assert fleet.status()["ready"]


def test_a_port_has_one_fleet(fleet: Fleet) -> None:
    """A fleet does not share its inference port with another one, although the kernel would let it."""
    fleet.write()
    fleet.start()
    address = fleet.wait_ready()["http"].removeprefix("http://")
    with socket.socket() as listener:
        # What a real gateway does; the fake one does not listen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address.split(":")[0], int(address.split(":")[1])))
        listener.listen()
        with open_fleet() as other:
            other.write()
            config = other.directory / "penstock.toml"
            config.write_text(config.read_text().replace('http = "127.0.0.1:0"', f'http = "{address}"'))
            assert other.start().wait(LIMIT_S) == 2
            assert f"{address}: expected a free port" in other.log()
