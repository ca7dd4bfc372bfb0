"""The script as text: one, known by its digest, and without a door for anybody's clock."""

from hashlib import sha1
from pathlib import Path

import pytest

import penstock.adapters.redis
from penstock.adapters.redis import load_script
from penstock.adapters.redis.scripts import PARTS
from penstock.policy.leasing import LEASE_US_MAX
from penstock.testing.redis_servers import manual_script

FOLDER = Path(penstock.adapters.redis.__file__).parent


def test_every_part_is_in_it_once() -> None:
    """Each `.lua` file is a part, and the script is all of them."""
    assert sorted(PARTS) == sorted(path.stem for path in FOLDER.glob("*.lua"))
    source = load_script().source
    assert all(source.count((FOLDER / f"{part}.lua").read_text()) == 1 for part in PARTS)
    assert f"LEASE_US_MAX = {LEASE_US_MAX}\n" in source


def test_it_is_named_as_redis_names_it() -> None:
    """EVALSHA finds it by the SHA-1 of its text."""
    script = load_script()
    assert script.sha == sha1(script.source.encode(), usedforsecurity=False).hexdigest()


def test_callers_bring_no_time() -> None:
    """In production the only argument is the operations, and the only clock is the server's."""
    script = load_script()
    assert script.arguments == ()
    assert "ARGV[2]" not in script.source
    assert script.source.count("'TIME'") == 1


def test_only_tests_bring_their_own() -> None:
    """The manual clock takes the place of the server's, and is given to each call."""
    script = manual_script(lambda: 7)
    assert script.arguments == (7,)
    assert "'TIME'" not in script.source


@pytest.mark.parametrize("command", ["FUNCTION", "FCALL", "INCREX", "EVAL", "KEYS *", "GETEX", "GETDEL"])
def test_it_uses_no_command_of_one_vendor(command: str) -> None:
    """What it calls is in Redis 6.2, later ones, and Valkey; keys are those it was given."""
    assert f"redis.call('{command}" not in load_script().source
