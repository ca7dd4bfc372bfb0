"""Rate limits as people write them: "100/s", "1000 tokens/min burst 5000", "3 rows/500ms".

    N [requests | rows | tokens] / [K] UNIT [burst B]        burst is N unless given

Not here: whether such a limit can be counted exactly (`limits.py`), the other settings of a limit (configuration).
"""

import re
from typing import NamedTuple

from penstock.core.limits import Cost

__all__ = ["NUMBER_MAX", "PERIOD_US_MAX", "LimitText", "format_limit", "parse_limit"]

# More than any machine serves in the longest period: what is larger is a slip of the hand.
NUMBER_MAX = 10**12
_DAY_US = 86_400_000_000
PERIOD_US_MAX = 366 * _DAY_US

_EXAMPLES = "such as 100/s, 500 rows/min or 1000 tokens/min burst 5000"
_FORM = re.compile(r"(?P<tokens>[^\s/]+?)\s*(?P<cost>[A-Za-z]+)?\s*/\s*(?P<per>[^\s/]+)(?:\s+burst\s+(?P<burst>\S+))?")
_PERIOD = re.compile(r"(?P<count>[+-]?[0-9][0-9_.,]*)?(?P<unit>[^0-9].*)")
_NUMBER = re.compile(r"[0-9]+(_[0-9]+)*")
# The first name of each is the one that is written.
_UNITS = (
    ("d", "day", _DAY_US),
    ("h", "hour", 3_600_000_000),
    ("min", "m", "minute", 60_000_000),
    ("s", "sec", "second", 1_000_000),
    ("ms", 1_000),
    ("us", "µs", 1),
)
_UNITS_US = {str(name): int(names[-1]) for names in _UNITS for name in names[:-1]}
_COSTS = {name: cost for cost in Cost for name in (cost.value, cost.value.removesuffix("s"))}


class LimitText(NamedTuple):
    """What a rate limit's text says: `tokens` per `per_us` µs, `burst` of them at once, and what a request costs."""

    tokens: int
    per_us: int
    burst: int
    cost: Cost = Cost.REQUESTS


def parse_limit(text: str) -> LimitText:
    """Read a rate limit.

    Raises:
        ValueError: It is not one, or a number is zero, negative or absurdly large; the message says which part, what
            was expected and what was got.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a rate {_EXAMPLES}, got {text[:80]!r}")
    cost = Cost.REQUESTS if found["cost"] is None else _COSTS.get(found["cost"].lower())
    if cost is None:
        raise ValueError(f"what is counted: expected requests, rows or tokens, got {found['cost'][:40]!r}")
    tokens = _parse_number("rate", found["tokens"])
    burst = tokens if found["burst"] is None else _parse_number("burst", found["burst"])
    return LimitText(tokens, _parse_period_us(found["per"]), burst, cost)


def format_limit(limit: LimitText) -> str:
    """Write a rate limit as short as `parse_limit` reads it; the burst only if it is not the default."""
    name, unit_us = next((str(names[0]), int(names[-1])) for names in _UNITS if not limit.per_us % int(names[-1]))
    count = limit.per_us // unit_us
    counted = "" if limit.cost is Cost.REQUESTS else f" {limit.cost.value}"
    burst = "" if limit.burst == limit.tokens else f" burst {limit.burst}"
    return f"{limit.tokens}{counted}/{'' if count == 1 else count}{name}{burst}"


def _parse_number(name: str, text: str, number_max: int = NUMBER_MAX) -> int:
    # Compared by length first: int() of thousands of digits takes long and then refuses.
    number = int(text) if _NUMBER.fullmatch(text) and len(text) <= 40 else None
    if number is not None and 1 <= number <= number_max:
        return number
    raise ValueError(f"{name}: expected a whole number of 1 to {number_max:,}, got {text[:40]!r}")


def _parse_period_us(text: str) -> int:
    found = _PERIOD.fullmatch(text)
    unit_us = None if found is None else _UNITS_US.get(found["unit"].lower())
    if found is None or unit_us is None:
        known = ", ".join(str(names[0]) for names in reversed(_UNITS))
        raise ValueError(f"period: expected a time in one of {known}, such as s or 10s, got {text[:40]!r}")
    count = 1 if found["count"] is None else _parse_number("period", found["count"], PERIOD_US_MAX)
    if count * unit_us > PERIOD_US_MAX:
        raise ValueError(f"period: expected at most {PERIOD_US_MAX // _DAY_US} days, got {text[:40]!r}")
    return count * unit_us
