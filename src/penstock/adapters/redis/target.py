"""Where Redis is and as whom to connect: what a URL says, and how a connection is made by it.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]    rediss://... (TLS)    unix:///PATH[?db=DB]
    redis+sentinel://HOST[:PORT],.../SERVICE[/DB]                     redis+cluster://HOST[:PORT],...

Nothing here shows a password: a target's name is its URL without one. Not here: what is sent (`node.py`), whether the
server will do (`inspection.py`).

Source: the URL forms of redis-py; Sentinel clients, redis.io/docs/reference/sentinel-clients.
"""

import asyncio
import ssl
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from penstock.adapters.redis.link import Link

__all__ = ["CONNECT_S", "Address", "Kind", "Target", "open_link", "read_target"]

# TLS over a slow network takes three round trips; a server that needs longer is of no use to a limiter.
CONNECT_S = 1.0
_PORT = 6379
_SENTINEL_PORT = 26379
_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
# As redis-py names them.
_OPTIONS = frozenset(
    {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname", "ssl"}
    | {"sentinel_username", "sentinel_password"}
)


class Kind(StrEnum):
    """How the server to ask is found."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port, or the path of a socket with port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL says.

    Attributes:
        name: The URL without user, password and options.
        kind: See there.
        addresses: Of the server, of sentinels, or of some nodes of the cluster.
        service: What the sentinels call the server.
        db: Number of the database.
        context: For TLS; None without.
        username, password: For the server.
        sentinel_username, sentinel_password: For the sentinels.
    """

    name: str
    kind: Kind
    addresses: tuple[Address, ...]
    service: str = ""
    db: int = 0
    context: ssl.SSLContext | None = field(default=None, repr=False)
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_username: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)

    async def locate(self) -> Address:
        """Return where the server is now, asking the sentinels if there are any.

        Raises:
            OSError: No sentinel answers, or none knows a primary that is up.
        """
        if self.kind is not Kind.SENTINEL:
            return self.addresses[0]
        login = {"username": self.sentinel_username or None, "password": self.sentinel_password or None}
        sentinels = Sentinel(  # type: ignore[no-untyped-call]  # its constructor has no types
            [(a.host, a.port) for a in self.addresses],
            sentinel_kwargs={
                "socket_timeout": CONNECT_S / 2,
                "socket_connect_timeout": CONNECT_S / 2,
                "retry": Retry(NoBackoff(), 0),
                **login,
            },
        )
        try:
            host, port = await sentinels.discover_master(self.service)
        except RedisError as error:
            raise ConnectionError(f"no sentinel knows a primary {self.service!r}: {type(error).__name__}") from error
        finally:
            for client in sentinels.sentinels:
                await client.aclose()
        return Address(str(host), int(port))


def read_target(url: str) -> Target:
    """Return what a URL says.

    Raises:
        ValueError: It is none of the forms above; the message does not repeat it, as it may hold a password.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme not in _SCHEMES:
            raise ValueError(f"expected a URL that begins with {', '.join(f'{s}://' for s in _SCHEMES)}")
        if unknown := options.keys() - _OPTIONS:
            raise ValueError(f"expected no options but {', '.join(sorted(_OPTIONS))}, got {sorted(unknown)}")
        return _read_unix(parts.path, options) if parts.scheme == "unix" else _read_hosts(url, options)
    except UnicodeError:
        raise ValueError("expected a URL in ASCII") from None


def _read_unix(path: str, options: dict[str, str]) -> Target:
    if not path.strip("/"):
        raise ValueError("expected unix:///PATH, got no path")
    db = _read_number("db", options.get("db", "0"))
    return Target(f"unix://{path}", Kind.SERVER, (Address(unquote(path), 0),), db=db)


def _read_hosts(url: str, options: dict[str, str]) -> Target:
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    kind = {"redis+sentinel": Kind.SENTINEL, "redis+cluster": Kind.CLUSTER}.get(parts.scheme, Kind.SERVER)
    default = _SENTINEL_PORT if kind is Kind.SENTINEL else _PORT
    addresses = tuple(_read_address(host, default) for host in hosts.split(","))
    if kind is Kind.SERVER and len(addresses) > 1:
        raise ValueError("expected one host; several are for redis+sentinel:// and redis+cluster://")
    path = parts.path.strip("/")
    service = ""
    if kind is Kind.SENTINEL:
        service, _, path = path.partition("/")
        if not service:
            raise ValueError("expected redis+sentinel://HOST:PORT/SERVICE, got no service")
    is_secure = parts.scheme == "rediss" or options.get("ssl", "") == "true"
    return Target(
        name=f"{parts.scheme}://{hosts}{parts.path}",
        kind=kind,
        addresses=addresses,
        service=unquote(service),
        db=_read_number("db", options.get("db", path or "0")),
        context=_make_context(options) if is_secure else None,
        username=unquote(username),
        password=unquote(password),
        sentinel_username=options.get("sentinel_username", ""),
        sentinel_password=options.get("sentinel_password", ""),
    )


def _read_address(text: str, default: int) -> Address:
    parts = urlsplit(f"//{text}")
    host, port = parts.hostname, parts.port  # ValueError for a port that is none
    if not host:
        raise ValueError("expected a host, got none")
    return Address(unquote(host), default if port is None else port)


def _read_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a number, got {text!r}")
    return int(text)


def _make_context(options: dict[str, str]) -> ssl.SSLContext:
    """Return a context that checks the server's certificate, unless the options say not to."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_check_hostname", "").lower() in ("false", "0", "no"):
            context.check_hostname = False
        if options.get("ssl_cert_reqs") == "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"TLS: expected certificates that can be read, got {type(error).__name__}") from error
    return context


async def open_link(target: Target, address: Address, loop: asyncio.AbstractEventLoop) -> Link:
    """Connect, log in and choose the database.

    Raises:
        OSError: Nobody answers there, in time.
        ConnectionError: Somebody does, and refuses; an OSError too, so that it is tried again.
    """
    link = Link(loop, str(address))
    try:
        async with asyncio.timeout(CONNECT_S):
            if address.port:
                context = target.context
                await loop.create_connection(lambda: link, address.host, address.port, ssl=context)
            else:
                await loop.create_unix_connection(lambda: link, address.host)
            if target.password:
                login = (target.username, target.password) if target.username else (target.password,)
                await link.request("AUTH", *login)
            if target.db:
                await link.request("SELECT", target.db)
    except hiredis.ReplyError as error:
        link.abort()
        raise ConnectionRefusedError(f"{address} refuses: {error}") from None
    except ssl.SSLError as error:
        raise ConnectionError(f"{address}: TLS failed: {error.reason}") from error
    except BaseException:
        link.abort()
        raise
    return link
