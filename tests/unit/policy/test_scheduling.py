"""Laws of the scheduler over long runs: fair shares of device time, bounded ageing, isolation, replicas put aside."""

from collections.abc import Callable

import pytest

from penstock.core.models import Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.policy.admission import RefusalReason
from penstock.policy.balancing import EJECTED_US_MAX
from penstock.policy.filling import BATCH_SHARES
from penstock.policy.queueing import BATCH, DONE, INTERACTIVE, QUEUED
from penstock.policy.scheduling import Refusal, Scheduler, SchedulerConfig, Wait
from tests.property.scheduler_world import World

SIZE_MAX = 8
PROFILE = CostProfile.from_line(beta_us=1_000, alpha_us=500, size_max=SIZE_MAX)
FULL_US = PROFILE.time_us(SIZE_MAX)
FAR_US = 20_000_000
SLO_US = 40_000


def config_of(
    *,
    mode: str = "fair",
    policy: str = "deadline",
    slo_us: int = 0,
    requests_max: int = 8_192,
    weights: dict[str, float] | None = None,
) -> SchedulerConfig:
    """Return a configuration with batches of SIZE_MAX."""
    return SchedulerConfig(
        Batching(policy, mode, SIZE_MAX), QueueBounds(requests_max=requests_max), slo_us=slo_us, weights=weights or {}
    )


def world_of(config: SchedulerConfig, replicas: int = 1) -> World:
    """Return a world whose replicas take exactly what the profile says."""
    world = World(config, PROFILE, PROFILE.time_us)
    for _ in range(replicas):
        world.add_replica()
    return world


