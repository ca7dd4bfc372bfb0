"""One emulated fleet, twice: served by `penstock serve` under the real generator, and simulated, on one schedule.

The device sleeps (`examples/emulated.py`): what comes of it is about scheduling and says nothing of any hardware. Both
sides get the arrivals of the same seed to the microsecond, both are judged from the same arrays by the same rule.
Not here: what a request and a batch cost besides device time (`calibration.py`), what must agree (`fidelity.py`).
"""

import json
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.history import ROOT
from bench.serving import Server, penstock
from penstock.adapters.chance import seeded_stream
from penstock.adapters.clock import now_us
from penstock.cli.bench import BenchOptions, plan_job
from penstock.core.arrivals import Times, parse_arrivals, plan_arrivals
from penstock.core.models import Batching
from penstock.core.profiles import CostProfile
from penstock.load import Crew, read_trace
from penstock.load.driver import SHED
from penstock.load.reporting import find_invalid_reasons, percentile_us
from penstock.sim import DeviceModel, Outcome, Overheads, Scenario, Source, simulate
from penstock.sim.planning import ATTAINMENT_RATIO_MIN, LOST_RATIO_MAX

MODEL = "emulated"
SOURCE = "load"
TIMEOUT_US = 10_000_000
STALL_GRACE_US = 30_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas of one emulated device and the load they are for.

    Args:
        name: For people and `--only`.
        beta_us, alpha_us: A batch takes beta + alpha for each row.
        replicas: How many, with one gateway.
        slo_us: As in `ModelSpec`; 0: none is stated.
        batching: Policy and its numbers.
        arrivals: As typed after `--arrivals`.
    """

    name: str
    beta_us: int
    alpha_us: int
    replicas: int = 1
    slo_us: int = 0
    batching: Batching = field(default_factory=Batching)
    arrivals: str = "poisson"

    @property
    def rows_per_s_max(self) -> float:
        """What the devices do in full batches."""
        size_max = self.batching.size_max
        return self.replicas * size_max * 1e6 / (self.beta_us + self.alpha_us * size_max)

    def describe(self) -> str:
        """Return the fleet in words."""
        policy = self.batching.policy
        if policy == "size_or_timeout":
            policy += f" {self.batching.wait_us_max / 1e3:g} ms{', eager' if self.batching.eager else ''}"
        return (
            f"emulated {self.beta_us / 1e3:g} ms + {self.alpha_us / 1e3:g} ms a row, at most {self.batching.size_max};"
            f" {self.replicas} replica(s), SLO {self.slo_us / 1e3:g} ms, {policy}, {self.arrivals}"
        )

    def to_toml(self) -> str:
        """Return the configuration of a server of it."""
        batching = [f'policy = "{self.batching.policy}"', f"size_max = {self.batching.size_max}"]
        if self.batching.policy == "size_or_timeout":
            eager = str(self.batching.eager).lower()
            batching += [f"wait_ms_max = {self.batching.wait_us_max / 1e3}", f"eager = {eager}"]
        return "\n".join(
            [
                f"[models.{MODEL}]",
                f'path = "{ROOT / "examples" / "emulated.py"}"',
                f"options = {{ beta_ms = {self.beta_us / 1e3}, alpha_ms = {self.alpha_us / 1e3} }}",
                *([f"slo_ms = {self.slo_us / 1e3}"] if self.slo_us else []),
                f"batching = {{ {', '.join(batching)} }}",
                f"replicas = {{ min = {self.replicas} }}",
                "",
            ]
        )


@dataclass(frozen=True, slots=True)
class Run:
    """How long a load is applied, and with which seed. Requests of the warm-up are sent and not measured."""

    rate: float
    seed: int
    duration_us: int
    warmup_us: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What requests, batches and sleeps cost here beyond what the device states. Found by `calibration.py`.

    Args:
        request_us, reply_us, batch_us, replica_us, jitter_us: As in `Overheads`.
        overshoot_us: How much longer executions took than beta + alpha·rows, one number for each observed.
    """

    request_us: int
    reply_us: int
    batch_us: int
    replica_us: int
    jitter_us: int
    overshoot_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of the measured requests of a run.

    Args:
        latency_us: Of those answered, ascending.
        requests: How many there were.
        shed: Refused.
        failed: Neither answered nor refused.
        slo_us: What they are judged by.
        lateness_us: How late the generator was, ascending; none of it in a simulation.
        invalid_reasons: Why a run says nothing about the server.
    """

    latency_us: Times
    requests: int
    shed: int
    failed: int
    slo_us: int
    lateness_us: Times = field(default_factory=lambda: np.zeros(0, np.int64))
    invalid_reasons: tuple[str, ...] = ()

    @property
    def lost_ratio(self) -> float:
        """Failed and shed over all requests."""
        return (self.shed + self.failed) / self.requests

    @property
    def attainment(self) -> float:
        """Share of all requests answered within the SLO."""
        return int(np.searchsorted(self.latency_us, self.slo_us, side="right")) / self.requests

    @property
    def holds(self) -> bool:
        """Whether the SLO held, as `penstock bench` judges it: 95 % within it, at most 1 % failed or shed."""
        return self.attainment >= ATTAINMENT_RATIO_MIN and self.lost_ratio <= LOST_RATIO_MAX

    def percentile_ms(self, ratio: float) -> float | None:
        """Return a percentile of the latency; None if nothing was answered."""
        return percentile_us(self.latency_us, ratio) / 1e3 if len(self.latency_us) else None

    def lateness_ms(self, ratio: float) -> float | None:
        """Return a percentile of the generator's lateness; None if there was no generator."""
        return percentile_us(self.lateness_us, ratio) / 1e3 if len(self.lateness_us) else None


