"""Faults: what goes wrong when, and the way back.

Each is carried out on a live run by events of its own; gateways hear of a death when the last bytes of the dead one
would have reached them. Not here: which faults there are (`scenario.py`).
"""

from collections.abc import Sequence

from penstock.sim.events import Agenda
from penstock.sim.gateway import SimulatedGateway
from penstock.sim.replica import SimulatedReplica
from penstock.sim.scenario import Fault

__all__ = ["schedule_faults"]


class _FaultLine:
    """Carries out faults on one run's fleet."""

    def __init__(
        self,
        agenda: Agenda,
        gateways: Sequence[SimulatedGateway],
        replicas: Sequence[SimulatedReplica],
        back_us: int,
    ) -> None:
        self._agenda = agenda
        self._gateways = gateways
        self._replicas = replicas
        self._back_us = back_us

    def begin(self, now_us: int, fault: Fault) -> None:
        """Let it go wrong."""
        if fault.kind == "gateway_stall":
            self._gateways[fault.index].stall(now_us + fault.duration_us)
            return
        replica = self._replicas[fault.index]
        if fault.kind == "slow_device":
            replica.device.slowness *= fault.factor
        else:
            assert fault.kind == "replica_death"
            replica.die(now_us)
            for gateway in self._gateways:
                self._agenda.add(now_us + self._back_us, gateway.lose, replica)
        # A death of no length still has gateways hear of it before the next life begins.
        self._agenda.add(now_us + max(fault.duration_us, self._back_us), self.end, fault)

    def end(self, now_us: int, fault: Fault) -> None:
        """Put it right."""
        replica = self._replicas[fault.index]
        if fault.kind == "slow_device":
            replica.device.slowness /= fault.factor
            return
        replica.revive()
        for gateway in self._gateways:
            gateway.join(now_us, replica)


def schedule_faults(
    faults: Sequence[Fault],
    *,
    agenda: Agenda,
    gateways: Sequence[SimulatedGateway],
    replicas: Sequence[SimulatedReplica],
    back_us: int,
) -> None:
    """Put all faults on the agenda.

    Args:
        faults: What goes wrong; deaths of one replica must not overlap.
        agenda: Of the run.
        gateways, replicas: Of the run.
        back_us: How long after a death the gateways know of it.
    """
    line = _FaultLine(agenda, gateways, replicas, back_us)
    for fault in faults:
        agenda.add(fault.at_us, line.begin, fault)
