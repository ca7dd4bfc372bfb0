"""Ports: held ones are shared with gateways and with nobody else."""

import socket

import pytest

from penstock.core.errors import ConfigError
from penstock.fleet.listening import hold_port, listen_on, port_of


def listen(port: int) -> socket.socket:
    """Listen as a gateway does."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_a_held_port_is_free_for_gateways() -> None:
    """Gateways listen on a held port, and connections reach them and never the holder."""
    with hold_port("127.0.0.1", 0) as held, listen(port_of(held)) as gateway:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port_of(held)), timeout=5):
                gateway.accept()[0].close()


def test_a_held_port_is_taken_for_others() -> None:
    """Nobody who does not share can bind a held port."""
    with hold_port("127.0.0.1", 0) as held, pytest.raises(ConfigError, match="expected a free port"):
        listen_on("127.0.0.1", port_of(held))


def test_a_port_that_another_fleet_serves_is_not_shared() -> None:
    """Finding listeners on the port is an error, unless they are known to be ours."""
    with hold_port("127.0.0.1", 0) as held:
        port = port_of(held)
    with listen(port):
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: expected a free port"):
            hold_port("127.0.0.1", port)
        hold_port("127.0.0.1", port, is_shared=True).close()


def test_an_address_of_another_machine_is_refused() -> None:
    """An address that is not this machine's cannot be bound, and the message has the system's reason."""
    with pytest.raises(ConfigError, match=r"203.0.113.1:80: expected to bind it, got: Cannot assign"):
        listen_on("203.0.113.1", 80)