def freeze_arrivals(fleet: Fleet, seed: int, duration_us: int, folder: Path) -> Fleet:
    """Return the fleet with one recording of its arrivals in their place, if another rate would be another load.

    The spells of an MMPP are drawn beside its arrivals, so that at a slightly different rate the bursts are others. A
    trace is only stretched. Others need no freezing: their gaps scale with the rate.

    Args:
        fleet: As stated.
        seed: Of the recording.
        duration_us: How long one pass is at half of what the devices can do.
        folder: Where the recording is left.
    """
    if fleet.arrivals != "mmpp":
        return fleet
    rng = seeded_stream(seed, f"{fleet.name} trace")
    times_us = plan_arrivals(
        parse_arrivals(fleet.arrivals), rng, rate=fleet.rows_per_s_max / 2, duration_us=duration_us
    )
    path = folder / f"{fleet.name}.csv"
    path.write_text("\n".join(["time", *(f"{time_us / 1e6:.6f}" for time_us in times_us.tolist()), ""]))
    return replace(fleet, arrivals=f"trace:{path}")


@contextmanager
def serve(fleet: Fleet) -> Iterator[Server]:
    """Serve a fleet on free ports until the block ends."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as directory:
        config = Path(directory) / "penstock.toml"
        config.write_text(fleet.to_toml(), encoding="utf-8")
        with penstock(config) as server:
            yield server


def fetch_statistics(server: Server) -> dict[str, Any]:
    """Return the OIP statistics of the served model."""
    with urllib.request.urlopen(f"{server.http}/v2/models/{MODEL}/stats", timeout=5) as answer:  # noqa: S310 - ours
        statistics: dict[str, Any] = json.load(answer)["model_stats"][0]
    return statistics


def apply_load(server: Server, fleet: Fleet, run: Run, on_progress: Progress = lambda _begun, _ended: None) -> Outcomes:
    """Send a run's schedule to a served fleet, with the generator of `penstock bench`; return what came of it."""
    options = BenchOptions(
        url=server.http,
        model=MODEL,
        rate=run.rate,
        duration=run.duration_us / 1e6,
        warmup=run.warmup_us / 1e6,
        arrivals=fleet.arrivals,
        seed=run.seed,
        timeout_ms=TIMEOUT_US / 1e3,
    )
    job = plan_job(options)
    command = [sys.executable, "-m", "penstock.cli.bench_worker"]
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        Crew(command, {"job": msgspec.to_builtins(job)}, 1, Path(folder), now_us) as crew,
    ):
        result = crew.wait_result(job.duration_us + job.timeout_us + STALL_GRACE_US, on_progress)
    latency_us = result.latency_us[result.measured_from :]
    lateness_us = np.sort(result.lateness_us[result.measured_from :])
    answered = latency_us[latency_us >= 0]
    shed = int(np.count_nonzero(latency_us == SHED))
    reasons = find_invalid_reasons(
        planned=len(latency_us), sent=len(latency_us), lateness_p99_us=percentile_us(lateness_us, 0.99)
    )
    return Outcomes(
        latency_us=np.sort(answered),
        requests=len(latency_us),
        shed=shed,
        failed=len(latency_us) - len(answered) - shed,
        slo_us=fleet.slo_us,
        lateness_us=lateness_us,
        invalid_reasons=tuple(reasons),
    )


