"""Fleets under rate limits, drawn at random with everything that can go wrong: one seed, one fleet, one verdict.

    python -m tests.sim.limit_fleet --windows 1000000     until so many windows were looked at
    python -m tests.sim.limit_fleet --seed 7              that one again

Not here: which seeds the tests run (`test_limit_fleet.py`).
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from penstock.adapters.chance import seeded_stream
from penstock.core.arrivals import parse_arrivals
from penstock.core.limits import Failover, Level, Quota, RateLimit
from penstock.sim.limit_fleet import LimitOutcome, simulate_limits
from penstock.sim.limit_scenario import LimitFault, LimitNetwork, LimitScenario, LimitSource

__all__ = ["draw_scenario", "judge", "quota_of", "replay_command", "simulate_seed"]

# Requests per simulation, about: some seconds of a busy fleet.
_REQUESTS = 15_000
_ARRIVALS = ("poisson", "mmpp", "gamma:4", "constant")
_PERIODS_US = (1_000_000, 1_000_000, 60_000_000, 777_777)


def quota_of(tokens: int, burst: int, *, per_us: int = 1_000_000, is_hard: bool = False) -> Quota:
    """Return a quota as a configuration would give it."""
    failover = Failover.HARD if is_hard else Failover.SOFT
    return RateLimit("limit", Level.USER, tokens, per_us, burst, failover=failover).quota()


def _draw_quota(rng: np.random.Generator, per_s: float) -> Quota:
    """Return a quota of about so many tokens per second."""
    if rng.random() < 0.15:  # a tick of 10 ms, as limits per day have whose numbers are large
        return Quota(
            round(per_s * 10), 1_000, 10_000, burst=max(round(per_s / 5), 20), lease_max=max(round(per_s / 10), 10)
        )
    per_us = int(rng.choice(_PERIODS_US))
    tokens = max(round(per_s * per_us / 1e6), 1)
    burst = max(round(per_s * float(rng.choice([0.02, 0.2, 1.0]))), 1)
    return quota_of(tokens, burst, per_us=per_us, is_hard=rng.random() < 0.5)


# How many of each kind at most.
_FAULTS = {"pause": 6, "crash": 4, "clock_back": 2, "failover": 2, "restart": 1}
_EDGE_FAULTS = {"pause": 12, "crash": 2, "clock_back": 2, "failover": 4, "restart": 2}


def _draw_faults(
    rng: np.random.Generator, most: Mapping[str, int], gateways: int, duration_us: int
) -> tuple[LimitFault, ...]:
    faults = []
    for kind, count in most.items():
        for _ in range(int(rng.integers(0, count + 1))):
            # Pauses end about when a lease does: just before, just after.
            length_us = int(rng.choice([5_000, 100_000, 1_000_000, 2_500_000]) * (0.8 + 0.4 * rng.random()))
            at_us, index = int(rng.integers(duration_us)), int(rng.integers(gateways))
            faults.append(LimitFault(kind, at_us, index, length_us, int(rng.integers(0, 200))))
    return tuple(faults)


def _draw_any(seed: int, rng: np.random.Generator) -> LimitScenario:
    """Return a fleet of two to eight gateways, up to four limits, load from half to five times of them."""
    gateways = int(rng.integers(2, 9))
    names = [f"key-{k}" for k in range(int(rng.integers(1, 5)))]
    rates = {name: float(rng.choice([30.0, 300.0, 1_000.0, 5_000.0])) for name in names}
    quotas = {name: _draw_quota(rng, rate) for name, rate in rates.items()}
    sources = []
    for _ in range(int(rng.integers(1, 4))):
        chosen = rng.choice(names, size=int(rng.integers(1, min(len(names), 3) + 1)), replace=False).tolist()
        cost_max = max(min(int(rng.choice([1, 1, 5, 40])), *(quotas[k].burst for k in chosen)), 1)
        cost = int(rng.integers(1, cost_max + 1))
        load = float(rng.choice([0.5, 0.95, 1.5, 5.0])) * min(rates[k] for k in chosen) / cost
        sources.append(
            LimitSource(
                tuple((key, cost) for key in chosen),
                max(load, 1.0),
                parse_arrivals(str(rng.choice(_ARRIVALS))),
                tuple((rng.random(gateways) ** 3 + 0.01).tolist()),
                settled=(0, 2 * cost) if rng.random() < 0.25 else None,
                service_us=int(rng.integers(1_000, 300_000)),
            )
        )
    duration_us = int(_REQUESTS / sum(s.rate for s in sources) * 1e6)
    duration_us = min(max(duration_us, 2_000_000), 20_000_000)
    is_rough = rng.random() < 0.8
    network = LimitNetwork(
        delay_us=int(rng.choice([50, 300, 2_000])),
        slow_ratio=0.02 if is_rough else 0.0,
        slow_us=int(rng.choice([20_000, 1_500_000])),
        loss_ratio=float(rng.choice([0.0, 0.05])) if is_rough else 0.0,
        duplicate_ratio=float(rng.choice([0.0, 0.1])) if is_rough else 0.0,
    )
    return LimitScenario(
        f"seed {seed}",
        quotas,
        tuple(sources),
        gateways,
        duration_us,
        lease_us=int(rng.choice([50_000, 300_000, 1_000_000, 2_000_000])),
        network=network,
        faults=_draw_faults(rng, _FAULTS, gateways, duration_us) if is_rough else (),
        drifts_ppm=tuple(rng.integers(-1_000, 1_001, size=gateways).tolist()),
    )


def _draw_edge(seed: int, rng: np.random.Generator) -> LimitScenario:
    """Return a fleet in which leases lie unused while buckets fill, and then everybody comes at once."""
    gateways = int(rng.integers(2, 6))
    names = [f"key-{k}" for k in range(int(rng.integers(1, 3)))]
    quotas, sources = {}, []
    for name in names:
        per_s = int(rng.choice([300, 1_000, 5_000]))
        quotas[name] = quota_of(per_s, max(per_s // int(rng.choice([50, 20, 5])), 20), is_hard=True)
        tide = parse_arrivals(f"diurnal:1,{rng.choice([0.3, 0.7, 1.5])}")
        big = max(quotas[name].burst // int(rng.choice([4, 10, 1_000])), 1)
        sources.append(LimitSource(((name, big),), 2.0 * per_s / big, tide))
        sources.append(LimitSource(((name, 1),), 0.2 * per_s + 30 * gateways))
        if rng.random() < 0.5:
            drained_us = quotas[name].burst * 1_000_000 // per_s
            service_us = int(rng.integers(drained_us))
            sources.append(LimitSource(((name, big),), 1.0 * per_s / big, settled=(0, big), service_us=service_us))
    if len(names) == 2:
        sources.append(LimitSource(tuple((name, 1) for name in names), 200.0))
    duration_us = min(int(_REQUESTS / sum(s.rate for s in sources) * 1e6), 10_000_000)
    return LimitScenario(
        f"seed {seed}",
        quotas,
        tuple(sources),
        gateways,
        duration_us,
        lease_us=int(rng.choice([100_000, 300_000, 1_000_000, 2_000_000])),
        deadline_us=int(rng.choice([10_000, 500_000])),
        network=LimitNetwork(
            delay_us=int(rng.choice([50, 2_000])),
            slow_ratio=float(rng.choice([0.0, 0.05, 0.5])),
            slow_us=400_000,
            duplicate_ratio=float(rng.choice([0.0, 0.2])),
        ),
        faults=_draw_faults(rng, _EDGE_FAULTS, gateways, duration_us),
        drifts_ppm=tuple(rng.choice([-1_000, 1_000], size=gateways).tolist()),
        tend_us=int(rng.choice([250_000, 60_000_000])),
        forget_us=5_000,
    )


def draw_scenario(seed: int) -> LimitScenario:
    """Return the fleet of a seed."""
    rng = seeded_stream(seed, "scenario")
    return (_draw_edge if seed % 2 else _draw_any)(seed, rng)


def simulate_seed(seed: int, simulate: Callable[..., LimitOutcome] = simulate_limits) -> LimitOutcome:
    """Return what came of a seed's fleet."""
    return simulate(draw_scenario(seed), partial(seeded_stream, seed))


