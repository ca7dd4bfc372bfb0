"""Laws of filling: what fits, in order of deadline; shares only where not all fit; nobody twice, nobody lost."""

from itertools import product

import pytest

from penstock.core.profiles import CostProfile
from penstock.policy.fairness import Ledger
from penstock.policy.filling import BATCH_SHARES, BatchFiller
from penstock.policy.profiling import ServiceEstimate
from penstock.policy.queueing import BATCH, INTERACTIVE, Entry, RequestClass, SignatureQueue

PROFILE = CostProfile.from_line(beta_us=0, alpha_us=100, size_max=8)
Waiting = tuple[str, int, int]  # tenant, rows, deadline


def fill(waiting: list[Waiting], rows_max: int, *, ledger: Ledger | None = None) -> list[Waiting]:
    """Return who of these interactive requests is in the next batch."""
    queue = SignatureQueue("k", ServiceEstimate(PROFILE, 8), 0, alone=False)
    ledger = ledger or Ledger({})
    for tenant, rows, deadline_us in waiting:
        queue.lane(INTERACTIVE, tenant).push(Entry(rows, 0, 0, deadline_us, tenant=tenant))
        ledger.enter(tenant)
    entries: list[Entry] = []
    BatchFiller("latency", ledger).fill(queue, rows_max, entries)
    assert queue.rows == sum(rows for _, rows, _ in waiting) - sum(e.rows for e in entries)
    return [(e.tenant, e.rows, e.deadline_us) for e in entries]


@pytest.mark.parametrize(
    ("waiting", "rows_max", "expected"),
    [
        ([("a", 1, 3), ("a", 1, 1), ("a", 1, 2)], 2, [("a", 1, 1), ("a", 1, 2)]),
        ([("a", 2, 1), ("a", 2, 2), ("a", 1, 3)], 3, [("a", 2, 1)]),  # the second does not fit, nor may the third pass
        ([("a", 9, 1), ("a", 1, 2)], 4, [("a", 9, 1)]),  # larger than any batch: by itself
        ([("a", 1, 1), ("a", 9, 2)], 4, [("a", 1, 1)]),
        ([("a", 1, 4), ("b", 1, 1), ("a", 1, 2), ("b", 1, 3)], 2, [("b", 1, 1), ("a", 1, 2)]),  # one each
        ([("a", 1, 1), ("a", 1, 2), ("a", 1, 3), ("b", 1, 9)], 2, [("a", 1, 1), ("b", 1, 9)]),  # b its half
        ([("a", 1, k) for k in range(6)] + [("b", 1, 9)], 4, [("a", 1, 0), ("a", 1, 1), ("b", 1, 9), ("a", 1, 2)]),
    ],
)
def test_fillings(waiting: list[Waiting], rows_max: int, expected: list[Waiting]) -> None:
    """A batch is filled by deadline, each tenant up to its share, the rest by deadline again."""
    assert fill(waiting, rows_max) == expected


def test_everybody_goes_if_all_fit() -> None:
    """While there is room for all nobody is held back, however far ahead a tenant is."""
    ledger = Ledger({})
    ledger.enter("b")
    ledger.enter("a")
    ledger.charge("a", 1e9)
    waiting = [("a", 1, 1), ("b", 1, 2), ("a", 2, 3)]
    assert sorted(fill(waiting, 4, ledger=ledger)) == sorted(waiting)


def test_a_tenant_behind_goes_first() -> None:
    """A tenant that is a batch behind gets the whole of the next one if it can use it."""
    ledger = Ledger({})
    ledger.enter("a")
    ledger.enter("b")
    ledger.charge("a", 10_000)
    waiting = [("a", 1, k) for k in range(4)] + [("b", 1, 10 + k) for k in range(4)]
    assert fill(waiting, 4, ledger=ledger) == [("b", 1, 10 + k) for k in range(4)]


def test_no_room_is_left_that_somebody_could_use() -> None:
    """With single rows a contended batch is always full, whatever tenants have been charged."""
    for ahead_us, mine, others, rows_max in product((0, 150, 10**6), (1, 3, 9), (1, 3, 9), (1, 4, 8)):
        ledger = Ledger({})
        ledger.enter("a")
        ledger.enter("b")
        ledger.charge("a", ahead_us)
        filled = fill(
            [("a", 1, k) for k in range(mine)] + [("b", 1, k) for k in range(others)], rows_max, ledger=ledger
        )
        assert len(filled) == len(set(filled)) == min(rows_max, mine + others)


@pytest.mark.parametrize("mode", sorted(BATCH_SHARES))
@pytest.mark.parametrize("size", [4, 8])
def test_class_batch_is_owed_fractions(mode: str, size: int) -> None:
    """Over many contended batches class `batch` gets its share to the row, though one batch may hold none of it."""
    queue = SignatureQueue("k", ServiceEstimate(PROFILE, 8), 0, alone=False)
    filler = BatchFiller(mode, Ledger({}))
    served = {INTERACTIVE: 0, BATCH: 0}
    for _ in range(100):
        for request_class in RequestClass:
            lane = queue.lane(request_class, "")
            while lane.requests < 10:
                lane.push(Entry(1, 0, 0, 1, request_class=request_class))
        entries: list[Entry] = []
        filler.fill(queue, size, entries)
        assert len(entries) == size
        filler.owe(size, sum(e.request_class == BATCH for e in entries), is_waiting=True)
        for entry in entries:
            served[entry.request_class] += 1
    assert abs(served[BATCH] - BATCH_SHARES[mode] * 100 * size) <= 1
