"""Who is in a batch: by deadline while all fit or one tenant waits, else each class and tenant by its share.

Class `batch` gets at least its part of a contended batch, whatever interactive requests wait: that bounds its wait. A
tenant may take what the ledger allows it; what others leave unused goes by deadline. Pure. Not here: when the batch
leaves and how large it may be (`batching.py`), what tenants are charged (`fairness.py`).
"""

from penstock.policy.fairness import Ledger
from penstock.policy.queueing import BATCH, INTERACTIVE, Entry, Lane, SignatureQueue

__all__ = ["BATCH_SHARES", "BatchFiller"]

# The least part of a contended batch that requests of class `batch` get, by mode.
BATCH_SHARES = {"latency": 0.1, "fair": 0.3, "throughput": 0.5}


class BatchFiller:
    """Fills the batches of one model.

    Args:
        mode: The model's: one of `BATCH_SHARES`.
        ledger: Of its tenants.

    Attributes:
        owed_rows: What class `batch` should have got of the batches that left while it waited, and has not got yet.
    """

    __slots__ = ("_ledger", "_share", "owed_rows")

    def __init__(self, mode: str, ledger: Ledger) -> None:
        self._share = BATCH_SHARES[mode]
        self._ledger = ledger
        self.owed_rows = 0.0

    def owe(self, rows: int, batch_rows: int, *, is_waiting: bool) -> None:
        """A batch of `rows` left, `batch_rows` of them of class `batch`; does any of that class still wait?

        What is owed is forgotten when none does, and never more than two batches of this size.
        """
        self.owed_rows = max(min(self.owed_rows + self._share * rows, 2.0 * rows) - batch_rows, 0.0) * is_waiting

    def fill(self, queue: SignatureQueue, rows_max: int, entries: list[Entry]) -> None:
        """Move up to `rows_max` rows from a queue into a batch; its first entry even if it alone is larger."""
        lanes = [lane for lane in queue.lanes.values() if lane.requests]
        if len(lanes) == 1:
            lanes[0].draw(rows_max, entries)
        elif queue.rows <= rows_max:
            for lane in lanes:
                lane.draw(lane.rows, entries)
        else:
            self._fill_by_class(lanes, rows_max, entries)

    def _fill_by_class(self, lanes: list[Lane], rows_max: int, entries: list[Entry]) -> None:
        interactive = [lane for lane in lanes if lane.request_class == INTERACTIVE]
        batch = [lane for lane in lanes if lane.request_class == BATCH]
        if not interactive or not batch:
            self._fill_by_tenant(lanes, rows_max, entries)
            return
        reserved = min(int(self.owed_rows + self._share * rows_max), sum(lane.rows for lane in batch), rows_max)
        rows = self._fill_by_tenant(interactive, rows_max - reserved, entries)
        self._fill_by_tenant(batch, rows_max - rows, entries)

    def _fill_by_tenant(self, lanes: list[Lane], rows_max: int, entries: list[Entry]) -> int:
        """Take up to `rows_max` rows from lanes of one class; return how many."""
        if rows_max <= 0:
            return 0
        if len(lanes) == 1:
            return lanes[0].draw(rows_max, entries)
        if sum(lane.rows for lane in lanes) <= rows_max:
            return sum([lane.draw(lane.rows, entries) for lane in lanes])
        row_us = lanes[0].queue.estimate.time_us(rows_max) / rows_max
        rows = _draw_by_deadline(lanes, rows_max, entries, self._ledger.allowances(rows_max, row_us))
        return rows + _draw_by_deadline(lanes, rows_max - rows, entries, None)


def _draw_by_deadline(
    lanes: list[Lane], rows_max: int, entries: list[Entry], allowances: dict[str, float] | None
) -> int:
    """Move entries of several lanes into a batch, the earliest deadline first; return how many rows.

    A lane stops at an entry that does not fit and, if there are allowances, when its tenant has had its own.
    """
    rows = 0
    taken = dict.fromkeys([lane.tenant for lane in lanes], 0.0)
    waiting = list(lanes)
    while waiting and rows < rows_max:
        best: Lane | None = None
        first: Entry | None = None
        for lane in list(waiting):
            head = lane.head()
            is_over = (
                head is not None
                and allowances is not None
                and taken[lane.tenant] + head.rows / 2 > allowances[lane.tenant]
            )
            if head is None or is_over:
                waiting.remove(lane)
            elif first is None or head.deadline_us < first.deadline_us:
                best, first = lane, head
        if best is None or first is None:
            break
        if rows + first.rows > rows_max and (rows or entries):
            waiting.remove(best)
            continue
        entries.append(best.pop())
        rows += first.rows
        taken[best.tenant] += first.rows
    return rows
