"""The audit of admissions known only to a span of time: what it finds is there, and with exact times it finds all."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from penstock.core.limits import Quota
from penstock.policy.auditing import HazyWindowAudit, WindowAudit

QUOTAS = st.builds(
    Quota,
    drain=st.integers(1, 5),
    weight=st.integers(1, 5),
    tick_us=st.sampled_from([1, 3]),
    burst=st.integers(1, 4),
)
# Pause before, tokens, how long before it may have been.
STEPS = st.lists(st.tuples(st.integers(0, 12), st.integers(-3, 5), st.integers(0, 20)), max_size=25)


def spans(steps: list[tuple[int, int, int]], *, has_refunds: bool = True) -> list[tuple[int, int, int]]:
    """Return what each step is: end, tokens, beginning of its span."""
    now_us, found = 1_000, []
    for pause_us, tokens, haze_us in steps:
        now_us += pause_us
        if tokens and (tokens > 0 or has_refunds):
            found.append((now_us, tokens, now_us - haze_us))
    return found


@given(QUOTAS, STEPS)
def test_with_exact_times_nothing_is_missed(quota: Quota, steps: list[tuple[int, int, int]]) -> None:
    """Where every span is an instant the worst window is the exact audit's."""
    exact, hazy = WindowAudit(quota), HazyWindowAudit(quota)
    for at_us, tokens, _ in spans(steps):
        exact.observe(at_us, tokens)
        hazy.observe(at_us, tokens, at_us)
        assert hazy.excess_tokens == exact.excess_tokens


@given(QUOTAS, STEPS)
def test_an_excess_is_never_made_up(quota: Quota, steps: list[tuple[int, int, int]]) -> None:
    """No excess is larger than that of some window that certainly contains all it counts."""
    audit = HazyWindowAudit(quota)
    noted = spans(steps, has_refunds=False)
    for at_us, tokens, since_us in noted:
        audit.observe(at_us, tokens, since_us)
    rate = Fraction(quota.drain, quota.weight * quota.tick_us)
    worst = Fraction(0)
    for _, _, begin_us in noted:
        for end_us, _, _ in noted:
            inside = sum(tokens for at_us, tokens, since_us in noted if since_us >= begin_us and at_us <= end_us)
            bound = quota.burst + rate * (end_us - begin_us + quota.tick_us - 1)
            worst = max(worst, inside - bound)
    assert audit.excess_tokens <= -(-worst.numerator // worst.denominator)


@given(QUOTAS, STEPS, st.data())
def test_what_kept_to_the_bound_is_never_accused(
    quota: Quota, steps: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """If the admissions kept to the bound at the instants at which they truly were, no excess is found."""
    admissions = [
        (data.draw(st.integers(since_us, at_us)), at_us, tokens, since_us)
        for at_us, tokens, since_us in spans(steps, has_refunds=False)
    ]
    truth, kept = WindowAudit(quota), []
    for true_us, at_us, tokens, since_us in sorted(admissions):
        truth.observe(true_us, tokens)
        kept.append((at_us, tokens, since_us))
        if truth.excess_tokens:
            return
    audit = HazyWindowAudit(quota)
    for at_us, tokens, since_us in sorted(kept):
        audit.observe(at_us, tokens, since_us)
    assert audit.excess_tokens == 0


def test_what_is_late_counts_where_the_audit_is() -> None:
    """An admission heard of late is counted with its span, so it neither vanishes nor feigns a burst."""
    quota = Quota(drain=1, weight=1_000, tick_us=1, burst=2)
    late = HazyWindowAudit(quota)
    late.observe(10_000, 2, 10_000)
    late.observe(1_000, 2, 1_000)
    assert late.excess_tokens == 0, "9 ms before: 9 more tokens were allowed"
    burst = HazyWindowAudit(quota)
    burst.observe(10_000, 2, 10_000)
    burst.observe(9_900, 2, 9_900)
    assert burst.excess_tokens == 2
