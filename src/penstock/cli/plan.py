"""`penstock plan`: how many replicas hold an SLO at a rate, where that breaks, what more would buy, what a death costs.

Simulated with the schedulers that serve. Not here: reading the question (`plan_question.py`), searching
(`sim/planning.py` and its neighbours), tables (`plan_answer.py`), drawing (`report.py`).
Exit status: 0 there is a plan; 1 no number of replicas holds; 2 bad usage, or no server to ask.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from penstock.cli.models import fetch_status
from penstock.cli.plan_answer import Answer, build_document, render
from penstock.cli.plan_question import Brief, PlanOptions, read_brief
from penstock.core.errors import ConfigError, PenstockError
from penstock.sim.plan_failure import price_failure
from penstock.sim.plan_frontier import find_frontier
from penstock.sim.plan_knee import find_knee
from penstock.sim.planning import Trials, find_replicas

__all__ = ["find_answer", "register"]

# Of the requests that are left when the frontier's turn comes, so much goes into sifting, the rest into proofs.
_SIFT_RATIO = 0.6
_SIFT_RUNS_MIN = 5


def find_answer(brief: Brief, show: Callable[[str, float], None]) -> Answer:
    """Answer the four questions.

    Args:
        brief: What is asked.
        show: Told after each run what is being done, and how much of it all is done, 0-1.
    """
    question, stage = brief.question, ["finding replicas"]
    trials = Trials(question, lambda requests: show(stage[0], min(requests / brief.requests_max, 0.99)))
    staffing = find_replicas(question, trials)
    if staffing.replicas is None:
        return Answer(staffing, None, (), None, trials.requests)
    stage[0] = "finding the knee"
    knee = find_knee(question, trials, staffing.replicas)
    stage[0] = "pricing a failure"
    failures = tuple(
        price_failure(question, trials, replicas, brief.cold_start_us)
        for replicas in (staffing.replicas, staffing.replicas + 1)
    )
    stage[0] = "finding the frontier"
    left = max((brief.requests_max - trials.requests) * _SIFT_RATIO, _SIFT_RUNS_MIN * question.requests)
    frontier = find_frontier(question, trials, staffing.replicas, round(left))
    return Answer(staffing, knee, failures, frontier, trials.requests)


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on stderr if that is a terminal; yield the function that moves it."""
    if not sys.stderr.isatty():
        yield lambda _text, _done: None
        return
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    # No refresh thread: the bar moves after each run, several times a second.
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True, auto_refresh=False
    ) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda text, done: progress.update(task, description=text, completed=done, refresh=True)


