"""Headers of limits: structured fields that parse back to the limit's numbers, and refusals that say what to do."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.limits import ConcurrencyLimit, Cost, Level, Limit, RateLimit, Unreachable
from penstock.wire.ratelimit import (
    describe_limit,
    encode_policy,
    encode_retry_after,
    encode_state,
    reject_cost,
    reject_rate,
    reject_slots,
    reject_unreachable,
)

PER_USER = RateLimit("per-user", Level.USER, 100, 1_000_000, 200)
ROWS = RateLimit("rows", Level.TENANT, 500, 60_000_000, 500, cost=Cost.ROWS)
SLOTS = ConcurrencyLimit("slots", Level.GLOBAL, 10)

_STRING = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'
_PARAMETER = rf";([a-z*][a-z0-9_.*-]*)=([0-9]{{1,15}}|{_STRING})"
_MEMBER = re.compile(rf"({_STRING})((?:{_PARAMETER})*)")


def unquote(text: str) -> str:
    """Return the content of a structured field string."""
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def parse_list(text: str) -> dict[str, dict[str, int | str]]:
    """Parse a list of strings with parameters as RFC 9651 section 4.2 does, as far as the draft uses it; by string."""
    members: dict[str, dict[str, int | str]] = {}
    while True:
        found = _MEMBER.match(text)
        assert found is not None, text
        parameters = re.findall(_PARAMETER, found[2])
        members[unquote(found[1])] = {k: unquote(v) if v[0] == '"' else int(v) for k, v in parameters}
        text = text[found.end() :]
        if not text:
            return members
        assert text.startswith(", ")
        text = text[2:]


def parse_headers(lines: bytes) -> dict[str, str]:
    """Split complete header lines; no name comes twice."""
    assert lines.endswith(b"\r\n")
    pairs = [
        (line.partition(": ")[0], line.partition(": ")[2])
        for line in lines.decode("ascii").removesuffix("\r\n").split("\r\n")
    ]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def policy_of(limit: Limit) -> dict[str, int | str]:
    """Return the parameters of a limit's policy."""
    return parse_list(parse_headers(encode_policy([limit]))["ratelimit-policy"])[limit.name]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (PER_USER, {"q": 100, "w": 1, "penstock-burst": 200}),
        (ROWS, {"q": 500, "qu": "rows", "w": 60}),
        (SLOTS, {"q": 10, "qu": "concurrent-requests"}),
        (RateLimit("half", Level.USER, 50, 500_000, 50), {"q": 100, "w": 1, "penstock-burst": 50}),
        (RateLimit("odd", Level.USER, 3, 700_000, 3), {"q": 30, "w": 7, "penstock-burst": 3}),
        (RateLimit("day", Level.USER, 9, 86_400_000_000, 9, cost=Cost.TOKENS), {"q": 9, "qu": "tokens", "w": 86_400}),
        (RateLimit("finest", Level.USER, 1, 1, 1), {"q": 1_000_000, "w": 1, "penstock-burst": 1}),
        (RateLimit("prime", Level.USER, 7, 1_000_003, 7), {"q": 13, "w": 2, "penstock-burst": 7}),
    ],
)
def test_a_policy_says_quota_window_and_burst(limit: Limit, expected: dict[str, int | str]) -> None:
    """`q` in `w` whole seconds is the rate, exactly if the window need not be long; other units are told."""
    assert policy_of(limit) == expected


@given(st.integers(1, 10**9), st.integers(1, 10**11), st.text(max_size=20))
def test_a_policy_never_promises_more_than_the_rate(tokens: int, per_us: int, name: str) -> None:
    """For any rate and any name the field parses, its window is at least 1 s, and q / w is at most the rate."""
    limit = RateLimit(name, Level.USER, tokens, per_us, 1)
    ((_, parameters),) = parse_list(parse_headers(encode_policy([limit]))["ratelimit-policy"]).items()
    quota, window_s = parameters["q"], parameters["w"]
    assert isinstance(quota, int)
    assert isinstance(window_s, int)
    assert window_s >= 1
    assert Fraction(quota, window_s) <= Fraction(tokens * 1_000_000, per_us)


