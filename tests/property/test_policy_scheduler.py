"""The scheduler as a state machine: whatever callers, replicas and time do, its promises hold, the same way twice."""

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.adapters.chance import seeded_stream
from penstock.core.models import MODES, POLICIES, Batching, QueueBounds
from penstock.core.profiles import CostProfile
from penstock.policy.queueing import QUEUED, RequestClass
from penstock.policy.scheduling import EXPIRY_INTERVAL_US, SchedulerConfig
from tests.property.scheduler_world import World

SIZE_MAX = 4
REQUESTS_MAX = 12
BYTES_MAX = 400
SLO_US = 20_000
PROFILES = {
    "line": CostProfile.from_line(beta_us=2_000, alpha_us=500, size_max=SIZE_MAX),
    "steep": CostProfile.from_line(beta_us=0, alpha_us=3_000, size_max=SIZE_MAX),
    "flat": CostProfile((1,), (5_000,)),
    "unknown": None,
}
TRUTH = CostProfile.from_line(beta_us=1_500, alpha_us=700, size_max=SIZE_MAX)

CONFIGS = st.builds(
    SchedulerConfig,
    batching=st.builds(
        Batching,
        policy=st.sampled_from(POLICIES),
        mode=st.sampled_from(MODES),
        size_max=st.just(SIZE_MAX),
        wait_us_max=st.sampled_from([0, 3_000]),
        eager=st.booleans(),
    ),
    bounds=st.just(QueueBounds(REQUESTS_MAX, BYTES_MAX)),
    slo_us=st.sampled_from([0, SLO_US]),
    timeout_us=st.just(1_000_000),
    is_batched=st.sampled_from([True, True, True, False]),
    weights=st.sampled_from([{}, {"a": 3.0}]),
    batch_bytes_max=st.sampled_from([1 << 62, 200]),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Callers come and go, replicas join, slow down and die, time passes; each decision is held to the laws."""

    @initialize(
        config=CONFIGS,
        profile=st.sampled_from(sorted(PROFILES)),
        replicas=st.integers(0, 4),
        gateways=st.integers(1, 3),
    )
    def start(self, config: SchedulerConfig, profile: str, replicas: int, gateways: int) -> None:
        self.make = (config, profile, gateways)
        self.history: list[tuple[str, tuple[Any, ...]]] = []
        self.world = self.new_world()
        for _ in range(replicas):
            self.play("add_replica", 1.0)

    def new_world(self) -> World:
        config, profile, gateways = self.make
        stream = seeded_stream(1, "balancing")
        return World(config, PROFILES[profile], TRUTH.time_us, chance=lambda: float(stream.random()), gateways=gateways)

    def play(self, act: str, *arguments: Any) -> None:
        """Do something, and remember it."""
        self.history.append((act, arguments))
        perform(self.world, act, *arguments)

    # -- what may happen -----------------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from("aab"),
        rows=st.integers(1, SIZE_MAX + 2),
        allowed_us=st.sampled_from([1, 3_000, 5_100, 9_000, SLO_US, SLO_US, SLO_US, 40_000, 1_000_000]),
        request_class=st.sampled_from([*RequestClass]),
        tenant=st.sampled_from(["", "a", "b"]),
        nbytes=st.sampled_from([0, 10, 60]),
        count=st.integers(1, 6),
    )
    def requests_come(self, **request: Any) -> None:
        self.play("arrive", request)

    @rule(elapsed_us=st.sampled_from([1, 400, 1_000, 2_500, 7_000, 30_000, 1_500_000]))
    def time_passes(self, elapsed_us: int) -> None:
        self.play("advance", elapsed_us)

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.world.callers)
    def a_caller_goes_away(self, which: int) -> None:
        self.play("abandon", which)

    @rule(slowness=st.sampled_from([0.5, 1.0, 1.0, 8.0]))
    @precondition(lambda self: len(self.world.devices) < 5)
    def a_replica_joins(self, slowness: float) -> None:
        self.play("add_replica", slowness)

    @rule(which=st.integers(0, 4))
    @precondition(lambda self: self.world.devices)
    def a_replica_dies(self, which: int) -> None:
        self.play("lose_replica", which)

    @rule(which=st.integers(0, 4), slowness=st.sampled_from([0.5, 1.0, 2.0, 10.0]))
    @precondition(lambda self: self.world.devices)
    def a_device_changes(self, which: int, slowness: float) -> None:
        self.play("slow_down", which, slowness)

    # -- what then must hold -------------------------------------------------------------------------------------

    @invariant()
    def sums_are_right(self) -> None:
        if hasattr(self, "world"):
            self.world.check_sums()

    @invariant()
    def nobody_waits_after_the_deadline(self) -> None:
        if hasattr(self, "world"):
            waiting = [c.deadline_us for c in self.world.callers if c.state is QUEUED]
            assert min(waiting, default=1 << 62) > self.world.now_us - EXPIRY_INTERVAL_US

    def teardown(self) -> None:
        """In the end everybody has had one answer, nothing is left over, and all of it happens again the same way."""
        if not hasattr(self, "world"):
            return
        self.world.drain()
        self.world.check_sums()
        assert all(len(c.fates) == 1 for c in self.world.callers)
        assert not self.world.scheduler.ledger.backlogged
        assert not any(r.in_flight for r in self.world.scheduler.replicas)
        again = self.new_world()
        for act, arguments in self.history:
            perform(again, act, *arguments)
        again.drain()
        assert again.log == self.world.log


def perform(world: World, act: str, *arguments: Any) -> None:
    """Do in a world what the machine once did."""
    if act == "arrive":
        request = dict(arguments[0])
        for _ in range(request.pop("count")):
            world.arrive(**request)
        world.settle()
    elif act == "abandon":
        world.abandon(world.callers[-1 - arguments[0] % len(world.callers)])
    elif act == "lose_replica":
        world.lose_replica(world.devices[arguments[0] % len(world.devices)])
    elif act == "slow_down":
        world.devices[arguments[0] % len(world.devices)].slowness = arguments[1]
    else:
        getattr(world, act)(*arguments)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=400,
    stateful_step_count=30,
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # explaining takes longer than finding
)


# Lives that Hypothesis keeps too short for: learned speeds, ejections, probes, margins.
LIFE_ACTS = 150


def draw_act(world: World, rng: np.random.Generator) -> tuple[str, Any] | None:
    """Return something that may happen now, mostly requests and time."""

    def pick(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    kind = rng.random()
    if kind < 0.5:
        return "arrive", {
            "key": pick("a", "a", "b"),
            "rows": pick(1, 1, 1, 2, 3, 4, 6),
            "allowed_us": pick(1, 3_000, 5_100, 9_000, SLO_US, SLO_US, SLO_US, 40_000, 1_000_000),
            "request_class": pick(*RequestClass),
            "tenant": pick("", "a", "b"),
            "nbytes": pick(0, 10, 60),
            "count": pick(1, 2, 3, 6),
        }
    if kind < 0.85:
        return "advance", pick(1, 400, 1_000, 2_500, 7_000, 7_000, 30_000, 1_500_000)
    if kind < 0.9:
        return ("abandon", pick(*range(20))) if world.callers else None
    if kind < 0.94 or not world.devices:
        return ("add_replica", pick(0.5, 1.0, 1.0, 8.0)) if len(world.devices) < 5 else None
    return "lose_replica" if kind < 0.97 else "change_speed", pick(*range(5))


@pytest.mark.parametrize("seed", range(60))
def test_a_long_life(seed: int) -> None:
    """Over long random lives of every policy and mode all promises hold, and everybody has one answer in the end."""
    rng = seeded_stream(seed, "life")
    config = SchedulerConfig(
        Batching(POLICIES[0 if seed % 5 else seed % 3], MODES[seed % 3], SIZE_MAX, 3_000, eager=seed % 2 == 0),
        QueueBounds(REQUESTS_MAX, BYTES_MAX),
        slo_us=SLO_US if seed % 4 else 0,
        is_batched=seed % 7 > 0,
        weights={"a": 3.0} if seed % 2 else {},
        batch_bytes_max=200 if seed % 6 == 0 else 1 << 62,
    )
    profile = PROFILES[sorted(PROFILES)[seed % 4]]
    world = World(config, profile, TRUTH.time_us, chance=lambda: float(rng.random()), gateways=1 + seed % 3)
    for _ in range(LIFE_ACTS):
        act = draw_act(world, rng)
        if act is not None and act[0] == "change_speed":
            perform(world, "slow_down", act[1], [0.5, 1.0, 2.0, 10.0][act[1] % 4])
        elif act is not None:
            perform(world, *act)
        world.check_sums()
    world.drain()
    world.check_sums()
    assert all(len(c.fates) == 1 for c in world.callers)
