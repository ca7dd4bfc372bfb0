"""Laws of balancing: the replica that is done first, two drawn where others draw too, slow ones put aside."""

from collections import Counter
from itertools import pairwise

import pytest

from penstock.policy.balancing import (
    CREDITS_PER_REPLICA,
    EJECTED_US_MAX,
    EJECTED_US_MIN,
    OUTLIER_RATIO,
    OUTLIER_SAMPLES_MIN,
    SPEED_MAX,
    SPEED_MIN,
    Dispatch,
    Replica,
    choose_replica,
    find_outlier,
    restore_excess,
)
from penstock.policy.batching import CloseReason

NOW_US = 1_000_000
LEAD_US = 700


def replica_of(*, free_us: int = 0, held: int = 0, slowness: float = 1.0, executions: int = 0) -> Replica:
    """Return a replica in this state."""
    replica = Replica(f"{free_us}/{held}/{slowness}", 0)
    replica.free_us = free_us
    replica.slowness = slowness
    replica.executions = executions
    for k in range(held):
        replica.in_flight.append(Dispatch(k + 1, replica, [], 1, CloseReason.FULL, 0))
    return replica


def never() -> float:
    """Stand in for chance where none may be drawn."""
    raise AssertionError("chance was drawn")


def test_credits() -> None:
    """An idle replica takes a batch at once, a busy one shortly before it is done, one with its credits used never."""
    idle, busy = replica_of(free_us=9_999), replica_of(free_us=9_999, held=1)
    assert idle.available_us(LEAD_US) == 0
    assert busy.available_us(LEAD_US) == 9_999 - LEAD_US
    assert replica_of(free_us=9_999, held=CREDITS_PER_REPLICA).available_us(LEAD_US) is None


def test_one_put_aside_is_probed_with_one_batch() -> None:
    """Put aside a replica gets nothing until its time is over, and then no second batch while it is probed."""
    replica = replica_of()
    replica.eject(NOW_US)
    assert replica.available_us(LEAD_US) == NOW_US + EJECTED_US_MIN
    replica.in_flight = replica_of(held=1).in_flight
    assert replica.available_us(LEAD_US) is None
    replica.ejected_until_us, replica.is_probing = 0, True
    assert replica.available_us(LEAD_US) is None
    replica.restore()
    assert replica.available_us(LEAD_US) == -LEAD_US


def test_pauses_double_up_to_a_bound() -> None:
    """Each time a replica is put aside it is for twice as long, and never longer than the bound."""
    replica = replica_of()
    pauses = []
    for _ in range(40):
        replica.eject(NOW_US)
        pauses.append(replica.ejected_until_us - NOW_US)
    assert pauses[0] == EJECTED_US_MIN
    assert pauses[-1] == EJECTED_US_MAX
    assert all(b == min(2 * a, EJECTED_US_MAX) for a, b in pairwise(pauses))


def test_slowness_follows_the_last_executions() -> None:
    """A replica that becomes twice as slow is known to be after a few batches, and as fast again after a few more."""
    replica = replica_of()
    for _ in range(10):
        replica.observe(2.0)
    assert replica.slowness == pytest.approx(2.0, rel=0.05)
    for _ in range(10):
        replica.observe(1.0)
    assert replica.slowness == pytest.approx(1.0, rel=0.05)
    assert replica.executions == 20


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 1e9])
def test_slowness_is_bounded(ratio: float) -> None:
    """No measurement, however absurd, is believed beyond the bounds."""
    replica = replica_of()
    for _ in range(200):
        replica.observe(ratio)
        assert SPEED_MIN <= replica.slowness <= SPEED_MAX


def test_a_probe_speaks_for_itself() -> None:
    """The one execution of a probe replaces what was known, and is enough to put a replica aside again."""
    slow, *others = (replica_of(slowness=s, executions=OUTLIER_SAMPLES_MIN) for s in (9.0, 1.0, 1.0))
    slow.is_probing = True
    slow.observe(1.5)
    assert slow.slowness == 1.5
    assert not find_outlier([slow, *others], slow)
    slow.observe(8.0)
    assert find_outlier([slow, *others], slow)


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([replica_of(free_us=NOW_US + 5, held=1), replica_of(free_us=NOW_US + 4, held=1)], 1),
        ([replica_of(free_us=NOW_US + 5, held=1), replica_of(free_us=0)], 1),
        ([replica_of(free_us=0), replica_of(free_us=NOW_US - 9)], 0),  # both are idle: whichever comes first
        ([replica_of(free_us=0, slowness=2.0), replica_of(free_us=NOW_US, slowness=1.5)], 1),
        ([replica_of(free_us=0, held=1), replica_of(free_us=NOW_US)], 1),  # one only should be done by now
        ([replica_of(free_us=9 * NOW_US)], 0),
    ],
)
def test_the_one_that_is_free_first(replicas: list[Replica], expected: int) -> None:
    """One gateway alone takes the replica that is free first, an idle one before an overdue one, then the faster."""
    assert choose_replica(replicas, NOW_US, gateways=1, chance=never) is replicas[expected]


