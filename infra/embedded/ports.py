"""Free ports on loopback."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

LOOPBACK = "127.0.0.1"

COMPANION = 10_000
"""SeaweedFS takes a second port this far above each port it is given."""

# Companions of this range stay below 32768, where Linux begins to give ports to outgoing connections.
_RANGE = range(10_240, 22_000)
_TRIES = 200


def is_free(port: int) -> bool:
    """Can a server listen on this port of loopback now?"""
    with socket.socket() as probe:
        # As servers do: a connection of the last run that is not quite over does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(*, with_companion: bool = False, avoid: Collection[int] = ()) -> int:
    """
    A port that nobody listens on; it may be taken before it is used, so callers try again.

    Raises:
        OSError: none was found.
    """
    for port in random.sample(_RANGE, _TRIES):
        if port not in avoid and is_free(port) and (not with_companion or is_free(port + COMPANION)):
            return port
    raise OSError(f"no free port on {LOOPBACK} between {_RANGE.start} and {_RANGE.stop}")
