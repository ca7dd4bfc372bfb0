"""Laws of admission: who is refused, when work would be done, when a refused caller may come back."""

from collections.abc import Callable
from itertools import pairwise, product

import pytest

from penstock.core.models import QueueBounds
from penstock.policy.admission import (
    RETRY_AFTER_US_MAX,
    RETRY_AFTER_US_MIN,
    DelayLimit,
    RefusalReason,
    decide_refusal,
    estimate_retry_after_us,
    predict_completion_us,
)

BOUNDS = QueueBounds(requests_max=4, bytes_max=100)
TARGET_US = 10_000
LIMIT_MAX = 1_000


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
    ("nbytes", "tenant_bytes", "request_bytes", "share", "expected"),
    [
        (90, 90, 10, 0.1, None),  # room for anybody
        (91, 0, 10, 0.1, None),
        (91, 1, 10, 0.1, RefusalReason.TENANT_FULL),
        (91, 40, 10, 0.5, None),
        (91, 41, 10, 0.5, RefusalReason.TENANT_FULL),
        (91, 91, 10, 1.0, RefusalReason.QUEUE_BYTES),
        (190, 0, 10, 0.5, None),
        (191, 0, 10, 0.5, RefusalReason.QUEUE_BYTES),  # never more than twice the bound
    ],
)
def test_bytes_keep_nobody_from_their_share(
    nbytes: int, tenant_bytes: int, request_bytes: int, share: float, expected: RefusalReason | None
) -> None:
    """Past the bound in bytes, too, a tenant is admitted exactly while it stays within its share of it."""
    decided = decide_refusal(
        BOUNDS, requests=1, nbytes=nbytes, request_bytes=request_bytes, tenant_bytes=tenant_bytes, share=share
    )
    assert decided == expected


@pytest.mark.parametrize(
    ("requests", "tenant_requests", "share", "expected"),
    [
        (3, 3, 0.25, None),  # room for anybody
        (4, 0, 0.25, None),  # full, but not of this tenant's
        (4, 1, 0.25, RefusalReason.TENANT_FULL),
        (4, 1, 0.5, None),
        (4, 2, 0.5, RefusalReason.TENANT_FULL),
        (4, 0, 0.01, None),
        (7, 0, 0.5, None),
        (8, 0, 0.5, RefusalReason.QUEUE_FULL),  # never more than twice the bound
        (4, 4, 1.0, RefusalReason.QUEUE_FULL),
        (4, 0, 1.0, RefusalReason.QUEUE_FULL),
    ],
)
def test_a_full_queue_keeps_nobody_from_their_share(
    requests: int, tenant_requests: int, share: float, expected: RefusalReason | None
) -> None:
    """Past the bound a tenant is admitted exactly while it has less than its share of the bound waiting."""
    decided = decide_refusal(
        BOUNDS, requests=requests, nbytes=0, request_bytes=0, tenant_requests=tenant_requests, share=share
    )
    assert decided == expected


def test_tenants_together_hold_at_most_twice_the_bound() -> None:
    """However tenants of equal share take turns at a full queue, at most twice the bound ever waits."""
    bounds = QueueBounds(requests_max=60)
    for tenants in (2, 3, 4, 5, 10, 60):
        waiting = [0] * tenants
        waiting[0] = bounds.requests_max
        for tenant in list(range(tenants)) * bounds.requests_max:
            refused = decide_refusal(
                bounds,
                requests=sum(waiting),
                nbytes=0,
                request_bytes=0,
                tenant_requests=waiting[tenant],
                share=1 / tenants,
            )
            waiting[tenant] += refused is None
        assert bounds.requests_max < sum(waiting) <= 2 * bounds.requests_max


def line(rows: int) -> int:
    """Return what a batch takes on the device of these tests."""
    return 1_000 + 100 * rows


@pytest.mark.parametrize(
    ("free_us", "rows_ahead", "rows", "first_rows", "batch_rows", "expected"),
    [
        ([0], 0, 1, 8, 8, line(1)),  # it is the next batch
        ([500], 0, 1, 8, 8, 500 + line(1)),
        ([0], 7, 1, 8, 8, line(8)),  # and fills it
        ([0], 8, 1, 8, 8, line(8) + line(1)),  # it is the first of the one after
        ([0], 15, 1, 8, 8, line(8) + line(8)),
        ([0], 16, 1, 8, 8, 2 * line(8) + line(1)),
        ([0], 3, 1, 3, 8, line(3) + line(1)),  # the next one is cut short
        ([0, 0], 8, 1, 8, 8, line(1)),  # or goes to the other replica
        ([0, 700], 8, 1, 8, 8, 700 + line(1)),
        ([0, 0], 16, 1, 8, 8, line(8) + line(1)),
        ([0], 0, 20, 8, 8, line(20)),  # alone it travels whatever its size
        ([0], 8, 20, 8, 8, line(8) + 2 * line(8) + line(20)),
    ],
)
def test_completion_by_hand(
    free_us: list[int], rows_ahead: int, rows: int, first_rows: int, batch_rows: int, expected: int
) -> None:
    """A request is done when its batch is: the next one, or the last of those that follow."""
    predicted = predict_completion_us(
        free_us=free_us,
        rows_ahead=rows_ahead,
        rows=rows,
        first_rows=first_rows,
        batch_rows=batch_rows,
        last_rows_min=1,
        time_us=line,
    )
    assert predicted == expected


