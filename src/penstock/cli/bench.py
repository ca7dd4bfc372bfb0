"""`penstock bench`: put an open-loop load on a model and say, with evidence, whether it held its SLO.

Not here: generating the load and judging it (`load/`), one generator process (`bench_worker.py`).
Exit status: 0 the run is valid and the SLO held; 1 it is not or did not; 2 bad usage.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from penstock.adapters.chance import seeded_stream
from penstock.adapters.clock import now_us, process_cpu_us
from penstock.core.arrivals import parse_arrivals
from penstock.core.errors import ConfigError, PenstockError
from penstock.load import (
    RETRIES_MAX,
    Crew,
    CrewResult,
    Job,
    Measurement,
    Phase,
    Source,
    bucket_latencies,
    build_pool,
    build_report,
    check_accepted,
    fetch_inputs,
    format_key_header,
    parse_header,
    parse_target,
    read_keys,
    read_trace,
    resolve,
)

__all__ = ["BenchOptions", "register", "run_bench"]

# Schedule, lateness and latency are kept for every request: 24 bytes each, so this is 1.2 GB.
_REQUESTS_MAX = 50_000_000
_PROCESSES_MAX = 64
_STALL_GRACE_US = 30_000_000  # beyond schedule and timeout, before a generator process counts as hung
_BAR_WIDTH = 36
_KEY_HEADERS = ("authorization", "x-api-key")

_Arrivals = Annotated[
    str, typer.Option(help="poisson, constant, gamma:CV, mmpp, step:X,FROM_S,TO_S, diurnal:A,PERIOD_S, trace:FILE.")
]
_RetryAfterMs = Annotated[
    float | None, typer.Option(help="Wait so long before each, ms; else as the server says, at most 100 ms.")
]
_Headers = Annotated[
    list[str] | None, typer.Option(help="Header of each request; may be repeated.", metavar="'NAME: VALUE'")
]
_Keys = Annotated[
    str, typer.Option(help="File of API keys, one a line; each request is sent with the next.", metavar="FILE")
]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What was asked for, checked by `check_options`. Field names are the options'."""

    url: str
    model: str
    rate: float
    duration: float
    arrivals: str = "poisson"
    slo_ms: float = 50.0
    processes: int = 1
    seed: int = 1
    warmup: float = 1.0
    same_input: bool = False
    input: str = ""
    connections: int = 2048
    timeout_ms: float = 10_000.0
    realtime: bool = True
    retries: int = 0
    retry_after_ms: float | None = None
    headers: tuple[str, ...] = ()
    keys: str = ""


def check_options(options: BenchOptions) -> None:
    """Raise ConfigError, naming the option, if a number is out of range or the arrivals do not parse."""
    ranges = (
        ("--rate", options.rate, options.rate > 0, "a number > 0", "requests per second, e.g. --rate 1000"),
        ("--duration", options.duration, options.duration > 0, "a number > 0", "seconds, e.g. --duration 30"),
        ("--slo-ms", options.slo_ms, options.slo_ms > 0, "a number > 0", "milliseconds, e.g. --slo-ms 50"),
        ("--warmup", options.warmup, options.warmup >= 0, "a number >= 0", "seconds, e.g. --warmup 1"),
        ("--timeout-ms", options.timeout_ms, options.timeout_ms >= 1, "a number >= 1", "e.g. --timeout-ms 10000"),
        ("--seed", options.seed, options.seed >= 0, "an integer >= 0", "e.g. --seed 1"),
        (
            "--processes",
            options.processes,
            1 <= options.processes <= _PROCESSES_MAX,
            f"an integer from 1 to {_PROCESSES_MAX}",
            "one per 30,000 requests per second is plenty",
        ),
        (
            "--connections",
            options.connections,
            options.processes <= options.connections <= 60_000,
            "from one per process to 60000",
            "e.g. --connections 2048",
        ),
        (
            "--retries",
            options.retries,
            0 <= options.retries <= RETRIES_MAX,
            f"an integer from 0 to {RETRIES_MAX}",
            "e.g. --retries 3",
        ),
        (
            "--retry-after-ms",
            options.retry_after_ms or 0.0,
            (options.retry_after_ms or 0.0) >= 0,
            "a number >= 0",
            "milliseconds, or leave it out to do as the server says",
        ),
    )
    for option, value, is_good, expected, advice in ranges:
        if not is_good or value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 -- NaN
            raise ConfigError(f"{option}: expected {expected}, got {value:g}. Use {advice}.")
    if (requests := options.rate * (options.duration + options.warmup)) > _REQUESTS_MAX:
        raise ConfigError(
            f"--duration: expected at most {_REQUESTS_MAX:,} requests in a run, got {requests:,.0f}. Make it shorter."
        )
    arrivals = parse_arrivals(options.arrivals)
    if arrivals.kind == "trace":
        read_trace(arrivals.path)
    for header in options.headers:
        name = parse_header(header).partition(":")[0].lower()
        if options.keys and name in _KEY_HEADERS:
            raise ConfigError(f"--header: expected no {name} beside --keys, got one. Leave one of them out.")


