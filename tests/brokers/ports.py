"""Free ports of the loopback interface."""

from __future__ import annotations

import random
import socket

__all__ = ["free_ports"]

#: Below the range of which the kernel takes the ports of outgoing connections, above the services'.
RANGE = range(20000, 32000)
ATTEMPTS = 1000

_random = random.SystemRandom()  # the tests' seed must not give both processes the same ports


def free_ports(count: int) -> list[int]:
    """Return *count* different ports that nothing listens on now.

    Raises:
        OSError: none was found.
    """
    found: list[int] = []
    for port in _random.sample(RANGE, ATTEMPTS):
        if _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports among {ATTEMPTS} of {RANGE.start} to {RANGE.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