def to_scenario(fleet: Fleet, run: Run, calibration: Calibration) -> Scenario:
    """Return the fleet under a run's load as the simulator wants it."""
    overshoot_us = np.array(calibration.overshoot_us)

    def draw_us(rows: int, rng: np.random.Generator) -> float:
        return fleet.beta_us + fleet.alpha_us * rows + float(overshoot_us[rng.integers(len(overshoot_us))])

    arrivals = parse_arrivals(fleet.arrivals)
    trace_us = read_trace(arrivals.path) if arrivals.kind == "trace" else None
    # What replicas measure with canaries when they load: medians.
    beta_us = fleet.beta_us + float(np.median(overshoot_us))
    profile = CostProfile.from_line(beta_us=beta_us, alpha_us=fleet.alpha_us, size_max=fleet.batching.size_max)
    return Scenario(
        fleet.name,
        sources=(Source(SOURCE, arrivals=arrivals, rate=run.rate, trace_us=trace_us),),
        device=DeviceModel(profile, service=draw_us),
        duration_us=run.duration_us,
        warmup_us=run.warmup_us,
        batching=fleet.batching,
        slo_us=fleet.slo_us,
        replicas=fleet.replicas,
        overheads=Overheads(
            request_us=calibration.request_us,
            reply_us=calibration.reply_us,
            batch_us=calibration.batch_us,
            replica_us=calibration.replica_us,
            jitter_us=calibration.jitter_us,
        ),
    )


def predict(fleet: Fleet, run: Run, calibration: Calibration, repetitions: int) -> Outcomes:
    """Simulate a run: the generator's own schedule, several times over with other noise; return all of it together."""
    scenario = to_scenario(fleet, run, calibration)
    latencies: list[Times] = []
    requests = shed = failed = 0
    for repetition in range(repetitions):
        recording = simulate(scenario, partial(_stream, run.seed, repetition))
        measured, answered = recording.is_measured, recording.is_answered
        latencies.append(recording.latency_us[measured & answered])
        outcome: NDArray[np.uint8] = recording.outcome[measured & ~answered]
        refused = int(np.isin(outcome, (Outcome.REFUSED, Outcome.DROPPED, Outcome.EXPIRED)).sum())
        requests += int(measured.sum())
        shed += refused
        failed += len(outcome) - refused
    return Outcomes(np.sort(np.concatenate(latencies)), requests, shed, failed, fleet.slo_us)


def _stream(seed: int, repetition: int, name: str) -> np.random.Generator:
    """Return a stream of a simulation: its arrivals are the generator's, everything else is its own."""
    return seeded_stream(seed, "arrivals" if name == f"{SOURCE} arrivals" else f"{name} {repetition}")
