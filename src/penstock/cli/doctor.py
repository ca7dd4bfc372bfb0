"""`penstock doctor`: is this machine fit to serve, and if not, what to do.

`observe_machine` gathers facts, `assess_*` judge them and touch nothing, the command prints. Not here: whether a
running server is well (`GET /api/status`, `/v2/health/ready`).
"""

import importlib
import json
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from penstock.cli.state import state_root

__all__ = ["Finding", "Machine", "Status", "assess_machine", "observe_machine", "register"]

PYTHON_MIN = (3, 11)  # pyproject.toml, requires-python
CORES_MIN = 2  # one for a gateway, one for a replica: the class of machine every published figure was measured on
FILES_FAIL = 256  # 128 connections, the load of the closed-loop benchmark, and as many sockets, logs and libraries
FILES_WANT = 4_096  # Little's law: 10,000 requests/s, each on a connection of its own for 0.4 s, up to a power of two
MEMORY_WANT_BYTES = 1 << 30  # a full queue (`QueueBounds.bytes_max`, 256 MiB) beside head, gateway and two small models
SOCKET_NAME_BYTES_MAX = 48  # what a socket's name may add to the state directory
SOCKET_PATH_BYTES_MAX = 107  # unix(7): sun_path holds 108 bytes, the last one 0
PORTS = {8000: "--http", 8002: "--admin"}  # the defaults of `penstock serve` and the option that moves each

# Clock sources that take a system call to read, which every time stamp then pays for. Source: Linux's vDSO clock modes
# (include/asm/vdso/clocksource.h), which read the processor's counter and the hypervisors' clocks in user space only.
SLOW_CLOCKS = frozenset({"acpi_pm", "hpet", "jiffies", "pit", "refined-jiffies"})

REQUIRED_PARTS = ("httptools", "msgspec", "numpy", "uvloop")
ONNX_PARTS = ("onnxruntime", "tokenizers")


