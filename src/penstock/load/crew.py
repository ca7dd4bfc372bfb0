"""The crew: several generator processes with one schedule dealt out among them, started together, merged at the end.

Each process makes the whole schedule and the whole pool from the seed and takes every Nth request, so the load does
not depend on the number of processes. Not here: what one process does (`driver.py`) and which command starts it (cli).

    spawn --hello--> ready ×N --start_at--> progress ... --done--> result files

Messages are JSON lines on the process's stdin and stdout; bulk results are .npy files in a directory of the run's own.
"""

import json
import os
import selectors
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from penstock.core.arrivals import Times
from penstock.core.errors import UpstreamError

__all__ = ["Crew", "CrewResult"]

START_DELAY_US = 200_000  # between "all ready" and the first request: time for every process to read the message
_READY_TIMEOUT_S = 60.0


class CrewResult:
    """What the processes recorded, put back into the order of the schedule (measured requests and warm-up alike).

    `attempts`, `delay_us` and `refusals` are as in `Recording`, `refusals` with four columns, in no order.
    `start_at_us` is the clock at the start.
    """

    def __init__(self, arrays: dict[str, Times], reports: Sequence[dict[str, Any]], start_at_us: int) -> None:
        self.start_at_us = start_at_us
        self.latency_us = arrays["latency"]
        self.lateness_us = arrays["lateness"]
        self.attempts = arrays["attempts"]
        self.delay_us = arrays["delay"]
        self.refusals = arrays["refusals"]
        self.cpu_us = sum(int(report["cpu_us"]) for report in reports)
        self.connections = sum(int(report["connections"]) for report in reports)
        self.held_count = sum(int(report["held"]) for report in reports)
        self.priorities = sorted({str(report["priority"]) for report in reports})
        self.measured_from = sum(int(report["measured_from"]) for report in reports)
        self.distinct_count = max(int(report["distinct"]) for report in reports)
        self.status_counts: dict[int, int] = {}
        for report in reports:
            for status, count in report["status_counts"].items():
                self.status_counts[int(status)] = self.status_counts.get(int(status), 0) + count


class Crew:
    """N generator processes. `with` it: leaving kills what still runs.

    Args:
        command: Starts one; it reads its assignment from stdin.
        assignment: JSON sent to each, with `process_index`, `process_count` and `results` (a path prefix) added.
        count: How many, >= 1.
        folder: For result files; the caller removes it.
        now_us: The clock that the processes use, too.
    """

    def __init__(
        self, command: Sequence[str], assignment: dict[str, Any], count: int, folder: Path, now_us: Callable[[], int]
    ) -> None:
        self._now_us = now_us
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._buffers: list[bytes] = []
        self._reports: list[dict[str, Any] | None] = []
        self._assignments = [
            {**assignment, "process_index": i, "process_count": count, "results": str(folder / f"part{i}")}
            for i in range(count)
        ]
        self._command = list(command)
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        """Start the processes; they prepare their requests and open connections. Does not wait for them."""
        for index, assignment in enumerate(self._assignments):
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
            self._buffers.append(b"")
            self._reports.append(None)
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, index)
            self._tell(index, assignment)
        return self

    def __exit__(self, *_exc: object) -> None:
        """Kill what still runs and reap it."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.close()
            process.stdin.close()
        self._selector.close()

    def wait_result(self, planned_us: int, on_progress: Callable[[int, int], None]) -> CrewResult:
        """Start the run once all are ready and wait for its end.

        Args:
            planned_us: The longest it may take, µs; beyond that the processes count as hung.
            on_progress: Called with requests begun and ended so far, over all processes.

        Raises:
            UpstreamError: A process ended or went silent. What it wrote to stderr says why; run again.
        """
        self._wait_messages("ready", self._now_us() + round(_READY_TIMEOUT_S * 1e6), None)
        start_at_us = self._now_us() + START_DELAY_US
        for index in range(len(self._processes)):
            self._tell(index, {"start_at_us": start_at_us})
        self._wait_messages("done", start_at_us + planned_us, on_progress)
        reports = [report for report in self._reports if report is not None]
        arrays = {kind: self._interleave(kind) for kind in ("latency", "lateness", "attempts", "delay")}
        return CrewResult({**arrays, "refusals": self._gather_refusals()}, reports, start_at_us)

    def _load(self, kind: str) -> list[Times]:
        return [np.load(f"{assignment['results']}.{kind}.npy") for assignment in self._assignments]

    def _interleave(self, kind: str) -> Times:
        """Return the processes' arrays put back into the order of the schedule."""
        parts = self._load(kind)
        whole = np.empty(sum(len(part) for part in parts), dtype=parts[0].dtype)
        for index, part in enumerate(parts):
            whole[index :: len(parts)] = part
        return whole

    def _gather_refusals(self) -> Times:
        """Return the refusals of all processes, with indexes into the whole schedule."""
        parts = self._load("refusals")
        for index, part in enumerate(parts):
            part[:, 0] = part[:, 0] * len(parts) + index
        return np.concatenate(parts)

    def _tell(self, index: int, message: dict[str, Any]) -> None:
        pipe = self._processes[index].stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError as fault:
            raise UpstreamError(f"generator process {index}: expected it to listen, got a closed pipe.") from fault

    def _wait_messages(self, wanted: str, until_us: int, on_progress: Callable[[int, int], None] | None) -> None:
        missing = set(range(len(self._processes)))
        begun, ended = [0] * len(missing), [0] * len(missing)
        while missing:
            left_us = until_us - self._now_us()
            if left_us <= 0:
                raise UpstreamError(f"generator: expected {wanted!r} from processes {sorted(missing)}, got silence.")
            for key, _ in self._selector.select(left_us / 1e6):
                index: int = key.data
                for message in self._read_messages(index):
                    if message["kind"] == wanted:
                        missing.discard(index)
                        self._reports[index] = message
                    elif message["kind"] == "progress":
                        begun[index], ended[index] = message["begun"], message["ended"]
            if on_progress is not None:
                on_progress(sum(begun), sum(ended))

    def _read_messages(self, index: int) -> list[dict[str, Any]]:
        pipe = self._processes[index].stdout
        assert pipe is not None
        data = os.read(pipe.fileno(), 65_536)
        if not data:
            self._selector.unregister(pipe)
            report = self._reports[index]
            if report is None or report["kind"] != "done":
                raise UpstreamError(
                    f"generator process {index}: expected a result, got its end; see its message above."
                )
        *lines, self._buffers[index] = (self._buffers[index] + data).split(b"\n")
        return [json.loads(line) for line in lines]
