"""Which replica gets the next batch: the one predicted to finish it first; and which are too slow to get any.

Within one gateway the queue is central, so the best replica is simply taken. Where several gateways feed the same
replicas each knows the others' work only from replies, and all of them choosing the same best one would herd: then two
are drawn and the better is taken. Replicas may differ in speed; one that is far slower than the others is put aside
and probed with one batch after a while. Pure. Not here: what is sent (`scheduling.py`).

Source: power of two choices, Mitzenmacher (2001); outlier ejection with growing pauses as in Envoy.
"""

from collections.abc import Callable, Sequence
from statistics import median

from penstock.policy.batching import CloseReason
from penstock.policy.profiling import ServiceEstimate
from penstock.policy.queueing import Entry

__all__ = ["CREDITS_PER_REPLICA", "Dispatch", "Replica", "choose_replica", "find_outlier", "restore_excess"]

# One batch running and one staged behind it: the replica never idles between batches, and no third batch is
# committed to it while it could still go elsewhere.
CREDITS_PER_REPLICA = 2
# Weight of the newest execution in a replica's speed: about its last five batches count.
SPEED_WEIGHT = 0.3
# A replica is an outlier when it takes this many times as long as the median replica.
OUTLIER_RATIO = 3.0
# And only after so many executions: one pause of a process is no reason.
OUTLIER_SAMPLES_MIN = 5
# Put aside for this long at first, doubling while probes confirm it.
EJECTED_US_MIN = 1_000_000
EJECTED_US_MAX = 30_000_000
# Speeds are believed within these bounds.
SPEED_MIN, SPEED_MAX = 0.05, 50.0


class Replica:
    """One replica as one gateway's scheduler knows it.

    Args:
        name: For logs and statistics.
        now_us: When it joined.

    Attributes:
        in_flight: Batches sent and not yet answered, oldest first.
        free_us: When all it is known to hold is predicted to be done.
        slowness: How long it takes over what the profile says; 1 is as profiled, 2 is half as fast.
        executions: Since it joined or was probed.
        ejected_until_us: Gets nothing before; 0 if it is not put aside.
        ejections: How often it was.
        handle: Whatever the owner of the scheduler wants to find again; never looked at here.
    """

    __slots__ = (
        "ejected_until_us",
        "ejections",
        "executions",
        "free_us",
        "handle",
        "in_flight",
        "is_probing",
        "name",
        "slowness",
    )

    def __init__(self, name: str, now_us: int) -> None:
        self.name = name
        self.in_flight: list[Dispatch] = []
        self.free_us = now_us
        self.slowness = 1.0
        self.executions = 0
        self.ejected_until_us = 0
        self.ejections = 0
        self.is_probing = False
        self.handle: object = None

    def available_us(self, lead_us: int) -> int | None:
        """Return from when on it may be sent a batch; None while its credits are used up.

        Args:
            lead_us: How long before it falls idle the next batch must be under way.
        """
        held = len(self.in_flight)
        if not held:
            return self.ejected_until_us
        if held >= CREDITS_PER_REPLICA or self.ejected_until_us or self.is_probing:
            return None
        return self.free_us - lead_us

    def observe(self, ratio: float) -> None:
        """Take note that an execution took `ratio` times what the profile said."""
        ratio = min(max(ratio, SPEED_MIN), SPEED_MAX)
        self.executions += 1
        if self.is_probing:
            self.slowness = ratio
            self.executions = OUTLIER_SAMPLES_MIN  # one probe is enough to put it aside again
        else:
            self.slowness += SPEED_WEIGHT * (ratio - self.slowness)

    def eject(self, now_us: int) -> None:
        """Put it aside, longer each time."""
        pause_us = min(EJECTED_US_MIN << min(self.ejections, 16), EJECTED_US_MAX)
        self.ejections += 1
        self.ejected_until_us = now_us + pause_us
        self.is_probing = False

    def restore(self) -> None:
        """It is as fast as the others again."""
        self.ejected_until_us = 0
        self.is_probing = False


class Dispatch:
    """A batch that leaves, and its record while it is away.

    Args:
        dispatch_id: Counts up from 1.
        replica: Who gets it.
        entries: Its requests, in row order.
        rows: Theirs together.
        reason: Why it was closed.
        sent_us: When.
        key: What its entries have in common.
        alone: It must not be merged with another.

    Attributes:
        estimate: What its predicted time was read from.
        predicted_us: Device time it is expected to take.
        charged_us: Device time its tenants have been charged.
        is_staged: It was sent behind a running batch.
        is_uniform: Its entries are of one tenant and one class.
    """

    __slots__ = (
        "alone",
        "charged_us",
        "entries",
        "estimate",
        "id",
        "is_staged",
        "is_uniform",
        "key",
        "predicted_us",
        "reason",
        "replica",
        "rows",
        "sent_us",
    )

    def __init__(
        self,
        dispatch_id: int,
        replica: Replica,
        entries: list[Entry],
        rows: int,
        reason: CloseReason,
        sent_us: int,
        *,
        key: object = None,
        alone: bool = False,
    ) -> None:
        self.id = dispatch_id
        self.replica = replica
        self.entries = entries
        self.rows = rows
        self.reason = reason
        self.sent_us = sent_us
        self.key = key
        self.alone = alone
        self.estimate: ServiceEstimate | None = None
        self.predicted_us = 0
        self.charged_us = 0
        self.is_staged = False
        self.is_uniform = False


def choose_replica(available: Sequence[Replica], now_us: int, *, gateways: int, chance: Callable[[], float]) -> Replica:
    """Choose who gets a batch.

    Args:
        available: At least one.
        now_us: Now.
        gateways: How many gateways feed these replicas, this one included.
        chance: Uniform in [0, 1); drawn twice if there are several gateways and more than two to choose from.

    Returns:
        The one that is free first, the faster one if several are idle; of two drawn at random if others choose, too.
    """
    if len(available) == 1:
        return available[0]
    if gateways > 1 and len(available) > 2:
        i = int(chance() * len(available))
        j = int(chance() * (len(available) - 1))
        available = (available[i], available[j + (j >= i)])
    return min(available, key=lambda r: (max(r.free_us - now_us, 0), len(r.in_flight), r.slowness))


def find_outlier(replicas: Sequence[Replica], candidate: Replica) -> bool:
    """Return True if `candidate` is so slow that it should be put aside. At most half of all replicas ever are."""
    if candidate.executions < OUTLIER_SAMPLES_MIN or len(replicas) < 2:
        return False
    aside = sum(1 for r in replicas if r.ejected_until_us and r is not candidate)
    if (aside + 1) * 2 > len(replicas):
        return False
    others = [r.slowness for r in replicas if r is not candidate and not r.ejected_until_us]
    return bool(others) and candidate.slowness > OUTLIER_RATIO * median(others)


def restore_excess(replicas: Sequence[Replica]) -> None:
    """Let the least suspect replicas work again where more than half of them are put aside, since one was lost."""
    aside = sorted([r for r in replicas if r.ejected_until_us], key=lambda r: r.ejected_until_us)
    while len(aside) * 2 > len(replicas):
        aside.pop(0).restore()