class Status(StrEnum):
    """`ok`; `warn`: serves, but slower or with something missing; `fail`: will not serve."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the report, and one object of `--json` with the same keys.

    Args:
        name: What was looked at; stable, fit for scripts.
        status: The verdict.
        found: What is there.
        cure: What to do about it; '' when nothing needs doing.
    """

    name: str
    status: Status
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What `doctor` knows of a machine. Facts only; every judgement is in `assess_machine`.

    Args:
        python: Version, (major, minor, micro).
        implementation: `CPython`, `PyPy` ...
        cores: Cores this process may use, after affinity and container quota; may be a fraction.
        files_soft, files_hard: Limits on open files; -1 is no limit.
        memory_bytes: Memory that can be had without swapping; -1 if the system does not say.
        clock_source: The kernel's, '' if it does not say.
        has_reuse_port: Two sockets can listen on one port.
        state_dir: Where sockets and state would go.
        state_error: Why no Unix socket can be made there; '' if one can.
        ports_taken: Those of `PORTS` that another process holds.
        part_errors: Why a package cannot be imported, by name; packages that can be are absent.
        execution_providers: What onnxruntime can run on; empty without it.
        has_wrk: The load generator of `make bench` is on PATH.
    """

    python: tuple[int, int, int]
    implementation: str
    cores: float
    files_soft: int
    files_hard: int
    memory_bytes: int
    clock_source: str
    has_reuse_port: bool
    state_dir: Path
    state_error: str
    ports_taken: frozenset[int]
    part_errors: dict[str, str]
    execution_providers: tuple[str, ...]
    has_wrk: bool


def assess_machine(machine: Machine) -> tuple[Finding, ...]:
    """Judge every fact. Rows come in a fixed order, one per thing looked at, whatever the facts are."""
    return (
        assess_python(machine.python, machine.implementation),
        assess_cores(machine.cores),
        assess_memory(machine.memory_bytes),
        assess_open_files(machine.files_soft, machine.files_hard),
        assess_clock_source(machine.clock_source),
        assess_reuse_port(has_reuse_port=machine.has_reuse_port),
        assess_state_dir(machine.state_dir, machine.state_error),
        *(assess_port(port, is_taken=port in machine.ports_taken) for port in PORTS),
        *(assess_required_part(name, machine.part_errors.get(name)) for name in REQUIRED_PARTS),
        *(assess_onnx_part(name, machine.part_errors.get(name)) for name in ONNX_PARTS),
        assess_cuda(machine.execution_providers),
        assess_wrk(has_wrk=machine.has_wrk),
    )


def assess_python(version: tuple[int, int, int], implementation: str) -> Finding:
    """Judge the interpreter: an old one fails; one that is not CPython is untested."""
    found = f"{implementation} {'.'.join(map(str, version))}"
    if version[:2] < PYTHON_MIN:
        return Finding("python", Status.FAIL, found, "install Python 3.11 or newer, then: make PYTHON=python3.12 setup")
    if implementation != "CPython":
        return Finding("python", Status.WARN, found, "untested: use CPython")
    return Finding("python", Status.OK, found)


def assess_cores(cores: float) -> Finding:
    """Judge how many cores may be used: below two, a gateway and its replica take turns."""
    if cores < CORES_MIN:
        cure = f"give it {CORES_MIN} cores or more; gateway and replica take turns on what there is"
        return Finding("cores", Status.WARN, f"{cores:g}", cure)
    return Finding("cores", Status.OK, f"{cores:g}")


def assess_memory(memory_bytes: int) -> Finding:
    """Judge the memory that is free to use."""
    if memory_bytes < 0:
        return Finding("memory", Status.WARN, "not reported by the system", "make sure 1 GiB is free")
    found = f"{memory_bytes / (1 << 30):.1f} GiB available"
    if memory_bytes < MEMORY_WANT_BYTES:
        cure = "free 1 GiB, or lower queue.bytes_max and replicas.min"
        return Finding("memory", Status.WARN, found, cure)
    return Finding("memory", Status.OK, found)


def assess_open_files(soft: int, hard: int) -> Finding:
    """Judge the limit on open files: each client connection of a gateway is one. -1 is no limit."""
    found = "no limit" if soft < 0 else f"{soft} (may be raised to {'any' if hard < 0 else hard})"
    if soft < 0 or soft >= FILES_WANT:
        return Finding("open_files", Status.OK, found)
    cure = f"ulimit -n {FILES_WANT}"
    if 0 <= hard < FILES_WANT:
        cure = f"raise the hard limit to {FILES_WANT}: LimitNOFILE= of the unit, --ulimit nofile= of the container"
    return Finding("open_files", Status.FAIL if soft < FILES_FAIL else Status.WARN, found, cure)


def assess_clock_source(name: str) -> Finding:
    """Judge what the kernel keeps time with: with a slow source every time stamp is a system call."""
    if name in SLOW_CLOCKS:
        cure = "choose a faster one: /sys/devices/system/clocksource/clocksource0/available_clocksource lists them"
        return Finding("clock_source", Status.WARN, name, cure)
    return Finding("clock_source", Status.OK, name or "not reported by the system")


def assess_reuse_port(*, has_reuse_port: bool) -> Finding:
    """Judge whether gateways can share the inference port."""
    if has_reuse_port:
        return Finding("reuse_port", Status.OK, "SO_REUSEPORT works")
    return Finding("reuse_port", Status.FAIL, "SO_REUSEPORT refused", "use Linux 3.9 or newer: gateways share one port")


def assess_state_dir(directory: Path, error: str) -> Finding:
    """Judge the directory of sockets and state. `error` is why a socket could not be made there, '' if it could."""
    if error:
        cure = "pass --state DIR: writable, on a local file system, with a path of at most 59 bytes"
        return Finding("state_dir", Status.FAIL, f"{directory}: {error}", cure)
    return Finding("state_dir", Status.OK, f"{directory}: Unix sockets can be made")


def assess_port(port: int, *, is_taken: bool) -> Finding:
    """Judge one default port. Taken is a warning only: a running Penstock holds it too, and an option moves it."""
    if is_taken:
        cure = f"stop what holds it (ss -ltnp 'sport = :{port}'), or serve with {PORTS[port]} 127.0.0.1:{port + 100}"
        return Finding(f"port_{port}", Status.WARN, "in use on 127.0.0.1", cure)
    return Finding(f"port_{port}", Status.OK, "free on 127.0.0.1")


def assess_required_part(name: str, error: str | None) -> Finding:
    """Judge a package nothing works without. `error` is why it cannot be imported, None if it can."""
    if error is not None:
        return Finding(name, Status.FAIL, error, "run make setup, or: pip install --force-reinstall penstock")
    return Finding(name, Status.OK, "importable")


def assess_onnx_part(name: str, error: str | None) -> Finding:
    """Judge a package that only ONNX and text models need."""
    if error is not None:
        return Finding(name, Status.WARN, error, "for ONNX and text models: pip install 'penstock[onnx]'")
    return Finding(name, Status.OK, "importable")


def assess_cuda(providers: Iterable[str]) -> Finding:
    """Say whether ONNX models would run on a GPU. Without one nothing is wrong."""
    if "CUDAExecutionProvider" in providers:
        return Finding("cuda", Status.OK, "onnxruntime has the CUDA provider")
    return Finding("cuda", Status.OK, "no CUDA provider: ONNX models run on the CPU")


def assess_wrk(*, has_wrk: bool) -> Finding:
    """Judge the tool that `make bench` drives the closed loop with."""
    if has_wrk:
        return Finding("wrk", Status.OK, "on PATH")
    return Finding("wrk", Status.WARN, "not on PATH", "for make bench only: apt-get install wrk")


def observe_machine(state_dir: Path) -> Machine:
    """Gather the facts about this machine. Opens and closes sockets, makes and removes one directory; changes nothing.

    Args:
        state_dir: Where sockets and state would go.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    parts = {name: _import_error(name) for name in REQUIRED_PARTS + ONNX_PARTS}
    major, minor, micro = platform.python_version_tuple()
    return Machine(
        python=(int(major), int(minor), int("".join(c for c in micro if c.isdigit()))),
        implementation=platform.python_implementation(),
        cores=_cores(),
        files_soft=-1 if soft == resource.RLIM_INFINITY else soft,
        files_hard=-1 if hard == resource.RLIM_INFINITY else hard,
        memory_bytes=_memory_bytes(),
        clock_source=_read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        has_reuse_port=_has_reuse_port(),
        state_dir=state_dir,
        state_error=_state_error(state_dir),
        ports_taken=frozenset(port for port in PORTS if _is_taken(port)),
        part_errors={name: error for name, error in parts.items() if error is not None},
        execution_providers=_execution_providers() if parts["onnxruntime"] is None else (),
        has_wrk=shutil.which("wrk") is not None,
    )


