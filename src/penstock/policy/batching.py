"""When to close a batch: three policies, asked whenever something changed and a replica could take one.

deadline         as soon as waiting cannot pay, at the latest when one more request would make the first one late
size_or_timeout  when it is full, or its first request has waited long enough; at once for an idle replica if `eager`
adaptive         at once, up to a size learned from whether batches keep the SLO

Pure. Carried out by `gateway/batcher.py` live and by `sim/` simulated, through `scheduling.py`.
Source: size and delay limits are the classic of Clipper (NSDI 2017) and Triton; AIMD of batch sizes is Clipper's;
the last useful moment is Symphony's (arXiv 2308.07470); that a threshold is optimal: arXiv 2301.12865.
"""

from dataclasses import dataclass
from enum import Enum

from penstock.core.models import Batching

__all__ = [
    "SPACING_RATIO",
    "AdaptiveSize",
    "Close",
    "CloseReason",
    "QueueView",
    "Wait",
    "count_fitting",
    "decide_close",
    "plan_target",
]

# A replica that is nearly free is worth waiting for no longer than this many of the periods at which batches leave.
HOLD_PERIODS = 2.0
# Replicas that fall idle together stay together while there is a backlog, and then whoever comes next waits for a whole
# batch instead of its N-th part. So with more than a batch waiting, batches leave at least this part of even spacing
# apart; once spread out, the spacing is even and nothing waits for it.
SPACING_RATIO = 0.5
# Timers of an event loop under load are late by about this much (measured: 1-2 ms); a batch that leaves at the last
# useful moment leaves this much before it.
GUARD_US = 1_000
# One replica gets batches in which the queue's chance fluctuations find room too: with no second replica to take what
# is left over, a batch cut short to save its first request makes the next ones late. Found by simulation.
SOLE_REPLICA_RATIO = 1.5


class CloseReason(Enum):
    """Why a batch was closed when it was; a metric label."""

    FULL = "full"  # it reached size_max, or the next request would not have fitted
    TIMEOUT = "timeout"  # its oldest request had waited wait_us_max
    IDLE = "idle"  # a replica had nothing to do
    ENOUGH = "enough"  # it is as large as the rate of arrivals needs batches to be
    DEADLINE = "deadline"  # one more request would have made its first one late
    HELD = "held"  # what was expected to join it did not come
    ALONE = "alone"  # its request may not share a batch: it is being retried, or the model has no batch dimension


@dataclass(frozen=True, slots=True)
class QueueView:
    """What the decider may know of one queue and of the replicas that serve it. At least one can take a batch.

    Args:
        rows: Rows waiting, >= 1.
        is_alone: Its first request must travel alone.
        oldest_us: When the longest-waiting request was queued.
        deadline_us: The earliest deadline.
        available: Replicas that can take a batch now.
        idle: Those of them that have nothing to do.
        target: Rows that batches need to have at this rate of arrivals (`plan_target`).
        period_us: How often such batches leave.
        latest_us: The last moment at which one more request could still join without making the first one late.
        size_max: Largest batch now: the model's, or what `adaptive` has learned.
        spaced_us: Before this, batches would leave bunched together.
        is_sole: There is one replica, or a share of one.
        is_scarce: Replicas barely keep up even with the largest batches that make sense.
    """

    rows: int
    is_alone: bool
    oldest_us: int
    deadline_us: int
    available: int
    idle: int
    target: int
    period_us: int
    latest_us: int
    size_max: int
    spaced_us: int
    is_sole: bool
    is_scarce: bool


