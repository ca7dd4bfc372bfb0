"""Reading a scenario file: TOML to the plain scenario that `sim/` runs, or all its mistakes at once.

Not here: which keys there are (`scenario_sections.py`), running it (`simulate.py`).
"""

from pathlib import Path

from penstock.cli.config_reading import Problems, read_file
from penstock.cli.config_sections import to_us
from penstock.cli.scenario_sections import FaultSection, ModelSection, ScenarioFile, SourceSection
from penstock.core.arrivals import Arrivals, Times, parse_arrivals
from penstock.core.errors import ConfigError
from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.load import read_trace
from penstock.policy.queueing import BATCH, INTERACTIVE
from penstock.sim import DeviceModel, Fault, Overheads, Scenario, Source

__all__ = ["read_scenario"]

# A request takes about 300 bytes while it is simulated and recorded: this is 6 GB.
_REQUESTS_MAX = 20_000_000


def read_scenario(path: Path) -> Scenario:
    """Read a scenario.

    Raises:
        ConfigError: Something in it is wrong; the message lists every mistake with its key, what was expected and got.
    """
    problems = Problems()
    document = read_file(path, ScenarioFile, problems)
    if document is None:
        problems.check()
    assert document is not None
    scenario = _build(path, document, problems)
    problems.check()
    return scenario


def _build(path: Path, document: ScenarioFile, problems: Problems) -> Scenario:
    model, run = document.model, document.scenario
    if model.slo_ms > model.timeout_ms:
        expected = f"expected at most timeout_ms, which is {model.timeout_ms:g}, got {model.slo_ms:g}"
        problems.add(path, "model.slo_ms", expected)
    _check_sources(path, document, problems)
    _check_faults(path, document, problems)
    if len(document.device.speeds) > model.replicas:
        expected = f"expected at most one for each of {model.replicas} replicas, got {len(document.device.speeds)}"
        problems.add(path, "device.speeds", expected)
    costs = document.overheads
    return Scenario(
        name=run.name or path.stem,
        sources=tuple(_source(path, k, source, problems) for k, source in enumerate(document.sources)),
        device=_device(path, document, problems),
        duration_us=to_us(run.duration_s * 1_000),
        warmup_us=to_us(run.warmup_s * 1_000),
        seed=run.seed,
        batching=_batching(model),
        bounds=QueueBounds(requests_max=model.requests_max),
        slo_us=to_us(model.slo_ms),
        timeout_us=to_us(model.timeout_ms),
        weights=tuple(sorted(model.weights.items())),
        replicas=model.replicas,
        gateways=model.gateways,
        overheads=Overheads(
            request_us=costs.request_us,
            gateway_us=costs.gateway_us,
            reply_us=costs.reply_us,
            batch_us=costs.batch_us,
            replica_us=costs.replica_us,
            jitter_us=costs.jitter_us,
        ),
        faults=tuple(_fault(fault) for fault in document.faults),
    )


def _batching(model: ModelSection) -> Batching:
    return Batching(
        policy=model.policy,
        mode=model.mode,
        size_max=model.size_max,
        wait_us_max=to_us(model.wait_ms_max),
        eager=model.eager,
    )


def _device(path: Path, document: ScenarioFile, problems: Problems) -> DeviceModel:
    device = document.device
    profile = CostProfile((1,), (1,))
    if device.rows or device.times_us:
        profile = CostProfile(tuple(device.rows), tuple(device.times_us))
        if device.beta_ms is not None or device.alpha_ms is not None:
            problems.add(path, "device", "expected rows and times_us, or beta_ms and alpha_ms, got both")
        try:
            profile.check("device")
        except ConfigError as error:
            key, _, text = error.message.partition(": ")
            problems.add(path, key, text)
    elif device.beta_ms is None or device.alpha_ms is None:
        problems.add(path, "device", "expected beta_ms and alpha_ms, or rows and times_us, got neither pair")
    elif not device.beta_ms + device.alpha_ms:
        problems.add(path, "device", "expected beta_ms or alpha_ms above 0, got 0 for both")
    else:
        profile = CostProfile.from_line(
            beta_us=device.beta_ms * 1_000, alpha_us=device.alpha_ms * 1_000, size_max=document.model.size_max
        )
    return DeviceModel(
        profile=profile,
        speeds=tuple(device.speeds),
        noise_ratio=device.noise_ratio,
        outlier_ratio=device.outlier_ratio,
        outlier_factor=device.outlier_factor,
    )


