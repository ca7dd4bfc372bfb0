"""What answers say about limits: header fields, and the words of refusals. The one place that knows their syntax.

    ratelimit-policy: "per-user";q=100;w=1;penstock-burst=200      100 in each second, 200 of them at once
    ratelimit: "per-user";r=12;t=2                                 12 are left; in 2 s all are back if none is taken

`x-ratelimit-*` say the same of the tightest limit, in seconds from now, for clients that know only those.
Not here: who is told, and when (`gateway/`). Sources: draft-ietf-httpapi-ratelimit-headers-11; RFC 9651 (strings,
integers, parameters); RFC 9110 section 10.2.3 (Retry-After); `retry-after-ms` as OpenAI's clients read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from penstock.core.limit_text import LimitText, format_limit
from penstock.core.limits import ConcurrencyLimit, Cost, Limit, RateLimit, Unreachable

__all__ = [
    "Rejection",
    "describe_limit",
    "encode_policy",
    "encode_retry_after",
    "encode_state",
    "reject_cost",
    "reject_rate",
    "reject_slots",
    "reject_unreachable",
]

# The code of OpenAI's own answers to too many requests.
_CODE_LIMITED = "rate_limit_exceeded"
_CODE_COST = "request_exceeds_limit"
_CODE_UNREACHABLE = "rate_limit_unavailable"
# RFC 9651 section 3.3.1: an integer has at most 15 digits.
_INTEGER_MAX = 10**15 - 1
# A period that is no whole number of seconds is multiplied until it is, up to this many; beyond, it is rounded up.
_WINDOW_S_MAX = 60
# Texts remembered: those of limits in configuration fit; keys' own come and go.
_KNOWN_MAX = 1_024
_UNITS_US = ((1_000_000, "s"), (1_000, "ms"), (1, "µs"))


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request is not let in, in words that its caller can act on.

    Args:
        status: 429, come back; 503, nobody can be asked; 400, it can never pass.
        message: Names the limit, its level, what is left, what is needed, and when to come back.
        code: For programs: OpenAI's `code`.
        limit: Name of the limit in the way.
        retry_after_us: Coming back sooner is useless; 0 if it always is.
        headers: Complete header lines.
    """

    status: int
    message: str
    code: str
    limit: str
    retry_after_us: int = 0
    headers: bytes = b""


# -- header fields ----------------------------------------------------------------------------------------------------


def encode_policy(limits: Sequence[Limit]) -> bytes:
    """Write the header line that says what the limits are; it is the same for as long as they are.

    `q` in `w` is what the limit lets in for ever, `penstock-burst`, if it differs, what it lets in at once. The draft's
    `pk` is left out: a caller has one bucket of each limit, and its name would tell of others.

    Args:
        limits: At least one.
    """
    return b"ratelimit-policy: %b\r\n" % ", ".join(map(_format_policy, limits)).encode()


def encode_state(states: Sequence[tuple[Limit, int, int]]) -> bytes:
    """Write the header lines that say what is left.

    Args:
        states: At least one: the limit, its tokens (or slots) left, in how many seconds all of them will be there if
            nobody takes any. It is rounded up to 1: a program may divide by it.
    """
    members = []
    tightest: tuple[float, int, int, int] | None = None
    for limit, remaining, reset_s in states:
        capacity = _capacity(limit)
        left, wait_s = min(max(remaining, 0), capacity), max(reset_s, 1)
        window = f";t={wait_s}" if isinstance(limit, RateLimit) else ""
        members.append(f"{_quote(limit.name)};r={min(left, _INTEGER_MAX)}{window}")
        if tightest is None or left / capacity < tightest[0]:
            tightest = (left / capacity, capacity, left, wait_s)
    assert tightest is not None
    return b"ratelimit: %b\r\nx-ratelimit-limit: %d\r\nx-ratelimit-remaining: %d\r\nx-ratelimit-reset: %d\r\n" % (
        ", ".join(members).encode(),
        *tightest[1:],
    )


def encode_retry_after(retry_after_us: int) -> bytes:
    """Write the header lines that say when to come back: in whole seconds and in ms, both rounded up."""
    return b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-retry_after_us // 1_000_000), -(-retry_after_us // 1_000))


