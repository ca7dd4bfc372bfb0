"""The head's audit: an excess of all gateways together is found, nothing else is, and delivery is told of late."""

from random import Random

from penstock.core.authority import Check, Checked, Demand
from penstock.core.limits import Level, Quota, RateLimit
from penstock.fleet.limit_audit import BUCKETS_MAX, HOLD_MS, PERIOD_MS, LimitAudit
from penstock.policy.limit_book import LimitBook
from penstock.wire.control import AuditBins

QUOTA = RateLimit("all", Level.GLOBAL, 1_000, 1_000_000, 100).quota()
S = 1_000_000


def bins(*told: tuple[int, int, int, int], key: str = "k", quota: Quota = QUOTA, limit: str = "all") -> AuditBins:
    return AuditBins(key, limit, quota, list(told))


def settle(audit: LimitAudit, at_ms: int) -> None:
    audit.advance((at_ms + HOLD_MS + 1) * 1_000)


def test_gateways_are_judged_together() -> None:
    """What each admits is within the limit and what both admit is not: that is an excess."""
    audit = LimitAudit()
    audit.note([bins((1_000, 80, 80, 0))], 0)
    settle(audit, 1_000)
    assert audit.findings()["all"].excess_tokens == 0
    audit.note([bins((1_003, 80, 80, 0))], 0)
    settle(audit, 1_003)
    # A window of 4 ms with 160 tokens in it: 100 and 4 were allowed.
    assert audit.findings()["all"].excess_tokens == 56


def test_the_order_of_reports_does_not_matter() -> None:
    """Bins of one ms are one, and are judged in the order of time, whoever reported first."""
    told = [(1_000, 60, 60, 0), (1_020, 30, 30, 0), (1_040, 60, 60, 0), (1_040, 1, 1, 2)]
    found = set()
    for seed in range(10):
        order = told[:]
        Random(seed).shuffle(order)
        audit = LimitAudit()
        for one in order:
            audit.note([bins(one)], 0)
        settle(audit, 1_040)
        found.add(audit.findings()["all"].excess_tokens)
    assert found == {151 - 100 - 41}


def test_what_is_not_yet_settled_waits() -> None:
    """Nothing is judged before the other gateways had time to report."""
    audit = LimitAudit()
    audit.note([bins((1_000, 500, 500, 0))], 0)
    audit.advance((1_000 + HOLD_MS) * 1_000)
    assert audit.findings()["all"].excess_tokens == 0
    audit.advance((1_000 + HOLD_MS + 1) * 1_000)
    assert audit.findings()["all"].excess_tokens == 399


def test_what_is_due_is_judged_with_the_next_report() -> None:
    """The work is done a part at a time, so that nobody waits for the head while it judges a second of everything."""
    audit = LimitAudit()
    audit.note([bins((1_000, 500, 500, 0))], 1_000_000)
    audit.note([bins((4_000, 1, 1, 0))], 4_000_000)
    assert audit.findings()["all"].excess_tokens == 399


def test_a_late_report_feigns_no_burst() -> None:
    """What a paused gateway tells long after the others counts for when it was, and not for when it was told."""
    audit = LimitAudit()
    for at_ms in range(0, 5_000, 100):
        audit.note([bins((at_ms, 90, 90, 0))], 0)
    settle(audit, 5_000)
    audit.note([bins((1_050, 50, 50, 0))], 0)
    settle(audit, 6_000)
    assert audit.findings()["all"].excess_tokens == 0


def test_what_may_have_been_charged_earlier_is_no_excess() -> None:
    """Answers that a gateway reads late, all at once, were charged when it asked."""
    audit = LimitAudit()
    audit.note([bins((1_000, 100, 100, 0)), bins((1_500, 500, 500, 500))], 0)
    settle(audit, 1_500)
    assert audit.findings()["all"].excess_tokens == 0


