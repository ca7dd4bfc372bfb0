"""The certification rule against published and independently computed numbers."""

from math import comb

import pytest

from penstock.load.verdict import binomial_cdf, over_slo_allowed


def test_a_minute_at_ten_thousand_per_second() -> None:
    """600,000 requests certify p95 at 99 % with at most 29,607 misses (4.93 %)."""
    assert over_slo_allowed(600_000) == 29_607


@pytest.mark.parametrize(("requests", "allowed"), [(0, None), (89, None), (90, 0), (91, 0)])
def test_the_smallest_certifiable_run(requests: int, allowed: int | None) -> None:
    """0.95^n <= 0.01 from n = 90 on; below that no run certifies anything."""
    assert over_slo_allowed(requests) == allowed


@pytest.mark.parametrize("requests", [90, 150, 1_000, 12_345, 1_000_000])
def test_the_limit_is_the_largest(requests: int) -> None:
    """The allowed count certifies and one more does not."""
    allowed = over_slo_allowed(requests)
    assert allowed is not None
    miss_ratio = 1 - 0.95
    assert binomial_cdf(allowed, requests, miss_ratio) <= 0.01 < binomial_cdf(allowed + 1, requests, miss_ratio)


@pytest.mark.parametrize(
    ("successes", "trials", "ratio"), [(0, 10, 0.05), (3, 40, 0.1), (7, 100, 0.25), (10, 10, 0.3), (-1, 5, 0.5)]
)
def test_the_tail_equals_the_sum(successes: int, trials: int, ratio: float) -> None:
    """The log-space tail equals the plain sum of binomial terms."""
    plain = sum(comb(trials, k) * ratio**k * (1 - ratio) ** (trials - k) for k in range(successes + 1))
    assert binomial_cdf(successes, trials, ratio) == pytest.approx(plain, rel=1e-9)
