"""The comparison notices a change of one line: every policy changed on one side only makes the two logs differ."""

import pytest

from tests.parity.both import play_live, play_simulated
from tests.parity.mutants import Mutation, imported
from tests.parity.trace import CASES, SEEDS

LATENCY, THROUGHPUT, FAIR = ("deadline-latency", 1), ("deadline-throughput", 1), ("deadline-fair", 1)
PATIENT, ADAPTIVE, SHARED = ("size-or-timeout", 1), ("adaptive", 1), ("adaptive", 2)
# Each with the case of the trace, and the number of gateways, that it shows in. Constants are changed where they are
# used: their values are for tuning.
MUTATIONS = [
    (THROUGHPUT, Mutation("batching", "round(HOLD_PERIODS * view", "round(1.01 * HOLD_PERIODS * view")),
    (PATIENT, Mutation("batching", "if view.rows >= view.size_max:", "if view.rows > view.size_max:")),
    (PATIENT, Mutation("batching", "if now_us >= due_us else", "if now_us > due_us else")),
    (LATENCY, Mutation("batching", "max(-int(-wanted // 1), 1)", "max(int(wanted), 1)")),
    (ADAPTIVE, Mutation("batching", "self._size + 1.0", "self._size + 0.5")),
    (THROUGHPUT, Mutation("scheduling", "- GUARD_US\n", "- 20 * GUARD_US\n")),
    (PATIENT, Mutation("scheduling", "lead_us = LEAD_US", "lead_us = 1 + LEAD_US")),
    (ADAPTIVE, Mutation("scheduling", "now_us + EXPIRY_INTERVAL_US", "now_us + EXPIRY_INTERVAL_US + 1")),
    (ADAPTIVE, Mutation("scheduling", "alone=entry.attempts > 0)", "alone=False)")),
    (LATENCY, Mutation("filling", "+ self._share * rows_max", "+ 2 * self._share * rows_max")),
    (FAIR, Mutation("scheduling", "queue.rate.arrived += entry.rows", "queue.rate.arrived += 1")),
    (PATIENT, Mutation("admission", "if requests >= bounds.req", "if requests > bounds.req")),
    (PATIENT, Mutation("admission", "tenant_requests >= bounds", "tenant_requests > bounds")),
    (LATENCY, Mutation("admission", "= after // batch_rows + 1", "= after // batch_rows")),
    (FAIR, Mutation("fairness", "+= device_us / account.weight", "+= device_us")),
    (FAIR, Mutation("fairness", "account.virtual_us = max(account.virtual_us, ", "account.virtual_us = max(0.0, ")),
    (PATIENT, Mutation("fairness", "return mine / (mine + others)", "return 1 / (mine + others)")),
    (LATENCY, Mutation("balancing", "SPEED_WEIGHT * (", "1.01 * SPEED_WEIGHT * (")),
    (LATENCY, Mutation("balancing", "> OUTLIER_RATIO *", "> 2 * OUTLIER_RATIO *")),
    (LATENCY, Mutation("balancing", "r.slowness))", "-r.slowness))")),
    (SHARED, Mutation("balancing", "available[j + (j >= i)]", "available[j]")),
    (LATENCY, Mutation("profiling", "if len(samples) >= SAMPLES_MIN:", "if len(samples) > SAMPLES_MIN:")),
    (SHARED, Mutation("merging", "if row_count > row_count_max:", "if row_count >= row_count_max:")),
    (LATENCY, Mutation("queueing", "if late and (not ordered or late", "if late and (ordered and late")),
]


def test_a_faithful_copy_changes_nothing() -> None:
    """The copy without a change decides as the original: what a changed one does differently is its change."""
    with imported(None) as run:
        for case in CASES:
            lived, scenario = play_live(case, SEEDS[0])
            is_same = play_simulated(scenario, SEEDS[0], run.simulate)[0] == lived.decisions
            assert is_same, f"{case}: the copy differs; was a file of policy or sim written while this ran?"


@pytest.mark.parametrize(
    ("played", "mutation"), MUTATIONS, ids=[f"{m.module}: {m.replacement.strip()}" for _, m in MUTATIONS]
)
def test_a_change_of_one_line_is_noticed(played: tuple[str, int], mutation: Mutation) -> None:
    """With the change on one side only, the decisions of both sides differ."""
    case, gateways = played
    lived, scenario = play_live(case, SEEDS[0], gateways)
    with imported(mutation) as run:
        simulated, _ = play_simulated(scenario, SEEDS[0], run.simulate)
    is_noticed = simulated != lived.decisions  # compared here: the logs are too long for a message
    assert is_noticed, f"{mutation} changes nothing in {case}: choose a case that it shows in"
