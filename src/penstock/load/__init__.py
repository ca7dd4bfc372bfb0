"""The river: an open-loop load generator and what its numbers mean.

Not here: the command (`cli/bench.py`), clocks and dice (`adapters/`); both are handed in.
"""

from penstock.load.arrivals import Arrivals, parse_arrivals, plan_arrivals, read_trace
from penstock.load.crew import Crew, CrewResult
from penstock.load.discovery import check_accepted, fetch_inputs, parse_target
from penstock.load.driver import Driver, DriverConfig, Recording
from penstock.load.inputs import RequestPool, Target, build_request_pool, read_request_pool
from penstock.load.network import EpollNetwork
from penstock.load.reporting import Measurement, bucket_latencies, build_report
from penstock.load.verdict import over_slo_allowed

__all__ = [
    "Arrivals",
    "Crew",
    "CrewResult",
    "Driver",
    "DriverConfig",
    "EpollNetwork",
    "Measurement",
    "Recording",
    "RequestPool",
    "Target",
    "bucket_latencies",
    "build_report",
    "build_request_pool",
    "check_accepted",
    "fetch_inputs",
    "over_slo_allowed",
    "parse_arrivals",
    "parse_target",
    "plan_arrivals",
    "read_request_pool",
    "read_trace",
]