def _load_report(path: Path) -> Any:
    """Return the module that draws reports, which needs an extra.

    Raises:
        ConfigError: The extra is not installed, or the file cannot be there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--report: expected a file in a directory that exists, got {str(path)!r}.")
    try:
        return importlib.import_module("penstock.cli.report")
    except ModuleNotFoundError as fault:
        raise ConfigError(
            f"--report: expected the package {fault.name!r}, which is not installed."
            " Use pip install 'penstock[report]'."
        ) from fault


def _run(
    options: PlanOptions,
    report: Path | None,
    fetch: Callable[[str], dict[str, Any]],
    answer_brief: Callable[[Brief, Callable[[str, float], None]], Answer],
    *,
    is_json: bool,
) -> bool:
    """Do what the command line asks; return whether there is a plan."""
    drawing = _load_report(report) if report is not None else None
    brief = read_brief(options, fetch)
    with _progress_bar() as show:
        answer = answer_brief(brief, show)
    document = build_document(brief, answer)
    if report is not None and drawing is not None:
        try:
            report.write_text(drawing.render_plan(document), encoding="utf-8")
        except OSError as fault:
            raise ConfigError(f"--report: expected a file that can be written, got {report} ({fault}).") from fault
    if is_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        render(document, Console(highlight=False))
    return answer.staffing.replicas is not None


def _exit_status(run: Callable[[], bool]) -> int:
    """Return the exit status; an error of ours is told on stderr."""
    try:
        return 0 if run() else 1
    except PenstockError as fault:
        Console(stderr=True, soft_wrap=True).print(Text(f"error: {fault.message}", style="red"))
        return 2


_Model = Annotated[str | None, typer.Option(help="The model; with --url the one to ask for, else a title.")]
_Rate = Annotated[float, typer.Option(help="Requests per second to hold.")]
_Slo = Annotated[float | None, typer.Option(help="The latency that p95 must not exceed, ms; else the model's.")]
_Profile = Annotated[
    Path | None, typer.Option(help="Batch costs from a file: rows and times_us.", metavar="FILE", dir_okay=False)
]
_Url = Annotated[
    str | None, typer.Option(help="Batch costs as a running server measured them: its admin port, else port 8002 here.")
]
_Beta = Annotated[float | None, typer.Option(help="Batch costs as a line: what any batch takes, ms.")]
_Alpha = Annotated[float | None, typer.Option(help="What each row adds to that, ms.")]
_SizeMax = Annotated[int | None, typer.Option(help="Rows in a batch; else the model's, else 32.")]
_Policy = Annotated[str | None, typer.Option(help="When batches are closed; else the model's, else deadline.")]
_Rows = Annotated[int, typer.Option(help="Rows of a request.")]
_Headroom = Annotated[float, typer.Option(help="Plan for so much more than --rate, as a share of it.")]
_ColdStart = Annotated[float | None, typer.Option(help="How long a dead replica is gone, ms; else its measured load.")]
_Cost = Annotated[float | None, typer.Option(help="What a replica costs an hour, in any currency.")]
_ReplicasMax = Annotated[int, typer.Option(help="Most replicas to think of.")]
_Arrivals = Annotated[str, typer.Option(help="poisson, gamma:CV, mmpp, constant, trace:FILE, as in penstock bench.")]
_Overhead = Annotated[float, typer.Option(help="What a request takes besides waiting and its batch, ms.")]
_Noise = Annotated[float, typer.Option(help="Scatter of batch times: standard deviation over mean.")]
_Seed = Annotated[int, typer.Option(help="Same seed, same plan; the two after it are used as well.")]
_Report = Annotated[Path | None, typer.Option(help="Write an HTML page with plots.", metavar="FILE", dir_okay=False)]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def register(
    app: typer.Typer,
    *,
    fetch: Callable[[str], dict[str, Any]] = fetch_status,
    answer_brief: Callable[[Brief, Callable[[str, float], None]], Answer] = find_answer,
) -> None:
    """Add the `plan` command to `app`.

    Args:
        app: The program.
        fetch: Returns the status document of the server at a URL.
        answer_brief: Answers, as `find_answer` does.
    """

    @app.command("plan")
    def plan_command(
        *,
        rate: _Rate,
        model: _Model = None,
        slo_ms: _Slo = None,
        profile: _Profile = None,
        url: _Url = None,
        beta_ms: _Beta = None,
        alpha_ms: _Alpha = None,
        size_max: _SizeMax = None,
        policy: _Policy = None,
        rows: _Rows = 1,
        headroom: _Headroom = 0.1,
        cold_start: _ColdStart = None,
        replica_cost: _Cost = None,
        replicas_max: _ReplicasMax = 128,
        arrivals: _Arrivals = "poisson",
        overhead_ms: _Overhead = 0.6,
        noise_ratio: _Noise = 0.05,
        seed: _Seed = 1,
        report: _Report = None,
        is_json: _Json = False,
    ) -> None:
        """Say how many replicas hold an SLO at a rate, where that breaks, what more would buy, what a death costs.

        Simulated, with the schedulers that serve, in about half a minute.

        Example: penstock plan --rate 10000 --slo-ms 50 --beta-ms 10 --alpha-ms 0.5 --replica-cost 2.5

        Exit status 0 if there is a plan, 1 if no number of replicas holds the SLO, 2 for bad usage.
        """
        options = PlanOptions(
            rate=rate,
            model=model,
            slo_ms=slo_ms,
            profile=profile,
            url=url,
            beta_ms=beta_ms,
            alpha_ms=alpha_ms,
            size_max=size_max,
            policy=policy,
            rows=rows,
            headroom=headroom,
            cold_start_ms=cold_start,
            replica_cost=replica_cost,
            replicas_max=replicas_max,
            arrivals=arrivals,
            overhead_ms=overhead_ms,
            noise_ratio=noise_ratio,
            seed=seed,
        )
        raise typer.Exit(_exit_status(lambda: _run(options, report, fetch, answer_brief, is_json=is_json)))