def play(free_us: list[int], sizes: list[int], time_us: Callable[[int], int]) -> int:
    """Execute batches one after the other, each on the replica that is free first; return when the last is done."""
    free = list(free_us)
    done_us = 0
    for size in sizes:
        replica = min(range(len(free)), key=lambda k: free[k])
        done_us = free[replica] = free[replica] + time_us(size)
    return done_us


def test_completion_is_that_of_a_played_schedule() -> None:
    """Replicas all free within one batch's time, single rows: the prediction is the schedule played batch by batch."""
    cases = 0
    for free_us, ahead, first_rows, batch_rows in product(
        ([0], [0, 0], [0, 300], [100, 200, 300], [0, 0, 0, 0]), range(40), (4, 6), (4, 6)
    ):
        total = ahead + 1
        if total <= first_rows or not ahead:
            sizes = [total]
        else:
            after = total - first_rows
            sizes = [first_rows, *[batch_rows] * (-(-after // batch_rows) - 1)]
            sizes.append(after - batch_rows * (len(sizes) - 1))
        if first_rows > batch_rows and len(free_us) > 1 and len(sizes) > len(free_us):
            continue  # the one that began the next batch may then not be the first to be free again
        predicted = predict_completion_us(
            free_us=free_us,
            rows_ahead=ahead,
            rows=1,
            first_rows=first_rows,
            batch_rows=batch_rows,
            last_rows_min=1,
            time_us=line,
        )
        played = play(free_us, sizes, line)
        if first_rows < batch_rows and len(free_us) > 1:
            assert abs(predicted - played) <= line(batch_rows) - line(first_rows)
        else:
            assert predicted == played
        cases += 1
    assert cases > 500


def test_company_to_come_delays_the_last_batch() -> None:
    """In a later batch a request is predicted with at least the rows that others will add, in the next one not."""
    predicted = [
        predict_completion_us(
            free_us=[0], rows_ahead=ahead, rows=1, first_rows=8, batch_rows=8, last_rows_min=6, time_us=line
        )
        for ahead in (0, 7, 8, 14)
    ]
    assert predicted == [line(1), line(8), line(8) + line(6), line(8) + line(7)]


@pytest.mark.parametrize("free_us", [[0], [0, 900], [5, 6, 7]])
def test_more_ahead_is_never_done_earlier_by_more_than_a_batch(free_us: list[int]) -> None:
    """With full batches behind it (`last_rows_min` = `batch_rows`) a longer queue never promises an earlier end."""
    predicted = [
        predict_completion_us(
            free_us=free_us, rows_ahead=ahead, rows=1, first_rows=8, batch_rows=8, last_rows_min=8, time_us=line
        )
        for ahead in range(8, 200)
    ]
    assert predicted == sorted(predicted)


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


def drive(limit: DelayLimit, delays_us: list[int], in_system: int, from_us: int = 0) -> list[int]:
    """Let one request leave in every interval, after these delays; return the limit after each."""
    seen = []
    for k, delay_us in enumerate(delays_us):
        limit.observe(delay_us, in_system, from_us + (k + 1) * DelayLimit.INTERVAL_US)
        seen.append(limit.limit)
    return seen


def test_a_delay_limit_falls_in_proportion_to_the_excess() -> None:
    """An interval with a standing queue cuts what is in the system by half the relative excess, at most by half."""
    limits = []
    for excess in (0.1, 0.5, 1.0, 3.0):
        limit = DelayLimit(TARGET_US, LIMIT_MAX)
        limits.append(drive(limit, [round(TARGET_US * (1 + excess))], in_system=400)[0])
    assert limits == [380, 300, 200, 200]


def test_a_delay_limit_never_closes() -> None:
    """However long the delay lasts a few requests remain, for only they can show that it is over."""
    limits = drive(DelayLimit(TARGET_US, LIMIT_MAX), [10**9] * 30, in_system=1_000)
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] == DelayLimit.LIMIT_MIN


def test_a_delay_limit_recovers() -> None:
    """Once the delay is at its target or below, the limit grows in every interval until it is at its maximum."""
    limit = DelayLimit(TARGET_US, LIMIT_MAX)
    drive(limit, [10**9] * 30, in_system=1_000)
    limits = drive(limit, [TARGET_US] * 150, in_system=4, from_us=10**7)
    growing = limits[: limits.index(LIMIT_MAX) + 1]
    assert all(a < b for a, b in pairwise(growing))
    assert set(limits[len(growing) :]) <= {LIMIT_MAX}


def test_a_delay_limit_judges_by_the_least_delay() -> None:
    """One request that hardly waited shows that the queue was short: a burst around it costs nothing."""
    limit = DelayLimit(TARGET_US, LIMIT_MAX)
    for k in range(100):
        limit.observe(0 if k == 50 else 50 * TARGET_US, 400, k * 900)
    limit.observe(50 * TARGET_US, 400, DelayLimit.INTERVAL_US)
    assert limit.limit == LIMIT_MAX
    for k in range(2):  # the interval after it had no such request
        limit.observe(50 * TARGET_US, 400, (k + 2) * DelayLimit.INTERVAL_US)
    assert limit.limit < LIMIT_MAX


def test_a_delay_limit_changes_once_an_interval() -> None:
    """A thousand bad delays within one interval cut the limit no more than one does."""
    limit = DelayLimit(TARGET_US, LIMIT_MAX)
    start_us = DelayLimit.INTERVAL_US
    for k in range(1_000):
        limit.observe(3 * TARGET_US, 400, start_us + k * 99)
    assert limit.limit == 200
