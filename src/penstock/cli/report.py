"""The HTML reports of `penstock simulate` and `plan`: one self-contained page, its plots drawn as SVG inside it.

Not here: the numbers (`sim/`), the commands (`simulate.py`, `plan.py`). Needs the extra `report` (matplotlib).
"""

import html
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from penstock.sim import Recording, trace_timeline

__all__ = ["render_plan", "render_report"]

_SIZE_INCHES = (7.2, 3.6)
_WINDOWS = 100  # of a timeline
_CDF_POINTS = 400
# Drawn with names instead of outlines, so that text can be selected; ids that depend on content only, so that the same
# run gives the same page.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "penstock",
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: black; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }} tr:nth-child(even) {{ background: whitesmoke; }}
figure {{ margin: 2rem 0; }} svg {{ max-width: 100%; height: auto; }} figcaption {{ color: dimgray; }}
</style></head><body>
<h1>{title}</h1>
<p>Simulated: {seconds:g} s after {warmup:g} s of warm-up, seed {seed}. No device was used; times are those the scenario
states. The schedulers are the ones that serve.</p>
{body}
</body></html>
"""


def render_report(
    document: dict[str, Any],
    recordings: dict[str, Recording],
    sweep: dict[str, list[tuple[float, float, float | None]]],
) -> str:
    """Return the page.

    Args:
        document: What `--json` prints.
        recordings: The runs, by policy.
        sweep: By policy, (offered, goodput, p95) at several loads; empty: not drawn.
    """
    body = [_table(document["runs"])]
    with mpl.rc_context(_STYLE):
        body += [_figure(draw, caption) for draw, caption in _plots(recordings, sweep)]
    return _PAGE.format(
        title=html.escape(f"{document['scenario']}: simulated"),
        seconds=document["duration_s"],
        warmup=document["warmup_s"],
        seed=document["seed"],
        body="\n".join(body),
    )


def _plots(
    recordings: dict[str, Recording], sweep: dict[str, list[tuple[float, float, float | None]]]
) -> Iterator[tuple[Callable[[Axes], None], str]]:
    """Yield what to draw, and what it shows."""
    yield lambda axes: _draw_latency(axes, recordings), "Latency of answered requests, from the first sending."
    if any(sweep.values()):
        yield (
            lambda axes: _draw_sweep(axes, sweep),
            "Goodput against load: steady Poisson arrivals, no faults.",
        )
    yield lambda axes: _draw_batches(axes, recordings), "Executions by their rows."
    for policy, recording in recordings.items():
        yield (
            _timeline_drawer(recording),
            f"{policy}: requests by time of arrival; faults are shaded.",
        )
        yield _percentile_drawer(recording), f"{policy}: latency by time of arrival."
        if len({source.tenant for source in recording.scenario.sources}) > 1:
            yield _tenant_drawer(recording), f"{policy}: device time by tenant."


def _figure(draw: Callable[[Axes], None], caption: str) -> str:
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasSVG(figure)
    draw(figure.subplots())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _table(runs: list[dict[str, Any]]) -> str:
    def shown(value: float | None, form: str = ",.2f") -> str:
        return "–" if value is None else format(value, form)

    rows = [
        ("offered per second", [shown(run["offered"], ",.1f") for run in runs]),
        ("goodput per second", [shown(run["goodput"], ",.1f") for run in runs]),
        ("in time", [shown(run["attainment"], ".2%") for run in runs]),
        *((f"{p} ms", [shown(run["latency_ms"][p]) for run in runs]) for p in ("p50", "p95", "p99", "p999")),
        ("shed", [shown(run["shed_ratio"], ".2%") for run in runs]),
        ("failed", [shown(run["failed_ratio"], ".2%") for run in runs]),
        ("devices busy", [shown(run["utilisation"], ".1%") for run in runs]),
        ("rows per batch", [shown(run["batch_rows"], ",.1f") for run in runs]),
        ("device time wasted", [shown(run["wasted_ratio"], ".2%") for run in runs]),
        ("fairness (Jain)", [shown(run["jain"], ".3f") for run in runs]),
    ]
    head = "".join(f"<th>{html.escape(run['policy'])}</th>" for run in runs)
    lines = "".join(f"<tr><td>{name}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>\n" for name, cells in rows)
    return f"<table><tr><th></th>{head}</tr>\n{lines}</table>"


def _draw_latency(axes: Axes, recordings: dict[str, Recording]) -> None:
    ratios = np.linspace(0, 100, _CDF_POINTS)
    for policy, recording in recordings.items():
        latency_us = recording.latency_us[recording.is_answered & recording.is_measured]
        if len(latency_us):
            axes.plot(np.percentile(latency_us, ratios) / 1_000, ratios, label=policy)
    slo_us = next(iter(recordings.values())).scenario.slo_us
    if slo_us:
        axes.axvline(slo_us / 1_000, color="black", linestyle=":", label="SLO")
    axes.set(xscale="log", xlabel="latency, ms", ylabel="% of answers", ylim=(0, 100))
    axes.legend()


def _draw_sweep(axes: Axes, sweep: dict[str, list[tuple[float, float, float | None]]]) -> None:
    most = max(offered for points in sweep.values() for offered, _, _ in points)
    for policy, points in sweep.items():
        axes.plot([offered for offered, _, _ in points], [good for _, good, _ in points], marker="o", label=policy)
    axes.plot([0, most], [0, most], color="black", linestyle=":", label="all in time")
    axes.set(xlabel="offered per second", ylabel="goodput per second", xlim=(0, None), ylim=(0, None))
    axes.legend()


def _draw_batches(axes: Axes, recordings: dict[str, Recording]) -> None:
    for policy, recording in recordings.items():
        begun = recording.execution_rows[recording.started_us >= recording.scenario.warmup_us]
        if len(begun):
            counts = np.bincount(begun)
            axes.step(np.arange(len(counts)), counts / len(begun) * 100, where="mid", label=policy)
    axes.set(xlabel="rows", ylabel="% of executions", ylim=(0, None))
    axes.legend()


def _shade_faults(axes: Axes, recording: Recording) -> None:
    for fault in recording.scenario.faults:
        axes.axvspan(fault.at_us / 1e6, (fault.at_us + fault.duration_us) / 1e6, color="tab:red", alpha=0.12)


def _timeline_drawer(recording: Recording) -> Callable[[Axes], None]:
    line = trace_timeline(recording, max(recording.scenario.end_us // _WINDOWS, 1))

    def draw(axes: Axes) -> None:
        _shade_faults(axes, recording)
        axes.plot(line.at_s, line.offered, color="grey", label="offered")
        axes.plot(line.at_s, line.goodput, label="goodput")
        axes.plot(line.at_s, line.refused, color="tab:red", label="not answered")
        axes.set(xlabel="s", ylabel="per second", ylim=(0, None))
        axes.legend()

    return draw


def _percentile_drawer(recording: Recording) -> Callable[[Axes], None]:
    line = trace_timeline(recording, max(recording.scenario.end_us // _WINDOWS, 1))

    def draw(axes: Axes) -> None:
        _shade_faults(axes, recording)
        axes.plot(line.at_s, line.p95_ms, label="p95")
        axes.plot(line.at_s, line.p50_ms, label="p50")
        if recording.scenario.slo_us:
            axes.axhline(recording.scenario.slo_us / 1_000, color="black", linestyle=":", label="SLO")
        axes.set(xlabel="s", ylabel="latency, ms", ylim=(0, None))
        axes.legend()

    return draw


def _tenant_drawer(recording: Recording) -> Callable[[Axes], None]:
    line = trace_timeline(recording, max(recording.scenario.end_us // _WINDOWS, 1))

    def draw(axes: Axes) -> None:
        names = [name or "(no tenant)" for name in line.device_ratio]
        axes.stackplot(line.at_s, *line.device_ratio.values(), labels=names, alpha=0.8)
        axes.set(xlabel="s", ylabel="devices at work", ylim=(0, None))
        axes.legend()

    return draw


def render_plan(document: dict[str, Any]) -> str:
    """Return the page of a plan.

    Args:
        document: What `penstock plan --json` prints.
    """
    begin, _, _ = _PAGE.partition("<p>")
    title = f"{document['model'] or 'A model'} at {document['rate']:,g} per second within {document['slo_ms']:g} ms"
    profile = document["profile"]
    replicas = document["replicas"]
    answer = f"{replicas} replicas." if replicas is not None else f"No plan: {document['reason']}"
    beta_ms, alpha_ms = profile["beta_us"] / 1e3, profile["alpha_us"] / 1e3
    seeds = ", ".join(map(str, document["seeds"]))
    basis = (
        f"Simulated, {document['simulated_requests']:,} requests, seeds {seeds}. No device was used: a batch takes"
        f" about {beta_ms:.4g} ms and {alpha_ms:.4g} ms for each row ({profile['source']}). The schedulers are the"
        " ones that serve."
    )
    body = [f"<p><strong>{html.escape(answer)}</strong></p>", f"<p>{html.escape(basis)}</p>"]
    if replicas is not None:
        body.append(_failure_table(document["failure"]))
        with mpl.rc_context(_STYLE):
            body += [
                _figure(lambda axes: _draw_load_latency(axes, document), f"Latency against load: {replicas} replicas."),
                _figure(lambda axes: _draw_load_goodput(axes, document), f"Goodput against load: {replicas} replicas."),
                _figure(lambda axes: _draw_frontier(axes, document), "What more replicas buy; no other does better."),
            ]
    return begin.format(title=html.escape(title)) + "\n".join(body) + "\n</body></html>\n"


def _failure_table(failure: dict[str, Any]) -> str:
    keys = ("replicas", "attainment", "lost", "failed", "shed", "late", "disturbance_ms")
    heads = ("replicas", "in time meanwhile", "answers in time lost", "failed", "shed", "late", "disturbed, ms")
    lines = "".join(
        "<tr>"
        + "".join(f"<td>{case[key]:.2%}</td>" if key == "attainment" else f"<td>{case[key]:,g}</td>" for key in keys)
        + "</tr>\n"
        for case in failure["cases"]
    )
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f"<h2>One replica dies and is back after {failure['cold_start_ms']:,g} ms</h2>"
        f"<table><tr>{head}</tr>\n{lines}</table>"
    )


def _draw_load_latency(axes: Axes, document: dict[str, Any]) -> None:
    points = [point for point in document["knee"]["points"] if point["p95_ms"] is not None]
    rates = [point["rate"] for point in points]
    for name in ("p50", "p95", "p99"):
        axes.plot(rates, [point[f"{name}_ms"] for point in points], marker=".", label=name)
    axes.axhline(document["slo_ms"], color="black", linestyle=":", label="SLO")
    _mark_rates(axes, document)
    axes.set(xlabel="offered per second", ylabel="latency, ms", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="lower right")


def _draw_load_goodput(axes: Axes, document: dict[str, Any]) -> None:
    points = document["knee"]["points"]
    rates = [point["rate"] for point in points]
    axes.plot(rates, [point["goodput"] for point in points], marker=".", label="goodput")
    axes.plot([0, rates[-1]], [0, rates[-1]], color="black", linestyle=":", label="all in time")
    _mark_rates(axes, document)
    axes.set(xlabel="offered per second", ylabel="per second", xlim=(0, None), ylim=(0, None))
    axes.legend()


def _mark_rates(axes: Axes, document: dict[str, Any]) -> None:
    axes.axvline(document["rate"], color="grey", linestyle="--", label="asked")
    if document["knee"]["rate_held"] is not None:
        axes.axvline(document["knee"]["rate_held"], color="tab:red", linestyle="--", label="knee")


def _draw_frontier(axes: Axes, document: dict[str, Any]) -> None:
    points = document["frontier"]["points"]
    key, label = ("cost_per_hour", "cost per hour") if points[0]["cost_per_hour"] is not None else ("replicas",) * 2
    axes.plot(
        [point[key] for point in points], [point["p95_ms"] for point in points], marker="o", drawstyle="steps-post"
    )
    for point in points:
        text = f"{point['replicas']} x {point['policy']}, {point['size_max']} rows"
        is_left = point is points[0] or point[key] < (points[0][key] + points[-1][key]) / 2
        axes.annotate(
            text,
            (point[key], point["p95_ms"]),
            xytext=(4, 6) if is_left else (-4, -12),
            textcoords="offset points",
            ha="left" if is_left else "right",
            fontsize=8,
        )
    axes.axhline(document["slo_ms"], color="black", linestyle=":", label="SLO")
    axes.set(xlabel=label, ylabel="p95, ms", ylim=(0, None))
    axes.legend()
