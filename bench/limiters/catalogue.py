"""The limiters that are compared: library, algorithm, what it claims, and under which limits it is driven.

`README.md` says where each configuration comes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bench.limiters.form import Limit

__all__ = ["LIMITERS", "LIMITS", "WINDOW_LIMITS", "Claim", "Contender"]


class Claim(StrEnum):
    """What a limiter holds by its own account: `burst + rate * t` in any window, or `limit` in any of its length."""

    BUCKET = "bucket"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class Contender:
    """One algorithm of one library. `package` is '' for this project, which runs in the environment of the bench."""

    name: str
    library: str
    algorithm: str
    package: str
    claim: Claim


LIMITS: Mapping[str, Limit] = {
    "100/s burst 50": Limit(100, 1, 50),
    "1000/s burst 200": Limit(1_000, 1, 200),
    "1000/s burst 400": Limit(1_000, 1, 400),
}
# A window has no burst, so the limits that differ in it only are one limit to it.
WINDOW_LIMITS = ("100/s burst 50", "1000/s burst 200")

_ALL = (
    Contender("penstock, leased", "penstock", "leased", "", Claim.BUCKET),
    Contender("penstock, every request checked", "penstock", "checked", "", Claim.BUCKET),
    Contender("limits, moving window", "limits", "moving-window", "limits", Claim.WINDOW),
    Contender("limits, sliding window counter", "limits", "sliding-window-counter", "limits", Claim.WINDOW),
    Contender("limits, fixed window", "limits", "fixed-window", "limits", Claim.WINDOW),
    Contender("throttled-py, token bucket", "throttled", "token_bucket", "throttled-py", Claim.BUCKET),
    Contender("throttled-py, GCRA", "throttled", "gcra", "throttled-py", Claim.BUCKET),
    Contender("pyrate-limiter, RedisBucket", "pyrate", "sliding_window_log", "pyrate-limiter", Claim.WINDOW),
    Contender("pyrate-limiter, token bucket", "pyrate", "token_bucket", "pyrate-limiter", Claim.BUCKET),
)

LIMITERS: Mapping[str, Contender] = {contender.name: contender for contender in _ALL}
