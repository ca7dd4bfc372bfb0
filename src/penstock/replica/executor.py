"""Executing batches: drop what is late or unfit, run the model, check, reply; and find who is to blame if it raises.

    read -> drop late -> gather -> drop NaN rows -> run together --ok--> check -> pack
                                                        | raises, several requests
                                                        v
                                      without the row it blames, else each request alone

Conservation: one reply per batch, and each request exactly once among its outputs' rows or its failures. On the
success path nothing is done per request. Not here: sockets (`loop.py`), rules for bytes (`inputs.py`, `outputs.py`).
"""

import traceback
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from penstock.core.errors import CallerError, InvalidInput
from penstock.core.profiles import CostProfile
from penstock.policy.merging import is_late
from penstock.replica.batch import Batch, Reply, Signature
from penstock.replica.inputs import InputPlan, gather_inputs, plan_inputs, read_inputs, rows_not_finite
from penstock.replica.outputs import OutputMistake, check_outputs, pack_outputs, plan_outputs
from penstock.replica.runtimes import Array, Runtime
from penstock.wire.frame import Failure, FrameTensor, ReplyMeta

__all__ = ["Executor"]

# One bad request in a batch is the common case; a model that blames a third is cheaper to ask request by request.
BLAMES_MAX = 2
# Room for every signature a model with a few open dimensions sees in practice; past it, planning anew costs 10 µs each.
PLANS_MAX = 1_024
# A model has few places to fail in; past this many distinct ones more tracebacks would tell nothing new.
LOGGED_MAX = 256
# What a caller gets to read of an exception.
MESSAGE_CHARS_MAX = 1_000


class _Execution:
    """One execution in progress: the batches run together, what is left of them, and who has failed.

    Requests are numbered across the batches in order, rows likewise.
    """

    __slots__ = ("alive", "batches", "execute_us", "failures", "parts", "plan", "rows", "starts")

    def __init__(self, batches: list[Batch], parts: list[list[Array]], plan: InputPlan) -> None:
        self.batches = batches
        self.parts = parts
        self.plan = plan
        self.failures: dict[int, tuple[int, str]] = {}
        self.rows: Sequence[int] = batches[0].meta.rows
        if len(batches) > 1:
            self.rows = [r for b in batches for r in b.meta.rows]
        self.execute_us = 0

    def is_alive(self) -> bool:
        """Return True if some request has not failed."""
        return len(self.failures) < len(self.rows)

    def survivors(self) -> list[int]:
        """Return the requests that have not failed."""
        return [k for k in range(len(self.rows)) if k not in self.failures]

    def gather(self) -> dict[str, Array]:
        """Return fresh inputs of the requests that have not failed; an earlier run may have changed its own."""
        keep = None
        if self.failures:
            keep = np.repeat([k not in self.failures for k in range(len(self.rows))], self.rows)
        return gather_inputs(self.plan, self.parts, keep)

    def deadlines_us(self) -> list[int]:
        """Return each request's deadline, µs on the replica's clock; 0 if it has none."""
        return [budget and b.received_at_us + budget for b in self.batches for budget in b.meta.budgets_us]

    def owner(self, row: int) -> tuple[int, int]:
        """Return the request that owns this row of what `gather` returned, and the row's index within it."""
        survivors = self.survivors()
        ends = list(accumulate(self.rows[k] for k in survivors))
        at = bisect_right(ends, row)
        return survivors[at], row - (ends[at - 1] if at else 0)


