"""Connecting, and connecting again with backoff, for as long as the other end is wanted.

Not here: what is connected to (`link.py`, `control.py`).
"""

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["Redial"]


class Redial:
    """Keeps trying one connection. The first try is made at once.

    Args:
        connect: Makes one try; raises OSError if nobody answers.
        loop: The event loop.
        delay_s_min, delay_s_max: Between tries; doubles from one to the other until `succeed`.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[object]],
        *,
        loop: asyncio.AbstractEventLoop,
        delay_s_min: float,
        delay_s_max: float,
    ) -> None:
        self._connect = connect
        self._loop = loop
        self._delay_s_min = self._delay_s = delay_s_min
        self._delay_s_max = delay_s_max
        self._timer: asyncio.TimerHandle | None = None
        self._task = loop.create_task(self._dial())

    async def _dial(self) -> None:
        try:
            await self._connect()
        except OSError:
            # Expected while the other end is being started anew.
            self.again()

    def _start(self) -> None:
        self._task = self._loop.create_task(self._dial())

    def again(self) -> None:
        """The connection was lost: try again after the delay."""
        self._timer = self._loop.call_later(self._delay_s, self._start)
        self._delay_s = min(self._delay_s * 2, self._delay_s_max)

    def succeed(self) -> None:
        """The other end talks, so the next loss is a new one. To connect is not enough: it might only accept."""
        self._delay_s = self._delay_s_min

    def cancel(self) -> None:
        """Try no more."""
        self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
