"""One server at a time in a session of its own: start it, wait until it answers right, end all that it started.

A session rather than a process group, because some systems put their children into groups of their own.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from bench.peers.catalogue import ANSWER, Peer, Place
from bench.serving import free_port

_START_S_MAX = 120.0
_STOP_S_MAX = 20.0
_POLL_S = 0.1
_HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # the caller's Python is none of the server's business


@contextmanager
def hosting(peer: Peer, bin_: Path) -> Iterator[str]:
    """Run `peer` on free loopback ports; yields the URL to post to once one answer was right.

    Raises:
        RuntimeError: it ended, stayed silent for too long or answered wrongly; the message says which.
    """
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as scratch:
        place = Place(
            bin=bin_,
            files=Path(__file__).parent / peer.name,
            scratch=Path(scratch),
            ports=(free_port(), free_port(), free_port()),
        )
        environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", **peer.environment(place)}
        environment["PATH"] = f"{bin_}:{environment['PATH']}"
        log = place.scratch / "server.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                peer.command(place),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=place.scratch,
                env=environment,
            )
        url = f"http://127.0.0.1:{place.http}{peer.path}"
        try:
            _wait_until_right(peer, url, process, log)
            yield url
        finally:
            _stop(process)


def check_answer(peer: Peer, url: str) -> None:
    """Post the body once.

    Raises:
        OSError, HTTPException: no answer, half an answer, or one of status 400 and above.
        RuntimeError: an answer that is not the sum of the row.
    """
    request = urllib.request.Request(url, peer.body, {"Content-Type": "application/json"})  # noqa: S310 - http, our own
    with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 - as above
        text = reply.read()
    try:
        found = peer.answer(json.loads(text))
    except (ValueError, KeyError, IndexError, TypeError):
        found = None
    if found != ANSWER:
        raise RuntimeError(f"wrong answer: expected {ANSWER}, got {text[:200]!r}")


def _wait_until_right(peer: Peer, url: str, process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + _START_S_MAX
    while True:
        try:
            check_answer(peer, url)
        except (OSError, HTTPException) as error:  # not listening, or not ready (404, 503)
            if process.poll() is not None:
                raise RuntimeError(f"ended with status {process.returncode}: {_last_line(log)}") from error
            if time.monotonic() > end:
                raise RuntimeError(f"no answer within {_START_S_MAX:.0f} s ({error}): {_last_line(log)}") from error
            time.sleep(_POLL_S)
        else:
            return


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _stop(process: subprocess.Popen[Any]) -> None:
    """Ask the server to end, then end whatever is left of its session."""
    session = process.pid
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _session_members(session):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it ended by itself, which is what was wanted
        if _wait_until(lambda: not _session_members(session), _STOP_S_MAX):
            return


def _wait_until(is_true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True


def _session_members(session: int) -> list[int]:
    """Return the pids of the session's processes that still run."""
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, owner = entry.read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it ended while we looked
        if int(owner) == session and state not in "ZX":
            members.append(int(entry.parent.name))
    return members
