"""One process that uses a limiter, in the environment of its library: jobs in on stdin, answers out on stdout.

Started as `python -m bench.limiters.worker LIBRARY ALGORITHM URL CLOCK_SHIFT_S`; each job and each answer is a JSON
object on a line of its own. Its wall clock is shifted before the library is imported; times in answers are of the
monotonic clock, which all processes of a machine share. Not here: judging what comes out (`scenarios.py`).
"""

import asyncio
import importlib
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvloop
from redis.asyncio import Redis

from bench.limiters.form import Client, Connect, Limit, Limiter, Purpose, UnsupportedError

# More at once from one process would measure its queue: an attempt that finds so many under way is left out.
_IN_FLIGHT_MAX = 64
# Spacing of the attempts that count what is left of a key: wide enough for whatever is fetched in between.
_PROBE_S = 0.003
# Tasks that are cancelled together.
_TOGETHER = 20

Answer = dict[str, Any]


def _now_us() -> int:
    return time.monotonic_ns() // 1_000


async def drive(client: Client, job: Answer) -> Answer:
    """Open loop: attempts from `start_at_us` on, whatever the answers, never more than some at once."""
    limiter = await client.limiter(Limit(*job["limit"]), job["key"], Purpose.REQUESTS)
    await _connect_fully(client, job, _IN_FLIGHT_MAX)
    attempts: list[tuple[int, int, bool]] = []
    errors: list[str] = []
    under_way: set[asyncio.Task[None]] = set()

    async def attempt() -> None:
        sent_us, admitted = _now_us(), False
        try:
            admitted = await limiter.acquire()
        except Exception as error:  # noqa: BLE001 - whatever a library raises is its answer, and is reported
            errors.append(repr(error))
        attempts.append((sent_us, _now_us(), admitted))

    if job["start_at_us"] < _now_us():
        raise RuntimeError("the worker was not ready when the scenario began")
    skipped = 0
    for due_s in _schedule(job):
        due_us = job["start_at_us"] + due_s * 1e6
        await asyncio.sleep(max(due_us - _now_us(), 0) / 1e6)
        if len(under_way) >= _IN_FLIGHT_MAX:
            skipped += 1
            continue
        task = asyncio.create_task(attempt())
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    sent, answered, admitted = zip(*attempts, strict=True) if attempts else ((), (), ())
    return {"sent_us": sent, "answered_us": answered, "admitted": admitted, "errors": errors, "skipped": skipped}


def _schedule(job: Answer) -> Iterator[float]:
    """Yield when to attempt, s: evenly; or one attempt, a pause, a pulse and another pause, again and again."""
    interval_s = 1 / job["rate_per_s"]
    if not job["pulse"]:
        due_s = job["phase"] * interval_s
        while due_s < job["seconds"]:
            yield due_s
            due_s += interval_s
        return
    begin_s, end_s, every_s = job["pulse"]
    for round_ in range(int(job["seconds"] / every_s)):
        due_s = round_ * every_s + job["phase"] * interval_s
        yield due_s
        due_s += begin_s
        while due_s < round_ * every_s + end_s:
            yield due_s
            due_s += interval_s


async def _connect_fully(client: Client, job: Answer, together: int) -> None:
    """Open as many connections as will be used, so that nothing that is measured waits for them."""
    other = await client.limiter(Limit(1_000_000, 1, 1_000_000), f"{job['key']}:warm:{os.getpid()}", Purpose.REQUESTS)
    await asyncio.gather(*(other.acquire() for _ in range(together)), return_exceptions=True)


async def hurry(client: Client, job: Answer) -> Answer:
    """Closed loop: `in_flight` tasks decide again and again, each decision in a turn of its own."""
    limiter = await client.limiter(Limit(*job["limit"]), job["key"], Purpose.REQUESTS)
    decided = admitted = failed = 0
    began_us, cpu_s = _now_us(), time.process_time()
    end_us = began_us + round(job["seconds"] * 1e6)

    async def repeat() -> None:
        nonlocal decided, admitted, failed
        while _now_us() < end_us:
            try:
                admitted += await limiter.acquire()
                decided += 1
            except Exception:  # noqa: BLE001 - whatever a library raises is no decision, and is counted
                failed += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(repeat() for _ in range(job["in_flight"])))
    used_s = time.process_time() - cpu_s
    elapsed_us = _now_us() - began_us
    return {"decided": decided, "admitted": admitted, "failed_count": failed, "elapsed_us": elapsed_us, "cpu_s": used_s}


async def weigh(client: Client, job: Answer) -> Answer:
    """Requests of many tokens, one after the other."""
    limiter = await client.limiter(Limit(*job["limit"]), job["key"], Purpose.WEIGHTS)
    took_us: list[int] = []
    admitted = 0
    for _ in range(job["times"]):
        began_us = _now_us()
        admitted += await limiter.acquire(job["cost"])
        took_us.append(_now_us() - began_us)
    return {"took_us": statistics.median(took_us), "took_us_max": max(took_us), "admitted": admitted}


async def refund(client: Client, job: Answer) -> Answer:
    """Take `estimate`, say that it was `actual`, count what is left: first as the library has it, then by force."""
    limit, estimate, actual = Limit(*job["limit"]), job["estimate"], job["actual"]
    answer: Answer = {"expected": limit.burst - actual, "unanswered": 0}
    limiter = await client.limiter(limit, f"{job['key']}:settled", Purpose.SETTLED)
    try:
        answer["settled"] = await limiter.settle(estimate, actual)
        answer["left"], answer["unanswered"] = await _count_left(limiter, limit.burst)
    except UnsupportedError:
        answer["left"] = None
    limiter = await client.limiter(limit, f"{job['key']}:negative", Purpose.WEIGHTS)
    await limiter.acquire(estimate)
    try:
        answer["negative"] = "admitted" if await limiter.acquire(actual - estimate) else "rejected"
    except UnsupportedError:
        answer["negative"] = "cannot be asked for"
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its answer, and is reported
        answer["negative"] = f"refused: {type(error).__name__}"
    answer["left_after_negative"], _ = await _count_left(limiter, limit.burst)
    return answer


