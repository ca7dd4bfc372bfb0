"""The machine check: tables of facts and verdicts, and the command's contract with scripts."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import typer
from typer.testing import CliRunner

from penstock.cli.doctor import (
    Finding,
    Machine,
    Status,
    assess_clock_source,
    assess_cores,
    assess_cuda,
    assess_machine,
    assess_memory,
    assess_onnx_part,
    assess_open_files,
    assess_port,
    assess_python,
    assess_required_part,
    assess_reuse_port,
    assess_state_dir,
    assess_wrk,
    observe_machine,
    register,
)

FIT = Machine(
    python=(3, 11, 2),
    implementation="CPython",
    cores=2,
    files_soft=20_000,
    files_hard=20_000,
    memory_bytes=8 << 30,
    clock_source="tsc",
    has_reuse_port=True,
    state_dir=Path("/run/penstock"),
    state_error="",
    ports_taken=frozenset(),
    part_errors={},
    execution_providers=("CPUExecutionProvider",),
    has_wrk=True,
)
UNFIT = replace(
    FIT,
    python=(3, 9, 0),
    cores=1,
    files_soft=128,
    memory_bytes=0,
    clock_source="hpet",
    has_reuse_port=False,
    state_error="Permission denied",
    ports_taken=frozenset({8000, 8002}),
    part_errors=dict.fromkeys(
        ("httptools", "msgspec", "numpy", "uvloop", "onnxruntime", "tokenizers"), "ImportError: no"
    ),
    execution_providers=(),
    has_wrk=False,
)


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (assess_python((3, 11, 0), "CPython"), Status.OK),
        (assess_python((3, 10, 9), "CPython"), Status.FAIL),
        (assess_python((3, 12, 1), "PyPy"), Status.WARN),
        (assess_cores(2), Status.OK),
        (assess_cores(1.5), Status.WARN),
        (assess_memory(1 << 30), Status.OK),
        (assess_memory((1 << 30) - 1), Status.WARN),
        (assess_memory(-1), Status.WARN),
        (assess_open_files(4_096, 4_096), Status.OK),
        (assess_open_files(-1, -1), Status.OK),
        (assess_open_files(4_095, 1 << 20), Status.WARN),
        (assess_open_files(256, -1), Status.WARN),
        (assess_open_files(255, -1), Status.FAIL),
        (assess_clock_source("tsc"), Status.OK),
        (assess_clock_source(""), Status.OK),
        (assess_clock_source("acpi_pm"), Status.WARN),
        (assess_reuse_port(has_reuse_port=True), Status.OK),
        (assess_reuse_port(has_reuse_port=False), Status.FAIL),
        (assess_state_dir(Path("/run/x"), ""), Status.OK),
        (assess_state_dir(Path("/run/x"), "Permission denied"), Status.FAIL),
        (assess_port(8000, is_taken=False), Status.OK),
        (assess_port(8002, is_taken=True), Status.WARN),
        (assess_required_part("uvloop", None), Status.OK),
        (assess_required_part("uvloop", "ImportError: no"), Status.FAIL),
        (assess_onnx_part("onnxruntime", None), Status.OK),
        (assess_onnx_part("onnxruntime", "ImportError: no"), Status.WARN),
        (assess_cuda(["CUDAExecutionProvider"]), Status.OK),
        (assess_cuda([]), Status.OK),
        (assess_wrk(has_wrk=True), Status.OK),
        (assess_wrk(has_wrk=False), Status.WARN),
    ],
)
def test_each_fact_has_one_verdict(finding: Finding, status: Status) -> None:
    """The verdict turns exactly at its limit, and a cure is given if and only if something needs doing."""
    assert finding.status is status
    assert bool(finding.cure) == (status is not Status.OK)


def test_cure_of_open_files_fits_the_hard_limit() -> None:
    """`ulimit -n` is advised only where the hard limit lets it work."""
    assert assess_open_files(1_024, 1 << 20).cure == "ulimit -n 4096"
    assert "hard limit" in assess_open_files(1_024, 2_048).cure


def test_cure_of_a_port_names_the_option_that_moves_it() -> None:
    """Each default port is moved by its own option of `serve`."""
    assert "--http" in assess_port(8000, is_taken=True).cure
    assert "--admin" in assess_port(8002, is_taken=True).cure


def test_rows_do_not_depend_on_the_facts() -> None:
    """A script finds the same names in the same order on every machine, each once."""
    names = [finding.name for finding in assess_machine(FIT)]
    assert names == [finding.name for finding in assess_machine(UNFIT)]
    assert len(names) == len(set(names))


@pytest.fixture
def state() -> Iterator[Path]:
    """Lend an empty directory with a path short enough for sockets."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


def test_observing_fills_every_fact_and_leaves_no_trace(state: Path) -> None:
    """Facts come from this machine, and the state directory is as it was."""
    machine = observe_machine(state)
    assert machine.python >= (3, 11, 0)
    assert machine.cores > 0
    assert machine.state_error == ""
    assert machine.part_errors.keys().isdisjoint({"uvloop", "httptools", "msgspec", "numpy"})
    assert list(state.iterdir()) == []


def test_state_directory_that_cannot_hold_a_socket_is_found_out(state: Path) -> None:
    """A path too long for a socket's name and a file in the way are errors; a directory yet to be made is not."""
    (state / "file").touch()
    assert observe_machine(state / "new" / "state").state_error == ""
    assert not (state / "new").exists()
    assert "at most 59 bytes" in observe_machine(state / ("d" * 60)).state_error
    assert "not a directory" in observe_machine(state / "file").state_error


def test_port_in_use_is_found_out(state: Path) -> None:
    """A default port that someone listens on counts as taken."""
    with socket.socket() as holder:
        try:
            holder.bind(("127.0.0.1", 8002))
        except OSError:
            pass  # somebody else holds it, which serves as well
        else:
            holder.listen()
        assert 8002 in observe_machine(state).ports_taken


def run(machine: Machine, *arguments: str) -> tuple[int, str]:
    """Run the command over given facts: exit status and stdout."""
    app = typer.Typer()
    app.callback()(lambda: None)  # a program of one command would swallow the command's name
    register(app, observe=lambda state: replace(machine, state_dir=state))
    result = CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout


def test_json_has_the_documented_keys() -> None:
    """`--json` is a list of objects with name, status, found and cure, in the order of the table."""
    status, out = run(FIT, "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["name"] for row in rows] == [finding.name for finding in assess_machine(FIT)]
    assert {tuple(row) for row in rows} == {("name", "status", "found", "cure")}
    assert {row["status"] for row in rows} == {"ok"}


def test_failure_is_the_exit_status() -> None:
    """One failed check makes the status 1; warnings alone leave it 0."""
    assert run(UNFIT)[0] == 1
    assert run(UNFIT, "--json")[0] == 1
    assert run(replace(FIT, has_wrk=False))[0] == 0


def test_table_shows_cures_as_written() -> None:
    """Brackets in a cure are text: the table does not read them as markup."""
    assert "pip install 'penstock[onnx]'" in run(UNFIT)[1]


def test_state_option_is_what_is_tried() -> None:
    """`--state DIR` is the directory that is reported on."""
    assert "/srv/penstock" in run(FIT, "--state", "/srv/penstock", "--json")[1]


def test_help_shows_an_example() -> None:
    """`--help` ends with a command that can be copied."""
    assert "penstock doctor --json" in run(FIT, "--help")[1]
