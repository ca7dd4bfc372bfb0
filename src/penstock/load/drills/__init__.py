"""Drills: failure behaviour that is proved on a running server instead of promised.

Each starts a `penstock serve` of its own on an emulated device, applies load, injects a fault, and judges what came of
it by limits it states beforehand. What all share is in `form.py`; the command is `cli/drill.py`.
"""

from penstock.load.drills.fairness import FAIRNESS
from penstock.load.drills.form import Check, Drill, Findings, Rig, run_drill
from penstock.load.drills.limit_stores import OWN
from penstock.load.drills.overload import OVERLOAD
from penstock.load.drills.rate_limit import RATE_LIMIT, RateLimitCase, make_rate_limit

__all__ = [
    "DRILLS",
    "OWN",
    "RATE_LIMIT",
    "Check",
    "Drill",
    "Findings",
    "RateLimitCase",
    "Rig",
    "make_rate_limit",
    "run_drill",
]

DRILLS: dict[str, Drill] = {drill.name: drill for drill in (OVERLOAD, FAIRNESS, RATE_LIMIT)}
