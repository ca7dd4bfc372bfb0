"""How operations travel: together, in order, in time, and never twice. The other end is a server under our thumb."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.redis import RedisAuthority
from penstock.adapters.redis.node import OPERATIONS_MAX, TURNS_MAX, WAITING_MAX
from penstock.core.authority import Debit, Reply, Settled
from penstock.core.limits import Quota
from penstock.policy.breaking import BreakerState
from tests.unit.adapters.redis.fake_server import FakeServer, bulk, settled

QUOTA = Quota(1, 10, 1, 5)
# Longer than any test that waits for none of it, and short enough to be waited for.
LONG_US, SHORT_US = 60_000_000, 20_000


class Desk:
    """An authority, and what its callers were told.

    Attributes:
        told: Of each caller, by its number, the tokens of the replies it got; None where there was none.
    """

    def __init__(self, authority: RedisAuthority) -> None:
        self.authority = authority
        self.told: dict[int, list[int | None]] = {}
        self._callers = 0

    def ask(self, *tokens: int) -> int:
        """Submit one debit of so many tokens each; return the caller's number."""
        self._callers += 1
        number = self._callers

        def tell(replies: Sequence[Reply | None]) -> None:
            assert number not in self.told, "told twice"
            self.told[number] = [-reply.given_back if isinstance(reply, Settled) else None for reply in replies]

        self.authority.submit([Debit("p:{a}:x:u", QUOTA, count) for count in tokens], tell)
        return number

    async def wait_told(self, *numbers: int) -> list[list[int | None]]:
        """Return what callers were told, once they were."""
        await turn_until(lambda: all(number in self.told for number in numbers))
        return [self.told[number] for number in numbers]