def test_states_are_listed_and_the_tightest_is_repeated_for_older_clients() -> None:
    """`ratelimit` has a member for each limit, without a window for slots; `x-ratelimit-*` has the least share left."""
    headers = parse_headers(encode_state([(PER_USER, 180, 1), (ROWS, 50, 54), (SLOTS, 9, 0)]))
    assert headers["ratelimit"] == '"per-user";r=180;t=1, "rows";r=50;t=54, "slots";r=9'
    older = [headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining", "reset")]
    assert older == ["500", "50", "54"]


@pytest.mark.parametrize(("remaining", "told"), [(-1, 0), (0, 0), (200, 200), (201, 200)])
def test_what_is_left_is_told_between_none_and_the_burst(remaining: int, told: int) -> None:
    """What is known of a bucket may be a moment old; what is told of it stays within its bounds, its window above 0."""
    headers = parse_headers(encode_state([(PER_USER, remaining, 0)]))
    assert parse_list(headers["ratelimit"]) == {"per-user": {"r": told, "t": 1}}
    assert (headers["x-ratelimit-remaining"], headers["x-ratelimit-reset"]) == (str(told), "1")


def test_names_are_quoted() -> None:
    """Quotes and backslashes in a name come back as they were; what a field cannot hold does not break it."""
    limits = [RateLimit(name, Level.USER, 1, 1_000_000, 1) for name in ('a"b\\c', "x\r\ny: z")]
    assert list(parse_list(parse_headers(encode_policy(limits))["ratelimit-policy"])) == ['a"b\\c', "x??y: z"]


@pytest.mark.parametrize(
    ("wait_us", "seconds", "ms"),
    [(1, 1, 1), (1_000, 1, 1), (1_001, 1, 2), (1_000_000, 1, 1_000), (1_000_001, 2, 1_001)],
)
def test_a_wait_is_rounded_up(wait_us: int, seconds: int, ms: int) -> None:
    """Whoever waits as long as they are told has waited long enough."""
    headers = parse_headers(encode_retry_after(wait_us))
    assert headers == {"retry-after": str(seconds), "retry-after-ms": str(ms)}


def test_a_rejection_tells_what_is_left_what_is_needed_and_when_to_come_back() -> None:
    """A 429 names the limit, its level and numbers; its headers agree with each other and with the message."""
    rejection = reject_rate(PER_USER, 10, 3, 70_000)
    assert (rejection.status, rejection.code, rejection.limit) == (429, "rate_limit_exceeded", "per-user")
    assert rejection.retry_after_us == 70_000
    assert rejection.message == (
        "rate limit 'per-user' (level user, 100/s burst 200): 3 of 200 requests left, 10 needed; come back in 70 ms"
    )
    headers = parse_headers(rejection.headers)
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "70")
    assert parse_list(headers["ratelimit"]) == {"per-user": {"r": 3, "t": 1}}
    assert parse_list(headers["ratelimit-policy"]).keys() == {"per-user"}
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("200", "3")


@given(st.integers(1, 10**12), st.integers(0, 400))
def test_retry_after_is_never_before_the_end_of_the_window(wait_us: int, remaining: int) -> None:
    """`Retry-After` is the window of the limit in the way, and fewer are left than are needed."""
    headers = parse_headers(reject_rate(PER_USER, 1, remaining, wait_us).headers)
    assert parse_list(headers["ratelimit"]) == {"per-user": {"r": 0, "t": int(headers["retry-after"])}}
    assert int(headers["retry-after-ms"]) * 1_000 >= wait_us


@pytest.mark.parametrize(
    ("wait_us", "text"),
    [
        (1, "1 µs"),
        (999, "999 µs"),
        (1_000, "1 ms"),
        (66_667, "66.67 ms"),
        (999_999, "1000 ms"),
        (1_000_000, "1 s"),
        (1_000_001, "1.001 s"),
        (66_667_123, "66.67 s"),
        (123_456_789_000, "123500 s"),
    ],
)
def test_the_wait_in_words_is_rounded_up_to_four_digits(wait_us: int, text: str) -> None:
    """People get a short number, and it is enough."""
    assert reject_rate(PER_USER, 1, 0, wait_us).message.endswith(f"come back in {text}")


def test_a_request_above_the_burst_is_the_callers_error() -> None:
    """A 400 says the most that can pass and what to do; it names no time, because none helps."""
    rejection = reject_cost(ROWS, 501, 250)
    assert (rejection.status, rejection.code, rejection.retry_after_us) == (400, "request_exceeds_limit", 0)
    assert rejection.message == (
        "rate limit 'rows' (level tenant, 500 rows/min): expected at most 250 rows in one request, got 501;"
        " waiting does not help, send it in parts"
    )
    assert parse_headers(rejection.headers).keys() == {"ratelimit-policy"}


def test_slots_that_are_taken_are_a_429() -> None:
    """A concurrency limit says how many are in progress; when one ends nobody knows, so a wait is named to try."""
    rejection = reject_slots(SLOTS, 1_000_000)
    assert rejection.status == 429
    assert rejection.message == (
        "concurrency limit 'slots' (level global, 10 at once): 10 are in progress;"
        " come back when one has ended, or in 1 s"
    )
    assert parse_headers(rejection.headers)["ratelimit"] == '"slots";r=0'


@pytest.mark.parametrize(
    ("unreachable", "meanwhile"),
    [
        (Unreachable.CLOSED, "no request is let in unchecked"),
        (Unreachable.LOCAL_SHARE, "this gateway's share of it is used up"),
    ],
)
def test_what_cannot_be_checked_is_a_503(unreachable: Unreachable, meanwhile: str) -> None:
    """Not the caller's fault: the message says why it is refused nonetheless, the headers when to come back."""
    limit = RateLimit("a", Level.MODEL, 1, 1_000_000, 1, unreachable=unreachable)
    rejection = reject_unreachable(limit, 1_500_000)
    assert (rejection.status, rejection.code) == (503, "rate_limit_unavailable")
    assert rejection.message.startswith(describe_limit(limit))
    assert meanwhile in rejection.message
    assert parse_headers(rejection.headers) == {"retry-after": "2", "retry-after-ms": "1500"}
