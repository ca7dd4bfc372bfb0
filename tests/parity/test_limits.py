"""The script in a real Redis, the book in memory and exact fractions say the same, whatever happens in any order."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from penstock.adapters.clock import now_us
from penstock.testing.redis_servers import RedisServer, manual_script
from tests.parity.limit_machine import RATES, START_US, LimitMachine, machine_of

HARD = "p:{acme}:hard:alice"
SOFT = "p:{acme}:soft:alice"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of our own."""
    with RedisServer(now_us) as started:
        yield started


def test_redis_and_book_and_fractions_agree(server: RedisServer) -> None:
    """Every reply is the same from all three, at odd ratios, next to 2^53, and when time steps back."""
    machine = machine_of(server, manual_script(lambda: START_US))
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=60))


@pytest.fixture
def machine(server: RedisServer) -> Iterator[LimitMachine]:
    """All three, under one quick limit, told what a test says."""
    machine = LimitMachine(server, manual_script(lambda: START_US))
    machine.choose([(RATES[0], RATES[0])] * 3)
    machine.pass_some_time(5_000_000)
    yield machine
    machine.teardown()


def test_leases_of_an_earlier_server_are_void(machine: LimitMachine) -> None:
    """Under hard failover a lease of before is nothing after, not even if the clock of the successor is behind."""
    machine.ask(HARD, 0, "g1", 0.5, 2_000_000, [], -1)
    machine.step_back(60_000)
    machine.pass_some_time(1)
    machine.step_back(3_600_000_000)
    machine.fail_over()
    machine.debit(HARD, 0, 0.0)
    machine.ask(HARD, 0, "g2", 0.0, 2_000_000, [(0, 1.0)], -1)
    machine.peek(HARD, 0)


def test_leases_of_a_deleted_bucket_are_gone(server: RedisServer, machine: LimitMachine) -> None:
    """Who deletes a bucket by hand deletes what was lent of it: the next block is the only one that is out."""
    machine.ask(SOFT, 0, "g1", 0.2, 2_000_000, [], -1)
    server.ask("DEL", SOFT)
    machine.expect_forgotten(SOFT)
    machine.ask(SOFT, 0, "g1", 0.2, 2_000_000, [], -1)
    machine.peek(SOFT, 0)


def test_holds_of_an_earlier_server_are_void(machine: LimitMachine) -> None:
    """Under hard failover a charge of before can be settled no more: it is not in the bucket that begins full."""
    machine.check([(HARD, 0, 0.5)], 60_000_000)
    machine.step_back(3_600_000_000)
    machine.fail_over()
    machine.debit(HARD, 0, 0.0)
    machine.settle(HARD, 0, 0, 3.0)
    machine.peek(HARD, 0)
    machine.settle(HARD, 0, 0, 0.0)
    machine.peek(HARD, 0)


def test_a_forgotten_bucket_takes_nothing_back(machine: LimitMachine) -> None:
    """A charge is of one count of its bucket: if it began anew, by a clock that was set back, nothing is given back."""
    machine.check([(SOFT, 0, 0.9)], 60_000_000)
    machine.pass_some_time(1_000_000)
    machine.peek(SOFT, 0)
    machine.step_back(999_999)
    machine.check([(SOFT, 0, 0.5)], 0)
    machine.settle(SOFT, 0, 0, 0.0)
    machine.peek(SOFT, 0)


def test_leases_of_a_forgotten_bucket_are_gone(machine: LimitMachine) -> None:
    """What was lent of a count that is over is neither out nor taken back, even if the clock says it is still good."""
    machine.ask(SOFT, 0, "g1", 0.2, 2_000_000, [], -1)
    machine.pass_some_time(10_000_000)
    machine.peek(SOFT, 0)
    machine.step_back(9_999_999)
    machine.check([(SOFT, 0, 0.5)], 0)
    machine.peek(SOFT, 0)
    machine.ask(SOFT, 0, "g2", 0.1, 2_000_000, [(0, 1.0)], -1)
    machine.peek(SOFT, 0)
