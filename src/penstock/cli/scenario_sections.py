"""What one may write in a scenario file: the sections, their keys and bounds.

Not here: reading a file (`config_reading.py`), what spans several keys, and turning sections into a scenario
(`scenario.py`).
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from penstock.cli.config_sections import WEIGHT_MAX, WEIGHT_MIN
from penstock.cli.section import NAME_PATTERN, Section
from penstock.core.models import TENANT_PATTERN

__all__ = [
    "DeviceSection",
    "FaultSection",
    "ModelSection",
    "OverheadsSection",
    "RunSection",
    "ScenarioFile",
    "SourceSection",
]


_DAY_S = 86_400
_Seconds = Annotated[float, Field(ge=0, le=_DAY_S)]
_Ms = Annotated[float, Field(ge=0, le=_DAY_S * 1_000)]
_PositiveMs = Annotated[float, Field(gt=0, le=_DAY_S * 1_000)]
_Us = Annotated[int, Field(ge=0, le=60_000_000)]
_Ratio = Annotated[float, Field(ge=0, le=1)]
_Factor = Annotated[float, Field(gt=0, le=1_000)]
_Rows = Annotated[int, Field(ge=1, le=65_536)]
_Count = Annotated[int, Field(ge=1)]
_Weight = Annotated[float, Field(ge=WEIGHT_MIN, le=WEIGHT_MAX)]
_Tenant = Annotated[str, Field(pattern=TENANT_PATTERN)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


class RunSection(Section):
    """[scenario]: how long, and from which seed."""

    name: str = Field(default="", description="For tables and reports; the file's name when left out.")
    duration_s: float = Field(gt=0, le=_DAY_S, description="Measured time, s.")
    warmup_s: _Seconds = Field(default=0, description="Simulated before it and not measured, s.")
    seed: int = Field(default=1, ge=0, description="Same seed, same run.")


class ModelSection(Section):
    """[model]: the model's contract, as in penstock.toml, and its fleet."""

    slo_ms: _Ms = Field(default=0, description="Latency to be met, ms; 0: none is stated.")
    timeout_ms: _PositiveMs = Field(default=30_000, description="Deadline of other requests, ms.")
    size_max: _Rows = Field(default=32, description="Most rows in one batch.")
    policy: Literal["deadline", "size_or_timeout", "adaptive"] = Field(
        default="deadline", description="When a batch is closed."
    )
    mode: Literal["latency", "throughput", "fair"] = Field(default="latency", description="What `deadline` favours.")
    wait_ms_max: Annotated[float, Field(ge=0, le=60_000)] = Field(
        default=2, description="`size_or_timeout`: longest wait for company, ms."
    )
    eager: bool = Field(default=True, description="`size_or_timeout`: an idle replica takes what waits at once.")
    requests_max: _Count = Field(default=8_192, description="Requests that may wait in one gateway.")
    replicas: int = Field(default=1, ge=1, le=1_024, description="Replicas.")
    gateways: int = Field(default=1, ge=1, le=256, description="Gateways, each with a queue of its own.")
    weights: dict[_Tenant, _Weight] = Field(default_factory=dict, description="Share of device time by tenant.")


class DeviceSection(Section):
    """[device]: how long executions take: a line, or a measured profile."""

    beta_ms: _Ms | None = Field(default=None, description="Any batch, however small, ms.")
    alpha_ms: _Ms | None = Field(default=None, description="Each row on top, ms.")
    rows: list[_Rows] = Field(default_factory=list, description="Measured profile: batch sizes, ascending from 1.")
    times_us: list[_Count] = Field(default_factory=list, description="Measured profile: device time of each, µs.")
    noise_ratio: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0, description="Standard deviation of a lognormal factor of mean 1."
    )
    outlier_ratio: _Ratio = Field(default=0, description="Share of executions that take longer still.")
    outlier_factor: _Factor = Field(default=1, description="How many times as long those take.")
    speeds: list[_Factor] = Field(default_factory=list, description="Speed of each replica, 1 as the profile says.")


class OverheadsSection(Section):
    """[overheads]: what is paid besides device time, µs."""

    request_us: _Us = Field(default=0, description="From a caller's sending to the gateway's having read it.")
    gateway_us: _Us = Field(default=0, description="CPU time of the gateway for each request, one at a time.")
    reply_us: _Us = Field(default=0, description="From the gateway's answer to the caller's having it.")
    batch_us: _Us = Field(default=0, description="From gateway to replica and back, for each batch.")
    replica_us: _Us = Field(default=0, description="The replica's own time for each execution.")
    jitter_us: _Us = Field(default=0, description="How late a timer may fire, uniform from 0.")


class SourceSection(Section):
    """[[sources]]: who sends requests: an open loop with `rate`, or a closed one with `clients`."""

    name: str = Field(pattern=NAME_PATTERN, description="Unique.")
    tenant: _Tenant | None = Field(default=None, description="Whom device time is charged to.")
    class_: Literal["interactive", "batch"] = Field(
        default="interactive", alias="class", description="`interactive` or `batch`."
    )
    arrivals: str = Field(
        default="poisson",
        description=(
            "`poisson`, `constant`, `gamma:CV`, `mmpp`, `step:FACTOR,FROM_S,TO_S`, `diurnal:AMPLITUDE,PERIOD_S` or"
            " `trace:FILE` (CSV, relative to the scenario)."
        ),
    )
    rate: float | None = Field(default=None, gt=0, le=10_000_000, description="Open loop: requests per second.")
    clients: int | None = Field(default=None, ge=1, le=1_000_000, description="Closed loop: how many clients.")
    think_ms: _Ms = Field(default=0, description="Closed loop: mean pause after an answer, exponential, ms.")
    rows: Annotated[list[_Rows], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default=[1], description="Rows of a request: a number, or several of which each is as likely."
    )
    deadline_ms: _PositiveMs | None = Field(default=None, description="Time each request allows, ms.")
    hit_ratio: _Ratio = Field(default=0, description="Share answered by a response cache.")
    retries: int = Field(default=0, ge=0, le=100, description="How often a refused request is sent again.")
    retry_after_ms: _PositiveMs | None = Field(
        default=None, description="Pause before that, ms; as told, at most 100, when left out."
    )
    patience_ms: _PositiveMs | None = Field(default=None, description="A caller that waits longer is gone, ms.")


class FaultSection(Section):
    """[[faults]]: what goes wrong, and when."""

    kind: Literal["replica_death", "slow_device", "gateway_stall"] = Field(
        description="`replica_death`, `slow_device` or `gateway_stall`."
    )
    at_s: _Seconds = Field(description="When, s from the start, warm-up included.")
    duration_s: Annotated[float, Field(gt=0, le=_DAY_S)] = Field(
        description="Until the replica is back, the device is as fast as before, the gateway goes on, s."
    )
    replica: Annotated[int, Field(ge=0)] = Field(default=0, description="Which replica, from 0.")
    gateway: Annotated[int, Field(ge=0)] = Field(default=0, description="`gateway_stall`: which gateway, from 0.")
    factor: _Factor = Field(default=2, description="`slow_device`: how many times as long.")


class ScenarioFile(Section):
    """A scenario: one model, its fleet and its load."""

    scenario: RunSection
    model: ModelSection = Field(default_factory=ModelSection)
    device: DeviceSection
    overheads: OverheadsSection = Field(default_factory=OverheadsSection)
    sources: list[SourceSection] = Field(min_length=1)
    faults: list[FaultSection] = Field(default_factory=list)
