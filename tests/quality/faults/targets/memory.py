"""The broker in this process, in a storm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import RecoverableConnectionError
from greenconn.transport import memory
from tests.quality.faults.kinds import Fault, Kind
from tests.quality.faults.targets.base import DELETED, Place, places_of

HOST = "fault-tests"


class MemoryTarget:
    """There are no bytes to spoil, but links and queues to take away."""

    name = transport = "memory"
    url = f"memory:///{HOST}"
    kinds = frozenset({Kind.CUT, Kind.RESTART, Kind.DELETE, Kind.INTERRUPT})
    heartbeat: float | None = None
    rate = float("inf")
    is_ordered = True

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def places(self) -> list[Place]:
        """Durable queues: a restart keeps them."""
        return places_of([Queue(f"memory-{number}") for number in (1, 2, 3, 4)])

    def settle(self) -> None:
        """There is no disk."""

    def held(self) -> int:
        """What the dead held is back with their end."""
        return 0

    def inject(self, fault: Fault) -> None:
        """Have a fault."""
        if fault.kind is Kind.CUT:
            for link in list(memory.broker_of(HOST).links):
                link.end(RecoverableConnectionError("cut by the test"))
        elif fault.kind is Kind.RESTART:
            memory.restart(HOST)
        elif fault.kind is Kind.DELETE:
            with Connection(self.url) as connection:
                connection.default_channel.queue_delete(DELETED)

    def heal(self) -> None:
        """Nothing lasts."""

    def close(self) -> None:
        """Forget it."""
        memory.reset(HOST)


@contextmanager
def memory_target() -> Iterator[MemoryTarget]:
    """A broker that is empty; it goes with the block."""
    target = MemoryTarget()
    try:
        yield target
    finally:
        target.close()
