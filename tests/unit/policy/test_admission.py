"""Laws of the bounded queue: who is refused, and when a refused caller may come back."""

import pytest

from penstock.core.models import QueueBounds
from penstock.policy.admission import (
    RETRY_AFTER_US_MAX,
    RETRY_AFTER_US_MIN,
    RefusalReason,
    decide_refusal,
    estimate_retry_after_us,
)

BOUNDS = QueueBounds(requests_max=4, bytes_max=100)


@pytest.mark.parametrize(
    ("requests", "nbytes", "request_bytes", "expected"),
    [
        (0, 0, 0, None),
        (3, 0, 0, None),
        (4, 0, 0, RefusalReason.QUEUE_FULL),
        (5, 0, 0, RefusalReason.QUEUE_FULL),
        (0, 0, 100, None),
        (0, 0, 101, RefusalReason.QUEUE_BYTES),
        (1, 60, 40, None),
        (1, 60, 41, RefusalReason.QUEUE_BYTES),
        (1, 100, 0, None),
        (1, 101, 0, RefusalReason.QUEUE_BYTES),
        (4, 100, 1, RefusalReason.QUEUE_FULL),
    ],
)
def test_a_queue_is_bounded_in_requests_and_bytes(
    requests: int, nbytes: int, request_bytes: int, expected: RefusalReason | None
) -> None:
    """A request is admitted exactly when it stays within both bounds."""
    assert decide_refusal(BOUNDS, requests=requests, nbytes=nbytes, request_bytes=request_bytes) == expected


@pytest.mark.parametrize(
    ("requests", "drained", "window_us", "expected"),
    [
        (100, 1_000, 1_000_000, 100_000),
        (100, 1_000, 2_000_000, 200_000),
        (1, 1_000, 1_000_000, RETRY_AFTER_US_MIN),
        (0, 1_000, 1_000_000, RETRY_AFTER_US_MIN),
        (10**9, 1, 1_000_000, RETRY_AFTER_US_MAX),
        (100, 0, 1_000_000, RETRY_AFTER_US_MAX),
        (0, 0, 1, RETRY_AFTER_US_MAX),
    ],
)
def test_retry_after_is_how_long_the_queue_takes_to_drain(
    requests: int, drained: int, window_us: int, expected: int
) -> None:
    """Retry-After is waiting requests over the rate at which they leave, within its bounds."""
    assert estimate_retry_after_us(requests=requests, drained=drained, window_us=window_us) == expected


def test_retry_after_never_falls_with_the_queue() -> None:
    """A longer queue never promises an earlier return, and the answer always is within the bounds."""
    answers = [estimate_retry_after_us(requests=n, drained=7, window_us=1_000) for n in range(0, 100_000, 997)]
    assert answers == sorted(answers)
    assert {RETRY_AFTER_US_MIN, RETRY_AFTER_US_MAX} <= set(answers)
    assert all(RETRY_AFTER_US_MIN <= answer <= RETRY_AFTER_US_MAX for answer in answers)
