"""Callers: planned loads reach the right doors at the right times, in their proportions."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from penstock.adapters.chance import seeded_stream
from penstock.core.arrivals import Arrivals
from penstock.core.profiles import CostProfile
from penstock.policy.queueing import BATCH
from penstock.sim.events import NEVER_US, Agenda
from penstock.sim.gateway import Request
from penstock.sim.recording import Outcome, Recorder
from penstock.sim.scenario import DeviceModel, Overheads, Scenario, Source
from penstock.sim.workload import Callers

DEVICE = DeviceModel(CostProfile((1,), (1_000,)))


class ShutDoor:
    """A gateway that notes what is handed in and leaves it there."""

    def __init__(self) -> None:
        self.submitted: list[tuple[int, Request]] = []
        self.hung_up: list[tuple[int, Request]] = []

    def submit(self, now_us: int, request: Request) -> None:
        """Note a request."""
        self.submitted.append((now_us, request))

    def hang_up(self, now_us: int, request: Request) -> None:
        """Note a caller that has gone."""
        self.hung_up.append((now_us, request))


def open_doors(
    sources: Sequence[Source], *, doors: int = 1, duration_us: int = 1_000_000, overheads: Overheads | None = None
) -> tuple[Callers, Recorder, list[ShutDoor], Agenda]:
    """Return callers of `sources` before `doors` doors."""
    scenario = Scenario("doors", tuple(sources), DEVICE, duration_us, slo_us=50_000, overheads=overheads or Overheads())
    agenda, recorder, shut = Agenda(), Recorder(), [ShutDoor() for _ in range(doors)]
    callers = Callers(scenario, partial(seeded_stream, 1), agenda=agenda, recorder=recorder, gateways=shut)
    return callers, recorder, shut, agenda


def send_all(callers: Callers, agenda: Agenda) -> None:
    """Let everything happen."""
    while (now_us := min(callers.next_us, agenda.next_us)) < NEVER_US:
        agenda.run_instant(now_us)
        callers.send_planned(now_us)


def test_open_loops_are_merged_in_order() -> None:
    """Requests of several sources reach the gateway in order of time, each as long after its sending as it takes."""
    slow = Source("slow", arrivals=Arrivals("constant"), rate=2.0, rows=(5,), tenant="s", deadline_us=7)
    fast = Source("fast", arrivals=Arrivals("constant"), rate=4.0, request_class=BATCH)
    callers, recorder, (door,), agenda = open_doors([slow, fast], overheads=Overheads(request_us=30))
    send_all(callers, agenda)
    assert [at_us for at_us, _ in door.submitted] == [30, 30, 250_030, 500_030, 500_030, 750_030]
    assert [request.index for _, request in door.submitted] == list(range(6))
    assert recorder.arrived_us == [0, 0, 250_000, 500_000, 500_000, 750_000]
    first, second = (request for _, request in door.submitted[:2])
    assert (first.rows, first.tenant, first.deadline_us) == (5, "s", 7)
    assert (second.rows, second.tenant, second.request_class) == (1, "", BATCH)
    assert callers.waiting == 6


def test_rows_hits_and_gateways_are_drawn_in_proportion() -> None:
    """Each of the rows is as likely, hits come as stated, and every gateway gets its share."""
    source = Source("all", rate=20_000.0, rows=(1, 2, 8), hit_ratio=0.25)
    callers, recorder, doors, agenda = open_doors([source], doors=4)
    send_all(callers, agenda)
    count = len(recorder.rows)
    values, counts = np.unique(recorder.rows, return_counts=True)
    assert values.tolist() == [1, 2, 8]
    assert np.abs(counts / count - 1 / 3).max() < 0.02
    assert recorder.outcome.count(Outcome.HIT) / count == pytest.approx(0.25, abs=0.02)
    sent = sum(len(door.submitted) for door in doors)
    assert sent + recorder.outcome.count(Outcome.HIT) == count
    assert all(len(door.submitted) / sent == pytest.approx(0.25, abs=0.02) for door in doors)


def test_adding_a_source_moves_no_other() -> None:
    """Streams are named: a source sends at the same times whoever else there is."""
    alone, _, (door,), agenda = open_doors([Source("a", rate=500.0)])
    send_all(alone, agenda)
    both, recorder, _, agenda = open_doors([Source("b", rate=100.0), Source("a", rate=500.0)])
    send_all(both, agenda)
    mine = [at_us for at_us, source in zip(recorder.arrived_us, recorder.source, strict=True) if source == 1]
    assert mine == [at_us for at_us, _ in door.submitted]


def test_clients_stay_with_their_gateway_and_stop_in_time() -> None:
    """Each client sends its next request when it has its answer, to the same gateway, until the end."""
    callers, recorder, doors, agenda = open_doors(
        [Source("desk", clients=3, think_us=1_000)], doors=2, duration_us=50_000
    )
    seen = [0, 0]
    while (now_us := agenda.next_us) < NEVER_US:
        agenda.run_instant(now_us)
        for k, door in enumerate(doors):
            for _, request in door.submitted[seen[k] :]:
                assert request.client % 2 == k
                callers.answer(request, now_us + 10)
            seen[k] = len(door.submitted)
    assert callers.waiting == 0
    assert 50 < len(recorder.rows) < 300
    assert max(recorder.arrived_us) < 50_000
    assert set(recorder.outcome) == {Outcome.SERVED}


def test_a_refused_request_comes_again_with_a_new_deadline() -> None:
    """The next try is the same request, as large, at the same gateway; the last refusal is final."""
    source = Source("a", arrivals=Arrivals("constant"), rate=1.0, retries=1, rows=(3,))
    callers, recorder, (door,), agenda = open_doors([source], overheads=Overheads(request_us=5, reply_us=3))
    send_all(callers, agenda)
    ((_, first),) = door.submitted
    callers.refuse(first, Outcome.REFUSED, "queue_full", 40_000, 100)
    send_all(callers, agenda)
    at_us, again = door.submitted[1]
    assert at_us == 100 + 3 + 40_000 + 5
    assert (again.index, again.rows, again.tries, again.deadline_us) == (0, 3, 2, 50_000)
    callers.refuse(again, Outcome.DROPPED, "dropped", 9_000_000, 60_000)
    assert (recorder.outcome, recorder.settled_us, recorder.tries) == ([Outcome.DROPPED], [60_003], [2])
    assert recorder.refusals == {"queue_full": 1, "dropped": 1}
    assert callers.waiting == 0


def test_patience_ends_when_stated() -> None:
    """Whoever waits longer hangs up, at the gateway it asked."""
    source = Source("a", arrivals=Arrivals("constant"), rate=1.0, patience_us=700)
    callers, _, (door,), agenda = open_doors([source], overheads=Overheads(request_us=50))
    send_all(callers, agenda)
    assert [(at_us, request.index) for at_us, request in door.hung_up] == [(750, 0)]
