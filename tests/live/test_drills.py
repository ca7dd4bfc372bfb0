"""`penstock drill` with real processes: the form of its report, its exit status, and that it leaves nothing behind.

The drills run far too short here to say anything of speed: whether their limits are kept is what a whole drill is for.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.clock import now_us
from penstock.core.errors import UpstreamError
from penstock.load.drills.limit_faults import SKEW_VARIABLE, skews_s
from penstock.load.drills.rate_limit import DEVICE, RateLimitCase
from penstock.load.drills.serving import DeviceModel, ServedFleet
from tests.live.serving import PENSTOCK, wait_until

CHECKS = {"overload": 20, "fairness": 4}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory for all temporary files of a drill, with a path short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="ps-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def start_drill(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start `penstock drill` with its temporary files in `folder`."""
    return subprocess.Popen(
        [str(PENSTOCK), "drill", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def processes_of(folder: Path) -> list[int]:
    """Return the pids of processes with this folder for temporary files: a drill and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_told = f"TMPDIR={folder}".encode() in (path / "environ").read_bytes().split(b"\0")
            # Redis writes its title over its environment, but it works in a folder of its own there.
            if is_told or str((path / "cwd").readlink()).startswith(f"{folder}/"):
                found.append(int(path.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_short_drill_reports_in_form_and_leaves_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    """Stdout and --report hold the same document with the documented keys; the exit status is its verdict."""
    file = tmp_path / "report.json"
    words = (name, "--duration-scale", "0.05", "--seed", "3", "--json", "--report", str(file))
    with start_drill(folder, *words) as process:
        out, err = process.communicate(timeout=100)
    assert err == ""
    report: dict[str, Any] = json.loads(out)
    assert json.loads(file.read_text()) == report
    assert list(report) == [
        *("name", "invariant", "fault", "device", "seed", "duration_scale", "figures", "checks", "passed")
    ]
    assert (report["name"], report["seed"], report["duration_scale"]) == (name, 3, 0.05)
    assert report["device"].startswith("emulated")
    assert len(report["checks"]) == CHECKS[name]
    for check in report["checks"]:
        assert list(check) == ["what", "limit", "measured", "passed"]
    assert report["passed"] is all(check["passed"] for check in report["checks"])
    assert process.returncode == (0 if report["passed"] else 1)
    assert all(value is None or isinstance(value, int | float) for value in report["figures"].values())
    goodput = [value for key, value in report["figures"].items() if key.endswith("goodput_per_s")]
    assert max(goodput) > 0, "nothing was served at all"
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "words", [(), ("--fault", "kill"), ("--fault", "restart-redis"), ("--fault", "failover", "--failover", "hard")]
)
def test_a_limit_holds_in_a_short_drill(words: tuple[str, ...], folder: Path) -> None:
    """Two gateways, 2 s, four times as much as is let in: no window over the bound, by the log and by the answers."""
    case = ("--instances", "2", "--limit", "200/s", "--burst", "40", "--offered", "800", "--duration", "2")
    with start_drill(folder, "rate-limit", *case, *words, "--json") as process:
        out, err = process.communicate(timeout=100)
    assert err == ""
    report: dict[str, Any] = json.loads(out)
    checks = {check["what"]: check for check in report["checks"]}
    bounded = [check for what, check in checks.items() if what.endswith("over burst + rate x time")]
    assert [check["limit"] for check in bounded] == ["<= 0"] * 2
    assert all(check["passed"] for check in bounded), report
    assert checks["gateways that decided"]["passed"]
    assert checks["answers without an admission in the log"]["passed"]
    assert "faults injected" in checks if words else checks["requests failed, neither answered nor refused"]["passed"]
    assert report["figures"]["excess_max"] == 0
    assert report["figures"]["admitted_count"] > 60
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []


def test_a_limit_that_is_given_up_is_noticed(folder: Path) -> None:
    """Under `open` everything passes while Redis is down: log and answers show the excess; exit status 1."""
    case = ("--instances", "2", "--limit", "200/s", "--burst", "40", "--offered", "2000", "--duration", "2")
    with start_drill(folder, "rate-limit", *case, "--fault", "restart-redis", "--unreachable", "open") as process:
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    failed = [line.split() for line in out.splitlines() if line.startswith("failed")]
    assert {words[1] for words in failed} >= {"admitted", "answered"}


def test_skewed_gateways_say_so() -> None:
    """The drill's wrong clocks reach the gateways: their answers' dates are an hour apart, and the limit holds."""
    case = RateLimitCase(instances=2, tokens=100, per_us=3_600_000_000, burst=5)
    command = [str(PENSTOCK), "serve"]
    environment = {SKEW_VARIABLE: skews_s(2)}
    with ServedFleet(
        command, [DEVICE], now_us, gateways=2, sections=lambda _: case.sections("x"), environment=environment
    ) as fleet:
        dates: set[float] = set()
        statuses = []

        def ask_once() -> bool:
            """Send a request on a connection of its own; return whether answers of both gateways have come."""
            connection = http.client.HTTPConnection(fleet.http.removeprefix("http://"), timeout=10)
            body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]})
            connection.request("POST", f"/v2/models/{DEVICE.name}/infer", body)
            answer = connection.getresponse()
            statuses.append(answer.status)
            dates.add(parsedate_to_datetime(answer.headers["date"]).timestamp())
            connection.close()
            return max(dates) - min(dates) > 1_000

        wait_until(ask_once, "answered by both gateways")
        for _ in range(20):
            ask_once()
    assert 3_590 <= max(dates) - min(dates) <= 3_620
    assert statuses.count(200) == 5
    assert set(statuses) == {200, 429}


@pytest.mark.parametrize(
    ("number", "words", "count"),
    [
        (signal.SIGTERM, ("overload",), 5),  # the drill itself, head, gateway, replica, generator
        (signal.SIGINT, ("overload",), 5),
        (signal.SIGTERM, ("rate-limit", "--instances", "2", "--redis", "own", "--fault", "pause"), 7),
    ],
)
def test_a_drill_that_is_stopped_ends_its_server(
    number: signal.Signals, words: tuple[str, ...], count: int, folder: Path
) -> None:
    """Ctrl-C or SIGTERM in the middle ends every process that was started, with exit status 130."""
    with start_drill(folder, *words) as process:
        wait_until(lambda: len(processes_of(folder)) >= count, "serving and under load", limit_s=60)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert processes_of(folder) == []


def test_a_server_that_does_not_start_says_why() -> None:
    """When the command ends without a ready line, what it wrote to stderr is in the error."""
    command = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    model = DeviceModel("m", beta_ms=1.0, alpha_ms=0.1, size_max=4, slo_ms=50.0)
    with pytest.raises(UpstreamError, match=r"(?s)expected it to get ready.*no such thing"):
        ServedFleet(command, [model], now_us).__enter__()