def register(app: typer.Typer, *, observe: Callable[[Path], Machine] = observe_machine) -> None:
    """Add `penstock doctor` to the command line.

    Args:
        app: The program.
        observe: Where the facts come from, given the state directory.
    """

    @app.command(epilog="Example: penstock doctor --json | jq '.[] | select(.status != \"ok\")'")
    def doctor(
        state: Annotated[
            Path | None, typer.Option(help="Directory of sockets and state to try; by default where `serve` puts it.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print a list of {name, status, found, cure}.")] = False,
    ) -> None:
        """Check this machine and say what to do: one row per check, ok, warn or fail.

        Exit status 0 if nothing failed, 1 otherwise; warnings do not fail. Each object of --json has `name` (stable),
        `status` (ok, warn or fail), `found` (what is there) and `cure` (what to do; empty when nothing needs doing).
        """
        findings = assess_machine(observe(state or state_root()))
        if as_json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            _print_table(findings)
        raise typer.Exit(1 if any(f.status is Status.FAIL for f in findings) else 0)


def _print_table(findings: Iterable[Finding]) -> None:
    styles = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
    table = Table(title="penstock doctor", title_justify="left")
    for column in ("check", "status", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        status = f"[{styles[finding.status]}]{finding.status}[/]"
        table.add_row(finding.name, status, _escaped(finding.found), _escaped(finding.cure))
    Console().print(table)


def _escaped(text: str) -> str:
    """Keep rich from reading `[onnx]` as markup."""
    return text.replace("[", r"\[")


def _read(path: Path) -> str:
    """Return a small system file's text, '' where the system has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cores() -> float:
    """Count the cores this process may use. Source: Linux cgroup v2, cpu.max (`quota period` in µs, or `max`)."""
    cores = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def _memory_bytes() -> int:
    """Return the memory to be had: /proc/meminfo's MemAvailable, or what the container may still take if less."""
    rows = (line.split() for line in _read(Path("/proc/meminfo")).splitlines())
    available = next((int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"), -1)
    limit, used = (_read(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        left = max(0, int(limit) - int(used))
        return left if available < 0 else min(available, left)
    return available


def _has_reuse_port() -> bool:
    """Return True if two sockets can listen on one loopback port."""
    with socket.socket() as first, socket.socket() as second:
        try:
            for listener in (first, second):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            first.bind(("127.0.0.1", 0))
            first.listen()
            second.bind(first.getsockname())
            second.listen()
        except (OSError, AttributeError):  # AttributeError: the platform has no such option at all
            return False
    return True


def _is_taken(port: int) -> bool:
    """Return True if the loopback port cannot be bound. SO_REUSEADDR, so that closing connections do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _state_error(directory: Path) -> str:
    """Return why a Unix socket cannot be made in `directory`, '' if it can; if it is yet to be made, in its parent."""
    room = SOCKET_PATH_BYTES_MAX - SOCKET_NAME_BYTES_MAX
    if (length := len(os.fsencode(directory.absolute()))) > room:
        return f"path too long for Unix sockets: expected at most {room} bytes, got {length}"
    if directory.exists() and not directory.is_dir():
        return "not a directory"
    existing = next(d for d in (directory.absolute(), *directory.absolute().parents) if d.is_dir())
    try:
        with (
            tempfile.TemporaryDirectory(prefix="penstock-", dir=existing) as inside,
            socket.socket(socket.AF_UNIX) as s,
        ):
            s.bind(str(Path(inside) / "doctor.sock"))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _import_error(name: str) -> str | None:
    """Return why a package cannot be imported, None if it can."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library it needs is missing
        return f"{type(error).__name__}: {error}"
    return None


def _execution_providers() -> tuple[str, ...]:
    return tuple(importlib.import_module("onnxruntime").get_available_providers())
