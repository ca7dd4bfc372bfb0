"""The frontier: what each further replica buys in latency, over batch sizes and policies.

Not here: what a replica costs (`cli/plan.py`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from penstock.core.models import POLICIES
from penstock.core.profiles import profiled_sizes
from penstock.sim.planning import Question, Trial, Trials, floor_replicas
from penstock.sim.scenario import Scenario

__all__ = ["Frontier", "drop_dominated", "find_frontier"]

# Numbers of replicas to look at, as multiples of the fewest that hold with what was asked; and one less and one more.
REPLICA_RATIOS = (1.0, 1.25, 1.6, 2.0)
_SIZES_MAX = 4  # the largest batch sizes: smaller ones need many more replicas
# Every candidate is run for this share of a run; each number of replicas' best ones are then put to the proof.
_SIFT_RATIO = 0.2
_PROOFS_MAX = 2
# A short run that misses by this factor is not looked at again.
_STRAIN_MAX = 1.5


@dataclass(frozen=True, slots=True)
class Frontier:
    """Configurations that no other beats in both replicas and p95.

    Attributes:
        points: By replicas, ascending; p95 falls. All hold the SLO at the planned rate.
        tried: How many configurations were run.
    """

    points: tuple[Trial, ...]
    tried: int


def find_frontier(question: Question, trials: Trials, replicas: int, requests_max: int) -> Frontier:
    """Return the frontier around `replicas`, the fewest that hold with the policy and the batch size asked for.

    Args:
        question: What is planned.
        trials: Runs it.
        replicas: See above.
        requests_max: About how many requests to sift the candidates by; the less promising are left out for it.
    """
    sifted: dict[int, list[tuple[Trial, Scenario]]] = {}
    begun, tried = trials.requests, 0
    for scenario in _list_candidates(question, replicas):
        if trials.requests - begun > requests_max:
            break
        trial = trials.run(scenario)
        tried += 1
        if trial.strain <= _STRAIN_MAX:
            sifted.setdefault(scenario.replicas, []).append((trial, scenario))
    found = [trials.prove(question.shape(replicas=replicas, rate=question.rate_planned))]
    for candidates in sifted.values():
        candidates.sort(key=lambda candidate: candidate[0].p95_ms or math.inf)
        for _, scenario in candidates[:_PROOFS_MAX]:
            trial = trials.prove(_lengthen(question, scenario))
            if trial.holds:
                found.append(trial)
                break
    return Frontier(drop_dominated(trial for trial in found if trial.holds), tried)


def _lengthen(question: Question, scenario: Scenario) -> Scenario:
    return question.shape(
        replicas=scenario.replicas,
        rate=scenario.rate,
        policy=scenario.batching.policy,
        size_max=scenario.batching.size_max,
    )


def _list_candidates(question: Question, replicas: int) -> Iterator[Scenario]:
    """Yield what may hold at all, the more promising first."""
    asked = question.scenario.batching
    rows = max(question.scenario.sources[0].rows)
    sizes = [size for size in profiled_sizes(asked.size_max) if size >= rows][-_SIZES_MAX:]
    counts = sorted({replicas - 1, replicas + 1, *(math.ceil(replicas * ratio) for ratio in REPLICA_RATIOS)})
    requests = round(_SIFT_RATIO * question.requests)
    for size_max in reversed(sizes):
        floor = floor_replicas(question, size_max)
        for policy in sorted(POLICIES, key=lambda policy: policy != asked.policy):
            for count in counts:
                if floor <= count <= question.replicas_max:
                    yield question.shape(
                        replicas=count,
                        rate=question.rate_planned,
                        policy=policy,
                        size_max=size_max,
                        requests=requests,
                    )


def drop_dominated(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return those that no other matches in replicas and in p95 and beats in one; one of each pair of equals."""
    best: list[Trial] = []
    ordered: Sequence[Trial] = sorted(trials, key=lambda trial: (trial.replicas, trial.p95_ms or math.inf))
    for trial in ordered:
        if trial.p95_ms is not None and (not best or trial.p95_ms < (best[-1].p95_ms or math.inf)):
            best.append(trial)
    return tuple(best)
