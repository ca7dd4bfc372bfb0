"""What gateways ask of whoever counts (the head, or Redis) and what it answers. Each operation is atomic.

An authority keeps, by key: buckets (`policy/limiting.py`), the tokens it has lent (`policy/leasing.py`), charges that
are still to be settled, and slots in use. Times are its own clock's, µs. Not here: transport (`wire/control.py`,
`adapters/redis/`), the arithmetic (`policy/limit_book.py` and, held equal to it, the Lua scripts).
"""

import msgspec

from penstock.core.limits import Quota

__all__ = [
    "Announce",
    "Announced",
    "Ask",
    "Check",
    "Checked",
    "Close",
    "Debit",
    "Demand",
    "Granted",
    "Occupied",
    "Occupy",
    "Operation",
    "Peek",
    "Peeked",
    "Reply",
    "Settle",
    "Settled",
    "SlotDemand",
]


class Demand(msgspec.Struct, frozen=True, array_like=True):
    """So many tokens of one bucket.

    Attributes:
        cost: 0 .. burst; what costs more never reaches an authority.
        is_held: Whether it may be settled, if its check has a `hold`.
    """

    key: str
    quota: Quota
    cost: int
    is_held: bool = True


class SlotDemand(msgspec.Struct, frozen=True, array_like=True):
    """One of `slots` places under `key`, on the account of the asking gateway."""

    key: str
    slots: int
    ttl_us: int


class Check(msgspec.Struct, frozen=True, array_like=True, tag="C"):
    """Take all demands, or none: a request that one limit rejects is never charged by another.

    Attributes:
        demands: Distinct keys.
        slots: Distinct keys.
        holder: The asking gateway, unique over its life.
        hold: Unique id under which the charge may be settled once; '' if its cost is final.
        hold_us: How long it may be settled, µs; a charge that is not settled by then stays as it is.
    """

    demands: tuple[Demand, ...]
    slots: tuple[SlotDemand, ...] = ()
    holder: str = ""
    hold: str = ""
    hold_us: int = 0


class Checked(msgspec.Struct, frozen=True, array_like=True, tag="C"):
    """Answer to `Check`.

    Attributes:
        denied: Index of what stood in the way, demands first, then slots; of several, the one to wait longest for.
            -1: admitted.
        retry_after_us: Waiting less is useless; 0 if admitted or if it is a slot that is missing.
        remaining: Tokens, after the decision, of each demand's bucket.
        taken: Slots, after the decision, in use under each slot demand's key.
        now_us: The authority's clock.
    """

    denied: int
    retry_after_us: int
    remaining: tuple[int, ...]
    taken: tuple[int, ...]
    now_us: int


class Close(msgspec.Struct, frozen=True, array_like=True):
    """A lease is given up, with so many of its tokens unused."""

    id: str
    unused: int


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="A"):
    """Lend up to `want` tokens of a bucket for `ttl_us`, after taking back those in `closes`.

    Attributes:
        id: Of the new lease: unique, never used again.
    """

    key: str
    quota: Quota
    holder: str
    id: str
    want: int
    ttl_us: int
    closes: tuple[Close, ...] = ()


class Granted(msgspec.Struct, frozen=True, array_like=True, tag="A"):
    """Answer to `Ask`.

    Attributes:
        tokens: Lent, 0 .. want. The borrower's deadline counts from before it asked.
        remaining: Tokens left in the bucket.
        leased: Tokens lent to all gateways together.
        retry_after_us: When `tokens` is 0: the earliest that one token may be there.
        now_us: The authority's clock.
    """

    tokens: int
    remaining: int
    leased: int
    retry_after_us: int
    now_us: int


class Settle(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """The cost of a held charge is known: correct the bucket to it. Only the first for a `hold` has an effect."""

    key: str
    quota: Quota
    hold: str
    actual: int


class Debit(msgspec.Struct, frozen=True, array_like=True, tag="D"):
    """Tokens that were admitted without asking: fill the bucket by them, at most to its rim."""

    key: str
    quota: Quota
    tokens: int


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """Answer to `Settle` and `Debit`: tokens by which the bucket's room has changed, up when some were given back."""

    given_back: int
    remaining: int
    now_us: int


class Occupy(msgspec.Struct, frozen=True, array_like=True, tag="O"):
    """So many slots under `key` are in use by `holder` now, whatever was said before. Repeat it within `ttl_us`."""

    key: str
    holder: str
    count: int
    ttl_us: int


class Occupied(msgspec.Struct, frozen=True, array_like=True, tag="O"):
    """Answer to `Occupy`: slots in use by all."""

    taken: int
    now_us: int


class Announce(msgspec.Struct, frozen=True, array_like=True, tag="N"):
    """`holder` is there, and counts as a gateway until `ttl_us` have passed without another."""

    key: str
    holder: str
    ttl_us: int


class Announced(msgspec.Struct, frozen=True, array_like=True, tag="N"):
    """Answer to `Announce`.

    Attributes:
        gateways: How many are there.
        epoch: Changes when the authority may have lost what it knew: a restart, a failover.
        now_us: The authority's clock.
    """

    gateways: int
    epoch: str
    now_us: int


class Peek(msgspec.Struct, frozen=True, array_like=True, tag="P"):
    """Look at a bucket without taking anything."""

    key: str
    quota: Quota


class Peeked(msgspec.Struct, frozen=True, array_like=True, tag="P"):
    """Answer to `Peek`.

    Attributes:
        remaining: Tokens that could be taken now.
        leased: Tokens lent to gateways.
        leases: How many leases they are.
        full_after_us: When the bucket will be full of tokens again if nobody takes any.
        now_us: The authority's clock.
    """

    remaining: int
    leased: int
    leases: int
    full_after_us: int
    now_us: int


Operation = Check | Ask | Settle | Debit | Occupy | Announce | Peek
Reply = Checked | Granted | Settled | Occupied | Announced | Peeked
