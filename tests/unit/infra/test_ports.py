"""Ports on loopback."""

from __future__ import annotations

import socket

from infra.embedded.ports import COMPANION, LOOPBACK, free_port, is_free


def test_a_taken_port_is_not_free() -> None:
    """A port that somebody listens on is taken, and free again afterwards."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_a_free_port_can_be_listened_on() -> None:
    """What is said to be free can be used, with its companion."""
    port = free_port(with_companion=True)

    with socket.create_server((LOOPBACK, port)), socket.create_server((LOOPBACK, port + COMPANION)):
        assert not is_free(port)
