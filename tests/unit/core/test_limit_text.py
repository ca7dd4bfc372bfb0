"""Rate limits as people write them: what each form means, and what is wrong with the others."""

import pytest

from penstock.core.limit_text import NUMBER_MAX, LimitText, format_limit, parse_limit
from penstock.core.limits import Cost

DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("text", "expected", "written"),
    [
        ("100/s", LimitText(100, 1_000_000, 100), "100/s"),
        ("100/sec burst 200", LimitText(100, 1_000_000, 200), "100/s burst 200"),
        ("  100 / second   burst 200 ", LimitText(100, 1_000_000, 200), "100/s burst 200"),
        ("5 requests/m", LimitText(5, 60_000_000, 5), "5/min"),
        ("1 request/minute", LimitText(1, 60_000_000, 1), "1/min"),
        ("1000 tokens/min burst 5000", LimitText(1000, 60_000_000, 5000, Cost.TOKENS), "1000 tokens/min burst 5000"),
        ("3 rows/500ms", LimitText(3, 500_000, 3, Cost.ROWS), "3 rows/500ms"),
        ("3rows/h burst 3", LimitText(3, 3_600_000_000, 3, Cost.ROWS), "3 rows/h"),
        ("7/hour burst 1", LimitText(7, 3_600_000_000, 1), "7/h burst 1"),
        ("10_000/Day", LimitText(10_000, DAY_US, 10_000), "10000/d"),
        ("1/366d", LimitText(1, 366 * DAY_US, 1), "1/366d"),
        ("2/90s", LimitText(2, 90_000_000, 2), "2/90s"),
        ("2/60s", LimitText(2, 60_000_000, 2), "2/min"),
        ("2/7us", LimitText(2, 7, 2), "2/7us"),
        (f"{NUMBER_MAX}/s", LimitText(NUMBER_MAX, 1_000_000, NUMBER_MAX), f"{NUMBER_MAX}/s"),
    ],
)
def test_a_limit_is_read_and_written(text: str, expected: LimitText, written: str) -> None:
    """Each form means what it says, the burst is the rate's number unless given, and it is written the short way."""
    assert parse_limit(text) == expected
    assert format_limit(expected) == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/s", "rate: expected a whole number of 1 to 1,000,000,000,000, got '0'"),
        ("-5/s", "rate: expected a whole number of 1 to 1,000,000,000,000, got '-5'"),
        ("1.5/s", "rate: expected a whole number of 1 to 1,000,000,000,000, got '1.5'"),
        ("1e9/s", "rate: expected a whole number of 1 to 1,000,000,000,000, got '1e9'"),
        (f"{NUMBER_MAX + 1}/s", "rate: expected a whole number of 1 to 1,000,000,000,000, got '1000000000001'"),
        ("9" * 5_000 + "/s", "rate: expected a whole number of 1 to 1,000,000,000,000, got '" + "9" * 40 + "'"),
        ("5/s burst 0", "burst: expected a whole number of 1 to 1,000,000,000,000, got '0'"),
        ("5/s burst -1", "burst: expected a whole number of 1 to 1,000,000,000,000, got '-1'"),
        ("5/s burst many", "burst: expected a whole number of 1 to 1,000,000,000,000, got 'many'"),
        ("5/fortnight", "period: expected a time in one of us, ms, s, min, h, d, such as s or 10s, got 'fortnight'"),
        ("5/10", "period: expected a time in one of us, ms, s, min, h, d, such as s or 10s, got '10'"),
        ("5/0s", "period: expected a whole number of 1 to 31,622,400,000,000, got '0'"),
        ("5/-1s", "period: expected a whole number of 1 to 31,622,400,000,000, got '-1'"),
        ("5/367d", "period: expected at most 366 days, got '367d'"),
        ("5 apples/s", "what is counted: expected requests, rows or tokens, got 'apples'"),
        ("", "expected a rate such as 100/s, 500 rows/min or 1000 tokens/min burst 5000, got ''"),
        ("5", "expected a rate such as 100/s, 500 rows/min or 1000 tokens/min burst 5000, got '5'"),
        ("5/s/s", "expected a rate such as 100/s, 500 rows/min or 1000 tokens/min burst 5000, got '5/s/s'"),
        ("5/s burst", "expected a rate such as 100/s, 500 rows/min or 1000 tokens/min burst 5000, got '5/s burst'"),
        ("/s", "expected a rate such as 100/s, 500 rows/min or 1000 tokens/min burst 5000, got '/s'"),
    ],
)
def test_what_is_no_limit_is_refused(text: str, message: str) -> None:
    """The error names the part, what was expected and what came, cut short."""
    with pytest.raises(ValueError, match="expected") as caught:
        parse_limit(text)
    assert str(caught.value) == message
