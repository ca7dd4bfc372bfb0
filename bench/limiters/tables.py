"""The results as tables in Markdown: what docs/limiters-compared.md shows and the command prints.

Not here: measuring (`scenarios.py`), what the columns mean (docs/limiters-compared.md).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["to_markdown"]

Row = dict[str, Any]


def to_markdown(results: Row) -> list[str]:
    """Return every table, each below its title, as lines of Markdown.

    Raises:
        KeyError: The results are of an older form.
    """
    rows: list[Row] = results["rows"]
    measured = [row for row in rows if "not_measured" not in row]
    lines = [f"Redis {results['redis']}; {', '.join(_versions(rows))}.", ""]
    for row in rows:
        if "not_measured" in row:
            lines += [f"Not measured: {row['name']}: {row['not_measured']}", ""]
    lines += _table("At a glance", _GLANCE_HEAD, measured, _glance_cells)
    limits = list(dict.fromkeys(name for row in measured for name in row["bound"]))
    for name in limits:
        under = [row for row in measured if name in row["bound"]]
        lines += _table(f"{name}, five times as much offered by four processes", _BOUND_HEAD, under, _bound_cells(name))
    lines += _table(
        "100/s burst 50, five times as much offered in pulses, 0.8 to 1.2 s after a lone request",
        _BOUND_HEAD,
        measured,
        _bound_cells(""),
    )
    lines += _table("90 a minute, burst 3, asked for twice a second", _SLOW_HEAD, measured, _slow_cells)
    for name in ("ahead", "behind"):
        title = f"One of four processes has a clock that is an hour {name}, 100/s burst 50"
        lines += _table(title, _CLOCK_HEAD, measured, _clock_cells(name))
    lines += _table("One request of 4,000 tokens", _WEIGHT_HEAD, measured, _weight_cells)
    lines += _table("40 of 50 tokens taken, 30 given back", _REFUND_HEAD, measured, _refund_cells)
    lines += _table("Tasks cancelled while they wait for the answer", _CANCEL_HEAD, measured, _cancel_cells)
    lines += _table("Redis forgets its scripts; Redis is silent for a second", _TROUBLE_HEAD, measured, _trouble_cells)
    lines += _table("Decisions of one process on one key", _SPEED_HEAD, measured, _speed_cells)
    return lines[:-1]


def _versions(rows: Sequence[Row]) -> list[str]:
    found = {row["name"].partition(",")[0]: row["version"] for row in rows}
    return [f"{name} {version}" for name, version in found.items()]


def _table(title: str, head: Sequence[str], rows: Iterable[Row], cells: Callable[[Row], list[str]]) -> list[str]:
    rule = "|---|" + "--:|" * len(head)
    body = [_line([row["name"], *cells(row)]) for row in rows]
    return [f"### {title}", "", _line(["limiter", *head]), rule, *body, ""] if body else []


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


_GLANCE_HEAD = [
    "most beyond its claim",
    "in pulses",
    "a clock off by an hour",
    "least delivered of what it may",
    "of 90 a minute",
    "4,000 tokens at once, ms",
    "left after a refund, 40 is exact",
    "decisions/s, 64 at a time",
    "calls of Redis for each",
]


def _glance_cells(row: Row) -> list[str]:
    bound = row["bound"].values()
    clocks = [found["excess_claimed"] for found in row["clock"].values()]
    return [
        f"{max(found['excess_claimed'] for found in bound):,g}",
        f"{row['pulses']['excess_claimed']:,g}",
        f"{max(clocks):,g}",
        _percent(min(found["delivered"] for found in bound)),
        _percent(row["slow"]["delivered"]),
        f"{row['weight']['ms']:.2f}",
        "no way" if row["refund"]["left"] is None else str(row["refund"]["left"]),
        f"{row['speed']['64']['per_s']:,}",
        f"{row['speed']['64']['calls']:g}",
    ]


_BOUND_HEAD = [
    "claims",
    "most in 1 s",
    "beyond its claim",
    "beyond burst + rate · t",
    "admitted",
    "of what it may",
    "errors",
]


def _bound_cells(name: str) -> Callable[[Row], list[str]]:
    def cells(row: Row) -> list[str]:
        found = row["bound"][name] if name else row["pulses"]
        return [
            row["claim"],
            f"{found['most']:,}",
            f"{found['excess_claimed']:,g}",
            f"{found['excess']:,g}",
            f"{found['admitted']:,} of {found['attempts']:,}",
            _percent(found["delivered"]),
            str(found["errors"]),
        ]

    return cells


_SLOW_HEAD = ["admitted", "of what it may"]


def _slow_cells(row: Row) -> list[str]:
    found = row["slow"]
    return [f"{found['admitted']} of {found['attempts']} in {found['seconds']:g} s", _percent(found["delivered"])]


_CLOCK_HEAD = ["most in 1 s", "beyond its claim", "of what it may", "of it by that process", "the others, afterwards"]


def _clock_cells(name: str) -> Callable[[Row], list[str]]:
    def cells(row: Row) -> list[str]:
        found = row["clock"][name]
        share = found["by_shifted"] / found["admitted"] if found["admitted"] else 0.0
        return [
            f"{found['most']:,}",
            f"{found['excess_claimed']:,g}",
            _percent(found["delivered"]),
            _percent(share),
            _percent(found["afterwards"]["delivered"]),
        ]

    return cells


_WEIGHT_HEAD = ["ms", "of Redis' CPU, ms", "bytes kept", "keys"]


def _weight_cells(row: Row) -> list[str]:
    found = row["weight"]
    return [f"{found['ms']:.2f}", f"{found['redis_ms']:.2f}", f"{found['stored_bytes']:,}", str(found["keys"])]


_REFUND_HEAD = ["has a way", "left, 40 expected", "a negative cost", "left then"]


def _refund_cells(row: Row) -> list[str]:
    found = row["refund"]
    has_way = found["left"] is not None
    left = str(found["left"]) if has_way else "-"
    return ["yes" if has_way else "no", left, found["negative"], str(found["left_after_negative"])]


_CANCEL_HEAD = [
    "unanswered: its 10 tokens",
    "at any moment: charged of cancelled",
    "wrong answers later",
    "errors later",
    "connections more",
]


def _cancel_cells(row: Row) -> list[str]:
    found = row["cancel"]
    charged = ", ".join(dict.fromkeys(_CHARGED.get(tokens, f"{tokens} charged") for tokens in found["charged"]))
    often = f"{found['cancelled_charged']} of {found['cancelled']}"
    return [charged, often, str(found["wrong"]), str(len(found["errors"])), str(found["connections_grown"])]


_CHARGED = {10: "charged", 0: "not charged"}
_TROUBLE_HEAD = ["after SCRIPT FLUSH", "while it is silent", "after ms"]


def _trouble_cells(row: Row) -> list[str]:
    found = row["trouble"]
    return [found["flushed"], found["silent"], f"{found['waited_us'] / 1e3:,.0f}"]


_SPEED_HEAD = [
    "1 at a time, /s",
    "CPU µs",
    "calls",
    "64 at a time, /s",
    "CPU µs",
    "calls",
    "commands",
    "Redis CPU µs",
    "errors",
]


def _speed_cells(row: Row) -> list[str]:
    one, many = row["speed"]["1"], row["speed"]["64"]
    cells = [
        f"{cell}" for found in (one, many) for cell in (f"{found['per_s']:,}", found["cpu_us"], f"{found['calls']:g}")
    ]
    return [*cells, f"{many['commands']:g}", f"{many['redis_cpu_us']:g}", str(one["errors"] + many["errors"])]


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1%}"
