"""Redis URLs: the forms that are taken, and secrets that stay where nobody reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.redis_url import resolve_redis_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://limits@redis.internal",
        "rediss://[::1]:6380",
        "unix:///run/redis.sock?db=1",
        "unix:///run/a@b.sock",
        "redis+sentinel://a:26379,b:26379/mymaster/0",
        "redis+cluster://a:7000,b:7001",
    ],
)
def test_a_url_without_a_password_is_itself(url: str) -> None:
    """Every form that can be connected to passes unchanged, written out or in a variable."""
    assert resolve_redis_url(url, {}) == url
    assert resolve_redis_url("env:URL", {"URL": url}) == url


def test_a_variable_may_hold_a_password() -> None:
    """The environment is where a password belongs."""
    url = "redis://limits:secret@127.0.0.1:6379"
    assert resolve_redis_url("env:PENSTOCK_REDIS_URL", {"PENSTOCK_REDIS_URL": url}) == url


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1:6379",
        "redis://limits:secret@127.0.0.1",
        "rediss://a?password=secret",
        "unix://:secret@/run/redis.sock",
        "unix:///run/redis.sock?password=secret",
        "redis+sentinel://a:1,b:2/main?sentinel_password=secret",
        "redis://a/0@secret",
        "redis://limits:123?secret@a",
        "redis://limits:123#secret@a",
    ],
)
def test_a_password_in_the_open_is_refused_with_the_fix_and_not_repeated(url: str) -> None:
    """A file and a command line can be read by others; the message says what to do, and does not say the password."""
    with pytest.raises(ValueError, match='"env:PENSTOCK_REDIS_URL"') as caught:
        resolve_redis_url(url, {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected a URL that begins with redis://"),
        ("127.0.0.1:6379", "expected a URL that begins with redis://"),
        ("http://127.0.0.1", "expected a URL that begins with redis://"),
        ("redis://", "expected redis://HOST:PORT/DB, got something else"),
        ("redis://a:0", "expected redis://HOST:PORT/DB, got something else"),
        ("redis://a:65536", "expected redis://HOST:PORT/DB, got something else"),
        ("redis://a:x", "expected redis://HOST:PORT/DB, got something else"),
        ("redis://[::1", "expected redis://HOST:PORT/DB, got something else"),
        ("redis://a,b", "expected redis://HOST:PORT/DB, got something else"),
        ("unix://", "expected unix:///PATH, got something else"),
        ("redis+sentinel://a:1,b:2", "expected redis+sentinel://HOST:PORT,HOST:PORT/SERVICE, got something else"),
        ("redis+cluster://", "expected redis+cluster://HOST:PORT, got something else"),
        ("env:", "expected env: and the name of an environment variable, got 'env:'"),
        ("env:A B", "expected env: and the name of an environment variable, got 'env:A B'"),
        ("env:GONE", "expected a URL in the environment variable GONE, got nothing; set it before the start"),
        ("env:EMPTY", "expected a URL in the environment variable EMPTY, got nothing"),
        ("env:WRONG", "expected a URL in the environment variable WRONG that begins with redis://"),
        ("env:CUT", "expected redis://HOST:PORT/DB in the environment variable CUT, got something else"),
    ],
)
def test_what_is_no_url_is_refused_with_what_was_expected(text: str, complaint: str) -> None:
    """The message has the form that was expected, and the variable if one was named."""
    environ = {"EMPTY": "", "WRONG": "localhost", "CUT": "redis://"}
    with pytest.raises(ValueError, match="expected") as caught:
        resolve_redis_url(text, environ)
    assert complaint in str(caught.value)


@given(st.sampled_from(["redis", "unix", "redis+sentinel", "http"]), st.text("ab:@/?#[],=1 ", max_size=20))
def test_no_message_repeats_what_a_variable_holds(scheme: str, rest: str) -> None:
    """Whatever stands in the variable, a complaint about it has none of its text: it may hold a password anywhere."""
    url = f"{scheme}://s3cr3t{rest}s3cr3t"
    said: list[str] = []
    for text in ("env:URL", url):
        try:
            resolve_redis_url(text, {"URL": url})
        except ValueError as error:
            said.append(str(error))
    assert not any("s3cr3t" in message for message in said)
