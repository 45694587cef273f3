"""Free ports of the loopback interface."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

__all__ = ["free_ports", "some_ports"]

#: All are below the range of which the kernel takes the ports of outgoing connections.  Brokers
#: bind theirs seconds after they were chosen, so nobody else may take one meanwhile.
BROKERS = range(20000, 26000)
OTHERS = range(26000, 32000)
#: Each process begins with a block of its own, as processes choose at the same time.
BLOCK = 50

_random = random.SystemRandom()  # the tests' seed must not give both processes the same ports
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Return *count* different ports for brokers: nothing listens there, and none is given twice.

    Raises:
        OSError: there are none.
    """
    found: list[int] = []
    for port in _candidates():
        if port not in _given and _is_free(port):
            found.append(port)
            _given.add(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports from {BROKERS.start} to {BROKERS.stop - 1}")


def some_ports() -> Iterator[int]:
    """Ports for who binds them at once and takes the next one if it is in use."""
    return iter(_random.sample(OTHERS, len(OTHERS)))


def _candidates() -> Iterator[int]:
    start = BROKERS.start + os.getpid() * BLOCK % len(BROKERS)
    block = range(start, min(start + BLOCK, BROKERS.stop))
    yield from _random.sample(block, len(block))
    yield from _random.sample(BROKERS, len(BROKERS))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
