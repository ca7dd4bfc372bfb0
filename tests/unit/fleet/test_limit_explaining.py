"""What is said of a user's limits: all of them, each once, with what the authority has, and nothing is taken."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.core.authority import Ask, Check, Demand, Operation, Reply, SlotDemand
from penstock.core.errors import CallerError, NotFound
from penstock.core.keys import KeyRecord
from penstock.core.limits import ConcurrencyLimit, Cost, Level, LimitSettings, Principal, RateLimit
from penstock.fleet.limit_explaining import Circumstances, explain_limits
from penstock.policy.limit_book import LimitBook

S = 1_000_000
PER_USER = RateLimit("per-user", Level.USER, 10, S, 20)
PER_TENANT = RateLimit("per-tenant", Level.TENANT, 100, 60 * S, 100, cost=Cost.ROWS)
PER_MODEL = RateLimit("per-model", Level.MODEL, 1_000, S, 1_000, models=("digits",))
EVERYBODY = RateLimit("everybody", Level.GLOBAL, 100, S, 100, split=4)
PRO = RateLimit("pro", Level.USER, 99, S, 99)
SLOTS = ConcurrencyLimit("slots", Level.TENANT, 3)
OWN = RateLimit("key-a1", Level.USER, 5, S, 5)
SETTINGS = LimitSettings(limits=(PER_USER, PER_TENANT, PER_MODEL, EVERYBODY, PRO, SLOTS), tiers=(("gold", ("pro",)),))
ALICE = (
    Principal(key_id="a1", tenant="acme", user="alice", limits=(OWN,)),
    Principal(key_id="a2", tenant="acme", user="alice", tier="gold", models=("digits",)),
    Principal(key_id="a3", tenant="other", user="alice"),
)
BOB = Principal(key_id="b1", tenant="acme", user="bob")


class World:
    """A head with a book."""

    def __init__(self, *principals: Principal, requires_key: bool = False) -> None:
        self.book = LimitBook("e", 1)
        self.now_us = 100 * S
        self.is_down = False
        self.circumstances = Circumstances(
            SETTINGS,
            tuple(KeyRecord.from_principal(principal, b"") for principal in principals),
            ("digits", "ranker"),
            requires_key,
        )

    async def ask(self, operations: Sequence[Operation]) -> Sequence[Reply | None]:
        return [None if self.is_down else self.book.run(operation, self.now_us) for operation in operations]

    def explain(self, user: str, tenant: str = "", model: str = "") -> dict[str, Any]:
        return asyncio.run(explain_limits(self.circumstances, self.ask, user=user, tenant=tenant, model=model))


def test_every_limit_is_told_once_by_level() -> None:
    """Limits of the user, the tenant, the model and everybody, own ones and those of a tier, with whom they are for."""
    document = World(*ALICE, BOB).explain("alice", "acme")
    assert [(x["level"], x["name"], x["subject"], x["models"], x["keys"]) for x in document["limits"]] == [
        ("user", "key-a1", "a1", ["digits", "ranker"], ["a1"]),
        ("user", "per-user", "alice", ["digits", "ranker"], ["a1", "a2"]),
        ("user", "pro", "alice", ["digits"], ["a2"]),
        ("tenant", "per-tenant", "acme", ["digits", "ranker"], ["a1", "a2"]),
        ("tenant", "slots", "acme", ["digits", "ranker"], ["a1", "a2"]),
        ("model", "per-model", "digits", ["digits"], ["a1", "a2"]),
        ("global", "everybody", "all", ["digits", "ranker"], ["a1", "a2"]),
    ]
    assert document["callers"] == [
        {"key": "a1", "tenant": "acme", "user": "alice", "tier": ""},
        {"key": "a2", "tenant": "acme", "user": "alice", "tier": "gold"},
    ]


def test_only_what_a_request_for_the_model_is_under() -> None:
    """With a model named, limits of other models and keys that may not use it are left out."""
    document = World(*ALICE).explain("alice", "acme", "ranker")
    assert [x["name"] for x in document["limits"]] == ["key-a1", "per-user", "per-tenant", "slots", "everybody"]
    assert all(x["models"] == ["ranker"] and x["keys"] == ["a1"] for x in document["limits"])


def test_what_is_left_is_what_the_authority_has() -> None:
    """Left, lent, and full again when; of slots those that are free; of a split limit the sum of its parts."""
    world = World(*ALICE)
    for operation in (
        Check((Demand("penstock:{acme}:per-user:alice", PER_USER.quota(), 5),)),
        Ask("penstock:{acme}:per-user:alice", PER_USER.quota(), "g", "g:1", 4, S),
        Check((), (SlotDemand("penstock:{acme}:slots:acme", 3, S),), holder="g"),
        Check((Demand("penstock:{global#2}:everybody:all", EVERYBODY.quota(), 7),)),
    ):
        world.book.run(operation, world.now_us)
    before = len(world.book)
    told = {x["name"]: x for x in world.explain("alice", "acme")["limits"]}
    assert {k: told["per-user"][k] for k in ("rule", "size", "left", "lent", "leases", "full_after_s")} == {
        "rule": "10/s burst 20",
        "size": 20,
        "left": 11,
        "lent": 4,
        "leases": 1,
        "full_after_s": 1.9,
    }
    assert (told["slots"]["size"], told["slots"]["left"], told["slots"]["full_after_s"]) == (3, 2, None)
    assert (told["everybody"]["size"], told["everybody"]["left"]) == (100, 93)
    assert (told["per-tenant"]["left"], told["per-tenant"]["full_after_s"]) == (100, 0.0)
    again = {x["name"]: x for x in world.explain("alice", "acme")["limits"]}
    assert again == told, "looking takes nothing"
    assert len(world.book) == before


def test_the_one_with_least_left_refuses_first() -> None:
    """What is lent counts as left: gateways still admit by it. Of two the one that takes longer to fill is named."""
    world = World(BOB)
    assert world.explain("bob")["refuses_first"] == {"name": "slots", "level": "tenant", "subject": "acme"}
    world.book.run(Check((Demand("penstock:{acme}:per-user:bob", PER_USER.quota(), 18),)), world.now_us)
    assert world.explain("bob")["refuses_first"]["name"] == "per-user"
    world.book.run(Check((Demand("penstock:{acme}:per-tenant:acme", PER_TENANT.quota(), 98),)), world.now_us)
    assert world.explain("bob")["refuses_first"]["name"] == "per-tenant"


def test_what_is_lent_is_not_gone() -> None:
    """A bucket that is lent out whole is not the first to refuse: its tokens are in gateways' hands."""
    world = World(BOB)
    wide = RateLimit("wide", Level.USER, 1, S, 1_000)
    tight = RateLimit("tight", Level.TENANT, 1, S, 10)
    world.circumstances = Circumstances(
        LimitSettings(limits=(wide, tight)), world.circumstances.keys, ("digits",), requires_key=False
    )
    key = "penstock:{acme}:wide:bob"
    for number in range(60):
        world.book.run(Ask(key, wide.quota(), f"g{number}", f"g{number}:1", 1_000, 2 * S), world.now_us)
    told = {x["name"]: x for x in world.explain("bob")["limits"]}
    assert told["wide"]["lent"] > 400
    world.book.run(Check((Demand(key, wide.quota(), told["wide"]["left"]),)), world.now_us)
    document = world.explain("bob")
    assert document["limits"][0]["left"] == 0
    assert document["refuses_first"]["name"] == "tight"


