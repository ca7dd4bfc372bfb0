"""The decision log's file: whole lines, soon, in few writes, and never at the cost of a request."""

from collections.abc import Callable
from pathlib import Path

from penstock.gateway.decision_log import FLUSH_US, LINES_MAX, DecisionLog


class Desk:
    """A log with a timer that the test fires."""

    def __init__(self, path: Path) -> None:
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.warnings: list[str] = []
        self.log = DecisionLog(
            path, call_later=lambda us, call: self.timers.append((us, call)), warn=self.warnings.append
        )

    def fire(self) -> None:
        for _, call in self.timers[:]:
            self.timers.pop(0)
            call()


def test_lines_are_there_after_the_time_allowed(tmp_path: Path) -> None:
    """Lines written in one moment are appended together, 20 ms later, by one timer."""
    path = tmp_path / "log"
    desk = Desk(path)
    for number in range(3):
        desk.log.write(b"%d\n" % number)
    assert [us for us, _ in desk.timers] == [FLUSH_US]
    assert not path.exists()
    desk.fire()
    assert path.read_bytes() == b"0\n1\n2\n"
    assert not desk.timers, "no timer while there is nothing to write"
    desk.log.write(b"3\n")
    assert len(desk.timers) == 1


def test_what_is_gathered_is_bounded(tmp_path: Path) -> None:
    """Of very many lines none waits for the timer for long: memory does not grow with the rate."""
    path = tmp_path / "log"
    desk = Desk(path)
    for _ in range(LINES_MAX * 3 + 1):
        desk.log.write(b"x\n")
    assert path.stat().st_size == LINES_MAX * 3 * 2
    assert len(desk.timers) == 1
    desk.log.close()
    assert path.stat().st_size == (LINES_MAX * 3 + 1) * 2


def test_several_gateways_share_a_file(tmp_path: Path) -> None:
    """Each appends at the end as it is then, so nothing of another's is overwritten."""
    path = tmp_path / "log"
    desks = [Desk(path), Desk(path)]
    for desk in desks * 2:
        desk.log.write(b"line\n")
        desk.log.flush()
    assert path.read_bytes() == b"line\n" * 4


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """The file tells who asked for what: nobody else may open it."""
    desk = Desk(tmp_path / "log")
    desk.log.write(b"x\n")
    desk.log.close()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_a_warning_and_no_more() -> None:
    """Lines that cannot be written are dropped, and that is said once, with the reason."""
    desk = Desk(Path("/dev/full"))
    for _ in range(3):
        desk.log.write(b"x\n")
        desk.log.flush()
    (warning,) = desk.warnings
    assert warning == "decision log /dev/full: No space left on device; decisions are lost until it can be written"
    assert not desk.log._lines


def test_a_folder_that_comes_back_is_written_to_again(tmp_path: Path) -> None:
    """A file that cannot be made is tried again with the next lines."""
    path = tmp_path / "sub" / "log"
    desk = Desk(path)
    desk.log.write(b"lost\n")
    desk.log.flush()
    assert "No such file or directory" in desk.warnings[0]
    path.parent.mkdir()
    desk.log.write(b"kept\n")
    desk.log.flush()
    assert path.read_bytes() == b"kept\n"


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    """After a write that ended within a line the next begins on a line of its own."""
    path = tmp_path / "log"
    desk = Desk(path)
    desk.log.write(b"half a l")
    desk.log.flush()
    desk.log.write(b"whole\n")
    desk.log.close()
    assert path.read_bytes() == b"half a l\nwhole\n"
