"""Processes: an end is noticed and described, and a recycled pid is never taken for the process."""

import asyncio
import os
import signal
import sys

import pytest

from penstock.fleet.processes import Process, adopt_process, is_running, read_usage, spawn_process


def run(script: str, *numbers: signal.Signals) -> Process:
    """Run a Python script to its end, sending it signals once it runs."""

    async def run_to_end() -> Process:
        ended: list[Process] = []
        process = spawn_process([sys.executable, "-c", script], ended.append)
        for number in numbers:
            process.signal(number)
        async with asyncio.timeout(30):
            await process.wait_ended()
        assert ended == [process]
        process.signal(signal.SIGKILL)
        return process

    return asyncio.run(run_to_end())


@pytest.mark.parametrize(
    ("script", "numbers", "text"),
    [
        ("", [], "exit status 0"),
        ("raise SystemExit(3)", [], "exit status 3"),
        ("input()", [], "exit status 1"),
        ("import signal; signal.pause()", [signal.SIGKILL], "killed by SIGKILL"),
    ],
)
def test_an_end_is_noticed_and_described(script: str, numbers: list[signal.Signals], text: str) -> None:
    """`on_exit` is called once, the exit text tells status or signal, later signals do nothing, stdin is empty."""
    process = run(script, *numbers)
    assert process.exit_text == text
    assert not process.is_running


def test_what_cannot_be_started_raises() -> None:
    """A command that does not exist is an OSError, not a process."""

    async def start() -> None:
        spawn_process(["/nonexistent"], lambda _: None)

    with pytest.raises(FileNotFoundError):
        asyncio.run(start())


def test_adoption_needs_pid_and_start_time() -> None:
    """A process is adopted under its own start time; under another it is a stranger, and so it is once it ended."""

    async def adopt() -> None:
        pause = [sys.executable, "-c", "import signal; signal.pause()"]
        process = spawn_process(pause, lambda _: None)
        try:
            assert is_running(process.pid, process.start_ticks)
            assert not is_running(process.pid, process.start_ticks + 1)
            assert adopt_process(process.pid, process.start_ticks + 1, lambda _: None) is None
            adopted = adopt_process(process.pid, process.start_ticks, lambda _: None)
        finally:
            process.signal(signal.SIGKILL)
        assert adopted is not None
        async with asyncio.timeout(30):
            await adopted.wait_ended()
            await process.wait_ended()
        assert adopted.exit_text == "exit status unknown (adopted)"
        assert adopt_process(process.pid, process.start_ticks, lambda _: None) is None
        assert not is_running(process.pid, process.start_ticks)

    asyncio.run(adopt())


def test_usage_is_of_the_living_only() -> None:
    """A living process has resident memory; a pid that cannot exist has no usage."""
    usage = read_usage(os.getpid())
    assert usage is not None
    assert usage.resident_bytes > 1_000_000
    assert read_usage(2**22 + 1) is None
