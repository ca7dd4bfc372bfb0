"""A gateway or replica that only speaks the control protocol: what a head is tested with, started as a process.

    python -m tests.live.fake_child gateway|replica JSON

A replica obeys options of its model: `gate` (say hello once this file exists), `fail_if` (fail to load while this file
exists). A gateway finds ready what its snapshot says is, and claims ten answered requests. PENSTOCK_FAKE_DEAF=1 makes
gateways ignore Drain. Each notes what it is told in `journal` beside the control socket.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.core.launch import GatewayLaunch, ReplicaLaunch
from penstock.core.models import Batching, ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.statistics import GatewayStatistics
from penstock.core.tensors import TensorSpec
from penstock.wire.control import (
    ControlDecoder,
    Drain,
    Drained,
    GatewayHello,
    GatewayReport,
    LoadFailed,
    Message,
    ReplicaHello,
    Snapshot,
    encode_message,
)

RETRY_S = 0.05
REPORT_S = 0.2
ANSWERED = 10


def wait_while(condition: Callable[[], bool], limit_s: float = 60) -> None:
    """Poll until `condition` is false, for at most a minute."""
    for _ in range(int(limit_s / RETRY_S)):
        if not condition():
            return
        time.sleep(RETRY_S)
    sys.exit(3)


def wait_connected(path: str) -> socket.socket:
    """Connect to a head, whenever there is one."""
    link = socket.socket(socket.AF_UNIX)

    def is_refused() -> bool:
        try:
            link.connect(path)
        except OSError:
            return True
        return False

    wait_while(is_refused)
    return link


def note(control: str, text: str) -> None:
    """Append a line to the journal."""
    with (Path(control).parent / "journal").open("a") as journal:
        journal.write(text + "\n")


def serve(control: str, name: str, hello: Message, report: Callable[[Snapshot], Message] | None) -> None:
    """Say hello to one head after another, report, and exit when told to drain."""
    snapshot = Snapshot(0, ())
    while True:
        link = wait_connected(control)
        link.settimeout(REPORT_S)
        decoder = ControlDecoder()
        try:
            link.sendall(encode_message(hello))
            while True:
                try:
                    data = link.recv(65536)
                except TimeoutError:
                    data = None
                if data == b"":
                    break
                for message in decoder.feed(data) if data else []:
                    if isinstance(message, Snapshot):
                        snapshot = message
                    if isinstance(message, Drain):
                        note(control, f"{name} drain")
                        if not (report and os.environ.get("PENSTOCK_FAKE_DEAF")):
                            link.sendall(encode_message(Drained(os.getpid())))
                            return
                if report is not None:
                    link.sendall(encode_message(report(snapshot)))
        except OSError:
            pass
        link.close()


def run_gateway(launch: GatewayLaunch) -> None:
    """Be a gateway."""

    def report(snapshot: Snapshot) -> Message:
        ready = {f"{m.name}:{m.version}": m.state == "READY" and bool(m.replicas) for m in snapshot.models}
        profiles = {key: {"long": CostProfile((1,), (9_000,))} for key in ready}
        statistics = GatewayStatistics(responses={200: ANSWERED}, connections=1)
        return GatewayReport(statistics, ready, draining=False, profiles=profiles)

    name = f"gateway-{launch.index}"
    serve(launch.control, name, GatewayHello(os.getpid(), launch.index, launch.http), report)


def run_replica(launch: ReplicaLaunch) -> None:
    """Be a replica."""
    options = launch.source.options
    if "fail_if" in options and Path(options["fail_if"]).exists():
        link = wait_connected(launch.control)
        link.sendall(encode_message(LoadFailed(os.getpid(), launch.replica, "expected a model, got a brick")))
        sys.exit(1)
    if "gate" in options:
        wait_while(lambda: not Path(options["gate"]).exists())
    spec = ModelSpec(
        name=launch.source.name,
        version="7",
        inputs=(TensorSpec("x", "FP32", (-1, 8)),),
        outputs=(TensorSpec("y", "FP32", (-1, 1)),),
        batching=Batching(size_max=4),
    )
    hello = ReplicaHello(os.getpid(), launch.replica, launch.address, spec, 1234, CostProfile((1, 4), (1_000, 2_500)))
    serve(launch.control, launch.replica, hello, None)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[1] == "gateway":
        run_gateway(msgspec.json.decode(sys.argv[2], type=GatewayLaunch))
    else:
        run_replica(msgspec.json.decode(sys.argv[2], type=ReplicaLaunch))
