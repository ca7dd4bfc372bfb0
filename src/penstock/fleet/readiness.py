"""Which gateways report, and what they found ready: the head's readiness is theirs, never its own guess.

Pure. Not here: the canary (each gateway's own), killing a silent gateway (`supervisor.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.wire.control import GatewayReport

__all__ = ["SILENCE_US_MAX", "Readiness"]

# Gateways report every half second; twenty reports missed in a row is no hiccup.
SILENCE_US_MAX = 10_000_000
# A head that looks less often than this was itself asleep, and reports may lie unread.
_LOOK_US_MAX = 3_000_000


@dataclass(frozen=True, slots=True)
class _Report:
    ready: dict[str, bool]
    is_draining: bool
    at_us: int


class Readiness:
    """The newest report of each living gateway, by the gateway's name."""

    def __init__(self) -> None:
        self._reports: dict[str, _Report] = {}
        self._looked_at_us: int | None = None
        self._awake_since_us = 0

    def note(self, gateway: str, report: GatewayReport, *, now_us: int) -> None:
        """Keep a gateway's newest report. One that names no model is about counters: what was ready stays so."""
        before = self._reports.get(gateway)
        if before is not None and not report.ready:
            self._reports[gateway] = _Report(before.ready, before.is_draining or report.draining, now_us)
        else:
            self._reports[gateway] = _Report(report.ready, report.draining, now_us)

    def forget(self, gateway: str) -> None:
        """Drop the report of a gateway that ended."""
        self._reports.pop(gateway, None)

    def is_ready(self, gateway: str, models: Iterable[str]) -> bool:
        """Return True if a gateway takes requests and found each of `models` (`name:version`) ready."""
        report = self._reports.get(gateway)
        return report is not None and not report.is_draining and all(report.ready.get(m, False) for m in models)

    def age_us(self, gateway: str, *, now_us: int) -> int | None:
        """Return the age of a gateway's last report; None before its first."""
        report = self._reports.get(gateway)
        return None if report is None else now_us - report.at_us

    def find_silent(self, ready_at_us: dict[str, int], *, now_us: int) -> list[str]:
        """Return the gateways that live but have said nothing for `SILENCE_US_MAX`. Call it every second.

        Time in which the head itself did not run does not count against anyone.

        Args:
            ready_at_us: When each living gateway said hello.
            now_us: Monotonic clock.
        """
        if self._looked_at_us is not None and now_us - self._looked_at_us > _LOOK_US_MAX:
            self._awake_since_us = now_us
        self._looked_at_us = now_us
        silent = []
        for gateway, hello_at_us in ready_at_us.items():
            report = self._reports.get(gateway)
            last_us = max(hello_at_us if report is None else report.at_us, self._awake_since_us)
            if now_us - last_us > SILENCE_US_MAX:
                silent.append(gateway)
        return silent
