"""The scenarios: each drives a limiter through its workers and returns figures, the same for every library.

Not here: what happens inside a worker (`worker.py`), what counts as too much (`bound.py`), tables (`tables.py`).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.limiters.bound import count_bucket, count_log, worst_excess, worst_window
from bench.limiters.catalogue import Claim, Contender
from bench.limiters.crew import Crew, crew
from bench.limiters.form import Limit
from bench.limiters.serving import Server

__all__ = [
    "FULL",
    "OFFERED",
    "QUICK",
    "SLOW",
    "Lengths",
    "measure_bound",
    "measure_cancel",
    "measure_clock",
    "measure_pulses",
    "measure_refund",
    "measure_slow",
    "measure_speed",
    "measure_trouble",
    "measure_weight",
]

Figures = dict[str, Any]

PROCESSES = 4
OFFERED = 5  # times the limit
# After a lone attempt a pulse from 0.8 to 1.2 s: over the end of a window of a second that the attempt began. Again
# after 2.5 s.
PULSE = (0.8, 1.2, 2.5)
SLOW, SLOW_PER_S = Limit(90, 60, 3), 2.0
# Never in the way: what is measured is the price of a decision.
_WIDE = Limit(1_000_000, 1, 1_000_000)
_HEAVY, HEAVY_COST, HEAVY_TIMES = Limit(6_000_000, 60, 6_000_000), 4_000, 100
_HEAVY_ONCE = Limit(60_000, 60, 60_000)  # takes seconds to forget 4,000 tokens: time to look at what is kept
_STILL = Limit(50, 60, 50)  # refills by less than one token while it is looked at
_SHIFT_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long each scenario lasts, seconds."""

    bound: float
    clock: float
    slow: float
    speed: float


FULL = Lengths(bound=5.0, clock=3.0, slow=60.0, speed=3.0)
QUICK = Lengths(bound=2.0, clock=2.0, slow=10.0, speed=0.5)


def judge(answers: Sequence[Figures], limit: Limit, claim: Claim) -> Figures:
    """Return how what was admitted compares with the limit, and with what should have been.

    Returns:
        `excess`: beyond burst + rate * t in the worst window, whatever the limiter claims. `excess_claimed`: beyond
        what it claims. `most`: in the worst window as long as the limit's period. `delivered`: over what its claim
        allows of the same attempts.
    """
    sent = np.array([t for answer in answers for t in answer["sent_us"]], dtype=np.int64)
    answered = np.array([t for answer in answers for t in answer["answered_us"]], dtype=np.int64)
    admitted = np.array([a for answer in answers for a in answer["admitted"]], dtype=bool)
    per_us = limit.per_s * 1_000_000
    inside = sent[admitted], answered[admitted]
    excess = max(worst_excess(*inside, tokens=limit.tokens, per_us=per_us, burst=limit.burst), 0.0)
    most = worst_window(*inside, length_us=per_us)
    if claim is Claim.BUCKET:
        allowed, beyond = count_bucket(answered, tokens=limit.tokens, per_us=per_us, burst=limit.burst), excess
    else:
        allowed, beyond = count_log(answered, limit=limit.tokens, length_us=per_us), float(max(most - limit.tokens, 0))
    errors = [error for answer in answers for error in answer["errors"]]
    return {
        "attempts": len(sent),
        "admitted": int(admitted.sum()),
        "excess": round(excess, 1),
        "excess_claimed": round(beyond, 1),
        "most": most,
        "delivered": round(float(admitted.sum()) / allowed, 4) if allowed else None,
        "errors": len(errors),
        "error": errors[0] if errors else "",
        "skipped": sum(answer["skipped"] for answer in answers),
    }


def _drive(
    workers: Crew, limit: Limit, key: str, seconds: float, *, pulse: Sequence[float] = (), processes: int = PROCESSES
) -> list[Figures]:
    """Drive one key by several processes at a multiple of the limit in all."""
    rate = OFFERED * limit.tokens / limit.per_s / PROCESSES
    job = {"do": "drive", "limit": limit, "key": key, "rate_per_s": rate, "seconds": seconds, "pulse": pulse}
    return workers.do(*({**job, "phase": number / PROCESSES} for number in range(processes)))


def measure_bound(workers: Crew, contender: Contender, limit: Limit, lengths: Lengths) -> Figures:
    """Four processes offer five times the limit."""
    return judge(_drive(workers, limit, "bound", lengths.bound), limit, contender.claim)


def measure_pulses(workers: Crew, contender: Contender, limit: Limit, lengths: Lengths) -> Figures:
    """Four processes offer five times the limit in pulses, each over the end of a window that was hardly used."""
    answers = _drive(workers, limit, "pulses", 2 * lengths.bound, pulse=PULSE)
    return judge(answers, limit, contender.claim)


