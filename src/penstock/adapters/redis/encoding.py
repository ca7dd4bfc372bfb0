"""Operations as the script is given them, and its replies as records: MessagePack, keys by their place in KEYS.

Beside a bucket's key `penstock:{acme}:per-user:alice` stand `penstock:{acme}leases:per-user:alice` and the like: the
kind goes between hash tag and colon, so the slot is the same and no caller's name can make one key look like another.
Not here: sending (`node.py`), which operations may travel together (`authority.py`).
"""

from collections.abc import Sequence

import msgspec

from penstock.core.authority import Announce, Ask, Check, Debit, Occupy, Operation, Peek, Reply, Settle
from penstock.core.limits import Quota

__all__ = ["companion", "decode_replies", "encode_call", "hold_key", "key_of"]

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(list[Reply | str]).decode


def companion(key: str, kind: str) -> str:
    """Return the key of something that is kept beside a bucket, or instead of one: in the same slot."""
    head, brace, tail = key.partition("}")
    return f"{head}}}{kind}{tail}" if brace else f"{{{key}}}{kind}"


def hold_key(key: str, hold: str) -> str:
    """Return the key of a charge that is held in a bucket."""
    return f"{companion(key, 'hold')}:{hold}"


def _epoch_key(key: str) -> str:
    head, brace, _ = key.partition("}")
    return f"{head}}}epoch" if brace else f"{{{key}}}epoch"


def key_of(operation: Operation) -> str:
    """Return a key of an operation: its hash tag says where it must be done."""
    if isinstance(operation, Check):
        return operation.demands[0].key if operation.demands else operation.slots[0].key
    return operation.key


def encode_call(operations: Sequence[Operation]) -> tuple[list[str], bytes]:
    """Return the keys and the first argument of one call of the script."""
    call = _Call()
    return call.keys, _ENCODE([call.encode(operation) for operation in operations])


def decode_replies(blob: bytes) -> list[Reply | str]:
    """Return a call's replies; text says why an operation failed.

    Raises:
        msgspec.MsgspecError: These are not the script's replies.
    """
    return _DECODE(blob)


class _Call:
    """The keys of one call, each once, in the order of KEYS."""

    __slots__ = ("_places", "keys")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._places: dict[str, int] = {}

    def _place(self, key: str) -> int:
        place = self._places.get(key)
        if place is None:
            self.keys.append(key)
            place = self._places[key] = len(self.keys)
        return place

    def _beside(self, key: str, kind: str) -> int:
        return self._place(companion(key, kind))

    def _epoch(self, key: str, quota: Quota) -> int:
        return self._place(_epoch_key(key)) if quota.is_hard else 0

    def encode(self, operation: Operation) -> tuple[object, ...]:
        """Return what the script reads of an operation; `dispatch.lua` and the handlers say in which order."""
        place = self._place
        match operation:
            case Check():
                return self._encode_check(operation)
            case Ask(key, quota, holder, lease, want, ttl_us, closes):
                epoch, leases = self._epoch(key, quota), self._beside(key, "leases")
                return ("A", place(key), quota, epoch, leases, holder, lease, want, ttl_us, closes)
            case Settle(key, quota, hold, actual):
                return ("S", place(key), quota, self._epoch(key, quota), place(hold_key(key, hold)), actual)
            case Debit(key, quota, tokens):
                return ("D", place(key), quota, self._epoch(key, quota), tokens)
            case Occupy(key, holder, count, ttl_us):
                return ("O", self._beside(key, "slots"), holder, count, ttl_us)
            case Announce(key, holder, ttl_us):
                return ("N", self._beside(key, "present"), place(_epoch_key(key)), holder, ttl_us)
            case Peek(key, quota):
                return ("P", place(key), quota, self._epoch(key, quota), self._beside(key, "leases"))

    def _encode_check(self, check: Check) -> tuple[object, ...]:
        place, hold = self._place, check.hold
        wanted = []
        for demand in check.demands:
            key, quota = demand.key, demand.quota
            at, epoch = place(key), self._epoch(key, quota) if quota.is_hard else 0
            wanted.append((at, quota, demand.cost, epoch, place(hold_key(key, hold)) if hold and demand.is_held else 0))
        places = [(self._beside(slot.key, "slots"), slot.slots, slot.ttl_us) for slot in check.slots]
        return ("C", wanted, places, check.holder, check.hold_us)
