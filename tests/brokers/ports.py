"""Free ports of the loopback interface."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

#: All are below the range of which the kernel takes the ports of outgoing connections.  Brokers
#: bind theirs seconds after they were chosen, so nobody else may take one meanwhile.
BROKERS = range(20000, 26000)
OTHERS = range(26000, 32000)
#: A process takes blocks of so many ports, and no other process chooses from those.
BLOCK = 50

_random = random.SystemRandom()  # the tests' seed must not give all processes the same ports
_given: set[int] = set()


class Blocks:
    """The blocks of this process: each is a byte of a file that it keeps locked until it ends."""

    def __init__(self, file: Path) -> None:
        # Now, not when first needed: a test may count descriptors.
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._owner = 0
        self._starts: list[int] = []

    def ports(self) -> Iterator[int]:
        """The ports of this process's blocks, as many as it takes."""
        if self._owner != os.getpid():  # a fork inherits no locks
            self._owner, self._starts = os.getpid(), []
        for start in self._starts:
            yield from _shuffled(range(start, start + BLOCK))
        for start in _shuffled(range(BROKERS.start, BROKERS.stop, BLOCK)):
            if start not in self._starts and self._lock(start):
                self._starts.append(start)
                yield from _shuffled(range(start, start + BLOCK))

    def _lock(self, start: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
        except OSError:
            return False
        return True


_blocks = Blocks(Path(tempfile.gettempdir(), f"greenconn-test-ports-{os.getuid()}"))


def free_ports(count: int) -> list[int]:
    """Return *count* different ports for brokers: nothing listens there, and none is given twice.

    Raises:
        OSError: there are none.
    """
    found: list[int] = []
    for port in _blocks.ports():
        if port not in _given and _is_free(port):
            found.append(port)
            _given.add(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports from {BROKERS.start} to {BROKERS.stop - 1}")


def some_ports() -> Iterator[int]:
    """Ports for who binds them at once and takes the next one if it is in use."""
    # From somewhere on: hundreds of tests take one each, and 6,000 numbers are long in shuffling.
    begin = _random.choice(OTHERS)
    return chain(range(begin, OTHERS.stop), range(OTHERS.start, begin))


def _shuffled(numbers: range) -> list[int]:
    return _random.sample(numbers, len(numbers))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
