"""Callers: when each request is sent, and what its caller does with the answer.

An open loop is planned before the run and never looks at answers, except that callers may try again when refused. A
closed loop sends the next request when the last is answered and its client has thought. Not here: arrival processes
(`core/arrivals.py`), what happens to a request (`gateway.py`).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from penstock.core.arrivals import plan_arrivals
from penstock.sim.cache import draw_hits
from penstock.sim.events import NEVER_US, Agenda
from penstock.sim.gateway import Request
from penstock.sim.recording import Outcome, Recorder
from penstock.sim.scenario import Scenario, Source, StreamFactory

__all__ = ["Callers", "Door"]

# A caller that was told to come back later than this does so all the same.
RETRY_AFTER_US_MAX = 100_000


class Door(Protocol):
    """Where requests are handed in: a gateway."""

    def submit(self, now_us: int, request: Request) -> None:
        """A request has been read off the wire."""

    def hang_up(self, now_us: int, request: Request) -> None:
        """The caller has waited long enough."""


class Callers:
    """Everyone who sends requests, and the desk where answers are left for them.

    Args:
        scenario: Whose sources they are.
        stream: Chance, by name.
        agenda, recorder: The run's.
        gateways: Where requests go: each client stays with one, an open loop draws one for each request.

    Attributes:
        next_us: When the next planned request reaches its gateway; NEVER_US if none is left.
        waiting: Requests sent and not finally answered, and those whose callers are about to try again.
    """

    __slots__ = (
        "_agenda",
        "_at_us",
        "_chosen",
        "_gateways",
        "_hit",
        "_position",
        "_recorder",
        "_reply_us",
        "_request_us",
        "_rngs",
        "_rows",
        "_source",
        "_sources",
        "_stop_us",
        "next_us",
        "waiting",
    )

    def __init__(
        self,
        scenario: Scenario,
        stream: StreamFactory,
        *,
        agenda: Agenda,
        recorder: Recorder,
        gateways: Sequence[Door],
    ) -> None:
        self._agenda = agenda
        self._recorder = recorder
        self._gateways = gateways
        self._request_us = scenario.overheads.request_us
        self._reply_us = scenario.overheads.reply_us
        self._stop_us = scenario.end_us
        self._sources = [_Terms(source, scenario.allowed_us(source)) for source in scenario.sources]
        self._rngs = [stream(f"{source.name} clients") for source in scenario.sources]
        self._position = 0
        self.waiting = 0
        self._plan(scenario, stream)
        self.next_us = self._at_us[0] if self._at_us else NEVER_US
        for k, source in enumerate(scenario.sources):
            for client in range(source.clients):
                self._think(k, client, 0)

    def _plan(self, scenario: Scenario, stream: StreamFactory) -> None:
        """Lay out all open loops, merged, in the order in which requests reach their gateways."""
        times, sources, rows, hits = [], [], [], []
        for k, source in enumerate(scenario.sources):
            if source.clients:
                continue
            planned = plan_arrivals(
                source.arrivals,
                stream(f"{source.name} arrivals"),
                rate=source.rate,
                duration_us=scenario.end_us,
                trace_us=source.trace_us,
            )
            times.append(planned)
            sources.append(np.full(len(planned), k))
            rows.append(stream(f"{source.name} rows").choice(np.array(source.rows), len(planned)))
            hits.append(draw_hits(source.hit_ratio, len(planned), stream(f"{source.name} hits")))
        joined = np.concatenate([np.zeros(0, dtype=np.int64), *times])
        order = np.argsort(joined, kind="stable")
        self._at_us: list[int] = (joined[order] + self._request_us).tolist()
        self._source: list[int] = np.concatenate([np.zeros(0, dtype=np.int64), *sources])[order].tolist()
        self._rows: list[int] = np.concatenate([np.zeros(0, dtype=np.int64), *rows])[order].tolist()
        self._hit: list[bool] = np.concatenate([np.zeros(0, dtype=np.bool_), *hits])[order].tolist()
        self._chosen: list[int] = stream("gateways").integers(len(self._gateways), size=len(order)).tolist()

    # -- sending ----------------------------------------------------------------------------------------------------

    def send_planned(self, now_us: int) -> None:
        """Hand over every planned request that reaches its gateway now."""
        at_us, position = self._at_us, self._position
        end = len(at_us)
        while position < end and at_us[position] == now_us:
            source = self._source[position]
            index = self._recorder.open(source, self._rows[position], now_us - self._request_us)
            if self._hit[position]:
                self._recorder.outcome[index] = Outcome.HIT
                self._recorder.settled_us[index] = now_us + self._reply_us
            else:
                self.waiting += 1
                self._submit(now_us, self._make(index, source, self._rows[position], self._chosen[position]))
            position += 1
        self._position = position
        self.next_us = at_us[position] if position < end else NEVER_US

    def _make(self, index: int, source: int, rows: int, gateway: int, *, client: int = -1, tries: int = 1) -> Request:
        terms = self._sources[source]
        request = Request(
            rows, terms.nbytes, 0, terms.allowed_us, request_class=terms.request_class, tenant=terms.tenant
        )
        request.index = index
        request.source = source
        request.gateway = gateway
        request.client = client
        request.tries = tries
        request.is_settled = False
        return request

    def _submit(self, now_us: int, request: Request) -> None:
        gateway = self._gateways[request.gateway]
        gateway.submit(now_us, request)
        patience_us = self._sources[request.source].patience_us
        if patience_us:
            self._agenda.add(now_us + patience_us, gateway.hang_up, request)

    def _begin(self, now_us: int, whose: tuple[int, int]) -> None:
        """A client sends its next request."""
        k, client = whose
        if now_us >= self._stop_us:
            return
        terms, rng = self._sources[k], self._rngs[k]
        rows = terms.rows[int(rng.random() * len(terms.rows))] if len(terms.rows) > 1 else terms.rows[0]
        index = self._recorder.open(k, rows, now_us)
        if terms.hit_ratio and rng.random() < terms.hit_ratio:
            self._recorder.outcome[index] = Outcome.HIT
            self._recorder.settled_us[index] = now_us + self._request_us + self._reply_us
            self._think(k, client, self._recorder.settled_us[index])
            return
        self.waiting += 1
        request = self._make(index, k, rows, client % len(self._gateways), client=client)
        self._agenda.add(now_us + self._request_us, self._submit, request)

    def _think(self, k: int, client: int, now_us: int) -> None:
        think_us = self._sources[k].think_us
        # Never no time at all: a client that is answered at once must not hold virtual time still.
        wait_us = max(round(self._rngs[k].exponential(think_us)), 1) if think_us else 1
        self._agenda.add(now_us + wait_us, self._begin, (k, client))

    # -- answers ----------------------------------------------------------------------------------------------------

    def answer(self, request: Request, now_us: int) -> None:
        """A replica served a request."""
        self._close(request, Outcome.SERVED, now_us)

    def refuse(self, request: Request, outcome: Outcome, reason: str, retry_after_us: int, now_us: int) -> None:
        """A request got no answer: its caller tries again, or gives up."""
        self._recorder.count_refusal(reason)
        terms = self._sources[request.source]
        pause_us = terms.retry_after_us or min(retry_after_us or RETRY_AFTER_US_MAX, RETRY_AFTER_US_MAX)
        if request.tries > terms.retries:
            self._close(request, outcome, now_us, pause_us)
            return
        again = self._make(
            request.index,
            request.source,
            request.rows,
            request.gateway,
            client=request.client,
            tries=request.tries + 1,
        )
        self._recorder.tries[request.index] += 1
        self._agenda.add(now_us + self._reply_us + pause_us + self._request_us, self._submit, again)

    def _close(self, request: Request, outcome: Outcome, now_us: int, pause_us: int = 0) -> None:
        index = request.index
        self.waiting -= 1
        self._recorder.outcome[index] = outcome
        self._recorder.settled_us[index] = now_us + self._reply_us
        if request.client >= 0:
            self._think(request.source, request.client, now_us + self._reply_us + pause_us)


class _Terms:
    """A source as the hot path wants it."""

    __slots__ = (
        "allowed_us",
        "hit_ratio",
        "nbytes",
        "patience_us",
        "request_class",
        "retries",
        "retry_after_us",
        "rows",
        "tenant",
        "think_us",
    )

    def __init__(self, source: Source, allowed_us: int) -> None:
        self.allowed_us = allowed_us
        self.hit_ratio = source.hit_ratio
        self.nbytes = source.nbytes
        self.patience_us = source.patience_us
        self.request_class = source.request_class
        self.retries = source.retries
        self.retry_after_us = source.retry_after_us
        self.rows = source.rows
        self.tenant = source.tenant
        self.think_us = source.think_us
