"""What an operator may write in penstock.toml, and a publisher in model.toml: the sections, their keys and bounds.

Not here: reading a file (`config_reading.py`), turning sections into the nouns of `core` (`config.py`).
"""

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from penstock.cli.limit_sections import IdentitySection, LimitingSection, LimitSection, RedisSection, TierSection
from penstock.cli.section import NAME_PATTERN, Section
from penstock.core.launch import HttpLimits
from penstock.core.models import TENANT_PATTERN, TIMEOUT_MS_MAX, SpecOverrides

__all__ = ["Address", "ConfigFile", "ModelFile", "ModelSection", "parse_address", "to_us"]

# A tenant's share relative to the others'. A thousand to one, either way, is as good as always first or always last.
WEIGHT_MIN, WEIGHT_MAX = 0.001, 1_000


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host name or literal, without brackets, and a port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return `host:port`, an IPv6 literal in brackets, as URLs want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can connect. A name other than `localhost` is taken to be reachable."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Return the address written as `host:port` or `[ipv6]:port`.

    Raises:
        ValueError: It is neither; the message says what was expected.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError("expected host:port with a port of 0-65535, e.g. 127.0.0.1:8000")
    return Address(host, int(port))


def _check_address(text: str) -> str:
    parse_address(text)
    return text


_AddressText = Annotated[str, AfterValidator(_check_address)]


_Ms = Annotated[float, Field(gt=0, le=TIMEOUT_MS_MAX)]
_Count = Annotated[int, Field(ge=1)]
_Name = Annotated[str, Field(pattern=NAME_PATTERN)]
_Tenant = Annotated[str, Field(pattern=TENANT_PATTERN)]
_Weight = Annotated[float, Field(ge=WEIGHT_MIN, le=WEIGHT_MAX)]


def to_us(ms: float) -> int:
    """Return milliseconds as microseconds, the unit below the edge. What is not zero does not become zero."""
    return max(round(ms * 1_000), int(ms > 0))


def _to_us_or_none(ms: float | None) -> int | None:
    return None if ms is None else to_us(ms)


class LimitsSection(Section):
    """Bounds of the inference port. What does not fit is answered with a 4xx, never buffered."""

    header_bytes_max: _Count = Field(default=16 * 1024, description="Request line and headers together, bytes.")
    headers_max: _Count = Field(default=100, description="Header fields of one request.")
    body_bytes_max: _Count = Field(default=64 * 1024 * 1024, description="Body as received and as decompressed, bytes.")
    header_timeout_ms: _Ms = Field(
        default=20_000, description="From a request's first byte to the end of its headers, ms."
    )
    body_timeout_ms: _Ms = Field(default=60_000, description="From the end of the headers to the end of the body, ms.")
    idle_timeout_ms: _Ms = Field(default=75_000, description="Between two requests of one connection, ms.")
    pipeline_max: _Count = Field(
        default=128, description="Requests of one connection in progress; reading pauses beyond."
    )
    connections_max: _Count = Field(default=16_384, description="Open client connections of one gateway.")

    def to_limits(self) -> HttpLimits:
        """Return the same bounds in µs and bytes."""
        return HttpLimits(
            header_bytes_max=self.header_bytes_max,
            headers_max=self.headers_max,
            body_bytes_max=self.body_bytes_max,
            header_timeout_us=to_us(self.header_timeout_ms),
            body_timeout_us=to_us(self.body_timeout_ms),
            idle_timeout_us=to_us(self.idle_timeout_ms),
            pipeline_max=self.pipeline_max,
            connections_max=self.connections_max,
        )


class ServerSection(Section):
    """The processes that serve, and the ports they listen on."""

    http: _AddressText = Field(
        default="127.0.0.1:8000", description="Inference port, host:port; port 0 picks a free one."
    )
    admin: _AddressText = Field(default="127.0.0.1:8002", description="Admin and metrics port, host:port.")
    gateways: int = Field(default=1, ge=1, le=256, description="Gateway processes sharing the inference port.")
    allow_anonymous: bool = Field(
        default=False, description="Allow ports beyond loopback although callers are not identified."
    )
    state: str | None = Field(
        default=None, description="Directory of the control socket and of what a restarted head needs."
    )
    drain_s: float = Field(default=30, ge=0, le=86_400, description="On SIGTERM, time to finish what is in flight, s.")
    access_log: bool = Field(default=False, description="One JSON line per request on stderr.")
    canary_age_s_max: float = Field(
        default=10, gt=0, le=86_400, description="Ready means a success younger than this, s."
    )
    orphan_s: float = Field(default=300, gt=0, le=604_800, description="How long to serve on without a head, s.")
    limits: LimitsSection = Field(default_factory=LimitsSection)


