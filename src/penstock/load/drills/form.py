"""The form of a drill: what it states, what it is given, what it hands back.

A drill is a function from a rig to findings. Findings are figures (what was seen) and checks (limit, measured); a drill
passes if every check does. A figure that could not be had is None, and a check on it fails.
Not here: the drills (one module each), the server (`serving.py`), the load (`loading.py`), printing (`cli/drill.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.core.ports import Clock
from penstock.load.job import Streams

__all__ = ["Check", "Drill", "Findings", "Rig", "run_drill"]


@dataclass(frozen=True, slots=True)
class Check:
    """One limit and what was measured against it.

    Args:
        what: The quantity, with its unit last.
        limit: The bound in words: `>= 95` or `<= 5`.
        measured: What was found, None if nothing was, which fails.
        passed: Whether it keeps the limit.
    """

    what: str
    limit: str
    measured: float | None
    passed: bool


@dataclass(slots=True)
class Findings:
    """What a drill found. Keys of `figures` end with their unit."""

    figures: dict[str, float | None] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def note(self, name: str, value: float | None) -> None:
        """Record a figure, to four significant decimals."""
        self.figures[name] = None if value is None else round(value, 4)

    def expect_at_least(self, what: str, limit: float, measured: float | None) -> None:
        """Check that `measured` reaches `limit`."""
        self._expect(what, f">= {limit:g}", measured, is_kept=measured is not None and measured >= limit)

    def expect_at_most(self, what: str, limit: float, measured: float | None) -> None:
        """Check that `measured` does not exceed `limit`."""
        self._expect(what, f"<= {limit:g}", measured, is_kept=measured is not None and measured <= limit)

    def _expect(self, what: str, limit: str, measured: float | None, *, is_kept: bool) -> None:
        rounded = None if measured is None else round(measured, 4)
        self.checks.append(Check(what, limit, rounded, is_kept))


@dataclass(frozen=True, slots=True)
class Rig:
    """What the command line hands to a drill.

    Args:
        serve_command: Starts `penstock serve`; a configuration file and options are appended.
        generator_command: Starts one generator process.
        now_us: The clock, the same as the generator's.
        streams: Named chance from the drill's seed.
        seed: That seed.
        duration_scale: Every phase is so many times as long as stated.
        show: Called with what is going on and how much of the drill is done, 0 to 1.
    """

    serve_command: Sequence[str]
    generator_command: Sequence[str]
    now_us: Clock
    streams: Streams
    seed: int
    duration_scale: float
    show: Callable[[str, float], None]

    def scale_us(self, duration_s: float) -> int:
        """Return a stated duration as long as it shall be in this run, µs."""
        return max(1, round(duration_s * self.duration_scale * 1e6))


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill.

    Args:
        name: As on the command line.
        invariant: What must hold, in one sentence.
        fault: What is done to the server.
        device: The emulated device it runs on, in words.
        duration_s: How long its load takes at a duration scale of 1, s.
        run: Does it. Raises ConfigError or UpstreamError when nothing can be learned: no server, no generator.
    """

    name: str
    invariant: str
    fault: str
    device: str
    duration_s: float
    run: Callable[[Rig], Findings]


def run_drill(drill: Drill, rig: Rig) -> dict[str, Any]:
    """Run a drill; return its report, with the keys that docs/drills.md documents.

    Raises:
        ConfigError: The server does not start with the drill's configuration.
        UpstreamError: The server or a generator ended early.
    """
    findings = drill.run(rig)
    return {
        "name": drill.name,
        "invariant": drill.invariant,
        "fault": drill.fault,
        "device": drill.device,
        "seed": rig.seed,
        "duration_scale": rig.duration_scale,
        "figures": findings.figures,
        "checks": [asdict(check) for check in findings.checks],
        "passed": bool(findings.checks) and all(check.passed for check in findings.checks),
    }