def keep_waiting(world: World, duration_us: int, feeds: list[Callable[[], None]]) -> None:
    """Let time pass in steps of half a batch, each begun by what the feeds add."""
    end_us = world.now_us + duration_us
    while world.now_us < end_us:
        for feed in feeds:
            feed()
        world.settle()
        world.advance(FULL_US // 2)


def backlog(
    world: World, tenant: str, *, rows: int, requests: int, key: str = "k", allowed_us: int = FAR_US
) -> Callable[[], None]:
    """Return what keeps so many requests of a tenant waiting."""

    def feed() -> None:
        account = world.scheduler.ledger.backlogged.get(tenant)
        for _ in range(requests - (account.waiting if account else 0)):
            world.arrive(key, rows, allowed_us, tenant=tenant)

    return feed


def jain(shares: list[float]) -> float:
    """Return Jain's index: 1 if all are equal, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(s * s for s in shares))


@pytest.mark.parametrize("policy", ["deadline", "size_or_timeout", "adaptive"])
@pytest.mark.parametrize("mode", ["latency", "fair", "throughput"])
@pytest.mark.parametrize("rows", [(1, 1), (1, 4), (3, 2), (8, 1)])
def test_backlogged_tenants_get_equal_device_time(policy: str, mode: str, rows: tuple[int, int]) -> None:
    """Tenants whose requests differ in rows and number get device time within a batch or two of each other."""
    world = world_of(config_of(policy=policy, mode=mode))
    feeds = [backlog(world, "many", rows=rows[0], requests=60), backlog(world, "few", rows=rows[1], requests=20)]
    keep_waiting(world, 2_000_000, feeds)
    used = [float(world.device_us[t]) for t in ("many", "few")]
    assert sum(used) >= 0.9 * 2_000_000
    assert jain(used) >= 0.98
    assert abs(used[0] - used[1]) <= 2 * FULL_US


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 2.0, 5.0)])
@pytest.mark.parametrize("replicas", [1, 3])
def test_device_time_is_by_weight(weights: tuple[float, ...], replicas: int) -> None:
    """Device time over weight is the same for all that always wait, over one replica or several."""
    names = ["a", "b", "c"]
    world = world_of(config_of(weights=dict(zip(names, weights, strict=True))), replicas)
    keep_waiting(world, 2_000_000, [backlog(world, t, rows=k + 1, requests=80) for k, t in enumerate(names)])
    per_weight = [world.device_us[t] / w for t, w in zip(names, weights, strict=True)]
    assert jain(per_weight) >= 0.98


def test_tenants_are_charged_what_was_used() -> None:
    """However wrong the estimate was, tenants end up charged the device time that they had, to within two batches."""
    world = World(config_of(), PROFILE, lambda rows: 3 * PROFILE.time_us(rows))
    feeds = [backlog(world, "a", rows=1, requests=40), backlog(world, "b", rows=4, requests=40)]
    for feed in feeds:
        feed()
    world.add_replica()
    keep_waiting(world, 1_000_000, feeds)
    for tenant, account in world.scheduler.ledger.accounts.items():
        assert account.virtual_us == pytest.approx(world.device_us[tenant], abs=2 * 3 * FULL_US)


@pytest.mark.parametrize("allowed_us", [1_000_000, 10_000_000])
def test_tenants_of_different_shapes_get_equal_device_time(allowed_us: int) -> None:
    """Being of another shape, so that batches are not shared, or more patient, does not change a tenant's share."""
    world = world_of(config_of())
    feeds = [
        backlog(world, "hurried", rows=1, requests=400, key="short", allowed_us=1_000_000),
        backlog(world, "patient", rows=1, requests=400, key="long", allowed_us=allowed_us),
    ]
    keep_waiting(world, 3_000_000, feeds[:1])
    before = world.device_us.copy()
    keep_waiting(world, 2_000_000, feeds)
    used = [float((world.device_us - before)[t]) for t in ("hurried", "patient")]
    assert jain(used) >= 0.98


@pytest.mark.parametrize("mode", sorted(BATCH_SHARES))
def test_class_batch_gets_its_share(mode: str) -> None:
    """Beside interactive requests without end, class `batch` gets at least its share of the rows, to within a batch."""
    world = world_of(config_of(mode=mode))

    def feed(request_class: int) -> None:
        waiting = sum(c.state is QUEUED and c.request_class == request_class for c in world.open)
        for _ in range(60 - waiting):
            world.arrive("k", 1, FAR_US, request_class=request_class)

    keep_waiting(world, 1_000_000, [lambda: feed(INTERACTIVE), lambda: feed(BATCH)])
    rows = [world.answered_rows[request_class, ""] for request_class in (INTERACTIVE, BATCH)]
    share = BATCH_SHARES[mode]
    assert rows[1] >= share * sum(rows) - SIZE_MAX
    assert rows[1] <= share * sum(rows) + 2 * SIZE_MAX


@pytest.mark.parametrize("mode", sorted(BATCH_SHARES))
def test_class_batch_of_another_shape_gets_its_share(mode: str) -> None:
    """Interactive requests of one shape do not keep those of class `batch` of another from their share."""
    world = world_of(config_of(mode=mode, slo_us=400_000))

    def feed(key: str, request_class: int, allowed_us: int) -> None:
        waiting = sum(c.state is QUEUED and c.key == key for c in world.open)
        for _ in range(60 - waiting):
            world.arrive(key, 1, allowed_us, request_class=request_class)

    feeds = [lambda: feed("short", INTERACTIVE, 400_000), lambda: feed("long", BATCH, FAR_US)]
    keep_waiting(world, 1_000_000, feeds)
    rows = [world.answered_rows[request_class, ""] for request_class in (INTERACTIVE, BATCH)]
    assert rows[1] >= BATCH_SHARES[mode] * sum(rows) - 2 * SIZE_MAX


@pytest.mark.parametrize("mode", sorted(BATCH_SHARES))
def test_class_batch_ages_at_most_so_long(mode: str) -> None:
    """A `batch` request with r rows of its class before it waits for at most (r + 1) / share rows and three batches."""
    world = world_of(config_of(mode=mode))
    feed = backlog(world, "", rows=1, requests=60)
    keep_waiting(world, 100_000, [feed])
    late = [world.arrive("k", 1, FAR_US, request_class=BATCH) for _ in range(5)]
    answered_us: dict[int, int] = {}
    while len(answered_us) < len(late):
        for k, caller in enumerate(late):
            if caller.state is DONE:
                answered_us.setdefault(k, world.now_us)
        waiting = world.scheduler.requests - sum(c.state is QUEUED for c in late)
        for _ in range(60 - waiting):
            world.arrive("k", 1, FAR_US)
        world.settle()
        world.advance(FULL_US // 4)
        assert world.now_us < 10_000_000
    for k, caller in enumerate(late):
        batches = (k + 1) / (BATCH_SHARES[mode] * SIZE_MAX) + 3
        assert answered_us[k] - caller.arrived_us <= (batches + 1) * FULL_US


def test_a_victim_is_not_refused() -> None:
    """A tenant well within its share is never refused, dropped or late, whatever another one keeps waiting."""
    world = world_of(config_of(slo_us=SLO_US, requests_max=100))

    def attack() -> None:
        for _ in range(40):
            world.arrive("k", 1, SLO_US, tenant="aggressor")

    victims = []
    for k in range(400):
        attack()
        if k % 2:
            victims.append(world.arrive("k", 1, SLO_US, tenant="victim"))
        world.settle()
        world.advance(FULL_US)
    world.drain()
    refused = [refusal for caller, refusal in world.refusals if caller.tenant == "victim"]
    assert not refused
    assert [c.fates for c in victims] == [["answered"]] * 200
    assert any(caller.tenant == "aggressor" for caller, _ in world.refusals)


@pytest.mark.parametrize("bound", ["requests", "bytes"])
def test_a_backlog_fills_the_queue_for_its_owner_only(bound: str) -> None:
    """Who fills the queue is refused; who has nothing waiting is not."""
    bounds = QueueBounds(requests_max=10) if bound == "requests" else QueueBounds(bytes_max=100)
    world = World(SchedulerConfig(Batching(size_max=SIZE_MAX), bounds), PROFILE, PROFILE.time_us)
    for _ in range(15):
        world.arrive("k", 1, FAR_US, tenant="big", nbytes=10)
    assert len(world.refusals) == 5
    world.arrive("k", 1, FAR_US, tenant="small", nbytes=10)
    assert len(world.refusals) == 5


def test_what_waits_is_bounded_however_many_tenants_there_are() -> None:
    """Tenants that come one after the other to a full queue never get it beyond twice its bound."""
    world = World(config_of(requests_max=40), PROFILE, PROFILE.time_us)
    for tenant in range(200):
        for _ in range(40):
            world.arrive("k", 1, FAR_US, tenant=str(tenant))
    assert 40 <= world.scheduler.requests <= 80


def test_a_short_deadline_is_refused_or_admitted_but_never_an_error() -> None:
    """Every deadline around the least time of a batch gets an answer, however long the queue."""
    for allowed_us in range(1, 6 * PROFILE.time_us(1), 97):
        world = world_of(config_of(slo_us=SLO_US))
        for _ in range(40):
            world.arrive("k", 1, allowed_us)
        assert len(world.callers) + len(world.refusals) == 40


def test_a_slow_replica_is_put_aside_and_taken_back() -> None:
    """A replica ten times as slow gets next to nothing while it is, and its part again when it has recovered."""
    world = world_of(config_of(), 3)
    slow = world.devices[0]
    feed = backlog(world, "", rows=1, requests=60)
    slow.slowness = 10.0
    keep_waiting(world, 1_500_000, [feed])
    assert world.scheduler.ejections >= 1
    assert slow.replica.ejected_until_us
    slow.slowness = 1.0
    world.advance(EJECTED_US_MAX)
    keep_waiting(world, 200_000, [feed])
    assert not slow.replica.ejected_until_us
    counted = len(world.log)
    keep_waiting(world, 500_000, [feed])
    sent = [entry[2] for entry in world.log[counted:] if entry[0] == "dispatch"]
    assert sent.count(0) >= len(sent) / 4


@pytest.mark.parametrize("allowed_us", [SLO_US, SLO_US - 1])
def test_a_stall_is_forgotten(allowed_us: int) -> None:
    """After a process stood still for seconds, answers in time are given again, whoever named the deadline."""
    # What a batch takes beyond its execution looks longer than anybody may wait then; only executions can correct it.
    world = world_of(config_of(slo_us=SLO_US))
    for _ in range(3):
        world.arrive("k", 4, allowed_us)
        world.settle()
        world.now_us += 3_000_000
        world.advance(0)
        for _ in range(60):
            world.arrive("k", 1, allowed_us)
        world.settle()
    world.drain()
    answered = 0
    for _ in range(600):
        callers = [world.arrive("k", 1, allowed_us) for _ in range(4)]
        world.settle()
        world.advance(10_000)
        answered = 4 * answered // 5 + sum(caller.fates == ["answered"] for caller in callers)
    assert answered >= 4 * 5 - 4


def test_the_last_replica_is_never_put_aside() -> None:
    """If the others die while a slow one is put aside it works again at once: slow is better than not at all."""
    world = world_of(config_of(), 2)
    slow, fast = world.devices
    slow.slowness = 10.0
    feed = backlog(world, "", rows=1, requests=60)
    keep_waiting(world, 1_500_000, [feed])
    assert slow.replica.ejected_until_us
    world.lose_replica(fast)
    assert slow.held


@pytest.mark.parametrize("policy", ["size_or_timeout", "adaptive", "deadline"])
def test_nothing_is_sent_after_its_deadline(policy: str) -> None:
    """A deadline that passes between two looks at all deadlines is seen when the batch is made."""
    world = World(config_of(policy=policy), PROFILE, PROFILE.time_us)
    callers = [world.arrive("k", 1, allowed_us) for allowed_us in (1_000, 1_500, 100_000)]
    world.settle()
    world.advance(1_600)
    world.add_replica()
    world.drain()
    assert [c.fates for c in callers] == [["expired"], ["dropped" if policy == "deadline" else "expired"], ["answered"]]


def test_a_request_that_lost_two_replicas_is_not_tried_again() -> None:
    """What was running when a replica died is tried once more, alone; what stood behind it goes on as it was."""
    world = world_of(config_of())
    callers = [world.arrive("k", 1, FAR_US) for _ in range(2 * SIZE_MAX)]
    world.settle()
    world.lose_replica(world.devices[0])
    assert [c.attempts for c in callers] == [1] * SIZE_MAX + [0] * SIZE_MAX
    assert world.scheduler.retries == SIZE_MAX
    deaths = 0
    while world.scheduler.requests:
        device = world.add_replica()
        world.lose_replica(device)
        deaths += 1
        assert deaths < 100
    assert [c.fates for c in callers] == [["lost"]] * len(callers)


def test_a_retry_that_never_began_is_queued_as_it_was() -> None:
    """A request tried again that stood behind another one when that killed its replica goes back to its own queue."""
    world = world_of(config_of())
    first, second = (world.arrive("k", 1, FAR_US) for _ in range(2))
    world.settle()
    world.lose_replica(world.devices[0])
    device = world.add_replica()
    world.advance(PROFILE.time_us(1) - 1)
    assert [d.entries for d in device.held] == [[first], [second]]
    world.lose_replica(device)
    assert (first.fates, second.attempts) == (["lost"], 1)
    staged = device.held[1]
    (dispatch,) = world.add_replica().held
    assert dispatch.alone
    assert (dispatch.key, dispatch.entries) == (staged.key, [second])


def test_nothing_waits_without_a_timer() -> None:
    """Asked with nothing to do the scheduler waits for a change; with something and no replica, for a deadline."""
    scheduler = Scheduler(config_of(), PROFILE, lambda: 0.5)
    assert scheduler.decide(0) == Wait(None)
    world = World(config_of(), PROFILE, PROFILE.time_us)
    world.arrive("k", 1, 7_000)
    assert world.scheduler.decide(0) == Wait(7_000)


def test_a_refusal_says_when_to_come_back() -> None:
    """Under a backlog a request that cannot be in time is refused at once, with how long it would have taken."""
    world = world_of(config_of())
    for _ in range(400):
        world.arrive("k", 1, FAR_US)
    world.settle()
    world.arrive("k", 1, 50_000)
    ((_, refusal),) = world.refusals
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusalReason.PREDICTED_LATE
    assert refusal.predicted_us == pytest.approx(400 / SIZE_MAX * FULL_US, rel=0.1)
