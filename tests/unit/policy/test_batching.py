"""The truth table of batch closing: what a queue and its replicas look like, and whether the next batch leaves now."""

from itertools import product

import pytest

from penstock.core.models import Batching
from penstock.policy.batching import CloseReason, Dispatch, QueueView, Wait, decide_dispatch

CONFIG = Batching(size_max=8, wait_us_max=1_000)
QUEUED_US = 5_000
DUE_US = QUEUED_US + CONFIG.wait_us_max


def view(
    *,
    rows: int = 1,
    full: bool = False,
    alone: bool = False,
    idle: int = 0,
    stageable: int = 0,
    oldest_us: int = QUEUED_US,
) -> QueueView:
    """Return a view; by default of one waiting row and no replica."""
    return QueueView(rows, full, alone, oldest_us, idle, stageable)


@pytest.mark.parametrize(
    ("seen", "now_us", "expected"),
    [
        # Nothing waits, or nobody could take it: only a change helps.
        (view(rows=0, idle=1), DUE_US, Wait(None)),
        (view(rows=0, idle=1, full=True, alone=True), DUE_US, Wait(None)),
        (view(), DUE_US, Wait(None)),
        (view(full=True), DUE_US, Wait(None)),
        (view(alone=True), DUE_US, Wait(None)),
        # A replica idles: at once.
        (view(idle=1), QUEUED_US, Dispatch(CloseReason.IDLE)),
        (view(idle=2, stageable=3), QUEUED_US, Dispatch(CloseReason.IDLE)),
        (view(idle=1), DUE_US, Dispatch(CloseReason.IDLE)),
        (view(idle=1, full=True), QUEUED_US, Dispatch(CloseReason.FULL)),
        (view(idle=1, alone=True), QUEUED_US, Dispatch(CloseReason.ALONE)),
        # All are busy, but one may stage a batch: when it is full, or has waited long enough.
        (view(stageable=1), QUEUED_US, Wait(DUE_US)),
        (view(stageable=1), DUE_US - 1, Wait(DUE_US)),
        (view(stageable=1), DUE_US, Dispatch(CloseReason.TIMEOUT)),
        (view(stageable=1), DUE_US + 1, Dispatch(CloseReason.TIMEOUT)),
        (view(stageable=1, full=True), QUEUED_US, Dispatch(CloseReason.FULL)),
        (view(stageable=1, full=True), DUE_US, Dispatch(CloseReason.FULL)),
        (view(stageable=1, alone=True), QUEUED_US, Dispatch(CloseReason.ALONE)),
        (view(stageable=1, alone=True, full=True), QUEUED_US, Dispatch(CloseReason.ALONE)),
    ],
)
def test_the_truth_table(seen: QueueView, now_us: int, expected: Dispatch | Wait) -> None:
    """Each state of a queue has its one decision."""
    assert decide_dispatch(CONFIG, seen, now_us=now_us) == expected


def test_laws_over_all_states() -> None:
    """Without a credit nothing leaves; with an idle replica nothing waits; a wait always ends, and not in the past."""
    for rows, full, alone, idle, stageable, now_us in product(
        (0, 1, 8), (False, True), (False, True), (0, 1), (0, 1), (QUEUED_US, DUE_US - 1, DUE_US, DUE_US + 9)
    ):
        seen = view(rows=rows, full=full, alone=alone, idle=idle, stageable=stageable)
        decision = decide_dispatch(CONFIG, seen, now_us=now_us)
        if isinstance(decision, Dispatch):
            assert rows
            assert idle or stageable
        else:
            assert not (rows and idle)
            assert (decision.until_us is None) == (not rows or not stageable)
            assert decision.until_us is None or decision.until_us > now_us


def test_waiting_until_it_says_is_enough() -> None:
    """At the moment a Wait names the decision is to dispatch, and one microsecond earlier it is not."""
    decision = decide_dispatch(CONFIG, view(stageable=1), now_us=QUEUED_US)
    assert isinstance(decision, Wait)
    assert decision.until_us is not None
    assert isinstance(decide_dispatch(CONFIG, view(stageable=1), now_us=decision.until_us), Dispatch)
    assert decide_dispatch(CONFIG, view(stageable=1), now_us=decision.until_us - 1) == decision


def test_no_wait_allowed_means_no_wait() -> None:
    """With `wait_us_max` 0 a batch is staged as soon as there is a credit."""
    config = Batching(size_max=8, wait_us_max=0)
    assert decide_dispatch(config, view(stageable=1), now_us=QUEUED_US) == Dispatch(CloseReason.TIMEOUT)