def plan_job(options: BenchOptions, keys: Sequence[bytes] = ()) -> Job:
    """Return what every generator process needs, after asking the server about the model and trying one request.

    Args:
        options: What was asked for.
        keys: What stands in their file of keys.

    Raises:
        ConfigError: The options are wrong, or no server answers, or it does not know the model or refuses the input.
    """
    check_options(options)
    target = replace(
        parse_target(options.url, options.model), headers=tuple(parse_header(text) for text in options.headers)
    )
    family, address = resolve(target)
    # The first key asks: how many of the others the server knows is in the report, answers by status.
    asking = target if not keys else replace(target, headers=(*target.headers, format_key_header(keys[0])))
    warmup_us, duration_us = round(options.warmup * 1e6), max(1, round(options.duration * 1e6))
    source = Source(
        target=target,
        inputs=tuple(fetch_inputs(asking)),
        phases=(Phase(options.rate, warmup_us + duration_us),),
        arrivals=options.arrivals,
        input_path=options.input,
        is_same=options.same_input,
        keys_path=options.keys,
    )
    trial = build_pool(replace(source, is_same=True, keys_path=""), seeded_stream(options.seed, "inputs"))
    check_accepted(asking, trial.body(0))
    connections_start = min(options.connections, max(16, round(options.rate / 40)))  # 25 ms of requests
    return Job(
        sources=(source,),
        address=address,
        family=family,
        seed=options.seed,
        timeout_us=round(options.timeout_ms * 1e3),
        retries=options.retries,
        backoff_us=-1 if options.retry_after_ms is None else round(options.retry_after_ms * 1e3),
        connections_start=max(1, connections_start // options.processes),
        connections_max=options.connections // options.processes,
        warmup_us=warmup_us,
        # Real-time processes on every core could starve the very server they measure.
        is_realtime=options.realtime and options.processes < (os.cpu_count() or 1),
    )


def run_bench(
    options: BenchOptions, on_progress: Callable[[int, int], None]
) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    """Run the load.

    Returns:
        The report (its keys are the contract of `--json`) and a small latency distribution.

    Raises:
        ConfigError: Bad usage.
        UpstreamError: A generator process died; nothing was learned about the server.
    """
    keys = read_keys(options.keys) if options.keys else []
    job = plan_job(options, keys)
    command = [sys.executable, "-m", "penstock.cli.bench_worker"]
    run_us = job.duration_us + job.timeout_us + _STALL_GRACE_US
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        cpu_from_us = process_cpu_us()
        with Crew(command, {"job": msgspec.to_builtins(job)}, options.processes, Path(folder), now_us) as crew:
            result = crew.wait_result(run_us, on_progress)
        own_cpu_us = process_cpu_us() - cpu_from_us
    report = build_report(_to_measurement(options, job, result, own_cpu_us))
    asked = {"url": options.url, "model": options.model, "arrivals": options.arrivals, "seed": options.seed}
    asked |= {"processes": options.processes, "duration_s": options.duration, "warmup_s": options.warmup}
    asked |= {"retries": options.retries, "keys": len(set(keys))}
    report["generator_priority"] = "/".join(result.priorities)
    return {**asked, **report}, bucket_latencies(result.latency_us[result.measured_from :])


def _to_measurement(options: BenchOptions, job: Job, result: CrewResult, own_cpu_us: int) -> Measurement:
    """Return what was recorded of the requests after the warm-up."""
    measured = slice(result.measured_from, None)
    latency_us = result.latency_us[measured]
    refusals = result.refusals[result.refusals[:, 0] >= result.measured_from]
    return Measurement(
        latency_us=latency_us,
        lateness_us=result.lateness_us[measured],
        duration_us=job.duration_us - job.warmup_us,
        rate_target=options.rate,
        slo_us=round(options.slo_ms * 1e3),
        cpu_us=result.cpu_us + own_cpu_us,
        distinct_inputs=min(result.distinct_count, len(latency_us)),
        status_counts=result.status_counts,
        refusal_us=refusals[:, 2],
        attempt_count=int(np.sum(result.attempts[measured])) if options.retries else None,
        connections=result.connections,
        held_count=result.held_count,
    )


@contextmanager
def _progress_bar(options: BenchOptions) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr if that is a terminal; yield the function that moves it."""
    if not sys.stderr.isatty():
        yield lambda _begun, _ended: None
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} sent, {task.fields[waiting]:,} in flight"),
        TimeRemainingColumn(),
    )
    # No refresh thread: the bar moves when a process reports, four times a second.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        total = options.rate * (options.duration + options.warmup)
        task = progress.add_task(f"{options.model} at {options.rate:,.0f}/s", total=total, waiting=0)

        def show(begun: int, ended: int) -> None:
            progress.update(task, completed=min(begun, total), waiting=begun - ended, refresh=True)

        yield show


def render_report(report: dict[str, Any], buckets: list[tuple[float, int]], console: Console) -> None:
    """Print the report as a table, the latency distribution, and the verdict in words."""
    table = Table(title=f"{report['model']} at {report['url']}", title_style="bold", box=None, show_header=False)
    table.add_column(style="dim", justify="right")
    table.add_column()
    for name, text in _describe_report(report):
        table.add_row(name, text)
    console.print(table)
    _render_distribution(buckets, report["slo_ms"], console)
    verdict = report["verdict"]
    allowed = verdict["over_slo_allowed"]
    limit = "too few requests to certify at all" if allowed is None else f"at most {allowed:,} certify"
    outcome = "certified" if verdict["certified"] else "not certified"
    certainty = f"p95 ≤ {report['slo_ms']:g} ms at 99 % confidence: [bold]{outcome}[/]"
    console.print(f"{certainty} ({verdict['over_slo']:,} over SLO, {limit})")
    for reason in report["invalid_reasons"]:
        console.print(Text(f"not valid: {reason}", style="bold yellow"))
    held = "[bold green]SLO held[/]" if report["slo_held"] else "[bold red]SLO missed[/]"
    validity = "the run is valid" if report["valid"] else "[bold yellow]the run is not valid[/]"
    console.print(f"{held} (needs 95 % of requests answered well within it, failed + shed + limited ≤ 1 %); {validity}")


def _describe_report(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table."""
    is_unique = report["distinct_inputs"] == report["planned"]
    inputs = "every input different" if is_unique else f"{report['distinct_inputs']:,} distinct inputs"
    lateness, cpu = report["generator_lateness_ms"], report["cpu_s"]["generator"]
    yield "load", f"{report['rate_target']:,g}/s {report['arrivals']} for {report['duration_s']:g} s, {inputs}"
    yield "seed", f"{report['seed']}, {report['processes']} process(es), {report['connections']:,} connections"
    if report["keys"]:
        yield "callers", f"{report['keys']:,} API keys in turn"
    yield "sent", f"{report['sent']:,} of {report['planned']:,} planned, {report['rate_achieved']:,.1f}/s"
    lost = ", ".join(f"{report[name]:,} {name}" for name in ("shed", "limited", "failed"))
    yield "answers", f"{report['completed']:,} completed, {lost}"
    if report["retries"]:
        again = report["attempts"] - report["sent"]
        yield "retries", f"up to {report['retries']} of each refused request, {again:,} sent, latency from the first"
    if report["refusal_ms"]["p99"] is not None:
        yield "refusal ms", "  ".join(f"{name} {_ms(value)}" for name, value in report["refusal_ms"].items())
    for reason, count in report["failures"].items():
        yield "", f"{count:,} × {reason}"
    yield "latency ms", "  ".join(f"{name} [bold]{_ms(value)}[/]" for name, value in report["latency_ms"].items())
    attained = f"{report['slo_attainment']:.3%} within {report['slo_ms']:g} ms"
    yield "in SLO", f"{attained}, goodput {report['goodput']:,.1f}/s"
    yield "late ms", "  ".join(f"{name} {_ms(value)}" for name, value in lateness.items()) + "  (the generator itself)"
    cost = f"{cpu:.2f} s, {report['cpu_us_per_request']:.1f} µs per request"
    yield "CPU", f"{cost}, {report['generator_priority']} priority  (the generator itself)"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _render_distribution(buckets: list[tuple[float, int]], slo_ms: float, console: Console) -> None:
    total = sum(count for _, count in buckets)
    largest = max((count for _, count in buckets), default=0)
    for bound_ms, count in buckets:
        bar = "█" * round(count / largest * _BAR_WIDTH) or ("▏" if count else "")
        style = "green" if bound_ms <= slo_ms else "red"
        row = Text(f"{'≤ ' + format(bound_ms, 'g') + ' ms':>12} ", style="dim")
        row.append(f"{bar:<{_BAR_WIDTH}}", style=style).append(f" {count:>10,} {count / total:8.3%}", style="dim")
        console.print(row)


def _finish(options: BenchOptions, *, is_json: bool) -> int:
    """Run, print, and return the exit status."""
    try:
        with _progress_bar(options) as show:
            report, buckets = run_bench(options, show)
    except PenstockError as fault:
        Console(stderr=True, soft_wrap=True).print(Text(f"error: {fault.message}", style="red"))
        return 2 if isinstance(fault, ConfigError) else 1
    if is_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        render_report(report, buckets, Console(highlight=False))
    return 0 if report["valid"] and report["slo_held"] else 1


def register(app: typer.Typer) -> None:
    """Add the `bench` command to `app`."""

    @app.command("bench")
    def bench(
        url: Annotated[str, typer.Argument(help="Server, e.g. http://127.0.0.1:8000.")],
        *,
        model: Annotated[str, typer.Option(help="Model to call.")],
        rate: Annotated[float, typer.Option(help="Mean requests per second.")],
        duration: Annotated[float, typer.Option(help="Measured time, seconds.")],
        arrivals: _Arrivals = "poisson",
        slo_ms: Annotated[float, typer.Option(help="Latency p95 must not exceed, ms.")] = 50.0,
        processes: Annotated[int, typer.Option(help="Generator processes.")] = 1,
        seed: Annotated[int, typer.Option(help="Same seed, same arrivals and inputs.")] = 1,
        warmup: Annotated[float, typer.Option(help="Seconds of the same load before measuring.")] = 1.0,
        same_input: Annotated[bool, typer.Option("--same-input", help="One input for all requests.")] = False,
        input_path: Annotated[
            str, typer.Option("--input", help="JSON file: an infer request or a list of them.", metavar="FILE")
        ] = "",
        connections: Annotated[int, typer.Option(help="Most connections, over all processes.")] = 2048,
        timeout_ms: Annotated[float, typer.Option(help="A request unanswered for so long has failed, ms.")] = 10_000.0,
        realtime: Annotated[
            bool, typer.Option(help="Real-time priority for the generator where the system permits it.")
        ] = True,
        retries: Annotated[int, typer.Option(help="How often a refused request (429, 503, 504) is sent again.")] = 0,
        retry_after_ms: _RetryAfterMs = None,
        header: _Headers = None,
        keys: _Keys = "",
        is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    ) -> None:
        """Measure a model under an open-loop load, counting latency from each request's intended time.

        At high rates latencies contain up to 0.8 ms of the generator's own timer; they are never flattered.

        Example: penstock bench http://127.0.0.1:8000 --model digits --rate 10000 --duration 30 --slo-ms 50

        Exit status 0 if the run is valid and the SLO held (95 % of requests answered well within it, failed, shed
        and limited at most 1 %), 1 if not, 2 for bad usage.
        """
        options = BenchOptions(
            url=url,
            model=model,
            rate=rate,
            duration=duration,
            arrivals=arrivals,
            slo_ms=slo_ms,
            processes=processes,
            seed=seed,
            warmup=warmup,
            same_input=same_input,
            input=input_path,
            connections=connections,
            timeout_ms=timeout_ms,
            realtime=realtime,
            retries=retries,
            retry_after_ms=retry_after_ms,
            headers=tuple(header or ()),
            keys=keys,
        )
        raise typer.Exit(_finish(options, is_json=is_json))
