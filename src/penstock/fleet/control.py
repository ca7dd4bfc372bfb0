"""The head's end of the control channel: a Unix socket on which children introduce themselves and report.

Messages are whole states, so a child that cannot be written to is cut off rather than waited for; it connects again
and gets the newest. Not here: what messages mean (`head.py`), their bytes (`wire/control.py`).
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from penstock.wire.control import ControlDecoder, ControlError, Message, encode_message

__all__ = ["Channel", "ControlServer"]

# Two of the largest messages the protocol allows: a child that lets more than that pile up does not read.
_UNSENT_BYTES_MAX = 128 * 1024 * 1024


class Channel(asyncio.Protocol):
    """One child's connection.

    Attributes:
        name: The child's name once it has said hello, else ''.
    """

    def __init__(self, on_message: Callable[["Channel", Message], None], on_close: Callable[["Channel"], None]) -> None:
        self.name = ""
        self._on_message = on_message
        self._on_close = on_close
        self._decoder = ControlDecoder()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """True while messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Message) -> None:
        """Send a message without waiting. On a closed channel nothing happens."""
        self.send_bytes(encode_message(message))

    def send_bytes(self, data: bytes) -> None:
        """Send messages already encoded, as when many children get the same one."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
            transport.abort()

    def close(self) -> None:
        """Close after what was sent has left. `on_close` follows."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the event loop."""
        # uvloop's transports are no subclass of asyncio's, whatever they can do.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes; called by the event loop. Bytes that are no message close the channel."""
        try:
            messages = self._decoder.feed(data)
        except ControlError:
            # Whatever the peer is, it does not speak our language: nothing after these bytes can be trusted.
            assert self._transport is not None
            self._transport.abort()
            return
        for message in messages:
            self._on_message(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; called by the event loop."""
        self._transport = None
        self._on_close(self)


class ControlServer:
    """Listens on the control socket. One per head."""

    def __init__(
        self,
        path: Path,
        on_message: Callable[[Channel, Message], None],
        on_close: Callable[[Channel], None],
    ) -> None:
        self._path = path
        self._on_message = on_message
        self._on_close = on_close
        self._channels: set[Channel] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen, only for this user. A socket left by a dead head is replaced; the caller holds the state lock.

        Raises:
            OSError: The directory is not writable.
        """
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(self._accept, str(self._path))
        os.chmod(self._path, 0o600)  # noqa: PTH101 - one syscall on a socket made a line above

    def close(self) -> None:
        """Stop listening, close all channels and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for channel in list(self._channels):
            channel.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> Channel:
        channel = Channel(self._on_message, self._forget)
        self._channels.add(channel)
        return channel

    def _forget(self, channel: Channel) -> None:
        self._channels.discard(channel)
        self._on_close(channel)