@lru_cache(_KNOWN_MAX)
def _format_policy(limit: Limit) -> str:
    if isinstance(limit, ConcurrencyLimit):
        return f'{_quote(limit.name)};q={min(limit.slots, _INTEGER_MAX)};qu="concurrent-requests"'
    period_s = -(-limit.per_us // 1_000_000)
    exact_s = limit.per_us // gcd(limit.per_us, 1_000_000)
    window_s = exact_s if exact_s <= max(period_s, _WINDOW_S_MAX) else period_s
    quota = min(limit.tokens * window_s * 1_000_000 // limit.per_us, _INTEGER_MAX)
    # `rows` and `tokens` are not in the draft's registry of units, but to leave them out would say `requests`.
    unit = "" if limit.cost is Cost.REQUESTS else f';qu="{limit.cost}"'
    burst = "" if limit.burst == quota else f";penstock-burst={min(limit.burst, _INTEGER_MAX)}"
    return f"{_quote(limit.name)};q={quota}{unit};w={window_s}{burst}"


@lru_cache(_KNOWN_MAX)
def _quote(name: str) -> str:
    """Write a structured field string. What it cannot hold becomes `?`: names in configurations have none of it."""
    text = "".join(c if " " <= c <= "~" else "?" for c in name)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _capacity(limit: Limit) -> int:
    return limit.burst if isinstance(limit, RateLimit) else limit.slots


# -- refusals ---------------------------------------------------------------------------------------------------------


def reject_cost(limit: RateLimit, cost: int, cost_max: int) -> Rejection:
    """Refuse a request that costs more than the limit's burst, or a part of it if it is split: no wait can help."""
    message = (
        f"{describe_limit(limit)}: expected at most {cost_max} {limit.cost} in one request, got {cost};"
        " waiting does not help, send it in parts"
    )
    return Rejection(400, message, _CODE_COST, limit.name, headers=encode_policy([limit]))


def reject_rate(limit: RateLimit, cost: int, remaining: int, retry_after_us: int) -> Rejection:
    """Refuse a request for now: it needs more tokens than are left.

    Args:
        limit: The one in the way. The headers speak of it alone, so that `Retry-After` is never earlier than the end
            of a window which the same answer names (draft, section 6).
        cost: Tokens needed.
        remaining: Tokens left.
        retry_after_us: Waiting less is useless.
    """
    # What is left was known a moment before: it may have been more than is needed now.
    left = min(max(remaining, 0), cost - 1)
    message = (
        f"{describe_limit(limit)}: {left} of {limit.burst} {limit.cost} left, {cost} needed;"
        f" come back in {_format_wait(retry_after_us)}"
    )
    return _reject_for_now(limit, message, left, retry_after_us)


def reject_slots(limit: ConcurrencyLimit, retry_after_us: int) -> Rejection:
    """Refuse a request for now: all slots are taken."""
    message = (
        f"{describe_limit(limit)}: {limit.slots} are in progress;"
        f" come back when one has ended, or in {_format_wait(retry_after_us)}"
    )
    return _reject_for_now(limit, message, 0, retry_after_us)


def reject_unreachable(limit: Limit, retry_after_us: int) -> Rejection:
    """Refuse a request because the limit cannot be checked now, and what it lets in meanwhile is used up or nothing."""
    is_shared = limit.unreachable is Unreachable.LOCAL_SHARE
    meanwhile = "this gateway's share of it is used up" if is_shared else "no request is let in unchecked"
    message = (
        f"{describe_limit(limit)}: it cannot be checked now, because what counts it does not answer, and {meanwhile};"
        f" come back in {_format_wait(retry_after_us)}"
    )
    headers = encode_retry_after(retry_after_us)
    return Rejection(503, message, _CODE_UNREACHABLE, limit.name, retry_after_us, headers)


@lru_cache(_KNOWN_MAX)
def describe_limit(limit: Limit) -> str:
    """Return a limit's kind, name, level and numbers: `rate limit 'per-user' (level user, 100/s burst 200)`."""
    if isinstance(limit, ConcurrencyLimit):
        return f"concurrency limit '{limit.name}' (level {limit.level}, {limit.slots} at once)"
    numbers = format_limit(LimitText(limit.tokens, limit.per_us, limit.burst, limit.cost))
    return f"rate limit '{limit.name}' (level {limit.level}, {numbers})"


def _reject_for_now(limit: Limit, message: str, left: int, retry_after_us: int) -> Rejection:
    retry_s = -(-retry_after_us // 1_000_000)
    headers = encode_retry_after(retry_after_us) + encode_state([(limit, left, retry_s)]) + encode_policy([limit])
    return Rejection(429, message, _CODE_LIMITED, limit.name, retry_after_us, headers)


def _format_wait(wait_us: int) -> str:
    """Write a wait for people, rounded up to four digits: what they are told is enough."""
    unit_us, name = next((u, n) for u, n in _UNITS_US if wait_us >= u or u == 1)
    thousandths = -(-wait_us * 1_000 // unit_us)
    step = 10 ** max(len(str(thousandths)) - 4, 0)
    return f"{-(-thousandths // step) * step / 1_000:.12g} {name}"
