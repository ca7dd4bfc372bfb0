"""One Redis server as the authority: operations wait a moment and travel together, in time or not at all.

    submit --> waiting --turn: a call for each slot, sent at once--> in flight --> answered
                  |                                                     +--deadline, error, connection lost--> None
                  +--breaker open: None at once

At most `TURNS_MAX` turns are in flight. What comes meanwhile forms the next: it waits for a turn that is answered in
time, or half a deadline, and then a deadline at most. A call that may have been run is never sent again. Not here: what
the calls say (`encoding.py`), which server has which slot (`cluster.py`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import hiredis
import msgspec

from penstock.adapters.redis.encoding import decode_replies, encode_call
from penstock.adapters.redis.inspection import Server, read_info
from penstock.adapters.redis.link import Link, Words, pack
from penstock.adapters.redis.scripts import Script
from penstock.core.authority import Operation, Reply
from penstock.core.ports import Clock
from penstock.policy.breaking import Breaker

__all__ = ["Node", "Parcel", "Tally"]

# One is on its way or being run while the next is written; more would only make batches smaller.
TURNS_MAX = 2
# A script keeps everybody else waiting: at 10 µs an operation this is 5 ms, half of the default deadline.
OPERATIONS_MAX = 512
# A process that did not run for a while finds its timers due before it has read what arrived: so long it reads first.
GRACE_US = 1_000
# What waits beyond this is given up at once: at 100,000 operations/s it could not be sent within a long deadline.
WAITING_MAX = 8_192
# Three in a row are no accident. A probe costs one command, so the pause may be short; a restart takes about a second.
FAILURES_MAX = 3
PAUSE_US_MIN = 50_000
PAUSE_US_MAX = 500_000
# A connection that has not answered for so long may be dead without anybody saying so.
SILENCE_S_MAX = 1.0

_ASKING = pack(("ASKING",))
# A call without operations: it goes the way of every call, and does nothing.
_NOTHING = encode_call(())[1]


class Tally:
    """What happened, over all nodes of one authority.

    Attributes:
        calls: EVALSHA and EVAL commands sent.
        operations: Sent in them.
        failures: Calls that had no reply in time, or an error.
        refused: Operations given up unsent: while a breaker was open, or because they had waited too long.
        faults: Operations that the script could not do, while others of the same call were done.
        fault: The last such, in the server's words.
    """

    __slots__ = ("calls", "failures", "fault", "faults", "operations", "refused")

    def __init__(self) -> None:
        self.calls = 0
        self.operations = 0
        self.failures = 0
        self.refused = 0
        self.faults = 0
        self.fault = ""


class Parcel:
    """Operations of one caller that need the same slot, and whom to tell.

    Args:
        slot: Of their keys; 0 for all where there is only one server.
        operations: In order.
        answer: Called once, with a reply or None for each.
        at_us: When they were handed in.

    Attributes:
        is_redirected: One server has sent it to another already.
        is_asking: Its slot is on the way to the server it is handed to, which must be told that we know.
    """

    __slots__ = ("answer", "at_us", "is_asking", "is_redirected", "operations", "slot")

    def __init__(
        self,
        slot: int,
        operations: Sequence[Operation],
        answer: Callable[[Sequence[Reply | None]], None],
        at_us: int,
    ) -> None:
        self.slot = slot
        self.operations = operations
        self.answer = answer
        self.at_us = at_us
        self.is_redirected = False
        self.is_asking = False


class _Call:
    """One command of a turn."""

    __slots__ = ("arguments", "is_over", "operations", "parcels", "turn")

    def __init__(self, parcels: list[Parcel], turn: "_Turn") -> None:
        self.parcels = parcels
        self.turn = turn
        self.operations = [operation for parcel in parcels for operation in parcel.operations]
        self.arguments: Words = ()
        self.is_over = False


class _Turn:
    """Calls that were sent together."""

    __slots__ = ("calls", "open", "timer")

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.open = 0
        self.timer: asyncio.TimerHandle | None = None


class Node:
    """See the module. It connects, and connects again, by itself.

    Args:
        connect: Makes a connection to where the server is now; OSError if there is none.
        script: What is run.
        deadline_us: A reply that takes longer is of no use, µs.
        loop, now_us: Event loop and clock.
        tally: Is counted up.
        on_connected: Called with what INFO says after each connection: raises to refuse the server.
        on_moved: Called with a parcel, `MOVED` or `ASK`, and `SLOT HOST:PORT` where it belongs; None if there is no
            cluster.
        on_away: Called when it has begun to give callers up.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Link]],
        script: Script,
        *,
        deadline_us: int,
        loop: asyncio.AbstractEventLoop,
        now_us: Clock,
        tally: Tally,
        on_connected: Callable[[Server], None],
        on_moved: Callable[[Parcel, str, str], None] | None = None,
        on_away: Callable[[], None] | None = None,
    ) -> None:
        self.breaker = Breaker(FAILURES_MAX, PAUSE_US_MIN, PAUSE_US_MAX)
        self._connect = connect
        self._script = script
        self._deadline_us = deadline_us
        self._grace_us = min(deadline_us // 8, GRACE_US)
        self._loop = loop
        self._now_us = now_us
        self._tally = tally
        self._on_connected = on_connected
        self._on_moved = on_moved
        self._on_away = on_away
        self._link: Link | None = None
        self._waiting: list[Parcel] = []
        self._waiting_count = 0
        self._turns: list[_Turn] = []
        self._is_due = False
        self._is_closed = False
        self._recovery: asyncio.Task[None] | None = None

    # -- from callers --------------------------------------------------------------------------------------------

    def submit(self, parcel: Parcel) -> None:
        """Take operations; their answer comes later, within the deadline."""
        count = len(parcel.operations)
        if self._link is None or not self.breaker.allows or self._waiting_count + count > WAITING_MAX:
            self._tally.refused += count
            self._loop.call_soon(self._give_up, parcel)
            return
        self._waiting.append(parcel)
        self._waiting_count += count
        self._send_soon()

    def _send_soon(self) -> None:
        if not self._is_due and len(self._turns) < TURNS_MAX:
            self._is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Send what waits as one turn."""
        self._is_due = False
        parcels = self._take_waiting()
        if not parcels:
            return
        link = self._link
        if link is None or not self.breaker.allows:
            self._refuse(parcels)
            return
        groups: dict[tuple[int, bool], list[Parcel]] = {}
        for parcel in parcels:
            groups.setdefault((parcel.slot, parcel.is_asking), []).append(parcel)
        turn = _Turn()
        self._turns.append(turn)
        turn.timer = self._loop.call_later((self._deadline_us - self._grace_us) / 1e6, self._expire_soon, turn)
        for (_, is_asking), group in groups.items():
            call = _Call(group, turn)
            turn.calls.append(call)
            turn.open += 1
            keys, blob = encode_call(call.operations)
            call.arguments = (len(keys), *keys, blob, *self._script.arguments)
            self._tally.operations += len(call.operations)
            if is_asking:
                link.send(_ASKING, _ignore)
            self._write(link, call, "EVALSHA", self._script.sha)
        if self._waiting:
            self._send_soon()

    def _take_waiting(self) -> list[Parcel]:
        """Return the oldest of what waits, as much as a turn may carry."""
        count = used = 0
        for parcel in self._waiting:
            count += len(parcel.operations)
            if used and count > OPERATIONS_MAX:
                count -= len(parcel.operations)
                break
            used += 1
        taken = self._waiting[:used]
        del self._waiting[:used]
        self._waiting_count -= count
        return taken

    def _drop_late(self) -> None:
        """Give up what has waited for half a deadline behind a turn that then was not answered: nor will it be."""
        late_us = self._now_us() - self._deadline_us // 2
        late = [parcel for parcel in self._waiting if parcel.at_us < late_us]
        self._waiting = [parcel for parcel in self._waiting if parcel.at_us >= late_us]
        self._waiting_count = sum(len(parcel.operations) for parcel in self._waiting)
        self._refuse(late)

    def _refuse(self, parcels: Sequence[Parcel]) -> None:
        for parcel in parcels:
            self._tally.refused += len(parcel.operations)
            self._give_up(parcel)

    def _write(self, link: Link, call: _Call, command: str, script: str) -> None:
        self._tally.calls += 1
        link.send(pack((command, script, *call.arguments)), partial(self._answer, call))

    # -- from the server -----------------------------------------------------------------------------------------

    def _answer(self, call: _Call, answer: object) -> None:
        if call.is_over:
            return  # late: its callers were told
        if isinstance(answer, bytes):
            self._deliver(call, answer)
        elif isinstance(answer, hiredis.ReplyError):
            self._handle_error(call, str(answer))
        else:
            self._fail(call)

    def _deliver(self, call: _Call, blob: bytes) -> None:
        try:
            replies = decode_replies(blob)
        except msgspec.MsgspecError as error:
            self._tally.fault = f"not our script's reply: {error}"
            self._fail(call)
            return
        if len(replies) != len(call.operations):
            self._fail(call)
            return
        self.breaker.succeed()
        self._end(call)
        known: list[Reply | None] = []
        for reply in replies:
            if isinstance(reply, str):
                self._note_fault(reply)
                known.append(None)
            else:
                known.append(reply)
        start = 0
        for parcel in call.parcels:
            end = start + len(parcel.operations)
            self._tell(parcel, known[start:end])
            start = end

    def _note_fault(self, fault: str) -> None:
        """Count an operation that could not be done."""
        self._tally.faults += 1
        self._tally.fault = fault
        if fault.startswith("READONLY") and self._link is not None:
            self._link.abort()  # no longer the primary: look for it anew

    def _handle_error(self, call: _Call, error: str) -> None:
        """The server did not run the script, and says why."""
        link = self._link
        word, _, rest = error.partition(" ")
        if word == "NOSCRIPT" and link is not None:
            # It has forgotten the script: EVAL tells it again. Nothing was run, so this is no repetition.
            self._write(link, call, "EVAL", self._script.source)
        elif word in ("MOVED", "ASK") and self._on_moved is not None:
            self._end(call)
            for parcel in call.parcels:
                if parcel.is_redirected:
                    self._give_up(parcel)
                else:
                    parcel.is_redirected = True
                    self._on_moved(parcel, word, rest)
        else:
            self._tally.fault = error
            self._fail(call)
            if word in ("READONLY", "NOAUTH") and link is not None:
                link.abort()

    def _fail(self, call: _Call) -> None:
        self._tally.failures += 1
        self.breaker.fail(self._now_us())
        self._end(call)
        for parcel in call.parcels:
            self._give_up(parcel)
        self._recover()

    def _expire_soon(self, turn: _Turn) -> None:
        """The deadline has almost passed. After a stall of ours timers come first: look what has arrived before."""
        turn.timer = self._loop.call_later(self._grace_us / 1e6, self._expire, turn)

    def _expire(self, turn: _Turn) -> None:
        """The deadline has passed."""
        self._drop_late()
        for call in turn.calls:
            if not call.is_over:
                self._fail(call)

    def _end(self, call: _Call) -> None:
        call.is_over = True
        turn = call.turn
        turn.open -= 1
        if turn.open == 0:
            if turn.timer is not None:
                turn.timer.cancel()
            turn.calls = []  # each refers back to it: both are freed now, not at some distant collection
            self._turns.remove(turn)
            if self._waiting:
                self._send_soon()

    def _tell(self, parcel: Parcel, replies: Sequence[Reply | None]) -> None:
        try:
            parcel.answer(replies)
        except Exception as error:  # noqa: BLE001 -- a caller's bug: the others of the call are told all the same
            self._loop.call_exception_handler({"message": "an answer met an exception", "exception": error})

    def _give_up(self, parcel: Parcel) -> None:
        self._tell(parcel, [None] * len(parcel.operations))

    # -- the connection ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect now.

        Raises:
            OSError: Nobody answers, or the server will not do.
        """
        await self._open()

    def start_nowait(self) -> None:
        """Begin to connect; until then every answer is None."""
        self.breaker.trip(self._now_us())
        self._recover()

    def stay_at(self, name: str) -> None:
        """The server is where `name` says: leave any other, whatever is in flight there."""
        if self._link is not None and self._link.name != name:
            self._link.abort()

    def close(self) -> None:
        """Give up everything and disconnect."""
        self._is_closed = True
        self.breaker.trip(self._now_us())
        if self._recovery is not None:
            self._recovery.cancel()
        for turn in list(self._turns):
            self._expire(turn)
        waiting, self._waiting, self._waiting_count = self._waiting, [], 0
        self._refuse(waiting)
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    async def _open(self) -> None:
        link = await self._connect()
        try:
            async with asyncio.timeout(SILENCE_S_MAX):
                info = await link.request("INFO")
        except hiredis.ReplyError as error:
            link.abort()
            raise ConnectionRefusedError(f"INFO is refused: {error}") from None
        except BaseException:
            link.abort()
            raise
        assert isinstance(info, bytes)
        try:
            self._on_connected(read_info(info))
        except BaseException:
            link.abort()
            raise
        if not link.is_open:
            raise ConnectionResetError("the connection ended")
        link.on_lost = partial(self._lose, link)
        self._link = link

    def _lose(self, link: Link) -> None:
        if self._link is link:
            self._link = None
            self.breaker.trip(self._now_us())
            self._recover()

    def _recover(self) -> None:
        """Probe until callers may ask again, if they may not now."""
        if not self._is_closed and self._recovery is None and not self.breaker.allows:
            self._recovery = self._loop.create_task(self._probe_on())
            if self._on_away is not None:
                self._on_away()

    async def _probe_on(self) -> None:
        try:
            while (after_us := self.breaker.probe_after_us(self._now_us())) is not None:
                await asyncio.sleep(after_us / 1e6)
                self.breaker.begin_probe()
                is_well = await self._probe()
                self.breaker.end_probe(self._now_us(), is_well=is_well)
        finally:
            self._recovery = None

    async def _probe(self) -> bool:
        """Return whether the server runs the script in time, connecting first if need be."""
        asked_at_us = self._now_us()
        try:
            if self._link is None:
                await self._open()
                asked_at_us = self._now_us()
            link = self._link
            assert link is not None
            async with asyncio.timeout(SILENCE_S_MAX):
                await link.request("EVALSHA", self._script.sha, 0, _NOTHING, *self._script.arguments)
        except TimeoutError:
            if self._link is not None:
                self._link.abort()
            return False
        except hiredis.ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                self._tally.fault = str(error)
                return False
        except (OSError, hiredis.HiredisError):
            # Expected while the server is away; the breaker's state says so to whoever asks.
            return False
        return self._now_us() - asked_at_us <= self._deadline_us


def _ignore(answer: object) -> None:
    """Nothing follows from the answer."""