def _check_sources(path: Path, document: ScenarioFile, problems: Problems) -> None:
    seconds = document.scenario.warmup_s + document.scenario.duration_s
    seen: set[str] = set()
    for k, source in enumerate(document.sources):
        if source.name in seen:
            problems.add(path, f"sources[{k}].name", f'expected a name that no other source has, got "{source.name}"')
        seen.add(source.name)
        if (source.rate is None) == (source.clients is None):
            got = "neither" if source.rate is None else "both"
            problems.add(path, f"sources[{k}]", f"expected rate (an open loop) or clients (a closed one), got {got}")
        for key, other, is_there in (("arrivals", "rate", source.rate), ("think_ms", "clients", source.clients)):
            if key in source.model_fields_set and is_there is None:
                problems.add(path, f"sources[{k}].{key}", f"expected only with {other}")
    if (requests := sum(source.rate or 0 for source in document.sources) * seconds) > _REQUESTS_MAX:
        expected = f"expected at most {_REQUESTS_MAX:,} requests in a run, got about {requests:,.0f}"
        problems.add(path, "scenario.duration_s", expected)


def _source(path: Path, k: int, source: SourceSection, problems: Problems) -> Source:
    where = f"sources[{k}].arrivals"
    arrivals, trace_us = Arrivals("poisson"), None
    try:
        arrivals = parse_arrivals(source.arrivals, where)
        trace_us = _trace(path, arrivals, where)
    except ConfigError as error:
        problems.add(path, where, error.message.removeprefix(f"{where}: "))
    return Source(
        name=source.name,
        arrivals=arrivals,
        rate=source.rate or 0.0,
        trace_us=trace_us,
        clients=source.clients or 0,
        think_us=to_us(source.think_ms),
        rows=tuple(source.rows),
        tenant=source.tenant or "",
        request_class=BATCH if source.class_ == "batch" else INTERACTIVE,
        deadline_us=to_us(source.deadline_ms or 0),
        hit_ratio=source.hit_ratio,
        retries=source.retries,
        retry_after_us=to_us(source.retry_after_ms or 0),
        patience_us=to_us(source.patience_ms or 0),
    )


def _trace(path: Path, arrivals: Arrivals, where: str) -> Times | None:
    return read_trace(str(path.parent / arrivals.path), where) if arrivals.kind == "trace" else None


def _check_faults(path: Path, document: ScenarioFile, problems: Problems) -> None:
    dead_until: dict[int, float] = {}
    for k, fault in sorted(enumerate(document.faults), key=lambda item: item[1].at_s):
        kind, count = ("gateway", document.model.gateways) if _stalls(fault) else ("replica", document.model.replicas)
        index = fault.gateway if _stalls(fault) else fault.replica
        if index >= count:
            problems.add(path, f"faults[{k}].{kind}", f"expected one of {count}, counted from 0, got {index}")
        if fault.kind == "replica_death":
            if fault.at_s < dead_until.get(index, 0):
                problems.add(path, f"faults[{k}].at_s", f"expected replica {index} to be back by then")
            dead_until[index] = fault.at_s + fault.duration_s
        foreign = {"gateway": not _stalls(fault), "replica": _stalls(fault), "factor": fault.kind != "slow_device"}
        for key in sorted(foreign):
            if foreign[key] and key in fault.model_fields_set:
                problems.add(path, f"faults[{k}].{key}", f"has no meaning for a {fault.kind}; remove it")


def _stalls(fault: FaultSection) -> bool:
    return fault.kind == "gateway_stall"


def _fault(fault: FaultSection) -> Fault:
    return Fault(
        kind=fault.kind,
        at_us=to_us(fault.at_s * 1_000),
        duration_us=to_us(fault.duration_s * 1_000),
        index=fault.gateway if _stalls(fault) else fault.replica,
        factor=fault.factor if fault.kind == "slow_device" else 1.0,
    )
