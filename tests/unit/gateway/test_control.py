"""Laws of the gateway's end of the control channel: it is kept, and without a head the gateway answers for itself."""

import pytest

from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.core.statistics import GatewayStatistics
from penstock.gateway.control import QUERY_TIMEOUT_S, RECONNECT_S_MAX, RECONNECT_S_MIN, ControlClient
from penstock.testing.clock import ManualClock
from penstock.testing.loop import ManualLoop
from penstock.testing.transport import MemoryTransport
from penstock.wire.control import (
    ControlDecoder,
    Drain,
    Drained,
    GatewayHello,
    GatewayReport,
    Keys,
    KeysApplied,
    Message,
    ReplicaFault,
    Snapshot,
    StatisticsQuery,
    StatisticsReply,
    encode_message,
)

OWN = GatewayStatistics(connections_total=1)
SUM = GatewayStatistics(connections_total=100)
HELLO = GatewayHello(7, 0, "127.0.0.1:1")


class Channel:
    """A control client and the head's end of its channel, on manual time."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        if refuses:
            self.loop.refuses.add("unix:/c")
        self.snapshots: list[Snapshot] = []
        self.keys: list[KeySnapshot] = []
        self.drains: list[int] = []
        self.answers: list[GatewayStatistics] = []
        self.client = ControlClient(
            "/c",
            HELLO,
            loop=self.loop.as_asyncio,
            now_us=self.clock,
            on_snapshot=self.snapshots.append,
            on_keys=self.keys.append,
            on_drain=self.drains.append,
            own_statistics=lambda: OWN,
        )
        self._decoder = ControlDecoder()

    @property
    def transport(self) -> MemoryTransport:
        """The newest connection."""
        return self.loop.connections[-1][2]

    def read(self) -> list[Message]:
        """Return what the head was told since the last call."""
        return self._decoder.feed(self.transport.take())

    def say(self, *messages: Message) -> None:
        """Let the head say something."""
        self.loop.connections[-1][1].data_received(b"".join(map(encode_message, messages)))

    def lose(self) -> None:
        """Let the head die."""
        self.loop.connections[-1][1].connection_lost(None)


def test_the_gateway_introduces_itself() -> None:
    """After each connection the first word is hello."""
    channel = Channel()
    assert channel.read() == [HELLO]
    channel.lose()
    channel.loop.advance_us(int(RECONNECT_S_MIN * 1e6))
    channel._decoder = ControlDecoder()
    assert channel.read() == [HELLO]


def test_the_heads_words_are_acted_on() -> None:
    """Snapshots and drains reach whom they are for, however they are cut."""
    channel = Channel()
    snapshot = Snapshot(1, ())
    for byte in encode_message(snapshot) + encode_message(Drain(5)):
        channel.loop.connections[-1][1].data_received(bytes([byte]))
    assert (channel.snapshots, channel.drains) == ([snapshot], [5])


def test_keys_are_acknowledged_once_they_are_in_force() -> None:
    """The head hears of the keys of a sequence when they have reached whom they are for, and not before."""
    channel = Channel()
    channel.read()
    snapshot = KeySnapshot(3, (KeyRecord("a" * 12, bytes(32), "acme", "alice"),))
    channel.say(Keys(17, snapshot))
    assert channel.keys == [snapshot]
    assert channel.read() == [KeysApplied(17)]


def test_reports_reach_the_head_if_there_is_one() -> None:
    """A report or a fault is sent while connected, and forgotten while not."""
    channel = Channel()
    channel.read()
    report = GatewayReport(OWN, {"m:1": True}, draining=False)
    channel.client.report(report)
    channel.client.report_fault("unix:/r", "hangs")
    assert channel.read() == [report, ReplicaFault("unix:/r", "hangs")]
    channel.lose()
    channel.client.report(report)
    assert not channel.transport.written


def test_statistics_come_from_the_head() -> None:
    """A query is answered by the head's sum, each by its own reply, once."""
    channel = Channel()
    channel.read()
    channel.client.query_statistics(channel.answers.append)
    channel.client.query_statistics(channel.answers.append)
    first, second = (m.id for m in channel.read() if isinstance(m, StatisticsQuery))
    channel.say(StatisticsReply(second, SUM), StatisticsReply(second, OWN), StatisticsReply(99, OWN))
    assert channel.answers == [SUM]
    channel.say(StatisticsReply(first, SUM))
    assert channel.answers == [SUM, SUM]
    channel.loop.advance_us(int(2 * QUERY_TIMEOUT_S * 1e6))
    assert len(channel.answers) == 2


@pytest.mark.parametrize("how", ["never there", "dies", "silent"])
def test_without_a_head_statistics_are_ones_own(how: str) -> None:
    """If the head is gone, goes, or does not answer in time, a query is answered from the gateway's own counts."""
    channel = Channel(refuses=how == "never there")
    channel.client.query_statistics(channel.answers.append)
    if how == "dies":
        assert not channel.answers
        channel.lose()
    elif how == "silent":
        channel.loop.advance_us(int(QUERY_TIMEOUT_S * 1e6) - 1)
        assert not channel.answers
        channel.loop.advance_us(1)
    assert channel.answers == [OWN]
    channel.loop.advance_us(10_000_000)
    assert channel.answers == [OWN]


def test_the_channel_is_made_again() -> None:
    """A head that is away is tried again with growing pauses up to two seconds, for ever."""
    channel = Channel(refuses=True)
    channel.loop.advance_us(60_000_000)
    assert not channel.loop.connections
    assert channel.client.lost_at_us
    channel.loop.refuses.clear()
    channel.loop.advance_us(int(RECONNECT_S_MAX * 1e6))
    assert len(channel.loop.connections) == 1
    assert not channel.client.lost_at_us


def test_the_loss_of_the_head_is_timed() -> None:
    """While connected nothing is lost; after that it is known since when."""
    channel = Channel()
    assert not channel.client.lost_at_us
    channel.loop.advance_us(5)
    channel.lose()
    assert channel.client.lost_at_us == channel.clock()


def test_a_head_that_only_takes_connections_is_not_called_in_a_loop() -> None:
    """A peer that accepts and closes without a word is tried less and less often, down to once in two seconds."""
    channel = Channel()
    closed = 0
    for _ in range(1_000):
        if len(channel.loop.connections) > closed:
            closed += 1
            channel.lose()
        channel.loop.advance_us(20_000)
    assert 10 <= closed <= 20


def test_nonsense_ends_the_channel() -> None:
    """Bytes that are no message close the channel, and it is made again."""
    channel = Channel()
    channel.loop.connections[-1][1].data_received(b"\x05\x00\x00\x00hello")
    assert channel.transport.is_closing()
    channel.loop.advance_us(int(RECONNECT_S_MAX * 1e6))
    assert len(channel.loop.connections) == 2


def test_goodbye_is_the_last_word() -> None:
    """A gateway that closes says that it has drained, and does not come back."""
    channel = Channel()
    channel.read()
    channel.client.close(Drained(7))
    assert channel.read() == [Drained(7)]
    channel.loop.advance_us(10_000_000)
    assert len(channel.loop.connections) == 1
