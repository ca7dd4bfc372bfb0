"""Keys and arguments of a call: each key once, all of them of one slot, and no two things under one key."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.adapters.redis.cluster import slot_of
from penstock.adapters.redis.encoding import companion, decode_replies, encode_call, hold_key, key_of
from penstock.core.authority import (
    Announce,
    Announced,
    Ask,
    Check,
    Checked,
    Close,
    Debit,
    Demand,
    Granted,
    Occupied,
    Occupy,
    Operation,
    Peek,
    Peeked,
    Reply,
    Settle,
    Settled,
    SlotDemand,
)
from penstock.core.limits import Quota

KEY = "penstock:{acme}:per-user:alice"
SOFT, HARD = Quota(1, 10, 1, 5), Quota(1, 10, 1, 5, 2, is_hard=True)
OPERATIONS: list[Operation] = [
    Check((Demand(KEY, SOFT, 1), Demand("penstock:{acme}:x:y", HARD, 2)), (SlotDemand(KEY, 3, 9),), "g", "h", 7),
    Ask(KEY, HARD, "g", "g:1", 5, 9, (Close("g:0", 1),)),
    Settle(KEY, HARD, "h", 3),
    Debit(KEY, SOFT, 3),
    Occupy(KEY, "g", 2, 9),
    Announce(KEY, "g", 9),
    Peek(KEY, HARD),
]


def test_a_plain_check_needs_one_key() -> None:
    """The commonest question carries nothing that it does not need."""
    keys, blob = encode_call([Check((Demand(KEY, SOFT, 1),))])
    assert keys == [KEY]
    assert msgspec.msgpack.decode(blob) == [["C", [[1, [1, 10, 1, 5, 0, False], 1, 0, 0]], [], "", 0]]


def test_each_key_is_named_once() -> None:
    """However many operations touch a key, it is one of KEYS, and each refers to its place."""
    keys, blob = encode_call([Check((Demand(KEY, SOFT, cost),)) for cost in range(3)] + [Debit("other", SOFT, 1)])
    assert keys == [KEY, "other"]
    places = [operation[1] for operation in msgspec.msgpack.decode(blob)]
    assert [place if isinstance(place, int) else place[0][0] for place in places] == [1, 1, 1, 2]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: type(operation).__name__)
@pytest.mark.parametrize("key", [KEY, "no-tag", "p:{a:b}:x:{c}"])
def test_an_operations_keys_share_a_slot(operation: Operation, key: str) -> None:
    """Whatever is kept beside a bucket lies where the bucket lies, with a hash tag or without."""
    if isinstance(operation, Check):
        operation = Check((Demand(key, HARD, 1),), (SlotDemand(key, 3, 9),), "g", "h", 7)
    else:
        operation = msgspec.structs.replace(operation, key=key)
    keys, _ = encode_call([operation])
    assert {slot_of(found) for found in keys} == {slot_of(key)}
    assert key_of(operation) == key


subjects = st.text(st.sampled_from("ab:{}"), max_size=6)


@given(
    st.tuples(subjects, st.sampled_from(["leases", "slots", "present", "hold", ""])),
    st.tuples(subjects, st.sampled_from(["leases", "slots", "present", "hold", ""])),
)
def test_no_name_makes_two_things_one_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    """However users are called, another bucket or another kind is another key."""
    keys = [
        companion(key, kind) if kind else key
        for subject, kind in (one, other)
        for key in (f"p:{{acme}}:per-user:{subject}",)
    ]
    assert (keys[0] == keys[1]) is (one == other)
    assert hold_key(KEY, "1") != companion(KEY, "hold")


@pytest.mark.parametrize(
    "reply",
    [
        Checked(-1, 0, (1, 2), (), 5),
        Granted(1, 2, 3, 4, 5),
        Settled(-1, 2, 5),
        Occupied(1, 5),
        Announced(1, "e", 5),
        Peeked(1, 2, 3, 4, 5),
        "WRONGTYPE",
    ],
)
def test_replies_are_told_apart(reply: Reply | str) -> None:
    """Each reply is read as what it was written as; text is what went wrong."""
    assert decode_replies(msgspec.msgpack.encode([reply])) == [reply]


@pytest.mark.parametrize(
    "blob", [b"", b"\xc1", b"\x91\x91\xa1Z", msgspec.msgpack.encode([1]), msgspec.msgpack.encode({})]
)
def test_anything_else_is_no_reply(blob: bytes) -> None:
    """What the script does not say is an error, never a wrong record."""
    with pytest.raises(msgspec.MsgspecError):
        decode_replies(blob)
