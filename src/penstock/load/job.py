"""A job: everything that a generator process must know of a run, and the same in every one of them.

A run has one or several sources (tenants, sizes of request), each with phases of different rates. Their schedules are
merged into one, so that one open loop drives them all. Chance comes in as named streams.
Not here: driving (`driver.py`), the processes (`crew.py`), asking the server what the model takes (`discovery.py`).
"""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.core.arrivals import Times, parse_arrivals, plan_arrivals
from penstock.core.errors import ConfigError
from penstock.core.tensors import TensorSpec
from penstock.load.inputs import RequestPool, Target, build_request_pool, read_keys, read_request_pool
from penstock.load.traces import read_trace

__all__ = [
    "Job",
    "Phase",
    "Schedule",
    "Source",
    "Streams",
    "build_pool",
    "build_pools",
    "parse_header",
    "plan_schedule",
    "resolve",
]

SOURCES_MAX = 255  # a schedule names the source of each request in one byte

# A named stream of chance: the same name gives the same generator.
Streams = Callable[[str], np.random.Generator]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_OWN_HEADERS = frozenset(("connection", "content-length", "content-type", "expect", "host", "transfer-encoding"))


@dataclass(frozen=True, slots=True)
class Phase:
    """A time of constant mean rate, requests per second; 0 is silence."""

    rate: float
    duration_us: int


@dataclass(frozen=True, slots=True)
class Source:
    """One stream of requests.

    Args:
        target: Where they go, with what headers.
        inputs: What the model declares.
        phases: Its rates, from the start of the run.
        arrivals: The process, as `parse_arrivals` reads it; begun anew in each phase.
        input_path: A file of requests to send instead of made ones.
        is_same: One request for all.
        rows: Of each made request, >= 1.
        keys_path: A file of API keys, of which each request is sent with the next; '' for none. The path and not the
            keys, so that they stand in no message.
    """

    target: Target
    inputs: tuple[TensorSpec, ...]
    phases: tuple[Phase, ...]
    arrivals: str = "poisson"
    input_path: str = ""
    is_same: bool = False
    rows: int = 1
    keys_path: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One run.

    Args:
        sources: 1 to `SOURCES_MAX`, all of one server.
        address: Its host and port, resolved.
        family: The address family.
        seed: Of every stream.
        timeout_us: As in `DriverConfig`, like the next four.
        retries: See there.
        backoff_us: See there.
        connections_start: See there; of each process.
        connections_max: Likewise.
        warmup_us: Requests intended before this do not count.
        is_realtime: Ask for real-time priority.
        is_spread: As in `DriverConfig`.
    """

    sources: tuple[Source, ...]
    address: tuple[str, int]
    family: int
    seed: int
    timeout_us: int
    retries: int = 0
    backoff_us: int = -1
    connections_start: int = 1
    connections_max: int = 2_048
    warmup_us: int = 0
    is_realtime: bool = True
    is_spread: bool = False

    @property
    def duration_us(self) -> int:
        """Return the length of the schedule, µs: that of the longest source."""
        return max(sum(phase.duration_us for phase in source.phases) for source in self.sources)


@dataclass(frozen=True, slots=True)
class Schedule:
    """All requests of a run in the order of their intended times.

    Args:
        times_us: Intended times from the start of the run.
        source: Which source each is of.
        ordinal: Its index among the requests of its source.
    """

    times_us: Times
    source: NDArray[np.uint8]
    ordinal: Times


def plan_schedule(job: Job, streams: Streams) -> Schedule:
    """Return the schedule of the whole run, all processes. The same streams give the same schedule.

    Raises:
        ConfigError: The arrivals of a source do not parse, or their trace cannot be read.
    """
    assert 1 <= len(job.sources) <= SOURCES_MAX
    parts = [_plan_source(source, streams(_stream_name("arrivals", i))) for i, source in enumerate(job.sources)]
    times = np.concatenate(parts)
    source = np.repeat(np.arange(len(parts), dtype=np.uint8), [len(part) for part in parts])
    ordinal = np.concatenate([np.arange(len(part), dtype=np.int64) for part in parts])
    if len(parts) == 1:
        return Schedule(times, source, ordinal)
    order = np.argsort(times, kind="stable")
    return Schedule(times[order], source[order], ordinal[order])


def _plan_source(source: Source, rng: np.random.Generator) -> Times:
    arrivals = parse_arrivals(source.arrivals)
    trace = read_trace(arrivals.path) if arrivals.kind == "trace" else None
    pieces = [np.empty(0, dtype=np.int64)]
    begin_us = 0
    for phase in source.phases:
        if phase.rate > 0:
            duration_us = phase.duration_us
            pieces.append(
                begin_us + plan_arrivals(arrivals, rng, rate=phase.rate, duration_us=duration_us, trace_us=trace)
            )
        begin_us += phase.duration_us
    return np.concatenate(pieces)


def build_pools(job: Job, streams: Streams) -> list[RequestPool]:
    """Return the requests of each source, the same in every process.

    Raises:
        ConfigError: A file of requests or keys cannot be read, or there is no input to vary.
    """
    return [build_pool(source, streams(_stream_name("inputs", i))) for i, source in enumerate(job.sources)]


def build_pool(source: Source, rng: np.random.Generator) -> RequestPool:
    """Return the requests of one source.

    Raises:
        ConfigError: Its file of requests or of keys cannot be read, or there is no input to vary.
    """
    target, is_same = source.target, source.is_same
    keys = read_keys(source.keys_path) if source.keys_path else ()
    if source.input_path:
        return read_request_pool(target, source.input_path, is_same=is_same, keys=keys)
    return build_request_pool(target, source.inputs, rng, is_same=is_same, rows=source.rows, keys=keys)


def _stream_name(name: str, index: int) -> str:
    """Name a source's stream; the first one's does not depend on whether there are others."""
    return f"{name}/{index}" if index else name


def resolve(target: Target) -> tuple[int, tuple[str, int]]:
    """Return the address family of a target's host, and its numeric address and port. Blocks on the name service.

    Raises:
        ConfigError: The host does not resolve.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)[0]
    except OSError as fault:
        raise ConfigError(f"URL: expected a host that resolves, got {target.host!r} ({fault}).") from fault
    return int(family), (str(address[0]), int(address[1]))


def parse_header(text: str) -> str:
    """Check what follows `--header`; return it as a header line.

    Raises:
        ConfigError: It is not `name: value`, or the generator writes that header itself.
    """
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not _TOKEN.fullmatch(name) or not value.isprintable() or not value.isascii():
        raise ConfigError(f"--header: expected 'name: value' in ASCII, got {text!r}. Use e.g. 'penstock-tenant: a'.")
    if name.lower() in _OWN_HEADERS:
        raise ConfigError(f"--header: expected a header that the generator does not write itself, got {name!r}.")
    return f"{name}: {value}"
