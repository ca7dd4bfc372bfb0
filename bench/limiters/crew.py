"""The parent's end of the workers: start them, hand each a job, collect the answers.

Not here: what they do (`worker.py`), which jobs make a scenario (`scenarios.py`).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.history import ROOT
from bench.limiters.catalogue import Contender
from bench.serving import running

__all__ = ["Crew", "crew"]

# Between the handing out of a job that begins at an instant and that instant: connecting and the first turn.
_START_US = 700_000
_HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # the caller's Python is none of the library's business


class Crew:
    """Some workers over one Redis."""

    def __init__(self, workers: Sequence[subprocess.Popen[str]], url: str) -> None:
        self._workers = workers
        self._url = url

    def do(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """Hand the first workers a job each, all at once; wait for all answers.

        Raises:
            RuntimeError: A worker failed or ended; the message is what it said.
        """
        start_at_us = time.monotonic_ns() // 1_000 + _START_US
        asked = list(zip(jobs, self._workers, strict=False))
        for job, worker in asked:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps({"url": self._url, "start_at_us": start_at_us, **job}) + "\n")
            worker.stdin.flush()
        answers = [_read(worker) for _, worker in asked]
        failed = [answer["failed"] for answer in answers if "failed" in answer]
        if failed:
            raise RuntimeError(failed[0])
        return answers


@contextmanager
def crew(contender: Contender, python: Path, url: str, shifts_s: Sequence[float]) -> Iterator[Crew]:
    """Start a worker for each shift of the wall clock; yields them once each is ready, and ends them."""
    environment = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-m", "bench.limiters.worker", contender.library, contender.algorithm, url]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        workers: list[subprocess.Popen[str]] = []
        for shift_s in shifts_s:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            process = stack.enter_context(running([*command, str(shift_s)], cwd=ROOT, env=environment, **pipes))
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                stack.enter_context(pipe)
            workers.append(process)
        try:
            for worker in workers:
                _read(worker)
            yield Crew(workers, url)
        except _EndedError as error:
            log.seek(0)
            said = log.read().strip().splitlines()
            raise RuntimeError(f"{error}: {said[-1] if said else 'it said nothing'}") from error


class _EndedError(RuntimeError):
    """A worker is gone."""


def _read(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise _EndedError(f"a worker ended with status {worker.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def own_python() -> Path:
    """Return the interpreter of this project's environment."""
    return Path(sys.executable)
