"""A simulated replica: order, merging, late work, what it says in its replies, death."""

from functools import partial

import numpy as np
import pytest

from penstock.core.profiles import CostProfile
from penstock.policy.balancing import Replica
from penstock.policy.batching import CloseReason
from penstock.policy.queueing import Entry
from penstock.policy.scheduling import Dispatch
from penstock.sim.device import Device
from penstock.sim.events import NEVER_US, Agenda
from penstock.sim.recording import Recorder
from penstock.sim.replica import Flight, SimulatedReplica
from penstock.sim.scenario import DeviceModel

PROFILE = CostProfile((1, 4), (100, 400))
FAR_US = 10**9


class Bench:
    """One replica on a bench: what is put in, and the replies that come out."""

    def __init__(self, *, back_us: int = 0, own_us: int = 0, row_count_max: int = 4) -> None:
        self.agenda = Agenda()
        self.recorder = Recorder()
        self.touched: list[SimulatedReplica] = []
        self.replies: list[tuple[int, Flight]] = []
        self.replica = SimulatedReplica(
            0,
            Device(DeviceModel(PROFILE), 1.0, np.random.default_rng(1)),
            row_count_max=row_count_max,
            agenda=self.agenda,
            recorder=self.recorder,
            back_us=back_us,
            own_us=own_us,
            gateways=3,
            touched=self.touched,
        )

    def receive(self, now_us: int, flight: Flight) -> None:
        """Take a reply, as a gateway does."""
        self.replies.append((now_us, flight))

    def send(self, at_us: int, *rows: int, deadline_us: int = FAR_US, sent_us: int = 0, alone: bool = False) -> Flight:
        """Let a batch arrive at `at_us`."""
        entries = [Entry(r, 0, 0, deadline_us) for r in rows]
        dispatch = Dispatch(1, Replica("r", 0), entries, sum(rows), CloseReason.IDLE, sent_us, alone=alone)
        flight = Flight(dispatch, self, self.replica.life, ((), b"", alone))
        self.agenda.add(at_us, self.replica.receive, flight)
        return flight

    def run(self, until_us: int = NEVER_US) -> list[tuple[int, Flight]]:
        """Let everything happen before `until_us`; return the replies so far."""
        while (now_us := self.agenda.next_us) < until_us:
            self.agenda.run_instant(now_us)
            for replica in self.touched:
                replica.start(now_us)
            self.touched.clear()
        return self.replies


def test_batches_run_one_at_a_time_in_order() -> None:
    """A batch that cannot be merged starts when the one before it is done, and says how long it waited."""
    bench = Bench()
    first, second = bench.send(0, 3), bench.send(10, 2)
    assert bench.run() == [(300, first), (500, second)]
    assert (first.served.service_us, first.served.wait_us, first.served.rows) == (300, 0, 3)
    assert (second.served.service_us, second.served.wait_us) == (200, 290)
    assert bench.recorder.executions == [(0, 0, 300, 3), (300, 0, 200, 2)]


def test_what_waits_together_runs_together() -> None:
    """Batches of one instant, and those that waited, are merged up to the limit; each is told the rows of all."""
    bench = Bench()
    flights = [bench.send(0, 1), bench.send(0, 1), bench.send(50, 2), bench.send(60, 2), bench.send(70, 1)]
    assert [at_us for at_us, _ in bench.run()] == [200, 200, 600, 600, 700]
    assert [f.served.rows for f in flights] == [2, 2, 4, 4, 1]
    assert flights[0].served.backlog_us == 400 + 100  # 5 rows waited: one execution of 4, one of 1
    assert flights[0].served.gateways == 3
    assert flights[4].served.backlog_us == 0


def test_a_batch_that_must_run_alone_does() -> None:
    """It is merged with nothing; those around it, which may be, pass it by."""
    bench = Bench()
    first, alone, last = (bench.send(0, 1, alone=alone) for alone in (False, True, False))
    assert bench.run() == [(200, first), (200, last), (300, alone)]


def test_late_requests_come_back_unexecuted() -> None:
    """Who could not make it even alone is returned, and the others run without them."""
    bench = Bench()
    blocking = bench.send(0, 4)
    late = bench.send(1, 1, 1, deadline_us=499, sent_us=1)
    late.dispatch.entries[1].deadline_us = FAR_US
    bench.run()
    assert blocking.late == []
    assert late.late == [late.dispatch.entries[0]]  # 99 left, and it takes 100: not in time
    assert (late.served.rows, late.served.service_us) == (1, 100)


def test_a_batch_of_late_requests_executes_nothing() -> None:
    """It is answered at once, with no rows and no device time, and the next one starts in the same instant."""
    bench = Bench()
    late, fine = bench.send(5, 1, deadline_us=50), bench.send(5, 4)
    assert bench.run() == [(5, late), (405, fine)]
    assert (late.served.rows, late.served.service_us) == (0, 0)


def test_links_and_own_time_are_paid() -> None:
    """A reply travels back for a while; the replica's own time keeps the next batch waiting, and is no device time."""
    bench = Bench(back_us=30, own_us=20)
    first, second = bench.send(0, 4), bench.send(1, 4)
    assert [at_us for at_us, _ in bench.run()] == [450, 870]
    assert first.served.service_us == second.served.service_us == 400


def test_death_takes_what_is_there() -> None:
    """What ran and waited is never answered; device time is counted as lost; the next life starts empty."""
    bench = Bench()
    bench.send(0, 4)
    on_its_way = bench.send(150, 1)
    bench.run(100)
    bench.replica.die(100)
    bench.run(200)
    bench.replica.revive()
    stale = Flight(on_its_way.dispatch, bench, 0, ((), b"", False))
    bench.agenda.add(250, bench.replica.receive, stale)
    fresh = bench.send(300, 1)
    assert bench.run() == [(400, fresh)]
    assert bench.recorder.lost_us == 100


@pytest.mark.parametrize("rows", [1, 3, 5, 9])
def test_a_batch_larger_than_the_limit_runs_as_it_is(rows: int) -> None:
    """A first batch above the limit is executed whole."""
    bench = Bench()
    flight = bench.send(0, rows)
    assert [at_us for at_us, _ in bench.run()] == [rows * 100]
    assert flight.served.rows == rows


def test_replies_are_independent_of_who_listens() -> None:
    """Two gateways' batches in one execution are answered to each."""
    bench, other = Bench(), Bench()
    mine = bench.send(0, 1)
    theirs = Flight(mine.dispatch, other, 0, ((), b"", False))
    bench.agenda.add(0, partial(bench.replica.receive), theirs)
    bench.run()
    assert [f for _, f in bench.replies] == [mine]
    assert [f for _, f in other.replies] == [theirs]
