"""The state directory: one head at a time, records whole or absent, paths that sockets can have."""

import os
from pathlib import Path

import pytest

from penstock.core.errors import ConfigError
from penstock.core.models import ModelSpec
from penstock.core.profiles import CostProfile
from penstock.core.tensors import TensorSpec
from penstock.fleet.state_directory import ChildRecord, FleetRecord, StateDirectory, has_head, load_record

SPEC = ModelSpec("m", (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
PROFILE = CostProfile((1, 8), (100, 450))
RECORD = FleetRecord(
    "boot", "127.0.0.1:1", 7, (ChildRecord("replica", "m#0", 12, 34, "unix:/r", "abc", SPEC, 5, 6, True, PROFILE),)
)


def test_a_directory_has_one_head(tmp_path: Path) -> None:
    """While one holds the directory another is refused and told the holder's pid; afterwards it gets it."""
    first = StateDirectory(tmp_path / "new" / "state")
    with pytest.raises(ConfigError, match=rf"expected no other head, got one with pid {os.getpid()}"):
        StateDirectory(tmp_path / "new" / "state")
    first.close(is_empty=True)
    StateDirectory(tmp_path / "new" / "state").close(is_empty=True)


def test_a_record_round_trips_within_a_boot(tmp_path: Path) -> None:
    """What was saved is loaded, specs included, on the same boot and on no other."""
    directory = StateDirectory(tmp_path)
    assert directory.load("boot") is None
    directory.save(RECORD)
    assert directory.load("boot") == RECORD
    assert directory.load("another boot") is None
    directory.close(is_empty=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot_id": "boot"}'])
def test_a_broken_record_is_no_record(tmp_path: Path, text: str) -> None:
    """A file that cannot be read as a record counts as none."""
    directory = StateDirectory(tmp_path)
    (tmp_path / "fleet.json").write_text(text)
    assert directory.load("boot") is None
    directory.close(is_empty=False)


def test_closing_empty_leaves_nothing_to_adopt(tmp_path: Path) -> None:
    """With all children gone the record and their sockets go too; with children left they stay."""
    for is_empty in (False, True):
        directory = StateDirectory(tmp_path)
        directory.save(RECORD)
        directory.replica_socket(3).touch()
        directory.close(is_empty=is_empty)
        left = {p.name for p in tmp_path.iterdir()} - {"head.lock"}
        assert left == (set() if is_empty else {"fleet.json", "r-3.sock"})


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    """The longest directory that is accepted has room for the longest socket name; one byte more is refused."""
    room = 107 - len("/r-9999999.sock")
    fits = tmp_path / ("d" * (room - len(os.fsencode(tmp_path)) - 1))
    StateDirectory(fits).close(is_empty=True)
    with pytest.raises(ConfigError, match=rf"at most {room} bytes.* got {room + 1}; .*--state"):
        StateDirectory(Path(f"{fits}d"))


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """The message says why the system refused."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected to write there, got: Not a directory"):
        StateDirectory(tmp_path / "file" / "state")


def test_anybody_may_ask_who_is_there(tmp_path: Path) -> None:
    """Whether there is a head, and what the last one wrote, is told without the lock, also where nothing is."""
    path = tmp_path / "state"
    assert not has_head(path)
    assert load_record(path, "boot") is None
    directory = StateDirectory(path)
    directory.save(RECORD)
    assert has_head(path)
    assert load_record(path, "boot") == RECORD
    directory.close(is_empty=False)
    assert not has_head(path)
    assert load_record(path, "boot") == RECORD