async def turn_until(is_so: Callable[[], object]) -> None:
    """Let the loop turn until something is so."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0)


def run(
    path: Path,
    answer: Callable[[list[Any]], bytes | None],
    story: Callable[[FakeServer, Desk], Awaitable[None]],
    deadline_us: int = LONG_US,
) -> None:
    """Run a story with a server and an authority that is connected to it."""

    async def main() -> None:
        async with FakeServer(str(path / "s"), answer) as server:
            authority = RedisAuthority(server.url, deadline_us=deadline_us)
            await authority.start()
            try:
                await story(server, Desk(authority))
            finally:
                authority.close()
                await asyncio.sleep(0)

    asyncio.run(main())


def test_callers_of_one_turn_share_a_call(tmp_path: Path) -> None:
    """Their operations go in one command, in order, and each gets its own replies."""

    async def story(server: FakeServer, desk: Desk) -> None:
        numbers = [desk.ask(1, 2), desk.ask(3), desk.ask(4, 5, 6)]
        assert await desk.wait_told(*numbers) == [[1, 2], [3], [4, 5, 6]]
        assert len(server.calls) == 1

    run(tmp_path, settled, story)


def test_what_comes_meanwhile_forms_the_next_call(tmp_path: Path) -> None:
    """With as many turns in flight as may be the rest waits, and leaves as one when an answer comes."""

    async def story(server: FakeServer, desk: Desk) -> None:
        first: list[int] = []
        while len(server.calls) < TURNS_MAX:
            sent = len(server.calls)
            first.append(desk.ask(len(first)))
            while len(server.calls) == sent:
                await asyncio.sleep(0)
        waiting = [desk.ask(100 + count) for count in range(10)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(server.calls) == TURNS_MAX
        server.answer = settled
        for words in server.calls[:TURNS_MAX]:
            server.say(settled(words))
        assert await desk.wait_told(*first, *waiting) == [[n] for n in (*range(TURNS_MAX), *range(100, 110))]
        assert len(server.calls) == TURNS_MAX + 1

    run(tmp_path, lambda _: None, story)


def test_a_call_carries_so_many_and_no_more(tmp_path: Path) -> None:
    """What is more than a call may carry goes in several, none lost; far too much is given up at once."""

    async def story(server: FakeServer, desk: Desk) -> None:
        numbers = [desk.ask(*range(100)) for _ in range(12)]
        assert await desk.wait_told(*numbers) == [list(range(100))] * 12
        carried = [len(words) for words in server.calls]
        assert len(carried) >= 1_200 // OPERATIONS_MAX
        sound = desk.ask(*([1] * (WAITING_MAX - 1)))
        excess = desk.ask(2, 3)
        assert await desk.wait_told(excess) == [[None, None]]
        await desk.wait_told(sound)
        assert desk.authority.statistics().refused == 2

    run(tmp_path, settled, story)


def test_calls_that_are_over_leave_no_garbage(tmp_path: Path) -> None:
    """Nothing of a call waits for a collection: at thousands a second each would stop the gateway for long."""

    async def story(server: FakeServer, desk: Desk) -> None:
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for count in range(10):
                assert await desk.wait_told(desk.ask(count)) == [[count]]
            gc.collect()
            left = [thing for thing in gc.garbage if type(thing).__module__.startswith("penstock.")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert left == []

    run(tmp_path, settled, story)


def test_a_forgotten_script_is_said_again_in_the_same_call(tmp_path: Path) -> None:
    """NOSCRIPT is answered with the source, and the caller notices nothing."""

    def answer(words: list[Any]) -> bytes:
        return b"-NOSCRIPT No matching script.\r\n" if words[0] == b"EVALSHA" else settled(words)

    async def story(server: FakeServer, desk: Desk) -> None:
        assert await desk.wait_told(desk.ask(7)) == [[7]]
        assert [words[0] for words in server.calls] == [b"EVALSHA", b"EVAL"]
        assert server.calls[0][2:] == server.calls[1][2:]
        assert desk.authority.statistics().failures == 0

    run(tmp_path, answer, story)


def test_a_call_that_may_have_been_done_is_not_sent_again(tmp_path: Path) -> None:
    """If the connection ends before the answer the caller has none, and the next connection hears nothing of it."""

    async def story(server: FakeServer, desk: Desk) -> None:
        number = desk.ask(7)
        await turn_until(lambda: server.calls)
        server.hang_up()
        assert await desk.wait_told(number) == [[None]]
        server.answer = settled
        await turn_until(lambda: desk.authority.statistics().state is BreakerState.TRIAL)
        assert await desk.wait_told(desk.ask(8)) == [[8]]
        assert len(server.calls) == 2
        assert desk.authority.statistics().state is BreakerState.CLOSED

    run(tmp_path, lambda _: None, story)


def test_a_late_answer_meets_nobody(tmp_path: Path) -> None:
    """Who was told that no answer came is told nothing more, the next has its own, and the connection is the same."""

    async def story(server: FakeServer, desk: Desk) -> None:
        before = server.connections
        assert await desk.wait_told(desk.ask(7)) == [[None]]
        server.answer = settled
        server.say(settled(server.calls[0]))
        assert await desk.wait_told(desk.ask(8)) == [[8]]
        assert server.connections == before
        assert desk.authority.statistics().failures == 1

    run(tmp_path, lambda _: None, story, SHORT_US)


def test_silence_opens_the_breaker(tmp_path: Path) -> None:
    """After a few calls without an answer nobody is sent for until a probe is answered in time."""

    async def story(server: FakeServer, desk: Desk) -> None:
        while desk.authority.statistics().state is BreakerState.CLOSED:
            await desk.wait_told(desk.ask(7))
        sent = len(server.calls)
        assert await desk.wait_told(desk.ask(8), desk.ask(9)) == [[None], [None]]
        assert len(server.calls) == sent

    run(tmp_path, lambda _: None, story, SHORT_US)


@pytest.mark.parametrize(
    "answer",
    [b"+OK\r\n", b":5\r\n", b"$-1\r\n", b"*0\r\n", bulk(b"\x90"), bulk(b"\xc1"), bulk(b"\x91\x01"), b"-ERR no\r\n"],
)
def test_an_answer_that_is_none_is_a_failure(tmp_path: Path, answer: bytes) -> None:
    """Whatever else comes back is no reply, and no caller is told anything but that."""

    async def story(server: FakeServer, desk: Desk) -> None:
        assert await desk.wait_told(desk.ask(7)) == [[None]]
        assert desk.authority.statistics().failures == 1

    run(tmp_path, lambda _: answer, story)


@pytest.mark.parametrize("noise", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+unasked\r\n+more\r\n"])
def test_who_does_not_speak_redis_is_left(tmp_path: Path, noise: bytes) -> None:
    """A connection on which something comes that was not asked for is ended, and made anew."""

    async def story(server: FakeServer, desk: Desk) -> None:
        before = server.connections
        server.say(noise)
        await turn_until(lambda: server.connections > before)

    run(tmp_path, settled, story)


def test_a_former_primary_is_left(tmp_path: Path) -> None:
    """A server that may not write any more, as one operation learns, is looked for anew; the caller has no answer."""

    def answer(words: list[Any]) -> bytes:
        return bulk(b"\x91\xd9\x20READONLY You can't write against")

    async def story(server: FakeServer, desk: Desk) -> None:
        before = server.connections
        assert await desk.wait_told(desk.ask(7)) == [[None]]
        await turn_until(lambda: server.connections > before)
        assert desk.authority.statistics().faults == 1

    run(tmp_path, answer, story)
