"""A transport that keeps what is written and does only what it is told: a peer in memory for any asyncio protocol.

Not here: an event loop (`loop.py`).
"""

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["MemoryTransport"]


class MemoryTransport(asyncio.Transport):
    """The transport of one protocol under test.

    Attributes:
        written: All bytes written so far, in order; clear it to look at what comes next.
        is_aborted: The protocol cut the connection without sending the rest.
        wrote_eof: The protocol closed its sending half.
        on_close: Called once, when the protocol closes or aborts; a `ManualLoop` delivers `connection_lost` by it.
    """

    def __init__(self, *, on_close: Callable[[], None] | None = None) -> None:
        super().__init__({"peername": ("127.0.0.1", 40_000)})
        self.written = bytearray()
        self._reading = True
        self.is_aborted = False
        self.wrote_eof = False
        self.on_close = on_close
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep `data`. What is written after closing is lost, as on a real transport."""
        if not self._closing:
            self.written += data

    def take(self) -> bytes:
        """Return what was written since the last call."""
        data = bytes(self.written)
        self.written.clear()
        return data

    def is_reading(self) -> bool:
        """Asyncio: False while the protocol has paused reading; deliver nothing then."""
        return self._reading

    def pause_reading(self) -> None:
        """Asyncio: the protocol wants no more bytes for now."""
        self._reading = False

    def resume_reading(self) -> None:
        """Asyncio: it wants them again."""
        self._reading = True

    def is_closing(self) -> bool:
        """Asyncio: True after `close` or `abort`."""
        return self._closing

    def close(self) -> None:
        """Asyncio: send what is written, then close."""
        if not self._closing:
            self._closing = True
            if self.on_close is not None:
                self.on_close()

    def abort(self) -> None:
        """Asyncio: close now."""
        self.is_aborted = True
        self.close()

    def can_write_eof(self) -> bool:
        """Asyncio: True, as for TCP and Unix sockets."""
        return True

    def write_eof(self) -> None:
        """Asyncio: close the sending half."""
        self.wrote_eof = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Asyncio: this one buffers everything; call the protocol's `pause_writing` to play a slow reader."""

    def get_write_buffer_size(self) -> int:
        """Asyncio: nothing waits to be sent."""
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Asyncio: refused, and said so: a protocol keeps its transport for life here."""
        raise RuntimeError("MemoryTransport: expected one protocol for life, got another")

    def __repr__(self) -> str:
        state: dict[str, Any] = {"closing": self._closing, "aborted": self.is_aborted, "written": len(self.written)}
        return f"MemoryTransport({state})"