async def cancel(client: Client, job: Answer) -> Answer:
    """Cancel tasks that wait for an answer; count what was charged, and whether later answers are still right."""
    limit, cost = Limit(*job["limit"]), job["cost"]
    control = Redis.from_url(job["url"])
    charged: list[int] = []
    for trial in range(job["trials"]):
        limiter = await client.limiter(limit, f"{job['key']}:{trial}", Purpose.WEIGHTS)
        await limiter.acquire(job["warm"])
        await control.client_pause(job["pause_ms"], all=True)
        task = asyncio.create_task(_call(limiter.acquire, cost))
        await asyncio.sleep(job["pause_ms"] / 4_000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(job["pause_ms"] / 500)
        left, _ = await _count_left(limiter, limit.burst)
        charged.append(limit.burst - job["warm"] - left)
    await _connect_fully(client, job, _TOGETHER)
    connections = len(await control.client_list())
    often = await _cancel_often(client, job)
    grown = len(await control.client_list()) - connections
    await control.aclose()
    return {"charged": charged, "connections_grown": grown, **often, **await _ask_in_turn(client, job)}


async def _cancel_often(client: Client, job: Answer) -> Answer:
    """Cancel many tasks, some turns after they began, while others are under way; count those that were charged."""
    burst = 2 * job["cancels"]
    limiter = await client.limiter(Limit(burst, 3_600, burst), f"{job['key']}:often", Purpose.REQUESTS)
    cancelled = 0
    for turns in range(job["cancels"] // _TOGETHER):
        tasks = [asyncio.create_task(_call(limiter.acquire, 1)) for _ in range(_TOGETHER)]
        for _ in range(turns % 5):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        cancelled += sum(task.cancelled() for task in tasks)
    await asyncio.sleep(0.1)
    left, _ = await _count_left(limiter, burst)
    return {"cancelled": cancelled, "cancelled_charged": burst - left - (job["cancels"] - cancelled)}


async def _ask_in_turn(client: Client, job: Answer) -> Answer:
    """Ask a full and an empty key in turn: an answer that was meant for a task that is gone would show."""
    full = await client.limiter(Limit(1_000_000, 1, 1_000_000), f"{job['key']}:full", Purpose.REQUESTS)
    empty = await client.limiter(Limit(1, 3_600, 1), f"{job['key']}:empty", Purpose.REQUESTS)
    await empty.acquire()
    wrong, errors = 0, []
    for turn in range(100):
        try:
            admitted = await (full, empty)[turn % 2].acquire()
        except Exception as error:  # noqa: BLE001 - whatever a library raises is its answer, and is reported
            errors.append(repr(error))
        else:
            wrong += admitted == bool(turn % 2)
    return {"wrong": wrong, "errors": errors}


async def trouble(client: Client, job: Answer) -> Answer:
    """Ask after Redis has forgotten its scripts, as it does when it restarts; ask while it is silent."""
    limiter = await client.limiter(Limit(*job["limit"]), job["key"], Purpose.REQUESTS)
    control = Redis.from_url(job["url"])
    await limiter.acquire()
    await control.script_flush()
    flushed = await _name_outcome(limiter)
    await control.client_pause(job["pause_ms"], all=True)
    began_us = _now_us()
    silent = await _name_outcome(limiter)
    waited_us = _now_us() - began_us
    await asyncio.sleep(job["pause_ms"] / 1e3)
    await control.aclose()
    return {"flushed": flushed, "silent": silent, "waited_us": waited_us}


async def _name_outcome(limiter: Limiter) -> str:
    try:
        return "admitted" if await limiter.acquire() else "rejected"
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its answer, and is reported
        return type(error).__name__


async def _call(acquire: Callable[[int], Awaitable[bool]], cost: int) -> bool:
    return await acquire(cost)


async def _count_left(limiter: Limiter, burst: int) -> tuple[int, int]:
    """Return how many single tokens there are, and how many questions failed: those may have taken one unseen."""
    outcomes: Counter[str] = Counter()
    for _ in range(2 * burst):
        outcomes[await _name_outcome(limiter)] += 1
        await asyncio.sleep(_PROBE_S)
    return outcomes["admitted"], 2 * burst - outcomes["admitted"] - outcomes["rejected"]


_JOBS: dict[str, Callable[[Client, Answer], Awaitable[Answer]]] = {
    "drive": drive,
    "hurry": hurry,
    "weigh": weigh,
    "refund": refund,
    "cancel": cancel,
    "trouble": trouble,
}


async def _run(connect: Connect, url: str, algorithm: str, job: Answer) -> Answer:
    client = await connect(url, algorithm)
    try:
        return await _JOBS[job["do"]](client, job)
    finally:
        await client.close()


def _shift_clock(seconds: float) -> None:
    """Shift the wall clock of this process: libraries that count by it see another time than everybody else."""
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + round(seconds * 1e9)


def main(library: str, algorithm: str, url: str, shift_s: str) -> None:
    """Do jobs until there are no more."""
    if float(shift_s):
        _shift_clock(float(shift_s))
    connect: Connect = importlib.import_module(f"bench.limiters.{library}.adapter").connect
    print(json.dumps({"ready": True}), flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            try:
                answer = runner.run(_run(connect, url, algorithm, json.loads(line)))
            except Exception as error:  # noqa: BLE001 - the parent reports it as the library's failure
                answer = {"failed": repr(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
