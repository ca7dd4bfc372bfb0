"""Whole runs small enough to follow by hand: times, decisions, overheads, faults, retries."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from penstock.adapters.chance import seeded_stream
from penstock.core.arrivals import Arrivals
from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.sim import (
    DecisionLog,
    DeviceModel,
    Fault,
    Outcome,
    Overheads,
    Recording,
    Scenario,
    Source,
    simulate,
    summarise,
)

# A batch takes 10 ms, whatever its size; two rows fit.
FLAT = DeviceModel(CostProfile((1, 2), (10_000, 10_000)))
STREAM = partial(seeded_stream, 1)


def every(period_ms: float, count: int, **source: object) -> Scenario:
    """Return `count` requests, one every `period_ms` from 0 on, for one replica under `size_or_timeout`."""
    sender = Source("all", arrivals=Arrivals("constant"), rate=1e3 / period_ms)
    return Scenario(
        "by hand",
        (replace(sender, **source),),  # type: ignore[arg-type]  # fields by name, each of its own type
        FLAT,
        duration_us=round(period_ms * 1_000 * count),
        batching=Batching(policy="size_or_timeout", size_max=2, wait_us_max=1_000_000),
    )


def run(scenario: Scenario, log: DecisionLog | None = None) -> Recording:
    """Simulate it."""
    return simulate(scenario, STREAM, log=log)


def test_requests_are_batched_while_the_replica_works() -> None:
    """The first goes at once, the next two share the staged batch, and the one after that waits for the replica."""
    log = DecisionLog()
    recording = run(every(4, 4), log)
    (decisions,) = log.gateways
    assert [entry[1:] for entry in decisions] == [
        ("dispatch", "replica-0", (0,), "idle"),
        ("dispatch", "replica-0", (1, 2), "full"),
        ("dispatch", "replica-0", (3,), "idle"),
    ]
    staged_us = decisions[1][0]
    assert 8_000 <= staged_us < 10_000
    assert recording.settled_us.tolist() == [10_000, 20_000, 20_000, 30_000]
    assert recording.wait_us.tolist() == [0, staged_us - 4_000, staged_us - 8_000, 8_000]
    assert recording.share_us.tolist() == [10_000, 5_000, 5_000, 10_000]
    assert recording.started_us.tolist() == [0, 10_000, 20_000]
    assert recording.execution_rows.tolist() == [1, 2, 1]


def test_overheads_add_up() -> None:
    """A lone request pays each of them once: the way in, the CPU, the way to the replica and back, the way out."""
    costs = Overheads(request_us=100, gateway_us=20, reply_us=70, batch_us=301)
    (latency_us,) = run(replace(every(1_000, 1), overheads=costs)).latency_us
    assert latency_us == 100 + 20 + 150 + 10_000 + 151 + 70


def test_the_gateway_reads_one_request_at_a_time() -> None:
    """Requests that arrive faster than they can be read queue for the gateway's thread."""
    shut = replace(every(1, 5), overheads=Overheads(gateway_us=3_000), bounds=QueueBounds(bytes_max=-1))
    assert run(shut).latency_us.tolist() == [3_000, 5_000, 7_000, 9_000, 11_000]  # refused when read


def test_timers_fire_on_time_or_late_by_the_jitter() -> None:
    """Without company a request leaves when its wait is over; jitter makes that later, never earlier."""
    lazy = replace(
        every(1_000, 3), batching=Batching(policy="size_or_timeout", size_max=2, wait_us_max=5_000, eager=False)
    )
    assert run(lazy).wait_us.tolist() == [5_000] * 3
    late = run(replace(lazy, overheads=Overheads(jitter_us=900)))
    assert all(5_000 <= wait_us <= 5_900 for wait_us in late.wait_us)
    assert len(set(late.wait_us.tolist())) > 1


def test_a_full_queue_refuses_and_the_log_says_so() -> None:
    """Beyond the bound a request is refused at once; its outcome, the count of reasons and the log agree."""
    log = DecisionLog()
    recording = run(replace(every(1, 8), bounds=QueueBounds(requests_max=1)), log)
    refused = [entry[2] for entry in log.gateways[0] if entry[1] == "refuse"]
    assert refused
    assert np.flatnonzero(recording.outcome == Outcome.REFUSED).tolist() == refused
    assert recording.refusals == {"queue_full": len(refused)}
    assert (recording.latency_us[refused] == 0).all()


def test_refused_requests_come_again() -> None:
    """With retries, those refused are sent again after the pause and count from their first sending."""
    scenario = replace(every(1, 8, retries=9, retry_after_us=15_000), bounds=QueueBounds(requests_max=1))
    recording = run(scenario)
    again = recording.tries > 1
    assert recording.is_answered.all()
    assert again.any()
    assert (recording.latency_us[again] >= 15_000 + 10_000).all()
    assert recording.refusals["queue_full"] == (recording.tries - 1).sum()


