"""What `penstock plan` was asked: options, a profile file or a running server, turned into a question for `sim/`.

Every mistake names its option. Not here: answering (`sim/planning.py`), printing (`plan_answer.py`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from penstock.adapters.chance import seeded_stream
from penstock.core.arrivals import MMPP_CYCLE_S, Arrivals, parse_arrivals
from penstock.core.errors import ConfigError
from penstock.core.models import MODES, POLICIES, TIMEOUT_MS_MAX, Batching
from penstock.core.profiles import CostProfile
from penstock.load import read_trace
from penstock.sim import DeviceModel, Overheads, Scenario, Source
from penstock.sim.planning import Question, count_requests_max, estimate_replicas

__all__ = ["Brief", "PlanOptions", "read_brief"]

_URL = "http://127.0.0.1:8002"
_SEEDS = 3
_REPLICAS_MAX = 1_024
# How late a gateway's timer may fire: an event loop under load; as in examples/scenarios.
_JITTER_US = 1_000
_COLD_START_MS = 1_000.0  # where nobody measured a load
# A plan is about so many runs of at most so many requests; more take minutes.
_RUNS, _RUN_REQUESTS_MIN, _RUN_REQUESTS_USUAL, _RUN_REQUESTS_MAX = 75, 6_000, 20_000, 100_000
_RUN_SLOS = 8  # as long as a run must be at least, with its warm-up
_MMPP_CYCLES = 2


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The options as typed; None: not given. Their meaning is in docs/planning.md."""

    rate: float
    model: str | None = None
    slo_ms: float | None = None
    profile: Path | None = None
    url: str | None = None
    beta_ms: float | None = None
    alpha_ms: float | None = None
    size_max: int | None = None
    policy: str | None = None
    rows: int = 1
    headroom: float = 0.1
    cold_start_ms: float | None = None
    replica_cost: float | None = None
    replicas_max: int = 128
    arrivals: str = "poisson"
    overhead_ms: float = 0.6
    noise_ratio: float = 0.05
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Brief:
    """All that a plan needs.

    Attributes:
        question: For `sim/planning.py`.
        model: Its name; empty if none was given.
        source: Where the profile is from, in words.
        seeds: Of the question's streams.
        cold_start_us: How long a dead replica is gone, µs.
        replica_cost: Of one replica for an hour; None if not given.
        requests_max: About how many requests the plan may simulate.
    """

    question: Question
    model: str
    source: str
    seeds: tuple[int, ...]
    cold_start_us: int
    replica_cost: float | None
    requests_max: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of the model besides options."""

    profile: CostProfile
    source: str
    batching: Batching = field(default_factory=Batching)
    slo_ms: float | None = None
    load_ms: float = 0.0


def read_brief(options: PlanOptions, fetch: Callable[[str], dict[str, Any]]) -> Brief:
    """Return what is asked.

    Args:
        options: As typed.
        fetch: Returns the status document of the server at a URL.

    Raises:
        ConfigError: An option is wrong, missing or beside another that excludes it; the message names it.
        UpstreamError: No server answers there.
    """
    _check_numbers(options)
    found = _find_model(options, fetch)
    slo_ms = options.slo_ms if options.slo_ms is not None else found.slo_ms
    if slo_ms is None:
        raise ConfigError("--slo-ms: expected the latency to hold, ms: the model states none. Use e.g. --slo-ms 50.")
    batching = _choose_batching(options, found.batching)
    arrivals = parse_arrivals(options.arrivals)
    overhead_us = round(options.overhead_ms * 1_000)
    scenario = Scenario(
        name=options.model or "",
        sources=(
            Source(
                "load",
                arrivals=arrivals,
                rate=options.rate,
                trace_us=read_trace(arrivals.path) if arrivals.kind == "trace" else None,
                rows=(options.rows,),
            ),
        ),
        device=DeviceModel(found.profile, noise_ratio=options.noise_ratio),
        duration_us=1,
        batching=batching,
        slo_us=max(round(slo_ms * 1_000), 1),
        # Half of it between gateway and replica, the rest on the way in and out, as measured on loopback.
        overheads=Overheads(
            request_us=overhead_us // 4,
            reply_us=overhead_us // 4,
            batch_us=overhead_us - 2 * (overhead_us // 4),
            jitter_us=_JITTER_US,
        ),
    )
    cold_start_ms = options.cold_start_ms if options.cold_start_ms is not None else found.load_ms or _COLD_START_MS
    seeds = tuple(options.seed + k for k in range(_SEEDS))
    question = Question(
        scenario,
        streams=tuple(partial(seeded_stream, seed) for seed in seeds),
        headroom_ratio=options.headroom,
        replicas_max=options.replicas_max,
        period_us=_period_us(arrivals, scenario),
    )
    question, requests_max = _fit(question)
    return Brief(
        question=question,
        model=options.model or "",
        source=found.source,
        seeds=seeds,
        cold_start_us=max(round(cold_start_ms * 1_000), 1),
        replica_cost=options.replica_cost,
        requests_max=requests_max,
    )


def _check_numbers(options: PlanOptions) -> None:
    """Check each number by itself."""
    ranges: tuple[tuple[str, float | None, float, float, str], ...] = (
        ("--rate", options.rate, 0.01, 10_000_000, "requests per second"),
        ("--slo-ms", options.slo_ms, 0.001, TIMEOUT_MS_MAX, "ms"),
        ("--beta-ms", options.beta_ms, 0, TIMEOUT_MS_MAX, "ms for any batch"),
        ("--alpha-ms", options.alpha_ms, 0, TIMEOUT_MS_MAX, "ms for each row"),
        ("--size-max", options.size_max, 1, 65_536, "rows"),
        ("--rows", options.rows, 1, 65_536, "rows of a request"),
        ("--headroom", options.headroom, 0, 10, "a share of the rate, e.g. 0.1"),
        ("--cold-start", options.cold_start_ms, 0.001, TIMEOUT_MS_MAX, "ms"),
        ("--replica-cost", options.replica_cost, 0, 1e9, "the cost of a replica for an hour"),
        ("--replicas-max", options.replicas_max, 1, _REPLICAS_MAX, "replicas"),
        ("--overhead-ms", options.overhead_ms, 0, TIMEOUT_MS_MAX, "ms"),
        ("--noise-ratio", options.noise_ratio, 0, 2, "a standard deviation over the mean"),
        ("--seed", options.seed, 0, 2**32, "an integer"),
    )
    for name, value, least, most, meaning in ranges:
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name}: expected {meaning}, from {least:,g} to {most:,g}, got {value:g}.")
    if options.policy is not None and options.policy not in POLICIES:
        raise ConfigError(f"--policy: expected one of {', '.join(POLICIES)}, got {options.policy!r}.")


def _find_model(options: PlanOptions, fetch: Callable[[str], dict[str, Any]]) -> _Found:
    """Return the profile, and what else its source says, from the one source that was given."""
    is_line = options.beta_ms is not None or options.alpha_ms is not None
    given = [
        name
        for name, is_given in (
            ("--profile", options.profile is not None),
            ("--url", options.url is not None),
            ("--beta-ms and --alpha-ms", is_line),
        )
        if is_given
    ]
    if len(given) > 1:
        raise ConfigError(f"{given[0]}: expected one source of the profile, got {' beside '.join(given)}.")
    if options.profile is not None:
        return _read_file(options.profile)
    if not is_line:
        return _ask_server(options.url or _URL, options.model, fetch)
    beta_us, alpha_us = (options.beta_ms or 0.0) * 1_000, (options.alpha_ms or 0.0) * 1_000
    if options.beta_ms is None or options.alpha_ms is None or beta_us + alpha_us < 1:
        raise ConfigError(
            "--beta-ms: expected both --beta-ms and --alpha-ms, together at least 0.001 ms, got"
            f" {options.beta_ms} and {options.alpha_ms}. Use e.g. --beta-ms 10 --alpha-ms 0.5."
        )
    size_max = options.size_max or Batching().size_max
    return _Found(CostProfile.from_line(beta_us=beta_us, alpha_us=alpha_us, size_max=size_max), "a line")


def _read_file(path: Path) -> _Found:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ConfigError(f"--profile: expected a file of JSON, got {str(path)!r} ({fault}).") from fault
    cure = 'Use {"rows": [1, 2, …], "times_us": […]}, or what `penstock models show NAME --json` prints.'
    if isinstance(document, dict) and "name" in document and isinstance(document.get("profile"), dict):
        return _from_status(document, f"--profile {path}", str(path))
    profile = _to_profile(document, f"--profile {path}")
    if profile is None:
        raise ConfigError(f"--profile {path}: expected whole numbers in `rows` and `times_us`. {cure}")
    return _Found(profile, str(path))


def _ask_server(url: str, name: str | None, fetch: Callable[[str], dict[str, Any]]) -> _Found:
    if name is None:
        raise ConfigError(
            "--model: expected the model of the server to plan for, got nothing. Use e.g. --model digits."
        )
    models = fetch(url)["models"]
    found = [m for m in models if name in (m["name"], f"{m['name']}:{m['version']}")]
    if not found:
        known = ", ".join(f"{m['name']}:{m['version']}" for m in models) or "none"
        raise ConfigError(f"--model: expected a model that the server has ({known}), got {name!r}.")
    return _from_status(found[-1], f"--model {name}", url)


def _from_status(model: dict[str, Any], where: str, source: str) -> _Found:
    """Return what a model's object of the status document says."""
    profile = _to_profile(model["profile"].get(""), where)
    if profile is None:
        raise ConfigError(
            f"{where}: expected a model whose batches have been measured, {model['name']} has no profile yet."
            " Use it once it is ready, or --beta-ms and --alpha-ms."
        )
    batching = model.get("batching") or {}
    default = Batching()
    loads = [float(r.get("load_ms") or 0.0) for r in model.get("replicas", ())]
    return _Found(
        profile,
        source,
        Batching(
            policy=batching.get("policy", default.policy),
            mode=batching.get("mode", MODES[0]),
            size_max=batching.get("size_max", profile.rows[-1]),
            wait_us_max=round(batching.get("wait_ms_max", default.wait_us_max / 1_000) * 1_000),
        ),
        model.get("slo_ms"),
        max(loads, default=0.0),
    )


