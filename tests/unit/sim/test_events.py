"""The event heap: order of time, then order of adding, and nothing else."""

from penstock.sim.events import NEVER_US, Agenda


def test_events_happen_in_order_of_time_then_of_adding() -> None:
    """Later events wait; those of one instant happen as they were added, even if their arguments do not compare."""
    agenda = Agenda()
    seen: list[tuple[int, object]] = []
    for at_us, name in ((5, {"a"}), (3, {"b"}), (5, {"c"}), (3, {"d"})):
        agenda.add(at_us, lambda now_us, argument: seen.append((now_us, argument)), name)
    assert agenda.next_us == 3
    agenda.run_instant(3)
    assert seen == [(3, {"b"}), (3, {"d"})]
    assert agenda.next_us == 5
    agenda.run_instant(5)
    assert seen[2:] == [(5, {"a"}), (5, {"c"})]


def test_what_an_event_adds_for_its_own_instant_happens_in_it() -> None:
    """An instant is over when nothing is left in it; what was added for later stays."""
    agenda = Agenda()
    seen: list[int] = []

    def again(now_us: int, left: int) -> None:
        seen.append(left)
        if left:
            agenda.add(now_us, again, left - 1)
        else:
            agenda.add(now_us + 1, again, 0)

    agenda.add(7, again, 2)
    agenda.run_instant(7)
    assert seen == [2, 1, 0]
    assert agenda.next_us == 8


def test_an_empty_agenda_has_no_next() -> None:
    """Without events the next one never comes, and an instant without events passes."""
    agenda = Agenda()
    agenda.run_instant(0)
    assert agenda.next_us == NEVER_US
