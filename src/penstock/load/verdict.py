"""The verdict: how many requests may miss the SLO while the run still certifies a percentile.

Pure. "p95 <= SLO at 99 % confidence" holds for n requests with t misses when a server whose true miss ratio were 5 %
would show so few misses with probability at most 1 %: P(Binomial(n, 0.05) <= t) <= 0.01.
Source: MLPerf Inference LoadGen, "Early Stopping Criterion": I_p(h, t+1) <= 1 - c with h = n - t and tolerance 0; that
regularised incomplete beta function is the binomial tail summed here (NIST DLMF 8.17.5).
"""

from math import exp, lgamma, log, log1p

__all__ = ["binomial_cdf", "over_slo_allowed"]


def binomial_cdf(successes: int, trials: int, ratio: float) -> float:
    """Return P(X <= successes) for X ~ Binomial(trials, ratio), 0 < ratio < 1.

    Summed downwards from its largest term, from the logarithm of that term, so it neither under- nor overflows.
    Meant for `successes` at or below the mean, where the terms shrink; costs about sqrt(trials) steps there.
    """
    assert 0 < ratio < 1
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    log_last = (
        lgamma(trials + 1)
        - lgamma(successes + 1)
        - lgamma(trials - successes + 1)
        + successes * log(ratio)
        + (trials - successes) * log1p(-ratio)
    )
    total = term = 1.0
    odds = (1 - ratio) / ratio
    for k in range(successes, 0, -1):
        term *= k * odds / (trials - k + 1)
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, exp(log_last) * total)


def over_slo_allowed(requests: int, *, percentile: float = 0.95, confidence: float = 0.99) -> int | None:
    """Return the most misses among `requests` that still certify `percentile` at `confidence`.

    None when even no miss at all would not be enough (fewer than 90 requests for p95 at 99 %): run longer. Assumes
    that misses are independent; batched answers are not quite, so repeat with fresh seeds and believe the worst.
    """
    assert requests >= 0
    miss_ratio = 1 - percentile
    if binomial_cdf(0, requests, miss_ratio) > 1 - confidence:
        return None
    low, high = 0, int(requests * miss_ratio)  # low certifies, and nothing above the mean does
    while low < high:
        middle = (low + high + 1) // 2
        if binomial_cdf(middle, requests, miss_ratio) <= 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low
