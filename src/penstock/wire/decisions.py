"""The lines of the decision log: what gateways append to it, and what readers find. Each is a JSON object.

    kind: decision   a request was let in, or not     limit   a limit's definition, when a process first met it
          refund     a charge was settled: so much of it was given back

Times are µs of the machine's monotonic clock, which all of its processes share; the lines of several gateways are
interleaved and not quite in order. Pure. Not here: writing (`gateway/decision_log.py`), replaying
(`sim/limit_replay.py`).
"""

import msgspec

from penstock.core.limits import Limit

__all__ = ["LINE_BEGIN", "Decision", "Definition", "Line", "Refund", "decode_line", "encode_line"]

# So does every line begin, and no text in one can look like it: quotes are escaped there.
LINE_BEGIN = b'{"kind":'


class Decision(msgspec.Struct, frozen=True, tag="decision", tag_field="kind"):
    """One request, decided.

    Attributes:
        at_us: When the gateway knew.
        gateway, pid: Which one.
        outcome: `local`, `checked`, `alone` or `rejected`.
        limits: What the request costs under each limit, by name.
        keys: The bucket of each, by the limit's name. A limit that is split counts as one bucket.
        limit: What rejected it, '' if it is in.
        tenant, user, key_id, model: Whose it is, and for which model.
        asked_us: When the authority was asked: it decided between then and `at_us`. 0 if it was not.
        authority_us: When it decided, by its own clock. 0 if it did not.
        hold: Under which a `Refund` may follow, '' if none will.
    """

    at_us: int
    gateway: int
    pid: int
    outcome: str
    limits: dict[str, int]
    keys: dict[str, str]
    limit: str = ""
    tenant: str = ""
    user: str = ""
    key_id: str = ""
    model: str = ""
    asked_us: int = 0
    authority_us: int = 0
    hold: str = ""

    @property
    def since_us(self) -> int:
        """When it may have been decided at the earliest; the latest is `at_us`."""
        return self.asked_us or self.at_us


class Refund(msgspec.Struct, frozen=True, tag="refund", tag_field="kind"):
    """The cost of an admitted request is known.

    Attributes:
        at_us: When the authority was told; what it gave back counts from then on.
        hold: Of the decision.
        limit, key: What is corrected.
        actual: What the request cost in the end.
        refund: Tokens given back; less than 0 if it cost more than was charged, None if the authority did not say.
    """

    at_us: int
    gateway: int
    pid: int
    hold: str
    limit: str
    key: str
    actual: int
    refund: int | None = None


class Definition(msgspec.Struct, frozen=True, tag="limit", tag_field="kind"):
    """A limit that decisions of this process will name.

    Attributes:
        defines: The limit.
        key_id: The key that it belongs to, '' if it is of the configuration.
    """

    at_us: int
    gateway: int
    pid: int
    defines: Limit
    key_id: str = ""


Line = Decision | Refund | Definition

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode_line(line: Line) -> bytes:
    """Return one line with its end."""
    return _encode(line) + b"\n"


def decode_line(text: bytes) -> Line:
    """Return what one line says.

    Raises:
        ValueError: It is not a line of a decision log; the message says what was expected.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expected a line of a decision log: {error}") from error
