"""Redis URLs: what each form means, what is refused, and that passwords stay out of sight."""

import ssl

import pytest

from penstock.adapters.redis.target import Address, Kind, read_target


@pytest.mark.parametrize(
    ("url", "kind", "addresses", "db", "service"),
    [
        ("redis://localhost", Kind.SERVER, [("localhost", 6379)], 0, ""),
        ("redis://h:7000/3", Kind.SERVER, [("h", 7000)], 3, ""),
        ("redis://h:7000?db=4", Kind.SERVER, [("h", 7000)], 4, ""),
        ("redis://[::1]:7000/", Kind.SERVER, [("::1", 7000)], 0, ""),
        ("unix:///run/redis.sock", Kind.SERVER, [("/run/redis.sock", 0)], 0, ""),
        ("unix:///run/redis.sock?db=2", Kind.SERVER, [("/run/redis.sock", 0)], 2, ""),
        ("redis+sentinel://a:1,b/main", Kind.SENTINEL, [("a", 1), ("b", 26379)], 0, "main"),
        ("redis+sentinel://a/main/5", Kind.SENTINEL, [("a", 26379)], 5, "main"),
        ("redis+cluster://a:1,b:2", Kind.CLUSTER, [("a", 1), ("b", 2)], 0, ""),
    ],
)
def test_each_form_is_read(url: str, kind: Kind, addresses: list[tuple[str, int]], db: int, service: str) -> None:
    """Host, port, path, database and service come from their places, with Redis's own defaults."""
    target = read_target(url)
    assert (target.kind, target.addresses) == (kind, tuple(Address(*address) for address in addresses))
    assert (target.db, target.service, target.context) == (db, service, None)


def test_a_login_is_read_and_not_shown() -> None:
    """User and password are decoded for the server, and stand in neither name nor representation."""
    target = read_target("redis+sentinel://alice:open%20sesame@a:1/main?sentinel_password=hush")
    assert (target.username, target.password, target.sentinel_password) == ("alice", "open sesame", "hush")
    assert target.name == "redis+sentinel://a:1/main"
    for secret in ("sesame", "hush", "alice"):
        assert secret not in repr(target)


def test_tls_checks_the_certificate_unless_told_not_to() -> None:
    """`rediss` wants a certificate of that host; the options of redis-py say otherwise."""
    strict, lax = read_target("rediss://h").context, read_target("rediss://h?ssl_cert_reqs=none").context
    named = read_target("rediss://h?ssl_check_hostname=false").context
    assert strict is not None
    assert lax is not None
    assert named is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)
    assert (named.verify_mode, named.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h", "begins with redis://"),
        ("h:6379", "begins with redis://"),
        ("redis://", "expected a host"),
        ("redis://h:port", "ort"),
        ("redis://h:99999", "ort"),
        ("redis://h/one", "db: expected a number, got 'one'"),
        ("redis://a,b", "expected one host"),
        ("redis+sentinel://a:1", "got no service"),
        ("unix://", "got no path"),
        ("redis://h?colour=red", "colour"),
        ("rediss://h?ssl_ca_certs=/nowhere.pem", "TLS"),
    ],
)
def test_anything_else_is_refused(url: str, words: str) -> None:
    """A URL that means nothing is an error that says what was expected."""
    with pytest.raises(ValueError, match=words):
        read_target(url)


@pytest.mark.parametrize(
    "url", ["http://u:secret@h", "redis://u:secret@h/one", "redis://u:secret@h:x", "redis://u:secret@"]
)
def test_errors_show_no_password(url: str) -> None:
    """Whatever is wrong with a URL, its password is not repeated."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        read_target(url)
    assert "secret" not in str(caught.value)