class BatchingSection(Section):
    """How requests for one model are put together. A key left out keeps what the model was published with."""

    policy: Literal["deadline", "size_or_timeout", "adaptive"] | None = Field(
        default=None, description="When a batch is closed."
    )
    mode: Literal["latency", "throughput", "fair"] | None = Field(default=None, description="What is favoured.")
    size_max: int | None = Field(default=None, ge=1, le=65_536, description="Most rows in one batch.")
    wait_ms_max: float | None = Field(
        default=None, ge=0, le=60_000, description="Policy size_or_timeout only: longest wait for company, ms."
    )
    eager: bool | None = Field(
        default=None, description="Policy size_or_timeout only: an idle replica takes what waits at once."
    )

    @field_validator("wait_ms_max", "eager")
    @classmethod
    def _check_policy(cls, value: float | None, info: ValidationInfo) -> float | None:
        policy = info.data.get("policy")
        if value is not None and policy not in (None, "size_or_timeout"):
            raise ValueError(f'expected only with policy = "size_or_timeout", not with "{policy}"')
        return value


class QueueSection(Section):
    """How much may wait for one model in one gateway; past either bound new requests get 503."""

    requests_max: int | None = Field(default=None, ge=1, description="Requests waiting.")
    bytes_max: int | None = Field(default=None, ge=1, description="Bytes of inputs waiting.")


class ReplicasSection(Section):
    """How many processes run one model."""

    min: int = Field(default=1, ge=1, le=256, description="Replicas kept running.")


class OnnxSection(Section):
    """ONNX runtime settings."""

    intra_op_threads: int | None = Field(default=None, ge=1, le=1_024, description="Threads of one operator.")


class ModelSection(Section):
    """One model to serve."""

    path: str = Field(description="A .py file, a .onnx file, or a directory with model.toml; relative to this file.")
    class_: str | None = Field(
        default=None, alias="class", description="Class in the .py file, if it declares several."
    )
    runtime: Literal["python", "onnx"] | None = Field(default=None, description="Told from the path when left out.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of a Python model's class.")
    version: str | None = Field(
        default=None, pattern=r"^[0-9]+$", description="Overrides the version of an ONNX model."
    )
    timeout_ms: _Ms | None = Field(default=None, description="Deadline of a request that names none, ms.")
    slo_ms: _Ms | None = Field(
        default=None, description="Latency to be met, ms: deadline of an interactive request that names none."
    )
    execution_timeout_ms: _Ms | None = Field(
        default=None, description="A batch that runs longer replaces its replica, ms."
    )
    batching: BatchingSection = Field(default_factory=BatchingSection)
    weights: dict[_Tenant, _Weight] = Field(
        default_factory=dict, description="Share of device time by tenant; a tenant left out has 1."
    )
    queue: QueueSection = Field(default_factory=QueueSection)
    replicas: ReplicasSection = Field(default_factory=ReplicasSection)
    onnx: OnnxSection = Field(default_factory=OnnxSection)

    @field_validator("slo_ms")
    @classmethod
    def _check_slo(cls, slo_ms: float | None, info: ValidationInfo) -> float | None:
        timeout_ms = info.data.get("timeout_ms")
        if slo_ms is not None and timeout_ms is not None and slo_ms > timeout_ms:
            raise ValueError(f"expected at most timeout_ms, which is {timeout_ms:.12g}")
        return slo_ms

    def to_overrides(self) -> SpecOverrides:
        """Return what this section changes in the published spec."""
        return SpecOverrides(
            policy=self.batching.policy,
            mode=self.batching.mode,
            size_max=self.batching.size_max,
            wait_us_max=_to_us_or_none(self.batching.wait_ms_max),
            eager=self.batching.eager,
            requests_max=self.queue.requests_max,
            bytes_max=self.queue.bytes_max,
            slo_us=_to_us_or_none(self.slo_ms),
            timeout_us=_to_us_or_none(self.timeout_ms),
            execution_timeout_us=_to_us_or_none(self.execution_timeout_ms),
            weights=tuple(sorted(self.weights.items())) or None,
        )


class ConfigFile(Section):
    """penstock.toml: what `penstock serve` runs."""

    server: ServerSection = Field(default_factory=ServerSection)
    models: dict[_Name, ModelSection] = Field(default_factory=dict, description="Models by the name they have in URLs.")
    identity: IdentitySection = Field(default_factory=IdentitySection)
    limits: dict[_Name, LimitSection] = Field(default_factory=dict, description="Limits by name.")
    tiers: dict[_Name, TierSection] = Field(default_factory=dict, description="Sets of limits by name.")
    redis: RedisSection = Field(default_factory=RedisSection)
    limiting: LimitingSection = Field(default_factory=LimitingSection)


class TensorSection(Section):
    """One declared tensor of an ONNX model."""

    name: str = Field(min_length=1)
    datatype: str
    shape: list[int]
    optional: bool = False
    finite: bool = False


class ModelFile(Section):
    """model.toml: what an ONNX file does not say about itself."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(default="1", pattern=r"^[0-9]+$")
    runtime: Literal["onnx"] = "onnx"
    description: str = ""
    task: Literal["", "embedding"] = ""
    dimensions: list[_Count] = Field(default_factory=list)
    slo_ms: _Ms | None = None
    batching: BatchingSection = Field(default_factory=BatchingSection)
    onnx: OnnxSection = Field(default_factory=OnnxSection)
    inputs: list[TensorSection] = Field(min_length=1)
    outputs: list[TensorSection] = Field(min_length=1)
