"""One gateway's connection to one replica: frames out, replies back, loss noticed and reported.

The link is made again, with backoff, for as long as the catalogue names the replica. Not here: what is sent
(`batcher.py`), which replicas exist (`catalogue.py`).
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

from penstock.core.errors import ConfigError
from penstock.core.ports import Clock
from penstock.gateway.batcher import ModelBatcher
from penstock.gateway.redial import Redial
from penstock.policy.balancing import Dispatch, Replica
from penstock.wire.canary import canary_batch, canary_fault
from penstock.wire.frame import (
    BATCH_FLAG_CANARY,
    FrameDecoder,
    FrameError,
    FrameKind,
    ReplyMeta,
    decode_reply_meta,
    encode_frame,
    encode_meta,
)
from penstock.wire.oip_outputs import OutputTensor

__all__ = ["ReplicaLink"]

# A replica that has just been named is listening; one that died is gone from the catalogue within a second.
RECONNECT_S_MIN = 0.02
RECONNECT_S_MAX = 1.0


class _Canary(NamedTuple):
    """A canary on its way."""

    rows: int
    sent_us: int


class ReplicaLink(asyncio.Protocol):
    """See the module. `is_up` while it can carry work; only then is it among the batcher's links.

        connecting -> up -> lost -> connecting -> probing -> up ...

    After a loss a canary must come back first: a process that hangs or is about to die still takes connections.

    Args:
        address: `unix:PATH` or `tcp:HOST:PORT`.
        batcher: The model's queues, which get the replies.
        loop: The event loop.
        now_us: Clock.
        on_fault: Called with (address, reason) when the replica hangs or talks nonsense: the head should replace it.
    """

    def __init__(
        self,
        address: str,
        batcher: ModelBatcher,
        *,
        loop: asyncio.AbstractEventLoop,
        now_us: Clock,
        on_fault: Callable[[str, str], None],
    ) -> None:
        self.address = address
        self.in_flight: dict[int, Dispatch | _Canary] = {}
        self.replica: Replica | None = None
        self.success_at_us = 0
        self.is_up = False
        self._replied_at_us = 0
        self._was_lost = False
        self._batcher = batcher
        self._loop = loop
        self._now_us = now_us
        self._on_fault = on_fault
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._wanted = True
        self._redial = Redial(self._connect, loop=loop, delay_s_min=RECONNECT_S_MIN, delay_s_max=RECONNECT_S_MAX)

    async def _connect(self) -> None:
        if self.address.startswith("unix:"):
            await self._loop.create_unix_connection(lambda: self, self.address.removeprefix("unix:"))
        elif self.address.startswith("tcp:"):
            host, _, port = self.address.removeprefix("tcp:").rpartition(":")
            await self._loop.create_connection(lambda: self, host, int(port))
        else:
            raise ConfigError(f"replica address: expected unix:PATH or tcp:HOST:PORT, got {self.address!r}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: connected. The first time the batcher may send from here on."""
        self._transport = cast("asyncio.Transport", transport)
        # Batches are bounded by credits, not by the socket: never pause in the middle of a frame.
        self._transport.set_write_buffer_limits(high=1 << 30)
        if not self._wanted:
            self._transport.abort()
            return
        self._decoder = FrameDecoder()
        if self._was_lost:
            self.send_canary(self._now_us())
        else:
            self._join()

    def _join(self) -> None:
        self.is_up = True
        self._batcher.join_link(self)

    def send_canary(self, now_us: int) -> None:
        """Send an inference of our own making, to see whether the replica can answer."""
        meta, payload = canary_batch(self._batcher.spec)
        # Canaries share the link's ids with batches, which count up from 1; these come from the other end.
        canary_id = 2**63 | now_us
        frame = encode_frame(FrameKind.BATCH, canary_id, encode_meta(meta), [*payload], flags=BATCH_FLAG_CANARY)
        self._write(canary_id, _Canary(meta.rows[0], now_us), frame)

    def send(self, batch: Dispatch, frame: bytes) -> None:
        """Send a batch; it stays in flight until its reply or the loss of the link."""
        self._write(batch.id, batch, frame)

    def _write(self, frame_id: int, batch: Dispatch | _Canary, frame: bytes) -> None:
        assert self._transport is not None
        self.in_flight[frame_id] = batch
        self._transport.write(frame)

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes from the replica."""
        try:
            for frame in self._decoder.feed(data):
                if frame.kind is not FrameKind.REPLY:
                    raise FrameError(f"frame {frame.id}: expected a REPLY, got {frame.kind.name}")
                meta = decode_reply_meta(frame)
                self._replied_at_us = self._now_us()
                batch = self.in_flight.get(frame.id)
                if batch is None:
                    raise FrameError(f"frame {frame.id}: expected the reply to a batch in flight, got an unknown id")
                outputs: list[OutputTensor] = []
                if isinstance(batch, Dispatch):
                    # While it is in flight still: if the reply lies, its requests are tried elsewhere or answered.
                    outputs = self._batcher.read_reply(batch, meta, frame.payload)
                self._redial.succeed()
                if meta.outputs or any(failure.status < 500 for failure in meta.failures):
                    self.success_at_us = self._now_us()
                if isinstance(batch, Dispatch):
                    self._batcher.finish_batch(batch, meta, outputs)
                    del self.in_flight[frame.id]
                else:
                    del self.in_flight[frame.id]
                    self._finish_canary(meta)
        except FrameError as error:
            self.fault(error.message)

    def _finish_canary(self, meta: ReplyMeta) -> None:
        """A canary came back. One that failed leaves `success_at_us` to grow old, and readiness with it."""
        fault = canary_fault(meta)
        if fault is None:
            self.success_at_us = self._now_us()
        else:
            self._on_fault(self.address, f"canary: {fault}")
        if self.is_up:
            self._batcher.flush()
        else:
            self._join()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the replica is gone, or we closed. Every batch in flight is tried again or answered."""
        self._transport = None
        self._was_lost = True
        self.success_at_us = 0  # who answers at this address next has yet to prove itself
        self._leave(str(exc) if exc else "connection closed")
        if self._wanted:
            self._redial.again()

    def check_execution(self, now_us: int) -> None:
        """Call regularly: a batch that has run for longer than the model's execution timeout means a hung replica.

        A batch runs from when it was sent or, if it was staged behind another, from the reply to that one.
        """
        batch = next(iter(self.in_flight.values()), None)
        limit_us = self._batcher.spec.execution_timeout_us
        if batch is not None and now_us - max(batch.sent_us, self._replied_at_us) > limit_us:
            self.fault(f"a batch of {batch.rows} rows did not finish within {limit_us / 1e6:.1f} s")

    def fault(self, reason: str) -> None:
        """Give the replica up: report it and cut the connection. Nothing is sent over it any more."""
        self._on_fault(self.address, reason)
        if self._transport is not None:
            self._transport.abort()
        self._leave(reason)

    def _leave(self, reason: str) -> None:
        if self.is_up:
            self.is_up = False
            self._batcher.lose_link(self, reason)
        self.in_flight.clear()

    def close(self) -> None:
        """The catalogue no longer names this replica. Does not wait: what is in flight goes the way of a lost link."""
        self._wanted = False
        self._redial.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._leave("the replica is no longer named")
