"""The drills as measurements: `penstock drill overload` and `fairness`, their reports kept as they are.

On emulated devices. Not here: the drills, their invariants and limits (`penstock/load/drills/`, docs/drills.md).
"""

import json
import subprocess
from typing import Any

from bench.serving import PENSTOCK


def _run_drill(name: str) -> dict[str, Any]:
    """Run one drill; return its report, with `passed`."""
    command = [str(PENSTOCK), "drill", name, "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode not in (0, 1) or not run.stdout.strip():
        raise RuntimeError(f"penstock drill {name}: expected a report, got exit status {run.returncode} and none")
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def bench_overload() -> dict[str, Any]:
    """More load than a model can do must not cost what it can do."""
    return _run_drill("overload")


def bench_fairness() -> dict[str, Any]:
    """What a tenant gets depends on its share, not on how loud the others are."""
    return _run_drill("fairness")
