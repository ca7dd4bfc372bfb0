"""The decision log's file: lines gathered for a moment and appended whole, by every gateway to the same file.

    write --> lines --(20 ms, or 1,000 lines)--> one write(2) with O_APPEND: on a local disk no other's comes between

What cannot be written is dropped and said once: requests never wait for the log's sake, and memory does not grow.
Not here: what the lines say (`wire/decisions.py`), what is logged (`limit_audit.py`).
"""

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["DecisionLog"]

# What a gateway that is killed takes with it.
FLUSH_US = 20_000
# At 300 bytes each a third of a megabyte: well below a millisecond to hand to the kernel.
LINES_MAX = 1_000


class DecisionLog:
    """See the module.

    Args:
        path: The file; it is made if it is not there.
        call_later: Calls back after so many µs.
        warn: Is told, once, when lines are lost, and why.
    """

    def __init__(
        self, path: Path, *, call_later: Callable[[int, Callable[[], None]], object], warn: Callable[[str], None]
    ) -> None:
        self._path = path
        self._call_later = call_later
        self._warn = warn
        self._lines: list[bytes] = []
        self._descriptor = -1
        self._is_due = False
        self._is_torn = False  # the file ends within a line of ours
        self._has_warned = False

    def write(self, line: bytes) -> None:
        """Append a line, with its end, within 20 ms."""
        self._lines.append(line)
        if not self._is_due:
            self._is_due = True
            self._call_later(FLUSH_US, self._tick)
        if len(self._lines) >= LINES_MAX:
            self.flush()

    def _tick(self) -> None:
        self._is_due = False
        self.flush()

    def flush(self) -> None:
        """Hand what is gathered to the kernel."""
        if not self._lines:
            return
        data = b"".join(self._lines)
        self._lines.clear()
        try:
            if self._descriptor < 0:
                # Others may not read who asked for what.
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._append(data)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self._warn(f"decision log {self._path}: {error.strerror}; decisions are lost until it can be written")

    def _append(self, data: bytes) -> None:
        left = memoryview(b"\n" + data if self._is_torn else data)
        while left:
            # Less than all is written only if the disk is full, and then the next attempt says so.
            count = os.write(self._descriptor, left)
            self._is_torn = left[count - 1] != ord("\n")
            left = left[count:]

    def close(self) -> None:
        """Write what is left. The log may be used again."""
        self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