def measure_clock(contender: Contender, python: Path, server: Server, limit: Limit, lengths: Lengths) -> Figures:
    """One of four processes has a wall clock that is an hour ahead, or behind; then the other three go on alone."""
    found: Figures = {}
    for name, shift_s in (("ahead", _SHIFT_S), ("behind", -_SHIFT_S)):
        server.empty()
        with crew(contender, python, server.url, (0.0, 0.0, 0.0, shift_s)) as workers:
            answers = _drive(workers, limit, "clock", lengths.clock)
            afterwards = _drive(workers, limit, "clock", lengths.clock, processes=PROCESSES - 1)
        found[name] = judge(answers, limit, contender.claim)
        found[name]["by_shifted"] = sum(answers[-1]["admitted"])
        found[name]["afterwards"] = judge(afterwards, limit, contender.claim)
    return found


def measure_slow(contenders: Sequence[tuple[Contender, Path]], server: Server, lengths: Lengths) -> dict[str, Figures]:
    """A caller who asks twice a second under 90 a minute; all limiters at once, because it takes a minute."""
    server.empty()

    def measure(contender: Contender, python: Path) -> Figures:
        key = f"slow:{contender.library}:{contender.algorithm}"
        job = {"do": "drive", "limit": SLOW, "key": key, "rate_per_s": SLOW_PER_S, "seconds": lengths.slow}
        job |= {"phase": 0, "pulse": ()}
        with crew(contender, python, server.url, (0.0,)) as workers:
            found = judge(workers.do(job), SLOW, contender.claim)
        return {**found, "seconds": lengths.slow}

    with ThreadPoolExecutor(len(contenders)) as pool:
        running = {contender.name: pool.submit(measure, contender, python) for contender, python in contenders}
        return {name: future.result() for name, future in running.items()}


def measure_speed(workers: Crew, server: Server, lengths: Lengths) -> Figures:
    """Decisions per second of one process on one hot key, one and 64 at a time, and what each costs Redis."""
    job = {"do": "hurry", "limit": _WIDE, "key": "speed"}
    found: Figures = {}
    for in_flight in (1, 64):
        server.empty()
        workers.do({**job, "in_flight": in_flight, "seconds": lengths.speed / 4})
        before = server.usage()
        (answer,) = workers.do({**job, "in_flight": in_flight, "seconds": lengths.speed})
        after, decided = server.usage(), answer["decided"]
        found[str(in_flight)] = {
            "per_s": round(decided / answer["elapsed_us"] * 1e6),
            "rejected": decided - answer["admitted"],
            "errors": answer["failed_count"],
            "cpu_us": round(answer["cpu_s"] * 1e6 / decided, 1),
            "calls": round((after.calls - before.calls) / decided, 4),
            "commands": round((after.commands - before.commands) / decided, 4),
            "redis_cpu_us": round((after.cpu_us - before.cpu_us) / decided, 2),
        }
    return found


def measure_weight(workers: Crew, server: Server) -> Figures:
    """One request of 4,000 tokens: what Redis keeps for it at once, and how long it takes, the median of many."""
    job = {"do": "weigh", "cost": HEAVY_COST}
    workers.do({**job, "limit": _HEAVY, "key": "warm", "times": HEAVY_TIMES // 10})
    server.empty()
    (one,) = workers.do({**job, "limit": _HEAVY_ONCE, "key": "one", "times": 1})
    keys, stored_bytes = server.stored_bytes()
    server.empty()
    before = server.usage()
    (many,) = workers.do({**job, "limit": _HEAVY, "key": "many", "times": HEAVY_TIMES})
    redis_us = (server.usage().cpu_us - before.cpu_us) / HEAVY_TIMES
    return {
        "cost": HEAVY_COST,
        "admitted": one["admitted"] + many["admitted"],
        "ms": round(many["took_us"] / 1e3, 3),
        "redis_ms": round(redis_us / 1e3, 3),
        "keys": keys,
        "stored_bytes": stored_bytes,
    }


def measure_refund(workers: Crew, server: Server) -> Figures:
    """Take 40 of 50 tokens, give 30 back, count what is left: 40 if it is exact. Anew if counting was disturbed."""
    job = {"do": "refund", "limit": _STILL, "key": "refund", "estimate": 40, "actual": 10}
    found: Figures = {}
    for _ in range(3):
        server.empty()
        (found,) = workers.do(job)
        if not found["unanswered"]:
            break
    return found


def measure_cancel(workers: Crew, server: Server) -> Figures:
    """Cancel a request for 10 tokens that Redis has received and not answered; cancel many at any moment."""
    server.empty()
    job = {"do": "cancel", "limit": _STILL, "key": "cancel", "cost": 10, "warm": 1}
    return workers.do({**job, "trials": 3, "pause_ms": 100, "cancels": 200})[0]


def measure_trouble(workers: Crew, server: Server) -> Figures:
    """Redis forgets its scripts; then it is silent for a second."""
    server.empty()
    return workers.do({"do": "trouble", "limit": _STILL, "key": "trouble", "pause_ms": 1_000})[0]