def replay_command(seed: int) -> str:
    """Return the command that runs a seed again."""
    return f"{sys.executable} -m tests.sim.limit_fleet --seed {seed}"


def judge(outcome: LimitOutcome) -> list[str]:
    """Return what is wrong with an outcome: windows over the bound, promises broken."""
    over = [f"{key}: {tokens} tokens over the bound" for key, tokens in outcome.excess_tokens().items()]
    return over + outcome.broken[:3]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _report(seed: int, outcome: LimitOutcome) -> int:
    audits = outcome.audit().values()
    windows, filled = sum(audit.windows for audit in audits), max(audit.filled_ratio for audit in audits)
    _say(
        f"seed {seed}: {windows} windows, {outcome.decisions} decisions, {outcome.admitted} admitted, {outcome.calls}"
        f" calls, fullest window {filled:.3f} of its bound, {outcome.stranded_tokens} of {outcome.lent} lent tokens"
        f" stranded: {judge(outcome) or 'within the bound'}"
    )
    return windows


def main() -> int:
    """Simulate seeds from 1 on until enough windows were looked at, or one seed; return 1 if a bound was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=1_000_000, help="simulate seeds 1, 2, ... until so many windows")
    parser.add_argument("--seed", type=int, help="simulate this one")
    arguments = parser.parse_args()
    windows, seed, bad = 0, 0, []
    while windows < arguments.windows:
        seed = seed + 1 if arguments.seed is None else arguments.seed
        outcome = simulate_seed(seed)
        windows += _report(seed, outcome)
        if judge(outcome):
            bad.append(seed)
            _say(replay_command(seed))
        if arguments.seed is not None:
            break
    _say(f"{windows} windows of {seed} seeds: {len(bad)} seeds over the bound{f': {bad}' if bad else ''}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
