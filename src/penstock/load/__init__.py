"""The river: an open-loop load generator and what its numbers mean.

Not here: the command (`cli/bench.py`), clocks and dice (`adapters/`); both are handed in.
"""

from penstock.load.crew import Crew, CrewResult
from penstock.load.discovery import check_accepted, fetch_inputs, parse_target
from penstock.load.driver import RETRIES_MAX, Driver, DriverConfig, Recording
from penstock.load.inputs import (
    RequestPool,
    Target,
    build_request_pool,
    format_key_header,
    read_keys,
    read_request_pool,
)
from penstock.load.job import (
    Job,
    Phase,
    Schedule,
    Source,
    Streams,
    build_pool,
    build_pools,
    parse_header,
    plan_schedule,
    resolve,
)
from penstock.load.network import EpollNetwork
from penstock.load.reporting import Measurement, bucket_latencies, build_report
from penstock.load.traces import read_trace
from penstock.load.verdict import over_slo_allowed

__all__ = [
    "RETRIES_MAX",
    "Crew",
    "CrewResult",
    "Driver",
    "DriverConfig",
    "EpollNetwork",
    "Job",
    "Measurement",
    "Phase",
    "Recording",
    "RequestPool",
    "Schedule",
    "Source",
    "Streams",
    "Target",
    "bucket_latencies",
    "build_pool",
    "build_pools",
    "build_report",
    "build_request_pool",
    "check_accepted",
    "fetch_inputs",
    "format_key_header",
    "over_slo_allowed",
    "parse_header",
    "parse_target",
    "plan_schedule",
    "read_keys",
    "read_request_pool",
    "read_trace",
    "resolve",
]