@dataclass(frozen=True, slots=True)
class Close:
    """Close the batch now and send it."""

    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again when something changes, or at `until_us` if that is not None."""

    until_us: int | None


_CLOSE = {reason: Close(reason) for reason in CloseReason}


def decide_close(config: Batching, view: QueueView, *, now_us: int) -> Close | Wait:
    """Decide whether the next batch of one queue leaves now.

    Args:
        config: The model's batching.
        view: The queue and its replicas.
        now_us: Monotonic, µs.

    Returns:
        Close with the reason, or Wait.
    """
    if view.is_alone:
        return _CLOSE[CloseReason.ALONE]
    if view.rows >= view.size_max:
        spaced_us = min(view.spaced_us, view.latest_us)
        if view.rows > view.size_max and now_us < spaced_us:
            return Wait(spaced_us)
        return _CLOSE[CloseReason.FULL]
    if config.policy == "deadline":
        return _decide_by_deadline(config, view, now_us)
    if config.policy == "adaptive" or (config.eager and view.idle):
        return _CLOSE[CloseReason.IDLE]
    due_us = view.oldest_us + config.wait_us_max
    return _CLOSE[CloseReason.TIMEOUT] if now_us >= due_us else Wait(due_us)


def _decide_by_deadline(config: Batching, view: QueueView, now_us: int) -> Close | Wait:
    if config.mode != "throughput":
        if view.rows >= view.target:
            return _CLOSE[CloseReason.ENOUGH]
        if view.is_sole:
            # There is no second replica to be evenly spaced with: what the next batch misses waits for all of this one.
            return _CLOSE[CloseReason.IDLE]
        if view.available > 1 and not view.is_scarce:
            # What arrives next still finds a replica: waiting would cost this request time and save nobody any.
            return _CLOSE[CloseReason.IDLE]
    if now_us >= view.latest_us:
        return _CLOSE[CloseReason.DEADLINE]
    held_us = view.oldest_us + round(HOLD_PERIODS * view.period_us)
    if now_us >= held_us:
        return _CLOSE[CloseReason.HELD]
    return Wait(min(view.latest_us, held_us))


def plan_target(*, rate: float, alpha_us: float, beta_us: float, replicas: float, size_max: int) -> tuple[int, int]:
    """Plan how large batches must be so that replicas keep up with the arrivals, and how often they then leave.

    With batches of b rows N replicas carry N·b / (β + α·b) rows per µs. Asking that this be no less than the rate λ
    gives b = λ·β / (N - λ·α); a batch then leaves every b / λ. Larger ones would only make requests wait longer,
    smaller ones would not keep up.

    Args:
        rate: Rows that arrive per µs, >= 0.
        alpha_us, beta_us: What a row adds to a batch and what a batch costs, µs.
        replicas: How many there are, each counted as its share of a replica as fast as the profile says, > 0.
        size_max: Largest batch that makes sense.

    Returns:
        Rows, 1 to size_max, and the period, µs.
    """
    if rate <= 0:
        return 1, 0
    spare = replicas - rate * alpha_us
    wanted = size_max if spare <= 0 else min(rate * beta_us / spare, size_max)
    # Rounded up: one that is a little too large keeps up, one that is a little too small does not.
    return max(-int(-wanted // 1), 1), round(wanted / rate)


def count_fitting(*, slack_us: int, alpha_us: float, beta_us: float, replicas: float, size_max: int) -> int:
    """Return the largest batch that can be sustained within a latency: the b with ℓ(b)·(1 + 1/N) = slack.

    A request waits up to ℓ(b)/N for the next of N evenly spaced batches to leave, then ℓ(b) for its own.

    Source: Symphony, arXiv 2308.07470, section 3; with one replica it is the rule of Nexus (SOSP 2019), ℓ(b) = slack/2.
    """
    room_us = slack_us / (1 + 1 / max(replicas, 1.0)) - beta_us
    if room_us <= 0:
        return 1
    return max(int(room_us / alpha_us), 1) if alpha_us * size_max > room_us else size_max


class AdaptiveSize:
    """Learns the largest batch that keeps the SLO: one more row after each full batch that did, 0.9 of it after a miss.

    A batch keeps it if it takes no more than half: the other half is for a request that just missed the batch before.

    Args:
        size_max: The model's largest batch.
        slo_us: Latency to keep; 0 if none is stated, and then batches may always grow.

    Source: Clipper (NSDI 2017), section 4.3.1.
    """

    __slots__ = ("_size", "_size_max", "_time_us_max")

    DECREASE = 0.9

    def __init__(self, size_max: int, slo_us: int) -> None:
        self._size = 1.0
        self._size_max = size_max
        self._time_us_max = slo_us // 2

    @property
    def rows(self) -> int:
        """The size in force."""
        return int(self._size)

    def observe(self, rows: int, time_us: int) -> None:
        """Take note that a batch of `rows` took `time_us` to execute."""
        if self._time_us_max and time_us > self._time_us_max:
            self._size = max(self._size * self.DECREASE, 1.0)
        elif rows >= self.rows:
            self._size = min(self._size + 1.0, float(self._size_max))
