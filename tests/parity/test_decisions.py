"""The live gateway on a virtual clock and the simulator decide the same, at the same µs, for the same trace.

The live side is HTTP, terms, batcher, links and frames as they serve. Not here: that a change would be noticed
(`test_mutants.py`).
"""

from collections import Counter

import numpy as np
import pytest

from penstock.sim import Outcome
from tests.parity.both import explain_difference, play_live, play_simulated
from tests.parity.trace import CASES, DEATH, SEEDS, plan_sendings, stream_of

# What a caller is told, by how the simulator says its request ended; 0 if it is gone.
STATUSES = {
    Outcome.SERVED: {200},
    Outcome.REFUSED: {503},
    Outcome.DROPPED: {503, 504},
    Outcome.EXPIRED: {504},
    Outcome.LOST: {503},
    Outcome.ABANDONED: {0},
}


def replay(case: str, seed: int, gateways: int) -> str:
    """Return the command that plays one comparison again."""
    return f"replay: .venv/bin/python -m pytest tests/parity/test_decisions.py -k '{case}-{seed}-{gateways}'"


# What two gateways do within one microsecond has no order between them, and their batches meet at replicas in either;
# in this seed's trace that makes no difference.
SEED_OF_TWO = 7
PLAYS = [(case, seed, 1) for case in CASES for seed in SEEDS] + [(case, SEED_OF_TWO, 2) for case in CASES]
every_play = pytest.mark.parametrize(("case", "seed", "gateways"), PLAYS, ids=["-".join(map(str, p)) for p in PLAYS])


@every_play
def test_both_decide_the_same(case: str, seed: int, gateways: int) -> None:
    """Entry by entry: what leaves when in which batch for which replica and why, who is refused, who is dropped."""
    lived, scenario = play_live(case, seed, gateways)
    simulated, _ = play_simulated(scenario, seed)
    assert len(lived.decisions) == len(simulated) == gateways
    for live_log, simulated_log in zip(lived.decisions, simulated, strict=True):
        difference = explain_difference(live_log, simulated_log, replay(case, seed, gateways))
        assert not difference, difference


@every_play
def test_callers_are_told_the_same(case: str, seed: int, gateways: int) -> None:
    """Every request of the trace is answered once, at the µs and in the way that the simulator says."""
    lived, scenario = play_live(case, seed, gateways)
    _, recording = play_simulated(scenario, seed)
    assert recording.arrived_us.tolist() == [sending.at_us for sending in plan_sendings(scenario, stream_of(seed))]
    assert lived.answers.keys() == set(range(len(recording.outcome)))
    live_ends = [lived.answers[k] for k in range(len(lived.answers))]
    simulated_ends = []
    for (_, status), at_us, outcome in zip(live_ends, recording.settled_us, recording.outcome, strict=True):
        allowed = STATUSES[Outcome(outcome)]
        simulated_ends.append((int(at_us), status if status in allowed else min(allowed)))
    difference = explain_difference(live_ends, simulated_ends, replay(case, seed, gateways))
    assert not difference, difference


@every_play
def test_nothing_is_executed_that_was_not_dispatched(case: str, seed: int, gateways: int) -> None:
    """Replicas execute what was dispatched to them, each request once, but for those that a death interrupted."""
    lived, scenario = play_live(case, seed, gateways)
    _, recording = play_simulated(scenario, seed)
    executed = Counter(lived.executed)
    dispatched = Counter(k for log in lived.decisions for entry in log if entry[1] == "dispatch" for k in entry[3])
    assert max(executed.values()) == 1
    assert executed.keys() <= dispatched.keys()
    assert {k for k, (_, status) in lived.answers.items() if status == 200} <= executed.keys()
    assert executed.keys() >= set(np.flatnonzero(recording.outcome == Outcome.SERVED).tolist())


def test_the_trace_brings_about_what_it_is_for() -> None:
    """Full batches, held ones, retries alone, refusals, drops, expiries, an idle burst's end: all of it happens."""
    reasons: Counter[tuple[str, str]] = Counter()
    replicas: set[tuple[str, str]] = set()
    outcomes: set[int] = set()
    for case in CASES:
        lived, scenario = play_live(case, SEEDS[0], 1)
        _, recording = play_simulated(scenario, SEEDS[0])
        outcomes |= set(recording.outcome.tolist())
        ((joined_us, reborn),) = lived.joined
        assert joined_us > DEATH.at_us + DEATH.duration_us
        for entry in lived.decisions[0]:
            reasons[entry[1], entry[-1]] += 1
            if entry[1] == "dispatch" and (entry[2] != reborn or entry[0] >= joined_us):
                replicas.add((case, entry[2]))
    assert {what for what, _ in reasons} == {"dispatch", "refuse", "drop"}
    closes = {reason for what, reason in reasons if what == "dispatch"}
    assert closes == {"full", "timeout", "idle", "enough", "deadline", "held", "alone"}
    assert {reason for what, reason in reasons if what == "refuse"} >= {"predicted_late", "tenant_full"}
    assert {reason for what, reason in reasons if what == "drop"} == {"dropped", "expired"}
    assert replicas == {(case, f"replica-{k}") for case in CASES for k in range(3)}
    assert outcomes >= {Outcome.SERVED, Outcome.REFUSED, Outcome.DROPPED, Outcome.EXPIRED, Outcome.ABANDONED}