def test_an_authority_that_does_not_answer_leaves_blanks() -> None:
    """The limits are told all the same; what is left of them is not known."""
    world = World(BOB)
    world.is_down = True
    document = world.explain("bob")
    assert all(x["left"] is None and x["full_after_s"] is None for x in document["limits"])
    assert document["refuses_first"] is None


def test_callers_without_a_key_are_anonymous() -> None:
    """Where keys are not required, `anonymous` is under what callers without one are under."""
    told = World(BOB).explain("anonymous")["limits"]
    assert [x["subject"] for x in told] == ["anonymous", "-", "-", "digits", "all"]
    assert all(x["keys"] == [] for x in told)
    with pytest.raises(NotFound, match=r"user: expected one who has a key \(bob\), got 'anonymous'"):
        World(BOB, requires_key=True).explain("anonymous")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("",), "user: expected a name, got none"),
        (("carol",), "user: expected one who has a key (alice, bob), got 'carol'"),
        (("bob", "other"), "user: expected one who has a key of tenant 'other' (alice), got 'bob'"),
        (("bob", "", "digit"), "model: expected one that the server has (digits, ranker), got 'digit'"),
    ],
)
def test_who_or_what_does_not_exist_is_said(words: tuple[str, ...], expected: str) -> None:
    """The message says what was expected, with some of what there is."""
    with pytest.raises(CallerError) as caught:
        World(*ALICE, BOB).explain(*words)
    assert caught.value.message == expected
    with pytest.raises(NotFound, match="there is none"):
        World().explain("alice")
