"""Laws of the control link: Hello after every connection, backoff without a head, Drain obeyed, orphans drain."""

import selectors
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from penstock.replica.control import ControlLink, report_once
from penstock.wire.control import ControlDecoder, Drain, Drained, Message, ReplicaHello, encode_message
from tests.unit.replica.fakes import SUM, HandClock

HELLO = ReplicaHello(pid=1, replica="sum:1#0", address="unix:/r", spec=SUM, load_us=5)
ORPHAN_US = 10_000_000
DRAIN_US = 7


class Head:
    """A listening control socket, and what was said to it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.listener.settimeout(5)

        self.links: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, list[Message]]:
        """Take the next connection and what was said on it so far."""
        link, _ = self.listener.accept()
        self.links.append(link)
        return link, ControlDecoder().feed(link.recv(65_536))

    def close(self) -> None:
        """Close everything."""
        for each in (self.listener, *self.links):
            each.close()


class Bench:
    """A link under test with everything around it in hand."""

    def __init__(self, path: str) -> None:
        self.clock = HandClock()
        self.selector = selectors.DefaultSelector()
        self.drains: list[int] = []
        self.link = ControlLink(
            path,
            HELLO,
            selector=self.selector,
            on_drain=self.drains.append,
            drain_us=DRAIN_US,
            orphan_us=ORPHAN_US,
            now_us=self.clock,
        )

    def tick(self) -> int | None:
        """Let the link do what is due; return how long until it wants to be called again."""
        due_us = self.link.tick(self.clock())
        return None if due_us is None else due_us - self.clock()

    def close(self) -> None:
        """Close everything."""
        self.link.close()
        self.selector.close()

    def deliver(self) -> None:
        """Let the link read what has arrived."""
        for key, mask in self.selector.select(5):
            key.data(mask)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ps-") as directory:
        yield str(Path(directory) / "c.sock")


@pytest.fixture
def bench(path: str) -> Iterator[Bench]:
    with closing(Bench(path)) as bench:
        yield bench


@pytest.fixture
def head(path: str) -> Iterator[Head]:
    with closing(Head(path)) as head:
        yield head


def test_hello_at_once_and_again_after_a_loss(head: Head, bench: Bench) -> None:
    """A head hears Hello on each connection; while linked, nothing is scheduled."""
    assert bench.tick() is None
    link, said = head.accept()
    assert said == [HELLO]
    link.close()
    bench.deliver()
    assert not bench.link.is_linked
    bench.clock.now_us += bench.tick() or 0
    assert bench.tick() is None
    assert head.accept()[1] == [HELLO]


def test_backoff_doubles_to_two_seconds(bench: Bench) -> None:
    """Without a head the waits are 0.1, 0.2, 0.4 ... 2 s, and then 2 s for ever."""
    waits = []
    for _ in range(7):
        wait_us = bench.tick()
        assert wait_us is not None
        waits.append(wait_us)
        bench.clock.now_us += wait_us
    assert waits == [100_000, 200_000, 400_000, 800_000, 1_600_000, 2_000_000, 2_000_000]


def test_head_that_hangs_up_is_not_called_in_a_loop(head: Head, bench: Bench) -> None:
    """Connections that do not last count as failures; one that lasted resets the backoff."""
    waits = []
    for lasted_us in (0, 0, 0, 2_000_000):
        assert bench.tick() is None
        head.accept()[0].close()
        bench.clock.now_us += lasted_us
        bench.deliver()
        wait_us = bench.tick()
        assert wait_us is not None
        waits.append(wait_us)
        bench.clock.now_us += wait_us
    assert waits == [100_000, 200_000, 400_000, 100_000]


@pytest.mark.parametrize("pieces", [1, 3])
def test_drain_is_obeyed(head: Head, bench: Bench, pieces: int) -> None:
    """Drain calls back with its time, however its bytes arrive."""
    bench.tick()
    link, _ = head.accept()
    message = encode_message(Drain(drain_us=99))
    for k in range(pieces):
        link.sendall(message[k * len(message) // pieces : (k + 1) * len(message) // pieces])
        bench.deliver()
    assert bench.drains == [99]


def test_nonsense_loses_the_head(head: Head, bench: Bench) -> None:
    """Bytes that are no message close the connection, and it is made again."""
    bench.tick()
    head.accept()[0].sendall(b"\x01\0\0\0\xc1")
    bench.deliver()
    assert not bench.link.is_linked
    assert bench.tick() == 100_000


def test_orphan_drains_at_its_time_and_not_before(bench: Bench) -> None:
    """A replica without a head serves for orphan_us, then drains."""
    bench.clock.now_us += ORPHAN_US - 1
    bench.tick()
    assert bench.drains == []
    bench.clock.now_us += 1
    bench.tick()
    assert bench.drains == [DRAIN_US]


def test_close_says_the_last_word(head: Head, bench: Bench) -> None:
    """Drained reaches a head that is there; without one closing is silent."""
    bench.tick()
    link, _ = head.accept()
    bench.link.close(Drained(pid=1))
    assert ControlDecoder().feed(link.recv(65_536)) == [Drained(pid=1)]
    bench.link.close(Drained(pid=1))


def test_report_once_reaches_a_head_or_nobody(path: str) -> None:
    """The report arrives if somebody listens, and costs nothing but a try if nobody does."""
    report_once(path, Drained(pid=2))
    with closing(Head(path)) as head:
        report_once(path, Drained(pid=3))
        assert head.accept()[1] == [Drained(pid=3)]