def test_one_late_answer_among_several_reports_is_no_excess() -> None:
    """If of one ms one gateway tells admissions that may be older, all of that ms may be, whoever reported first."""
    for told in ([0, 500], [500, 0]):
        audit = LimitAudit()
        audit.note([bins((1_000, 100, 100, 0))], 0)
        audit.note([bins((1_500, 250, 250, early_ms)) for early_ms in told], 0)
        settle(audit, 1_500)
        assert audit.findings()["all"].excess_tokens == 0


def test_what_was_given_back_may_be_admitted_again() -> None:
    """A refund makes room, for as much and no more."""
    audit = LimitAudit()
    audit.note([bins((1_000, 100, 100, 0), (1_001, 0, -40, 0), (1_002, 42, 42, 0))], 0)
    settle(audit, 1_002)
    assert audit.findings()["all"].excess_tokens == 0
    audit.note([bins((1_003, 10, 10, 0))], 0)
    settle(audit, 1_003)
    assert audit.findings()["all"].excess_tokens == 8


def test_delivery_is_told_of_the_last_minutes() -> None:
    """The share of what an ideal bucket would have admitted that was refused; old times are forgotten."""
    audit = LimitAudit()
    for at_ms in range(60_000, 70_000, 10):
        audit.note([bins((at_ms, 20, 9, 0))], 0)
        audit.advance(at_ms * 1_000)
    settle(audit, 70_000)
    finding = audit.findings()["all"]
    assert (finding.delivered_tokens, finding.ideal_tokens) == (9_000, 9_991)  # it began without tokens
    assert abs(finding.under_delivery_ratio - 0.0992) < 0.001
    audit.advance((70_000 + 2 * PERIOD_MS) * 1_000)
    assert audit.findings()["all"].under_delivery_ratio == 0.0


def test_a_book_is_never_accused() -> None:
    """Whatever a real book admits for gateways that hear of it late and report in any order is no excess."""
    random, book, audit = Random(1), LimitBook("e", 1), LimitAudit()
    told: list[tuple[int, int, int, int]] = []
    now_us = 10 * S
    for _ in range(5_000):
        now_us += round(random.expovariate(1 / 300))
        cost = random.choice((1, 1, 1, 20))
        reply = book.run(Check((Demand("k", QUOTA, cost),)), now_us)
        assert isinstance(reply, Checked)
        asked_us, at_us = now_us - random.randrange(2_000), now_us + random.randrange(30_000)
        told.append((at_us // 1_000, cost, cost if reply.denied < 0 else 0, at_us // 1_000 - asked_us // 1_000))
    random.shuffle(told)
    audit.note([bins(*told)], 0)
    settle(audit, now_us // 1_000 + 100)
    finding = audit.findings()["all"]
    assert finding.excess_tokens == 0
    assert finding.delivered_tokens > 1_000


def test_a_limit_that_changes_is_audited_anew() -> None:
    """Under its new quota a bucket starts from nothing, and what was found before stays found."""
    audit = LimitAudit()
    audit.note([bins((1_000, 201, 201, 0))], 0)
    wider = RateLimit("all", Level.GLOBAL, 1_000, S, 1_000).quota()
    audit.note([bins((1_001, 900, 900, 0), quota=wider)], 0)
    settle(audit, 1_001)
    assert audit.findings()["all"].excess_tokens == 100
    assert audit.findings()["all"].buckets == 1


def test_the_number_of_buckets_is_bounded() -> None:
    """Of more buckets than may be kept the ones not heard of for longest go; what they showed stays."""
    audit = LimitAudit()
    audit.note([bins((1_000, 201, 201, 0), key="first")], 0)
    audit.note([bins((2_000 + number, 1, 1, 0), key=f"k{number}") for number in range(BUCKETS_MAX)], 0)
    finding = audit.findings()["all"]
    assert (finding.buckets, finding.excess_tokens) == (BUCKETS_MAX, 100)
