"""TCP ports of the head: one held open for the gateways to share, one listened on by the head itself.

Not here: accepting inference connections (the gateways do, each with its own SO_REUSEPORT socket).
Source: socket(7) SO_REUSEPORT: a bound socket that does not listen gets no connections.
"""

import errno
import os
import socket

from penstock.core.errors import ConfigError

__all__ = ["hold_port", "listen_on", "port_of"]

_BACKLOG = 128


def hold_port(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Bind a port that gateways will share, without listening: nobody else can take it while the socket is open.

    Args:
        host: Name or literal.
        port: 0 for any free one.
        is_shared: Gateways of ours already listen there, so that finding it taken is no error.

    Raises:
        ConfigError: The port is taken, or the address is not this machine's.
    """
    if port != 0 and not is_shared:
        # SO_REUSEPORT would share the port with any other listener of this user that set it too, and split the
        # traffic between two fleets: ask first without it.
        _bind(host, port, socket.SO_REUSEADDR).close()
    # And not with SO_REUSEADDR, which would let anybody listen beside a holder that does not.
    return _bind(host, port, socket.SO_REUSEPORT)


def listen_on(host: str, port: int) -> socket.socket:
    """Bind and listen.

    Raises:
        ConfigError: As `hold_port`.
    """
    listener = _bind(host, port, socket.SO_REUSEADDR)
    listener.listen(_BACKLOG)
    listener.settimeout(0)
    return listener


def port_of(bound: socket.socket) -> int:
    """Return the port a socket is bound to."""
    port: int = bound.getsockname()[1]
    return port


def _bind(host: str, port: int, option: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"{host}:{port}: expected an address of this machine, got: {error.strerror}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{host}:{port}: expected a free port, another process listens there") from error
        raise ConfigError(f"{host}:{port}: expected to bind it, got: {os.strerror(error.errno or 0)}") from error
    return bound
