"""Processes as the kernel knows them: start one, find one again, watch it end, signal it, read what it uses.

A process is known by its pid and its start time, so that a recycled pid is never taken for it, and is signalled
through a pidfd, so that a signal never hits a stranger. Linux only.
Not here: whether to start it again (`policy/restarting.py`), what it is for (`supervisor.py`).
Source: pidfd_open(2), proc_pid_stat(5).
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "ProcessUsage", "adopt_process", "is_running", "read_boot_id", "read_usage", "spawn_process"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STDERR = 2


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What a process has used: CPU time since its start (user and system), and resident memory now."""

    cpu_us: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    start_ticks: int
    usage: ProcessUsage


def _read_stat(pid: int) -> _Stat | None:
    """Read /proc/PID/stat; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command stands in parentheses and may itself hold any character: fields are counted after the last one.
    fields = text.rpartition(")")[2].split()
    cpu_ticks = int(fields[11]) + int(fields[12])
    usage = ProcessUsage(cpu_ticks * 1_000_000 // _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES)
    return _Stat(state=fields[0], start_ticks=int(fields[19]), usage=usage)


def read_usage(pid: int) -> ProcessUsage | None:
    """Return what process `pid` has used so far; None if it is gone."""
    stat = _read_stat(pid)
    return None if stat is None else stat.usage


def read_boot_id() -> str:
    """Return what tells this boot of the machine from any other: pids and start times of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Process:
    """A running process, watched through its pidfd on the current event loop until it ends.

    Attributes:
        pid: Its process id.
        start_ticks: When it started, kernel ticks since boot: with the pid, its identity.
        exit_text: How it ended, for people; '' while it runs.
    """

    __slots__ = ("_child", "_ended", "_loop", "_on_exit", "_pidfd", "exit_text", "pid", "start_ticks")

    def __init__(
        self,
        pid: int,
        start_ticks: int,
        pidfd: int,
        child: subprocess.Popen[bytes] | None,
        on_exit: Callable[["Process"], None],
    ) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.exit_text = ""
        self._pidfd = pidfd
        self._child = child
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_reader(pidfd, self._end)

    @property
    def is_running(self) -> bool:
        """True until its end has been noticed."""
        return not self._ended.is_set()

    @property
    def is_child(self) -> bool:
        """True if this process started it; False if it was adopted."""
        return self._child is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if not self.is_running:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # it ended this instant; the pidfd is about to say so

    async def wait_ended(self) -> None:
        """Wait until it has ended and `on_exit` has been called."""
        await self._ended.wait()

    def _end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # Only a parent may ask how a process ended; of an adopted one nobody can know.
        self.exit_text = "exit status unknown (adopted)" if self._child is None else _describe_exit(self._child.wait())
        self._ended.set()
        self._on_exit(self)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def spawn_process(command: Sequence[str], on_exit: Callable[[Process], None]) -> Process:
    """Start `command`, watched. It inherits stderr, writes its stdout there too, and has no stdin.

    It outlives this process on purpose: see `adopt_process`.

    Raises:
        OSError: The system cannot start it (no such file, no memory, too many processes). Try again later.
    """
    child = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=_STDERR)
    stat = _read_stat(child.pid)
    # Not waited for yet, so it is there, at least as a zombie.
    assert stat is not None
    return Process(child.pid, stat.start_ticks, os.pidfd_open(child.pid), child, on_exit)


def adopt_process(pid: int, start_ticks: int, on_exit: Callable[[Process], None]) -> Process | None:
    """Watch a process that an earlier head started; None if it is gone or the pid is another's now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    # With the pidfd open the pid cannot be recycled any more, so what /proc says now is about this process.
    stat = _read_stat(pid)
    if stat is None or stat.start_ticks != start_ticks or stat.state == "Z":
        os.close(pidfd)
        return None
    return Process(pid, start_ticks, pidfd, None, on_exit)


def is_running(pid: int, start_ticks: int) -> bool:
    """Return True if the process with this pid and start time still runs."""
    stat = _read_stat(pid)
    return stat is not None and stat.start_ticks == start_ticks and stat.state != "Z"
