"""Which Redis a drill uses, and how one that is not its own is told apart and put back as it was."""

import pytest

from penstock.core.errors import ConfigError
from penstock.load.drills.foreign_redis import has_sentinels, is_local, plan_restart
from penstock.load.drills.limit_stores import OWN, check_store, describe_store

SECRET = "redis://user:s3cret@10.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379", True),
        ("redis://localhost", True),
        ("redis://user:pw@[::1]:6379/0", True),
        ("unix:///run/redis.sock", True),
        ("redis+sentinel://127.0.0.1:1,127.0.0.2:2/main", True),
        ("redis+sentinel://127.0.0.1:1,10.0.0.2:2/main", False),
        ("redis://10.0.0.1", False),
        ("redis://redis.example.org", False),
    ],
)
def test_this_machine_is_told_by_its_address(url: str, expected: bool) -> None:
    """A name other than localhost may be anywhere."""
    assert is_local(url) is expected
    assert has_sentinels(url) is url.startswith("redis+sentinel:")


@pytest.mark.parametrize("redis", ["", OWN, "redis://127.0.0.1:6379", "unix:///run/redis.sock"])
def test_a_server_of_this_machine_may_be_restarted(redis: str) -> None:
    """Our own, and one on this machine that was named for it."""
    check_store(redis, "restart-redis")


@pytest.mark.parametrize("redis", [SECRET, "rediss://127.0.0.1", "redis+cluster://127.0.0.1:1"])
def test_no_other_server_is_restarted(redis: str) -> None:
    """The message names the option, and no password."""
    with pytest.raises(ConfigError, match="--redis: expected one server on this machine") as caught:
        check_store(redis, "restart-redis")
    assert "s3cret" not in caught.value.message
    check_store(redis, "kill")


@pytest.mark.parametrize(
    ("redis", "fault", "words"),
    [
        ("", "", "counted by the head"),
        (OWN, "", "a Redis of the drill's own"),
        (OWN, "failover", "with a replica and three sentinels of the drill's own"),
        (SECRET, "kill", "the Redis at the given redis URL"),
        (SECRET, "failover", "of the drill's own, as the given one has no sentinels"),
        ("redis+sentinel://h:1/main", "failover", "the Redis at the given redis+sentinel URL"),
    ],
)
def test_a_report_says_who_counts(redis: str, fault: str, words: str) -> None:
    """A server without sentinels is never taken away: the drill then brings its own, and says so; no password shows."""
    said = describe_store(redis, fault)
    assert words in said
    assert "s3cret" not in said


def test_a_server_without_a_file_is_the_same_again() -> None:
    """What it was started with is written down, lists as lists, the rest quoted; what it has not set is left out."""
    settings = {
        "port": "7000",
        "bind": "127.0.0.1 -::1",
        "save": "",
        "dir": '/srv/a "b"',
        "requirepass": "",
        "hz": "10",
    }
    assert plan_restart(settings).splitlines() == [
        'port "7000"',
        "bind 127.0.0.1 -::1",
        'save ""',
        'dir "/srv/a \\"b\\""',
    ]
