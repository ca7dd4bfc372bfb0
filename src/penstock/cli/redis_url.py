"""How a Redis is named in configuration and on the command line: a URL, or `env:NAME` of a variable that holds it.

A URL with a password stands in neither, because others can read both: it stays in the environment, from which the
processes that connect read it themselves. Messages never repeat what may hold a secret. Not here: connecting.
"""

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

__all__ = ["ENV_PREFIX", "resolve_redis_url"]

ENV_PREFIX = "env:"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::(?P<port>[0-9]{1,5}))?")
_FORMS = {
    "redis": "redis://HOST:PORT/DB",
    "rediss": "rediss://HOST:PORT/DB",
    "unix": "unix:///PATH",
    "redis+sentinel": "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE",
    "redis+cluster": "redis+cluster://HOST:PORT",
}


def resolve_redis_url(text: str, environ: Mapping[str, str]) -> str:
    """Return the URL that `text` is, or names a variable of.

    Raises:
        ValueError: There is none, it has another form, or a password stands where others can read it.
    """
    if not text.startswith(ENV_PREFIX):
        _check(text, "")
        if _holds_secret(text):
            raise ValueError(
                "expected no password here, where others can read it; put the URL into an environment variable and"
                f' name that: "{ENV_PREFIX}PENSTOCK_REDIS_URL"'
            )
        return text
    name = text.removeprefix(ENV_PREFIX)
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"expected {ENV_PREFIX} and the name of an environment variable, got {text[:80]!r}")
    url = environ.get(name, "")
    if not url:
        raise ValueError(f"expected a URL in the environment variable {name}, got nothing; set it before the start")
    _check(url, f" in the environment variable {name}")
    return url


def _check(url: str, where: str) -> None:
    """Check a URL's form. What was got is not shown: it may hold a password, if not where one is expected."""
    scheme = url.partition("://")[0]
    form = _FORMS.get(scheme) if "://" in url else None
    if form is None:
        raise ValueError(f"expected a URL{where} that begins with {', '.join(f'{s}://' for s in _FORMS)}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"expected {form}{where}, got something else after {scheme}://") from None
    if scheme == "unix":
        fits = len(parts.path) > 1
    else:
        hosts = parts.netloc.rpartition("@")[2].split(",")
        fits = all(map(_is_host, hosts)) and (len(hosts) == 1 or scheme in ("redis+sentinel", "redis+cluster"))
        if scheme == "redis+sentinel":
            fits = fits and bool(parts.path.strip("/"))
    if not fits:
        raise ValueError(f"expected {form}{where}, got something else after {scheme}://")


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    return found is not None and int(found["port"] or 1) in range(1, 65_536)


def _holds_secret(url: str) -> bool:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    # An @ after the host may be the end of a password that has a character with a meaning in it.
    is_odd = "@" in parts.query + parts.fragment + ("" if parts.scheme == "unix" else parts.path)
    named = any("password" in name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    return ":" in login or is_odd or named
