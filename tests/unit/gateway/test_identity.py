"""Laws of identity at the door: which header holds the key, what is refused and how, what a key allows."""

import pytest

from penstock.core.errors import CallerError, Overloaded
from penstock.core.keys import KeyRecord
from penstock.core.limits import ANONYMOUS, Principal
from penstock.gateway.identity import (
    CALLERS_MAX,
    CREDENTIAL_BYTES_MAX,
    Identifier,
    NotAllowed,
    check_model,
    settle_terms,
)
from penstock.gateway.terms import Terms
from penstock.policy.identifying import SECRET_CHARS, format_key, hash_secret
from penstock.policy.queueing import BATCH, INTERACTIVE

SECRET = "s" * SECRET_CHARS
ALICE = Principal("a" * 12, "acme", "alice")
KEY = format_key(ALICE.key_id, SECRET).encode()
RECORD = KeyRecord.from_principal(ALICE, hash_secret(SECRET.encode()))
STRANGER = format_key("b" * 12, SECRET).encode()


def identifier(
    *, requires_key: bool = False, revision: int = 1, records: tuple[KeyRecord, ...] = (RECORD,)
) -> Identifier:
    """Return an identifier that knows these keys."""
    made = Identifier(requires_key=requires_key)
    made.apply(revision, records)
    return made


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer " + KEY},
        {b"authorization": b"bEARER   " + KEY},
        {b"x-api-key": KEY},
        {b"authorization": b"Bearer " + KEY, b"x-api-key": KEY},
    ],
)
def test_a_key_is_read_from_either_header(headers: dict[bytes, bytes]) -> None:
    """Authorization with the scheme Bearer in any case, X-API-Key, or both if they agree."""
    assert identifier().identify(headers) == ALICE


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        (b"authorization", b"", "Authorization: expected Bearer KEY, got nothing"),
        (b"authorization", KEY, "Authorization: expected Bearer KEY, got no scheme before it"),
        (b"authorization", b"Basic dTpw", "Authorization: expected Bearer KEY, got another scheme"),
        (b"authorization", b"Bearer", "Authorization: expected Bearer KEY, got no key after the scheme"),
        (
            b"authorization",
            b"Bearer " + KEY + b" x",
            "Authorization: expected Bearer KEY, got more than one word after the scheme",
        ),
        (
            b"authorization",
            b"Bearer\t" + KEY,
            "Authorization: expected Bearer KEY, got other characters between or in the two",
        ),
        (
            b"authorization",
            b"Bearer \xff",
            "Authorization: expected Bearer KEY, got characters that are not visible ASCII",
        ),
        (b"x-api-key", b"", "X-API-Key: expected KEY, got nothing"),
        (b"x-api-key", b"a b", "X-API-Key: expected KEY, got several words"),
        (b"x-api-key", b"\xc3\xa9", "X-API-Key: expected KEY, got characters that are not visible ASCII"),
    ],
)
@pytest.mark.parametrize("requires_key", [False, True])
def test_a_malformed_header_is_named(header: bytes, value: bytes, message: str, requires_key: bool) -> None:
    """Whether keys are required or not, 401 says which header, what was expected, and what came without showing it."""
    with pytest.raises(NotAllowed) as caught:
        identifier(requires_key=requires_key).identify({header: value})
    assert (caught.value.status, caught.value.message) == (401, message)
    assert caught.value.headers == b"www-authenticate: Bearer\r\n"