def test_two_are_drawn_where_others_choose_too() -> None:
    """With several gateways the better of two different ones is taken: never the worst, each other one sometimes."""
    replicas = [replica_of(free_us=NOW_US + k, held=1) for k in range(5)][::-1]
    grid = [(k + 0.5) / 20 for k in range(20)]
    chosen: Counter[int] = Counter()
    for first in grid:
        for second in grid:
            draws = iter((first, second))
            chosen[replicas.index(choose_replica(replicas, NOW_US, gateways=2, chance=lambda: next(draws)))] += 1  # noqa: B023 - called at once
    # They stand the worst first: the k-th is chosen if the other one stands before it, in k of the ten pairs.
    assert [chosen[k] for k in range(5)] == [0, 40, 80, 120, 160]


def test_two_need_no_draw() -> None:
    """Between two replicas the better one is taken however many gateways there are."""
    better, worse = replica_of(), replica_of(free_us=NOW_US + 1, held=1)
    assert choose_replica([worse, better], NOW_US, gateways=9, chance=never) is better


@pytest.mark.parametrize(
    ("slowness", "executions", "others", "expected"),
    [
        (OUTLIER_RATIO * 1.01, OUTLIER_SAMPLES_MIN, [1.0, 1.0], True),
        (OUTLIER_RATIO, OUTLIER_SAMPLES_MIN, [1.0, 1.0], False),
        (OUTLIER_RATIO * 1.01, OUTLIER_SAMPLES_MIN - 1, [1.0, 1.0], False),  # too early to say
        (SPEED_MAX, OUTLIER_SAMPLES_MIN, [], False),  # with whom to compare it?
        (OUTLIER_RATIO * 1.01, OUTLIER_SAMPLES_MIN, [1.0], True),
        (OUTLIER_RATIO * 1.01, OUTLIER_SAMPLES_MIN, [1.0, 1.0, 40.0], True),  # the median, not the mean
        (OUTLIER_RATIO * 1.01, OUTLIER_SAMPLES_MIN, [2.0, 2.0, 1.0], False),  # a slow model, not a slow replica
    ],
)
def test_who_is_an_outlier(slowness: float, executions: int, others: list[float], expected: bool) -> None:
    """An outlier is known well enough and several times as slow as the median of the others."""
    candidate = replica_of(slowness=slowness, executions=executions)
    assert find_outlier([candidate, *(replica_of(slowness=s) for s in others)], candidate) is expected


@pytest.mark.parametrize("count", range(1, 9))
def test_at_most_half_are_put_aside(count: int) -> None:
    """However slow they are one after the other, at least half of the replicas work on."""
    replicas = [replica_of(slowness=1.0, executions=OUTLIER_SAMPLES_MIN) for _ in range(count)]
    for k, replica in enumerate(replicas):
        replica.slowness = 4.0 ** (k + 1)
        if find_outlier(replicas, replica):
            replica.eject(NOW_US)
        aside = sum(bool(r.ejected_until_us) for r in replicas)
        assert aside <= count // 2
    aside = sum(bool(r.ejected_until_us) for r in replicas)
    assert aside == count // 2


@pytest.mark.parametrize(
    ("aside", "working", "left"), [(1, 0, 0), (2, 1, 1), (3, 1, 2), (2, 2, 2), (1, 1, 1), (0, 3, 0)]
)
def test_a_loss_brings_the_least_suspect_back(aside: int, working: int, left: int) -> None:
    """When more than half are aside those with the shortest pauses left work again, and no more than need be."""
    replicas = [replica_of() for _ in range(aside + working)]
    for k, replica in enumerate(replicas[:aside]):
        replica.eject(NOW_US + k)
    restore_excess(replicas)
    still = [k for k, replica in enumerate(replicas) if replica.ejected_until_us]
    assert still == list(range(aside - left, aside))
