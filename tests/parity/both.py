"""Both sides of the comparison, played once for each case and seed. Not here: what must be equal (`test_*.py`)."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from penstock.sim import DecisionLog, Recording, Scenario, simulate
from penstock.sim.gateway import Decision
from tests.parity.trace import scenario_of, stream_of
from tests.parity.virtual_fleet import Lived, live

__all__ = ["explain_difference", "play_live", "play_simulated"]

# Entries shown around the first that differ.
CONTEXT = 4


@cache
def play_live(case: str, seed: int, gateways: int = 1) -> tuple[Lived, Scenario]:
    """Play the trace to the live gateway.

    Returns:
        What happened, and the scenario as it turned out: a replica that dies is back when the gateway has found it fit.
    """
    scenario, stream = scenario_of(case, gateways=gateways), stream_of(seed)
    lived = live(scenario, stream)
    deaths = [fault for fault in scenario.faults if fault.kind == "replica_death"]
    assert [name for _, name in lived.joined] == [f"replica-{fault.index}" for fault in deaths]
    back_us = dict(zip(deaths, [at_us for at_us, _ in lived.joined], strict=True))
    faults = [replace(f, duration_us=back_us[f] - f.at_us) if f in back_us else f for f in scenario.faults]
    return lived, replace(scenario, faults=tuple(faults))


def play_simulated(
    scenario: Scenario, seed: int, simulator: Callable[..., Recording] = simulate
) -> tuple[list[list[Decision]], Recording]:
    """Simulate a scenario that `play_live` returned; return each gateway's decisions, and the recording."""
    log = DecisionLog()
    recording = simulator(scenario, stream_of(seed), log=log)
    return log.gateways, recording


def explain_difference(live_entries: list[Any], simulated: list[Any], replay: str) -> str:
    """Return the first entries that differ, with those around them; '' if none do."""
    if live_entries == simulated:
        return ""
    pairs = enumerate(zip(live_entries, simulated, strict=False))
    at = next((k for k, (a, b) in pairs if a != b), min(len(live_entries), len(simulated)))
    lines = [f"entry {at} differs, of {len(live_entries)} live and {len(simulated)} simulated; {replay}"]
    for k in range(max(at - CONTEXT, 0), at + CONTEXT):
        a, b = (side[k] if k < len(side) else "(end)" for side in (live_entries, simulated))
        lines += [f"  {k} both {a}"] if a == b else [f"> {k} live {a}", f"> {k} sim  {b}"]
    return "\n".join(lines)
