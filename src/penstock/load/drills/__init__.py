"""Drills: failure behaviour that is proved on a running server instead of promised.

Each starts a `penstock serve` of its own on an emulated device, applies load, injects a fault, and judges what came of
it by limits it states beforehand. What all share is in `form.py`; the command is `cli/drill.py`.
"""

from penstock.load.drills.fairness import FAIRNESS
from penstock.load.drills.form import Check, Drill, Findings, Rig, run_drill
from penstock.load.drills.overload import OVERLOAD

__all__ = ["DRILLS", "Check", "Drill", "Findings", "Rig", "run_drill"]

DRILLS: dict[str, Drill] = {drill.name: drill for drill in (OVERLOAD, FAIRNESS)}