class Executor:
    """Runs batches on one model and accounts for every request.

    Args:
        runtime: The loaded model.
        now_us: Monotonic clock, µs.
        log: Takes one traceback per distinct fault of the model.
    """

    def __init__(self, runtime: Runtime, *, now_us: Callable[[], int], log: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._spec = runtime.spec
        self._is_batched = self._spec.is_batched
        self._now_us = now_us
        self._log = log
        # The least time any request needs, µs: one with less left would come too late even alone.
        self._least_us = 1
        self._logged: set[Any] = set()
        self._plans: dict[Signature, InputPlan] = {}
        self._outputs = plan_outputs(self._spec)

    @property
    def row_count_max(self) -> int:
        """Most rows worth merging into one execution; 0 if batches must not be merged."""
        return self._spec.batching.size_max if self._is_batched else 0

    def use_profile(self, profile: CostProfile) -> None:
        """Return requests unexecuted from now on that could not meet their deadline even if they ran alone."""
        self._least_us = profile.time_us(1)

    def execute(self, batches: Sequence[Batch]) -> list[Reply]:
        """Run batches together and answer each.

        Args:
            batches: One or more of one signature, as `plan_merge` chose them; exactly one if the model has no batching.

        Returns:
            One reply per batch, in order. Never raises for anything a frame or a model does.
        """
        started_at_us = self._now_us()
        plan = self._plan(batches[0].signature)
        if plan.refusal:
            return [_refuse(batch, plan.refusal, started_at_us) for batch in batches]
        refused: dict[int, Reply] = {}
        readable: list[Batch] = []
        parts: list[list[Array]] = []
        for k, batch in enumerate(batches):
            try:
                if not self._is_batched and batch.row_count != len(batch.meta.rows):
                    raise InvalidInput(
                        f"rows: expected 1 per request of a model without batching, got {batch.meta.rows}"
                    )
                parts.append(read_inputs(plan, batch))
                readable.append(batch)
            except InvalidInput as error:
                refused[k] = _refuse(batch, error.message, started_at_us)
        replies = iter(self._execute_readable(_Execution(readable, parts, plan), started_at_us) if readable else ())
        return [refused[k] if k in refused else next(replies) for k in range(len(batches))]

    def _plan(self, signature: Signature) -> InputPlan:
        plan = self._plans.get(signature)
        if plan is None:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            plan = self._plans[signature] = plan_inputs(self._spec, signature)
        return plan

    def _execute_readable(self, execution: _Execution, started_at_us: int) -> list[Reply]:
        self._drop_late(execution, started_at_us)
        inputs = execution.gather() if execution.is_alive() else {}
        if execution.plan.finite and inputs:
            inputs = self._drop_not_finite(execution, inputs)
        run_at_us = self._now_us()
        arrays: list[Array] = []
        executed_rows = 0
        if inputs:
            executed_rows = len(next(iter(inputs.values())))
            arrays = self._run(execution, inputs, executed_rows) if self._is_batched else self._run_alone(execution)
        packed = self._pack(execution, arrays)
        input_us = run_at_us - started_at_us
        done_us = self._now_us()
        output_us = done_us - run_at_us - execution.execute_us
        if done_us - started_at_us < self._least_us and not execution.failures:
            # The profile was too slow, as one measured beside other loading models may be: nobody is refused for that.
            self._least_us = max(done_us - started_at_us, 1)
        replies = []
        for batch, (outputs, failures, payload) in zip(execution.batches, packed, strict=True):
            wait_us = max(0, started_at_us - batch.received_at_us)
            meta = ReplyMeta(outputs, failures, wait_us, input_us, execution.execute_us, output_us, executed_rows)
            replies.append(Reply(meta, payload))
        return replies

    def _drop_late(self, execution: _Execution, now_us: int) -> None:
        base = 0
        for batch in execution.batches:
            budgets_us = batch.meta.budgets_us
            waited_us = now_us - batch.received_at_us
            needed_us = waited_us + self._least_us
            # 0 (no deadline) is less too, so this asks the requests one by one only if one has none or is late.
            if min(budgets_us) < needed_us and any(budgets_us):
                for k, budget_us in enumerate(budgets_us):
                    if is_late(budget_us=budget_us, waited_us=waited_us, least_us=self._least_us):
                        execution.failures[base + k] = self._late(budget_us - waited_us)
            base += len(budgets_us)

    def _late(self, left_us: int) -> tuple[int, str]:
        if left_us > 0:
            return 504, f"deadline: expected at least {self._least_us} µs left to execute in, got {left_us}"
        return 504, f"deadline: passed {-left_us} µs before execution would have started"

    def _drop_not_finite(self, execution: _Execution, inputs: dict[str, Array]) -> dict[str, Array]:
        unfit: dict[int, tuple[int, str]] = {}
        for name in execution.plan.finite:
            for row in rows_not_finite(inputs[name]):
                request, row_within = execution.owner(row)
                message = f"input {name!r}: expected finite values, got NaN or infinity in row {row_within}"
                unfit.setdefault(request, (400, message))
        if not unfit:
            return inputs
        execution.failures |= unfit
        return execution.gather() if execution.is_alive() else {}

    def _call(self, execution: _Execution, inputs: dict[str, Array], row_count: int) -> list[Array]:
        """Run the model once and check what it returns: arrays of shape (rows, *inner). Its time is added up."""
        if not self._is_batched:
            # Such a model is given, and returns, whole shapes; within the replica that is one row.
            inputs = {name: array[0] for name, array in inputs.items()}
        begin_us = self._now_us()
        try:
            outputs = self._runtime.run(inputs, execution.batches[0].meta.parameters)
        finally:
            execution.execute_us += self._now_us() - begin_us
        if not self._is_batched:
            return [array[np.newaxis] for array in check_outputs(self._outputs, outputs, ())]
        return check_outputs(self._outputs, outputs, (row_count,))

    def _run(self, execution: _Execution, inputs: dict[str, Array], row_count: int) -> list[Array]:
        """Run the surviving requests, together if possible; return their outputs and record who fails."""
        for _ in range(1 + BLAMES_MAX):
            try:
                return self._call(execution, inputs, row_count)
            except OutputMistake as error:
                self._fail_survivors(execution, error)
                return []
            except BaseException as error:  # noqa: BLE001 - a model's SystemExit must not end the replica
                if len(execution.rows) - len(execution.failures) == 1:
                    self._fail_survivors(execution, error)
                    return []
                row = error.row if isinstance(error, InvalidInput) else None
                if not isinstance(row, int | np.integer) or not 0 <= row < row_count:
                    break
                request, _ = execution.owner(int(row))
                execution.failures[request] = self._explain(error)
                inputs = execution.gather()
                row_count -= execution.rows[request]
        return self._run_alone(execution)

    def _run_alone(self, execution: _Execution) -> list[Array]:
        """Run each surviving request alone; return the outputs of those that succeed, in order."""
        inputs = execution.gather()
        deadlines_us = execution.deadlines_us()
        pieces: list[list[Array]] = []
        at = 0
        for request in execution.survivors():
            begin, at = at, at + execution.rows[request]
            now_us = self._now_us()
            if 0 < deadlines_us[request] < now_us + self._least_us:
                execution.failures[request] = self._late(deadlines_us[request] - now_us)
                continue
            try:
                piece = self._call(execution, {name: array[begin:at] for name, array in inputs.items()}, at - begin)
                if pieces:
                    self._check_agreement(pieces[0], piece)
                pieces.append(piece)
            except BaseException as error:  # noqa: BLE001 - as above
                execution.failures[request] = self._explain(error)
        return [np.concatenate(column) for column in zip(*pieces, strict=True)]

    def _check_agreement(self, first: list[Array], piece: list[Array]) -> None:
        """Check that requests run alone can share the reply's tensors, which have one inner shape each."""
        for tensor, a, b in zip(self._outputs, first, piece, strict=True):
            if a.shape[1:] != b.shape[1:]:
                raise OutputMistake(
                    f"output {tensor.name!r}: expected rows of shape {list(a.shape[1:])} as the batch's other"
                    f" requests got, got {list(b.shape[1:])}; send the request again"
                )

    def _fail_survivors(self, execution: _Execution, error: BaseException) -> None:
        explained = self._explain(error)
        for request in execution.survivors():
            execution.failures[request] = explained

    def _explain(self, error: BaseException) -> tuple[int, str]:
        """Return the status and message for the caller; log what is the model's fault, once per place and type."""
        text = _text_of(error)
        if isinstance(error, CallerError) and 400 <= error.status < 500:
            return error.status, text
        if isinstance(error, OutputMistake):
            key: tuple[Any, ...] = (text,)
        else:
            text = f"{type(error).__name__}: {text}"
            frames = traceback.extract_tb(error.__traceback__)
            key = (type(error), frames[-1].filename, frames[-1].lineno)
        if key not in self._logged and len(self._logged) < LOGGED_MAX:
            self._logged.add(key)
            self._log("".join(traceback.format_exception(error)))
        return 500, f"model {self._spec.name!r}: {text}"

    def _pack(
        self, execution: _Execution, arrays: list[Array]
    ) -> list[tuple[tuple[FrameTensor, ...], tuple[Failure, ...], list[bytes | memoryview]]]:
        """Divide outputs and failures among the batches."""
        packed = []
        failed = execution.failures
        base = row = 0
        for batch in execution.batches:
            request_count = len(batch.meta.rows)
            row_count = batch.row_count
            failures: tuple[Failure, ...] = ()
            if failed:
                indices = [k for k in range(request_count) if base + k in failed]
                failures = tuple(Failure(k, *failed[base + k]) for k in indices)
                row_count -= sum(batch.meta.rows[k] for k in indices)
            outputs: tuple[FrameTensor, ...] = ()
            payload: list[bytes | memoryview] = []
            if row_count:
                try:
                    outputs, payload = pack_outputs(self._outputs, arrays, row, row + row_count)
                except OutputMistake as error:
                    status, message = self._explain(error)
                    alive = (k for k in range(request_count) if base + k not in failed)
                    failures += tuple(Failure(k, status, message) for k in alive)
            packed.append((outputs, failures, payload))
            base += request_count
            row += row_count
        return packed


def _refuse(batch: Batch, message: str, started_at_us: int) -> Reply:
    failures = tuple(Failure(k, 400, message[:MESSAGE_CHARS_MAX]) for k in range(len(batch.meta.rows)))
    return Reply(ReplyMeta((), failures, max(0, started_at_us - batch.received_at_us), 0, 0, 0, 0), [])


def _text_of(error: BaseException) -> str:
    """Return what an exception says, fit for a frame: a user's exception may fail even at this."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - its own __str__ is broken; its type and traceback are still told
        text = "(its message could not be formatted)"
    return text[:MESSAGE_CHARS_MAX].encode(errors="replace").decode()
