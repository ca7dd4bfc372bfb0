"""How hard a model is pressed: what part of requests is late or not served, and what follows from it.

Two things follow. While next to none is refused, a request that is late by the model's own SLO is still served, up to
the part that an SLO at p95 leaves room for. Under overload a request must be predicted in time by a margin, learned
from those that were admitted and had to be dropped after all. Pure. Not here: the predictions (`admission.py`).
"""

__all__ = ["OVERLOAD_RATIO", "Pressure"]

# An SLO is kept if 95 % of answers are in time: as long as no more than this part is late and next to none is refused,
# a request that is late by the model's own SLO is still answered. A deadline that the caller named is never passed.
LATE_RATIO_MAX = 0.048
SHED_RATIO_MAX = 0.03
# From this part of requests not served on it is taken to be overload, not chance.
OVERLOAD_RATIO = 0.1
# Those parts are averaged over about this many requests.
RATIO_MEMORY = 2_000
# Below this a part is taken to be none.
NEGLIGIBLE_RATIO = 1e-4
# Predictions err. Each request that is dropped although it was admitted adds this part of a batch's time to the margin
# by which later ones must be in time; each one judged under overload takes back a small part of that. So about this
# part of requests waits in vain.
MARGIN_STEP_RATIO = 0.02
DROPS_PER_REQUEST = 0.002
# The margin is at most this part of the time that requests are allowed.
MARGIN_RATIO_MAX = 0.1


class Pressure:
    """See the module.

    Args:
        slo_us: The model's, for the first guess at the margin; 0 if it states none.

    Attributes:
        late_ratio, shed_ratio: Parts of recent requests, 0-1.
    """

    __slots__ = ("_margin_us", "late_ratio", "shed_ratio")

    def __init__(self, slo_us: int) -> None:
        self.late_ratio = 0.0
        self.shed_ratio = 0.0
        self._margin_us = MARGIN_RATIO_MAX / 2 * slo_us

    @property
    def is_overload(self) -> bool:
        """True if more is refused and dropped than chance explains."""
        return self.shed_ratio > OVERLOAD_RATIO

    @property
    def is_lateness_allowed(self) -> bool:
        """True if a request that is late by the model's own SLO may be served."""
        return self.late_ratio < LATE_RATIO_MAX and self.shed_ratio < SHED_RATIO_MAX

    def count_admitted(self) -> None:
        """A request may wait. Need not be called while `shed_ratio` is 0."""
        self.shed_ratio -= self.shed_ratio / RATIO_MEMORY
        if self.shed_ratio < NEGLIGIBLE_RATIO:
            self.shed_ratio = 0.0

    def count_shed(self) -> None:
        """A request was refused or dropped."""
        self.shed_ratio += (1 - self.shed_ratio) / RATIO_MEMORY

    def count_served(self, requests: int, *, late: int) -> None:
        """So many requests, at least one, were served, some of them late; or are about to be although they are late."""
        self.late_ratio += (late / requests - self.late_ratio) * min(requests / RATIO_MEMORY, 1.0)

    def judge_us(self, allowed_us: int, batch_us: int) -> int:
        """Return by how much a request that is judged under overload must be in time, µs.

        Args:
            allowed_us: From its arrival to its deadline.
            batch_us: What a batch takes.
        """
        self._margin_us = max(self._margin_us - MARGIN_STEP_RATIO * DROPS_PER_REQUEST * batch_us, 0.0)
        return round(min(self._margin_us, MARGIN_RATIO_MAX * allowed_us))

    def widen(self, dropped: int, allowed_us: int, batch_us: int) -> None:
        """So many requests were dropped under overload, for a batch that takes `batch_us`."""
        self._margin_us = min(self._margin_us + MARGIN_STEP_RATIO * batch_us * dropped, MARGIN_RATIO_MAX * allowed_us)