def test_two_keys_that_differ_are_refused() -> None:
    """Which of two keys holds is not guessed: 400."""
    with pytest.raises(CallerError, match="expected one key, got two that differ") as caught:
        identifier().identify({b"authorization": b"Bearer " + KEY, b"x-api-key": STRANGER})
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("requires_key", "revision", "credential", "is_let_in"),
    [
        (False, 1, None, True),
        (True, 1, None, False),
        (True, 0, None, False),
        (False, 0, b"unused", True),  # a client of a server without keys sends a placeholder
        (False, 0, STRANGER, False),  # a key of ours is no placeholder
        (True, 0, b"unused", False),
        (False, 1, b"unused", False),
        (False, 1, STRANGER, False),
        (True, 1, STRANGER, False),
        (False, 2, KEY, False),  # the last key there was is revoked
        (False, 2, b"unused", False),
    ],
)
def test_who_is_let_in_without_a_right_key(
    requires_key: bool,
    revision: int,
    credential: bytes | None,
    is_let_in: bool,
) -> None:
    """Nobody where keys are required; else who sends none, and where no key was ever made, who sends a placeholder."""
    made = identifier(requires_key=requires_key, revision=revision, records=())
    headers = {} if credential is None else {b"x-api-key": credential}
    if is_let_in:
        assert made.identify(headers) is ANONYMOUS
        return
    with pytest.raises(NotAllowed) as caught:
        made.identify(headers)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_nobody_is_let_in_before_the_keys_are_known() -> None:
    """A gateway that has not heard of the keys answers 503, and says when to come back."""
    made = Identifier(requires_key=False)
    for headers in ({}, {b"x-api-key": KEY}):
        with pytest.raises(Overloaded, match="have not arrived yet") as caught:
            made.identify(headers)
        assert caught.value.status == 503
        assert b"retry-after: 1\r\n" in getattr(caught.value, "headers", b"")


def test_a_revoked_key_is_forgotten_at_once() -> None:
    """With the next revision a key that was accepted, and is remembered, is refused; another's goes on."""
    made = identifier()
    assert made.identify({b"x-api-key": KEY}) == ALICE
    bob = Principal("c" * 12, "acme", "bob")
    made.apply(2, (KeyRecord.from_principal(bob, hash_secret(SECRET.encode())),))
    with pytest.raises(NotAllowed):
        made.identify({b"x-api-key": KEY})
    assert made.identify({b"x-api-key": format_key(bob.key_id, SECRET).encode()}) == bob
    assert KEY not in str(made._known).encode()


def test_what_is_remembered_is_bounded() -> None:
    """Neither more callers than the bound are remembered, nor headers that are padded, nor any that were refused."""
    made = identifier()
    padded = b"Bearer " + b" " * CREDENTIAL_BYTES_MAX + KEY
    assert made.identify({b"authorization": padded}) == ALICE
    with pytest.raises(NotAllowed):
        made.identify({b"x-api-key": STRANGER})
    assert not made._known
    made._known.update(((b"%d" % number, None), ALICE) for number in range(CALLERS_MAX))
    assert made.identify({b"x-api-key": KEY}) == ALICE
    assert len(made._known) == 1


def test_a_key_is_for_the_models_it_names() -> None:
    """A key that names models is refused others with 403; one that names none, and nobody, may use any."""
    check_model(ANONYMOUS, "m")
    check_model(ALICE, "m")
    limited = Principal("a" * 12, "acme", "alice", models=("m", "n"))
    check_model(limited, "n")
    with pytest.raises(
        NotAllowed, match=r"^model: expected one of those that this key is for \(m, n\), got 'x'$"
    ) as caught:
        check_model(limited, "x")
    assert (caught.value.status, caught.value.headers) == (403, b"")


def test_an_account_is_the_keys() -> None:
    """With a key the tenant is the key's, named or not, and naming another gets 403; the other terms stay."""
    for named in ("", "acme"):
        assert settle_terms(ALICE, Terms(INTERACTIVE, named, 5)) == Terms(INTERACTIVE, "acme", 5)
    with pytest.raises(NotAllowed, match=r"^penstock-tenant: expected none, or 'acme', .*, got 'other'$") as caught:
        settle_terms(ALICE, Terms(tenant="other"))
    assert caught.value.status == 403
    assert settle_terms(ANONYMOUS, Terms(tenant="other")) == Terms(tenant="other")


def test_a_batch_key_is_of_class_batch() -> None:
    """With a batch key every request is of class batch, and asking for the other gets 403; other keys choose."""
    batch = Principal("a" * 12, "acme", "alice", is_batch=True)
    for asked in (None, BATCH):
        assert settle_terms(batch, Terms(asked)).request_class is BATCH
    with pytest.raises(NotAllowed, match=r"^penstock-class: .*, got interactive$") as caught:
        settle_terms(batch, Terms(INTERACTIVE))
    assert caught.value.status == 403
    assert [settle_terms(ALICE, Terms(asked)).request_class for asked in (None, BATCH, INTERACTIVE)] == [
        None,
        BATCH,
        INTERACTIVE,
    ]
