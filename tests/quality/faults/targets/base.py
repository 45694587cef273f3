"""What the targets of all brokers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Protocol

import gevent

from greenconn.connection import Connection
from greenconn.entity import Queue
from tests.quality.faults.kinds import OF_PROCESSES, PROXIED, Direction, Fault, Kind
from tests.quality.faults.proxied import ProxyProcess

#: Seconds between two cuts of a link that flaps.
BETWEEN_CUTS: Final = 0.1
#: The queue that is deleted.
DELETED = "deleted"


class Role(Enum):
    """What becomes of a queue."""

    KEPT = "kept"  #: consumed from with acks
    UNACKED = "unacked"  #: consumed from without
    DELETED = "deleted"  #: deleted now and then, with its consumer


@dataclass(frozen=True)
class Place:
    """A queue of the storm."""

    queue: Queue
    role: Role


def places_of(kept: Sequence[Queue]) -> list[Place]:
    """*kept*, the queues without acks, and last the one that is deleted."""
    return [
        *(Place(queue, Role.KEPT) for queue in kept),
        *(Place(Queue(f"unacked-{number}"), Role.UNACKED) for number in (1, 2)),
        Place(Queue(DELETED), Role.DELETED),
    ]


class Target(Protocol):
    """A broker.

    Attributes:
        name: its kind.
        transport: its kind in kombu's words.
        url: where clients connect to: the proxy, where there is one.
        kinds: the faults that it can have.
        options: transport options with which clients notice faults soon.
        heartbeat: seconds.
        rate: messages a second that it bears.
        is_ordered: it keeps the order of messages, while nothing is wrong.
    """

    name: str
    transport: str
    url: str
    kinds: frozenset[Kind]
    options: dict[str, Any]
    heartbeat: float | None
    rate: float
    is_ordered: bool

    def places(self) -> list[Place]:
        """The queues of the storm."""
        ...

    def settle(self) -> None:
        """What was declared shall outlive a kill.  May switch."""
        ...

    def held(self) -> int:
        """How many messages somebody holds who has not answered, as far as the broker tells.

        What the dead hold is in no queue until their lease ends.  May switch.
        """
        ...

    def inject(self, fault: Fault) -> None:
        """Have a fault, to its end, except what the proxy does for a while.  May switch."""
        ...

    def heal(self) -> None:
        """End all faults.  May switch."""
        ...

    def close(self) -> None:
        """End it.  May switch."""
        ...


class Server(Protocol):
    """A process that serves, which a storm may kill."""

    @property
    def is_running(self) -> bool: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Served:
    """A server that a storm ends, freezes and starts again.

    Arguments:
        server: the broker.
    """

    kinds = frozenset(
        {Kind.KILL, Kind.RESTART, Kind.PAUSE, Kind.DELETE, Kind.INTERRUPT, *OF_PROCESSES}
    )
    heartbeat: float | None = None
    rate = float("inf")
    is_ordered = True
    url = ""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.options: dict[str, Any] = {}

    @property
    def direct_url(self) -> str:
        """The broker's address, past a proxy."""
        raise NotImplementedError

    def settle(self) -> None:
        """Each reply came after a write to the disk."""

    def held(self) -> int:
        """It does not tell."""
        return 0

    def inject(self, fault: Fault) -> None:
        """Have a fault."""
        getattr(self, fault.kind.value.replace("-", "_"))(fault)

    def kill(self, fault: Fault) -> None:
        """SIGKILL, and a start on what is on the disk."""
        self.server.kill()
        gevent.sleep(fault.seconds)
        self.server.start()

    def restart(self, fault: Fault) -> None:
        """An end in good order, and a start."""
        self.server.stop()
        gevent.sleep(fault.seconds)
        self.server.start()

    def pause(self, fault: Fault) -> None:
        """SIGSTOP for a while."""
        self.server.pause()
        try:
            gevent.sleep(fault.seconds)
        finally:
            self.server.resume()

    def delete(self, fault: Fault) -> None:
        """The last queue goes, with consumers and all."""
        with Connection(self.direct_url) as connection:
            connection.default_channel.queue_delete(DELETED)

    def heal(self) -> None:
        """Let it go on."""
        self.server.resume()
        if not self.server.is_running:
            self.server.start()

    def close(self) -> None:
        """Nothing is its own."""


class Proxied(Served):
    """A server behind a proxy.

    Arguments:
        server: the broker.
        port: where it listens.
        protocol: what it speaks, as the proxy has it.
    """

    kinds = Served.kinds | PROXIED | {Kind.FLAP}

    def __init__(self, server: Server, port: int, protocol: str) -> None:
        super().__init__(server)
        self.proxy = ProxyProcess(port, protocol)

    def inject(self, fault: Fault) -> None:
        """Have a fault."""
        if fault.kind in PROXIED:
            self.proxy.inject(fault)
        else:
            super().inject(fault)

    def flap(self, fault: Fault) -> None:
        """Links end as soon as they are back: what was prefetched is delivered again and again."""
        for number in range(max(1, round(fault.seconds / BETWEEN_CUTS))):
            cut = replace(fault, kind=Kind.CUT, direction=Direction.BOTH, seed=fault.seed + number)
            self.proxy.inject(cut)
            gevent.sleep(BETWEEN_CUTS)

    def heal(self) -> None:
        """Let it go on."""
        self.proxy.heal()
        super().heal()

    def close(self) -> None:
        """End the proxy."""
        self.proxy.close()
