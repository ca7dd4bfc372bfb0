"""The circuit breaker: after a few failures in a row nobody asks any more, but for one probe after a pause.

    closed --failures_max in a row, or trip--> open --pause is over--> probing --well--> trial --success--> closed
                                                ^                         |                |
                                                +------ twice the pause --+-----failure----+

Pure. Not here: what is asked, how a failure is told from a success, timers (whoever owns the breaker has one).

Source: M. Nygard, Release It!, 2007; the doubling pause as in RFC 9110's advice on retries, bounded.
"""

from enum import StrEnum

__all__ = ["Breaker", "BreakerState"]


class BreakerState(StrEnum):
    """See the module; callers may ask in `closed` and `trial`."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"
    TRIAL = "trial"


class Breaker:
    """One callee's breaker.

    Args:
        failures_max: So many failures in a row open it, >= 1.
        pause_us_min, pause_us_max: Before a probe; doubles from one to the other until a caller had success.

    Attributes:
        state: See the module.
        openings: How often it has opened, failed probes and trials not counted.
    """

    __slots__ = (
        "_failures",
        "_failures_max",
        "_pause_us",
        "_pause_us_max",
        "_pause_us_min",
        "_probe_at_us",
        "openings",
        "state",
    )

    def __init__(self, failures_max: int, pause_us_min: int, pause_us_max: int) -> None:
        assert failures_max >= 1
        assert 0 < pause_us_min <= pause_us_max
        self.state = BreakerState.CLOSED
        self.openings = 0
        self._failures_max = failures_max
        self._pause_us_min = self._pause_us = pause_us_min
        self._pause_us_max = pause_us_max
        self._failures = 0
        self._probe_at_us = 0

    @property
    def allows(self) -> bool:
        """True if callers may ask."""
        return self.state is BreakerState.CLOSED or self.state is BreakerState.TRIAL

    def succeed(self) -> None:
        """A caller had an answer in time. Means nothing while callers may not ask: it is late."""
        self._failures = 0
        if self.state is BreakerState.TRIAL:
            self.state = BreakerState.CLOSED
            self._pause_us = self._pause_us_min

    def fail(self, now_us: int) -> None:
        """A caller had none."""
        self._failures += 1
        if self.state is BreakerState.TRIAL:
            self._reopen(now_us)
        elif self._failures >= self._failures_max:
            self.trip(now_us)

    def trip(self, now_us: int) -> None:
        """Open at once: it is known that nobody answers. Changes nothing if it is open."""
        if self.state is BreakerState.TRIAL:
            self._reopen(now_us)
        elif self.state is BreakerState.CLOSED:
            self.openings += 1
            self._open(now_us)

    def probe_after_us(self, now_us: int) -> int | None:
        """Return how long until a probe may begin, µs; None unless it is open."""
        return max(self._probe_at_us - now_us, 0) if self.state is BreakerState.OPEN else None

    def begin_probe(self) -> None:
        """The one probe begins: until it ends there is no other."""
        assert self.state is BreakerState.OPEN
        self.state = BreakerState.PROBING

    def end_probe(self, now_us: int, *, is_well: bool) -> None:
        """The probe has ended. If it went well callers may ask again, and the first failure opens again."""
        assert self.state is BreakerState.PROBING
        if is_well:
            self.state = BreakerState.TRIAL
            self._failures = 0
        else:
            self._reopen(now_us)

    def _reopen(self, now_us: int) -> None:
        self._pause_us = min(self._pause_us * 2, self._pause_us_max)
        self._open(now_us)

    def _open(self, now_us: int) -> None:
        self.state = BreakerState.OPEN
        self._failures = 0
        self._probe_at_us = now_us + self._pause_us