def _to_profile(document: Any, where: str) -> CostProfile | None:
    """Return the profile that is written there, None if that is none at all."""
    if not isinstance(document, dict):
        return None
    columns = [document.get("rows"), document.get("times_us")]
    if any(not isinstance(c, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in c) for c in columns):
        return None
    profile = CostProfile(*(tuple(column) for column in columns if column is not None))
    profile.check(where)
    return profile


def _choose_batching(options: PlanOptions, found: Batching) -> Batching:
    batching = replace(found, policy=options.policy or found.policy, size_max=options.size_max or found.size_max)
    if options.rows > batching.size_max:
        raise ConfigError(
            f"--rows: expected requests that fit into a batch of {batching.size_max} rows, got {options.rows} rows."
            " Use a larger --size-max."
        )
    return batching


def _period_us(arrivals: Arrivals, scenario: Scenario) -> int:
    """Return how long a run must be for these arrivals to do all they do, µs."""
    trace_us = scenario.sources[0].trace_us
    if trace_us is not None:
        return round(min(len(trace_us), _RUN_REQUESTS_USUAL) / scenario.rate * 1e6)
    periods_s = {"mmpp": _MMPP_CYCLES * MMPP_CYCLE_S, "diurnal": arrivals.period_s, "step": arrivals.to_s}
    return round(periods_s.get(arrivals.kind, 0.0) * 1e6)


def _fit(question: Question) -> tuple[Question, int]:
    """Return the question with runs as long as time permits, and how many requests there may be altogether.

    Raises:
        ConfigError: Even the shortest run would be too long.
    """
    rate, slo_us = question.rate_planned, question.scenario.slo_us
    for name, span_us, what in (
        ("--rate", _RUN_SLOS * slo_us, f"{_RUN_SLOS} times the SLO"),
        ("--arrivals", question.period_us, "one period of the arrivals"),
    ):
        if rate * span_us / 1e6 > _RUN_REQUESTS_MAX:
            raise ConfigError(
                f"{name}: expected at most {_RUN_REQUESTS_MAX:,} requests in {what} ({span_us / 1e6:g} s), got"
                f" {rate * span_us / 1e6:,.0f}: that would take too long to simulate. Use a part of the rate, e.g. a"
                " tenth, and as many times the replicas."
            )
    requests_max = count_requests_max(min(estimate_replicas(question), question.replicas_max))
    requests = min(max(requests_max // _RUNS, _RUN_REQUESTS_MIN), _RUN_REQUESTS_USUAL)
    return replace(question, requests=requests), requests_max
