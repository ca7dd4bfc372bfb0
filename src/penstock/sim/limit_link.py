"""The network between gateways and the authority in the simulator: every message travels by itself, if it arrives.

Not here: who sends what (`limit_fleet.py`), how bad it is (`limit_scenario.py`).
"""

from math import log
from typing import Any

import numpy as np

from penstock.sim.events import Action, Agenda
from penstock.sim.limit_scenario import LimitNetwork

__all__ = ["Link"]

# Numbers drawn at once: one by one they cost ten times as much.
_DRAWN = 4_096


class _Dice:
    """Uniform numbers in (0, 1], drawn by the block."""

    __slots__ = ("_left", "_rng")

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._left: list[float] = []

    def roll(self) -> float:
        if not self._left:
            self._left = (1.0 - self._rng.random(_DRAWN)).tolist()
        return self._left.pop()


class Link:
    """Carries messages, or loses, doubles and delays them.

    Args:
        network: How.
        agenda: Of the run.
        rng: Consumed.
    """

    def __init__(self, network: LimitNetwork, agenda: Agenda, rng: np.random.Generator) -> None:
        self._network = network
        self._agenda = agenda
        self._dice = _Dice(rng)

    def carry(self, now_us: int, action: Action, argument: Any) -> None:
        """Let `action(when, argument)` happen at the other end, once, twice or never."""
        network, roll = self._network, self._dice.roll
        copies = 2 if network.duplicate_ratio and roll() <= network.duplicate_ratio else 1
        for _ in range(copies):
            if network.loss_ratio and roll() <= network.loss_ratio:
                continue
            delay_us = network.delay_us - network.delay_us * log(roll())
            if network.slow_ratio and roll() <= network.slow_ratio:
                delay_us += network.slow_us * roll()
            self._agenda.add(now_us + int(delay_us), action, argument)