def test_a_request_that_cannot_be_done_in_time_is_not_executed() -> None:
    """Under `deadline` a request whose budget is below the batch time is refused before it costs anything."""
    strict = replace(every(4, 50, deadline_us=9_000), batching=Batching(policy="deadline", size_max=2))
    recording = run(strict)
    assert not recording.is_good.any()
    assert np.count_nonzero(recording.outcome == Outcome.REFUSED) > 40
    assert recording.refusals["predicted_late"] > 40


def test_callers_who_have_gone_are_not_waited_for() -> None:
    """Patience ends a queued request unexecuted, and wastes the device time of a running one."""
    recording = run(every(4, 4, patience_us=7_000))
    assert recording.outcome.tolist() == [Outcome.ABANDONED] * 4
    assert recording.latency_us.tolist() == [7_000] * 4
    assert summarise(recording).wasted_ratio == 1.0
    assert summarise(recording).failed_ratio == 1.0


def test_hits_never_reach_the_queue() -> None:
    """With a hit ratio of 1 every request is answered by the cache and no batch is sent."""
    recording = run(replace(every(1, 5, hit_ratio=1.0), overheads=Overheads(request_us=40, reply_us=30)))
    assert recording.outcome.tolist() == [Outcome.HIT] * 5
    assert recording.latency_us.tolist() == [70] * 5
    assert len(recording.dispatched_us) == 0


def test_a_dead_replicas_work_is_done_again() -> None:
    """What ran when it died runs again, alone, on the next life; nothing is lost, and the half-done work is waste."""
    death = Fault("replica_death", 14_000, 6_000)
    log = DecisionLog()
    recording = run(replace(every(4, 4), faults=(death,)), log)
    assert recording.outcome.tolist() == [Outcome.SERVED] * 4
    assert recording.lost_us == 4_000
    after = [entry for entry in log.gateways[0] if entry[0] >= 20_000]
    assert sorted(len(entry[3]) for entry in after) == [1, 1, 1]
    assert {entry[4] for entry in after} == {"alone", "idle"}


def test_a_request_that_loses_two_replicas_fails() -> None:
    """It may have killed them: it is not tried a third time."""
    deaths = (Fault("replica_death", 5_000, 1_000), Fault("replica_death", 8_000, 1_000))
    recording = run(replace(every(1_000, 1), faults=deaths))
    assert recording.outcome.tolist() == [Outcome.LOST]
    assert recording.refusals == {"replica_lost": 1}
    assert summarise(recording).failed_ratio == 1.0


def test_a_slow_device_is_slow_while_the_fault_lasts() -> None:
    """Executions that start within it take the factor longer, others as ever."""
    recording = run(replace(every(100, 4), faults=(Fault("slow_device", 100_000, 150_000, factor=3.0),)))
    assert recording.latency_us.tolist() == [10_000, 30_000, 30_000, 10_000]


def test_a_stalled_gateway_hears_nothing() -> None:
    """What arrives in a stall, requests and replies, is seen when it ends."""
    recording = run(replace(every(5, 4), faults=(Fault("gateway_stall", 4_000, 40_000),)))
    assert recording.settled_us[0] == 44_000
    assert recording.dispatched_us[1] == 44_000


def test_gateways_share_replicas() -> None:
    """Requests spread over all gateways, and replicas merge what they send."""
    recording = run(replace(every(1, 400), gateways=4, replicas=2))
    assert set(recording.dispatch_gateway.tolist()) == {0, 1, 2, 3}
    assert set(recording.execution_replica.tolist()) == {0, 1}
    assert len(recording.started_us) < len(recording.dispatched_us)


def test_clients_have_one_request_outstanding() -> None:
    """A closed loop without thinking sends the next request when the last is answered, and stops at the end."""
    scenario = replace(every(1, 1), sources=(Source("desk", clients=1),), duration_us=100_000)
    recording = run(scenario)
    assert (recording.arrived_us[1:] >= recording.settled_us[:-1]).all()
    assert recording.arrived_us[-1] < 100_000
    assert len(recording.source) == 10


@pytest.mark.parametrize("hit_ratio", [0.0, 1.0])
def test_clients_that_are_refused_do_not_hold_time_still(hit_ratio: float) -> None:
    """Neither a closed door nor a cache that always hits lets a client send without end in one instant."""
    sender = Source("desk", clients=3, hit_ratio=hit_ratio, retry_after_us=1_000)
    scenario = replace(every(1, 1), sources=(sender,), duration_us=10_000, bounds=QueueBounds(bytes_max=0))
    scenario = replace(scenario, sources=(replace(sender, nbytes=1),))
    recording = run(scenario)
    assert len(recording.source) <= 3 * (10 if not hit_ratio else 10_000)
