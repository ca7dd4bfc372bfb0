"""Slots: which is a key's, and who has which."""

import pytest
from redis.crc import key_slot

from penstock.adapters.redis.cluster import read_shards, slot_of
from penstock.adapters.redis.target import Address

ASKED = Address("10.0.0.1", 7000)


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "p:{acme}:x:y",
        "{a}{b}",
        "{}x",
        "x{}",
        "{",
        "}",
        "a}b{c}",
        "{{a}}",
        "é:{ü}:x",
        "{a",
        "penstock:{global}:a:b",
    ],
)
def test_a_slot_is_what_the_specification_says(key: str) -> None:
    """The first hash tag that is not empty decides, else the whole key."""
    assert slot_of(key) == key_slot(key.encode())


def test_each_primary_has_its_ranges() -> None:
    """Replicas have none; a server that does not know its name is the one that was asked."""
    reply = [
        [0, 99, [b"10.0.0.2", 7001, b"id", []], [b"10.0.0.9", 7009, b"id", []]],
        [100, 199, [b"", 7000, b"id"]],
        [200, 16_383, [b"10.0.0.2", 7001, b"id", []]],
    ]
    assert read_shards(reply, ASKED) == {
        Address("10.0.0.2", 7001): [range(100), range(200, 16_384)],
        Address("10.0.0.1", 7000): [range(100, 200)],
    }
    assert list(read_shards([[0, 1, [None, 7002, b"id"]]], ASKED)) == [Address("10.0.0.1", 7002)]


@pytest.mark.parametrize(
    "reply", [None, 5, [], [[0, 99]], [[5, 1, [b"h", 1]]], [[0, 16_384, [b"h", 1]]], [[0, 1, ["h", b"1"]]], [b"x"]]
)
def test_anything_else_is_no_map(reply: object) -> None:
    """A reply of another form is an error that is tried again, never a map with holes."""
    with pytest.raises(ConnectionError, match="CLUSTER SLOTS"):
        read_shards(reply, ASKED)
