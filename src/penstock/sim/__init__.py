"""The wind tunnel: the schedulers that production runs, driven by an event heap in virtual time.

Not here: deciding anything (`policy/`), reading scenarios (`cli/scenario.py`), seeding chance (`adapters/chance.py`).
"""

from penstock.sim.recording import Outcome, Recording
from penstock.sim.run import DecisionLog, simulate
from penstock.sim.scenario import (
    FAULT_KINDS,
    DeviceModel,
    Fault,
    Overheads,
    Scenario,
    Service,
    Source,
    StreamFactory,
)
from penstock.sim.summary import Summary, TenantSummary, summarise
from penstock.sim.timeline import Timeline, trace_timeline

__all__ = [
    "FAULT_KINDS",
    "DecisionLog",
    "DeviceModel",
    "Fault",
    "Outcome",
    "Overheads",
    "Recording",
    "Scenario",
    "Service",
    "Source",
    "StreamFactory",
    "Summary",
    "TenantSummary",
    "Timeline",
    "simulate",
    "summarise",
    "trace_timeline",
]
