"""Laws of identity: a written limit reads back, a right key is known whatever else there is, a wrong one never is."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.core.errors import CallerError
from penstock.core.keys import KeyRecord
from penstock.core.limit_text import NUMBER_MAX, PERIOD_US_MAX, LimitText, format_limit, parse_limit
from penstock.core.limits import ANONYMOUS, Cost, Principal
from penstock.gateway.identity import Identifier, NotAllowed
from penstock.policy.identifying import (
    ID_ALPHABET,
    ID_CHARS,
    SECRET_ALPHABET,
    SECRET_CHARS,
    format_key,
    hash_secret,
    parse_key,
)

numbers = st.integers(1, NUMBER_MAX)
ids = st.text(ID_ALPHABET, min_size=ID_CHARS, max_size=ID_CHARS)
secrets = st.text(SECRET_ALPHABET, min_size=SECRET_CHARS, max_size=SECRET_CHARS)
keys = st.dictionaries(ids, secrets, min_size=1, max_size=4)
limits = st.builds(LimitText, numbers, st.integers(1, PERIOD_US_MAX), numbers, st.sampled_from(Cost))


def identifier_of(made: dict[str, str], *, requires_key: bool = True) -> Identifier:
    """Return an identifier that knows these keys, ids to secrets."""
    records = [
        KeyRecord.from_principal(Principal(key_id, "acme", key_id), hash_secret(secret.encode()))
        for key_id, secret in made.items()
    ]
    identifier = Identifier(requires_key=requires_key)
    identifier.apply(len(records), records)
    return identifier


@given(limits)
def test_a_limit_reads_back_as_it_was_written(limit: LimitText) -> None:
    """Formatting and parsing are inverse."""
    assert parse_limit(format_limit(limit)) == limit


@given(st.text(max_size=40))
def test_any_text_is_a_limit_or_a_short_complaint(text: str) -> None:
    """What is no limit raises ValueError, nothing else, and a message that does not grow with the text."""
    complaint, limit = "", None
    try:
        limit = parse_limit(text)
    except ValueError as error:
        complaint = str(error)
    assert len(complaint) < 400
    assert limit is None or parse_limit(format_limit(limit)) == limit


@given(ids, secrets)
def test_a_key_reads_back_as_it_was_written(key_id: str, secret: str) -> None:
    """Formatting and parsing are inverse."""
    assert parse_key(format_key(key_id, secret).encode()) == (key_id, secret.encode())


@given(keys, st.booleans())
def test_a_right_key_is_known(made: dict[str, str], is_bearer: bool) -> None:
    """Every key that is good is its holder's, by either header, the first time and when it is remembered."""
    identifier = identifier_of(made)
    for _ in range(2):
        for key_id, secret in made.items():
            text = format_key(key_id, secret).encode()
            headers = {b"authorization": b"Bearer " + text} if is_bearer else {b"x-api-key": text}
            assert identifier.identify(headers).key_id == key_id


@given(keys, st.data())
def test_a_wrong_key_is_never_accepted(made: dict[str, str], data: st.DataObject) -> None:
    """A key changed in any place, or made of parts of others, is refused, and the refusal shows nothing of it."""
    identifier = identifier_of(made, requires_key=data.draw(st.booleans()))
    key_id, secret = data.draw(st.sampled_from(sorted(made.items())))
    right = format_key(key_id, secret)
    identifier.identify({b"x-api-key": right.encode()})
    place = data.draw(st.integers(0, len(right) - 1))
    changed = right[:place] + data.draw(st.characters(codec="latin-1")) + right[place + 1 :]
    mixed = format_key(key_id, data.draw(st.sampled_from(sorted(made.values())) | secrets))
    wrong = data.draw(st.sampled_from([changed, mixed, right[:place], right + secret, secret, key_id]))
    assume(wrong not in {format_key(*item) for item in made.items()})
    text = wrong.encode("latin-1")
    for headers in ({b"x-api-key": text}, {b"authorization": b"Bearer " + text}):
        with pytest.raises(NotAllowed) as caught:
            identifier.identify(headers)
        assert caught.value.status == 401
        assert secret not in caught.value.message
        assert caught.value.headers.startswith(b"www-authenticate: Bearer")


@given(
    st.dictionaries(
        st.sampled_from([b"authorization", b"x-api-key"]),
        st.binary(max_size=40) | st.sampled_from([b"Bearer", b"Bearer ", b"Bearer a b", b"bearer  a", b"a", b""]),
    )
)
def test_any_headers_are_nobodys_or_refused(headers: dict[bytes, bytes]) -> None:
    """With no key ever made, any headers are anonymous or refused with a reason that does not grow with them."""
    identifier = identifier_of({}, requires_key=False)
    refusal = principal = None
    try:
        principal = identifier.identify(headers)
    except CallerError as error:
        refusal = error
    if refusal is None:
        assert principal is ANONYMOUS
    else:
        assert refusal.status in {400, 401}
        assert len(refusal.message) < 200
