"""One run: build the fleet, let everything happen in order, return what happened.

In each instant all events happen first, then the gateways that saw one decide, then idle replicas start: as a turn of
a live event loop reads all there is before it acts. Not here: what a run amounts to (`summary.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core.profiles import CostProfile
from penstock.policy.scheduling import Scheduler, SchedulerConfig
from penstock.sim.device import Device, scale_profile
from penstock.sim.events import NEVER_US, Agenda
from penstock.sim.faults import schedule_faults
from penstock.sim.gateway import Decision, Request, SimulatedGateway
from penstock.sim.recording import Outcome, Recorder, Recording
from penstock.sim.replica import SimulatedReplica
from penstock.sim.scenario import Scenario, StreamFactory
from penstock.sim.workload import Callers

__all__ = ["DecisionLog", "SchedulerFactory", "simulate"]

SchedulerFactory = Callable[[SchedulerConfig, CostProfile, Callable[[], float]], Scheduler]


@dataclass(slots=True)
class DecisionLog:
    """What each gateway's scheduler decided, in order, for comparison with a live one.

    Attributes:
        gateways: One list for each gateway, of tuples: (when, "dispatch", replica, ids, reason), (when, "drop", ids,
            reason), (when, "refuse", id, reason). When: µs from the start of the run. Ids are indices of requests in
            the order of their arrival at a gateway. Replicas are called `replica-0` and so on, reasons by their value.
    """

    gateways: list[list[Decision]] = field(default_factory=list)


class _Desk:
    """Passes answers on to the callers, who exist only after the gateways do."""

    __slots__ = ("callers",)

    callers: Callers

    def answer(self, request: Request, now_us: int) -> None:
        self.callers.answer(request, now_us)

    def refuse(self, request: Request, outcome: Outcome, reason: str, retry_after_us: int, now_us: int) -> None:
        self.callers.refuse(request, outcome, reason, retry_after_us, now_us)


class _Run:
    """The parts of one run, put together."""

    def __init__(
        self,
        scenario: Scenario,
        stream: StreamFactory,
        log: DecisionLog | None,
        make_scheduler: SchedulerFactory,
    ) -> None:
        self.make_scheduler = make_scheduler
        self.agenda = Agenda()
        self.recorder = Recorder()
        self.touched_replicas: list[SimulatedReplica] = []
        self.touched_gateways: list[SimulatedGateway] = []
        back_us = scenario.overheads.batch_us - scenario.overheads.batch_us // 2
        replicas = [self._replica(scenario, k, stream, back_us) for k in range(scenario.replicas)]
        desk = _Desk()
        gateways = [self._gateway(scenario, k, stream, desk, log) for k in range(scenario.gateways)]
        for gateway in gateways:
            for replica in replicas:
                gateway.join(0, replica)
        self.callers = desk.callers = Callers(
            scenario, stream, agenda=self.agenda, recorder=self.recorder, gateways=gateways
        )
        schedule_faults(scenario.faults, agenda=self.agenda, gateways=gateways, replicas=replicas, back_us=back_us)

    def _replica(self, scenario: Scenario, k: int, stream: StreamFactory, back_us: int) -> SimulatedReplica:
        speeds = scenario.device.speeds
        device = Device(scenario.device, speeds[k] if k < len(speeds) else 1.0, stream(f"replica-{k} device"))
        return SimulatedReplica(
            k,
            device,
            row_count_max=scenario.batching.size_max,
            agenda=self.agenda,
            recorder=self.recorder,
            back_us=back_us,
            own_us=scenario.overheads.replica_us,
            gateways=scenario.gateways,
            touched=self.touched_replicas,
        )

    def _gateway(
        self, scenario: Scenario, k: int, stream: StreamFactory, desk: _Desk, log: DecisionLog | None
    ) -> SimulatedGateway:
        config = SchedulerConfig(
            batching=scenario.batching,
            bounds=scenario.bounds,
            slo_us=scenario.slo_us,
            timeout_us=scenario.timeout_us,
            weights=dict(scenario.weights),
        )
        # The first replica's profile is what gateways are told, as in a live fleet.
        profile = scale_profile(scenario.device.profile, (*scenario.device.speeds, 1.0)[0])
        decisions: list[Decision] | None = None
        if log is not None:
            decisions = []
            log.gateways.append(decisions)
        return SimulatedGateway(
            k,
            self.make_scheduler(config, profile, stream(f"gateway-{k} choices").random),
            agenda=self.agenda,
            recorder=self.recorder,
            desk=desk,
            overheads=scenario.overheads,
            jitter=stream(f"gateway-{k} jitter").random,
            touched=self.touched_gateways,
            decisions=decisions,
        )

    def run(self, end_us: int) -> None:
        """Let everything happen, until all that was sent has been answered and nothing more will be sent."""
        agenda, callers = self.agenda, self.callers
        replicas, gateways = self.touched_replicas, self.touched_gateways
        now_us = 0
        while now_us < NEVER_US and (now_us < end_us or callers.waiting or callers.next_us < NEVER_US):
            agenda.run_instant(now_us)
            if callers.next_us == now_us:
                callers.send_planned(now_us)
            for gateway in gateways:
                gateway.decide(now_us)
            gateways.clear()
            for replica in replicas:
                replica.start(now_us)
            replicas.clear()
            now_us = min(agenda.next_us, callers.next_us)


def simulate(
    scenario: Scenario,
    stream: StreamFactory,
    *,
    log: DecisionLog | None = None,
    make_scheduler: SchedulerFactory = Scheduler,
) -> Recording:
    """Simulate a scenario.

    Args:
        scenario: What happens.
        stream: Chance by name, e.g. `functools.partial(seeded_stream, seed)`: the same streams, the same run.
        log: Takes every decision, if given.
        make_scheduler: Another scheduler than the one that serves: for comparing with queues known from theory.

    Returns:
        What happened, from the start to the last answer. About 10 µs of real time for each request.
    """
    run = _Run(scenario, stream, log, make_scheduler)
    run.run(scenario.end_us)
    return run.recorder.close(scenario)
