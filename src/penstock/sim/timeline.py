"""A run over time: what became of the requests of each window, and whom the devices worked for.

Requests count in the window of their first arrival. Not here: drawing it (`cli/report.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.sim.recording import Recording

__all__ = ["Timeline", "trace_timeline"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Columns of one length, one row for each window.

    Attributes:
        at_s: Begin of the window, s from the start of the run, warm-up included.
        offered, goodput, refused: Requests per second: sent, answered within what callers allow, not answered at all.
        p50_ms, p95_ms: Latency of those answered; NaN where none was.
        device_ratio: By tenant: device time charged to it over the length of the window; above 1 with several replicas.
    """

    at_s: Floats
    offered: Floats
    goodput: Floats
    refused: Floats
    p50_ms: Floats
    p95_ms: Floats
    device_ratio: dict[str, Floats]


def trace_timeline(recording: Recording, window_us: int) -> Timeline:
    """Cut a run into windows.

    Args:
        recording: The run.
        window_us: Length of a window, µs, > 0.
    """
    scenario = recording.scenario
    count = -(-scenario.end_us // window_us)
    window = np.minimum(recording.arrived_us // window_us, count - 1)
    answered = recording.is_answered

    def per_second(which: NDArray[np.bool_]) -> Floats:
        found: Floats = np.bincount(window[which], minlength=count) / window_us * 1e6
        return found

    latency_us = recording.latency_us
    cuts = np.searchsorted(np.sort(window[answered]), np.arange(1, count))
    groups = np.split(latency_us[answered][np.argsort(window[answered], kind="stable")], cuts)
    percentiles = np.array([np.percentile(g, [50, 95]) / 1_000 if len(g) else [np.nan] * 2 for g in groups])
    tenants = sorted({source.tenant for source in scenario.sources})
    owner = np.array([tenants.index(source.tenant) for source in scenario.sources])[recording.source]
    return Timeline(
        at_s=np.arange(count) * window_us / 1e6,
        offered=per_second(np.ones(len(window), dtype=np.bool_)),
        goodput=per_second(recording.is_good),
        refused=per_second(~answered),
        p50_ms=percentiles[:, 0],
        p95_ms=percentiles[:, 1],
        device_ratio={
            tenant: np.bincount(window, weights=recording.share_us * (owner == k), minlength=count) / window_us
            for k, tenant in enumerate(tenants)
        },
    )
