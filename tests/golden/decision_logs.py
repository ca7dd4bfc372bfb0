"""What the scheduler decides over the parity trace; `python -m tests.golden.decision_logs` rewrites the reviewed files.

Each file in tests/golden/decisions is one policy: how often it decided what, its first decisions, and a digest of all
of them, so that a change of policy is seen and reviewed. Not here: the comparison (`test_decision_logs.py`).
"""

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from penstock.sim import DecisionLog, simulate
from tests.parity.trace import CASES, scenario_of, stream_of

__all__ = ["REFRESH", "decision_log", "directory", "render"]

REFRESH = ".venv/bin/python -m tests.golden.decision_logs"
SEED = 1
# Enough to see a policy at work in calm, few enough to be read.
FIRST = 40


def decision_log(case: str) -> dict[str, Any]:
    """Simulate the parity trace under one policy; return what the golden file holds."""
    log = DecisionLog()
    simulate(scenario_of(case), stream_of(SEED), log=log)
    (decisions,) = log.gateways
    counts = Counter(f"{entry[1]} {entry[-1]}" for entry in decisions)
    return {
        "counts": dict(sorted(counts.items())),
        "sha256": sha256(json.dumps(decisions).encode()).hexdigest(),
        "first": [" ".join(map(str, entry)) for entry in decisions[:FIRST]],
    }


def render(document: dict[str, Any]) -> str:
    """Write a document with one decision on each line."""
    return json.dumps(document, indent=2) + "\n"


def directory() -> Path:
    """Return where the reviewed files lie."""
    return Path(__file__).parent / "decisions"


if __name__ == "__main__":
    directory().mkdir(exist_ok=True)
    for stale in directory().glob("*.json"):
        stale.unlink()
    for name in CASES:
        (directory() / f"{name}.json").write_text(render(decision_log(name)))
