"""What the head tells a child process when it starts it: one JSON argument, decoded by the child's entry module."""

from dataclasses import dataclass, field

from penstock.core.limits import LimitSettings
from penstock.core.models import ModelSource

__all__ = ["GatewayLaunch", "HttpLimits", "ReplicaLaunch"]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of the inference port. Sources: header and line limits as nginx's defaults (4 x 8 KiB) or stricter.

    Args:
        header_bytes_max: Request line and headers together.
        headers_max: Number of header fields (Apache httpd: 100).
        body_bytes_max: Body as received, and again after decompression.
        header_timeout_us: From the first byte of a request to the end of its headers (httpd's reqtimeout: 20 s).
        body_timeout_us: From the end of the headers to the end of the body.
        idle_timeout_us: Between requests on one connection (nginx keepalive_timeout: 75 s).
        pipeline_max: Requests of one connection in progress; reading pauses beyond.
        connections_max: Open client connections of one gateway; beyond, new ones are closed.
    """

    header_bytes_max: int = 16 * 1024
    headers_max: int = 100
    body_bytes_max: int = 64 * 1024 * 1024
    header_timeout_us: int = 20_000_000
    body_timeout_us: int = 60_000_000
    idle_timeout_us: int = 75_000_000
    pipeline_max: int = 128
    connections_max: int = 16_384


@dataclass(frozen=True, slots=True)
class GatewayLaunch:
    """How to run one gateway process.

    Args:
        index: 0 .. gateways-1.
        http: `host:port` to bind with SO_REUSEPORT; the port is never 0 (the head has chosen one).
        control: Path of the head's control socket.
        http_limits: HTTP bounds.
        access_log: Write one JSON line per request to stderr.
        canary_age_us_max: A model is ready while its last success is younger than this.
        orphan_us: How long to go on serving without a head before draining.
        limits: How much callers may ask for, and who counts it.
        requires_key: Refuse callers without an API key.
    """

    index: int
    http: str
    control: str
    http_limits: HttpLimits = HttpLimits()
    access_log: bool = False
    canary_age_us_max: int = 10_000_000
    orphan_us: int = 300_000_000
    limits: LimitSettings = field(default_factory=LimitSettings)
    requires_key: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaLaunch:
    """How to run one replica process.

    Args:
        replica: Its unique name, e.g. `digits:1#0`.
        address: `unix:PATH` or `tcp:HOST:PORT` to listen on.
        control: Path of the head's control socket.
        source: The model to load.
        orphan_us: How long to go on serving without a head before draining.
    """

    replica: str
    address: str
    control: str
    source: ModelSource
    orphan_us: int = 300_000_000
