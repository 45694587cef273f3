"""The faults, and the order in which a seed has them come."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """What goes wrong."""

    #: By the proxy, on a choice of the connections that are open.
    CUT = "cut"  #: ends in good order (FIN), in the midst of what is sent
    RESET = "reset"  #: ends with RST; of one direction: that end alone, the other one hears no more
    HALF_OPEN = "half-open"  #: stays open, and what is sent is never heard of again
    CORRUPT = "corrupt"  #: a byte is another one, where the protocol can tell
    DUPLICATE = "duplicate"  #: some bytes come twice, where the protocol can tell
    FLAP = "flap"  #: the links are cut again and again, as soon as they are back
    #: By the proxy, on all connections, for a while.
    DELAY = "delay"
    THROTTLE = "throttle"
    STOP_READING = "stop-reading"
    FRAGMENT = "fragment"  #: comes in pieces of 1 to 7 bytes
    #: Of the broker.
    KILL = "kill"  #: SIGKILL, and a start on the data that it left
    RESTART = "restart"
    PAUSE = "pause"  #: SIGSTOP, longer than the heartbeats allow
    MEMORY_ALARM = "memory-alarm"  #: it takes no messages for want of memory
    DISK_ALARM = "disk-alarm"  #: it takes no messages for want of disk
    EVICT = "evict"  #: the same, and it deletes keys that expire to have some
    CLOCK = "clock"  #: its clock is an hour fast or slow
    REVOKE = "revoke"  #: the user may nothing for a while, or not even come in
    DRAIN_MODE = "drain-mode"  #: it takes no new messages, dead letters neither (beanstalk)
    DELETE = "delete"  #: a queue that is consumed from
    #: Of the clients.
    INTERRUPT = "interrupt"  #: greenlets that publish are killed, wherever they are
    KILL_CLIENT = "kill-client"  #: SIGKILL of a process that publishes and consumes
    SUSPEND_CLIENT = "suspend-client"  #: SIGSTOP of one, beyond its lease or its heartbeats


class Direction(str, Enum):
    """Which of a connection's two flows of bytes; from the client's side."""

    THERE = "there"
    BACK = "back"
    BOTH = "both"

    def __contains__(self, other: object) -> bool:
        return self is Direction.BOTH or other is self


#: What the proxy does for a while, to all.
LASTING = frozenset({Kind.DELAY, Kind.THROTTLE, Kind.STOP_READING, Kind.FRAGMENT})
#: What the proxy does.
PROXIED = LASTING | {Kind.CUT, Kind.RESET, Kind.HALF_OPEN, Kind.CORRUPT, Kind.DUPLICATE}

#: What the further processes suffer that publish and consume.
OF_PROCESSES = frozenset({Kind.KILL_CLIENT, Kind.SUSPEND_CLIENT})

#: Seconds that a fault lasts.
LENGTHS = {
    Kind.DELAY: (1.0, 3.0),
    Kind.THROTTLE: (1.0, 3.0),
    Kind.STOP_READING: (0.5, 5.0),
    Kind.FRAGMENT: (0.5, 2.0),
    Kind.FLAP: (1.0, 4.0),
    Kind.KILL: (0.0, 1.0),
    Kind.RESTART: (0.0, 1.0),
    Kind.PAUSE: (0.5, 6.0),
    Kind.MEMORY_ALARM: (0.5, 3.0),
    Kind.DISK_ALARM: (0.5, 3.0),
    Kind.EVICT: (0.5, 3.0),
    Kind.CLOCK: (0.5, 6.0),
    Kind.REVOKE: (0.5, 3.0),
    Kind.DRAIN_MODE: (0.5, 4.0),
    Kind.SUSPEND_CLIENT: (3.5, 8.0),
}
#: Seconds from the end of a fault to the next one, at least; often there is next to none.
GAPS = ((0.0, 0.1), (0.1, 0.5), (0.5, 2.0))


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, as it was drawn.

    Attributes:
        gap: seconds before it.
        seconds: how long it lasts, where it lasts.
        seed: for what is left to chance within it.
        is_alone: it begins when all has recovered, and no other comes before all has recovered from
            it, so that this can be timed.
    """

    kind: Kind
    direction: Direction
    gap: float
    seconds: float
    seed: int
    is_alone: bool = False

    def __str__(self) -> str:
        """For people."""
        where = f" {self.direction.value}" if self.kind in PROXIED else ""
        length = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind.value}{where}{length}"


def faults_of(seed: int, kinds: Iterable[Kind], longest: float = 10.0) -> Iterator[Fault]:
    """The faults of a seed, without an end: each of *kinds* comes once before any comes again.

    Arguments:
        longest: seconds that none exceeds, and no gap.
    """
    chance = random.Random(f"faults {seed}")
    deck = sorted(set(kinds), key=lambda kind: kind.value)
    while deck:
        chance.shuffle(deck)
        for kind in deck:
            yield Fault(
                kind=kind,
                direction=chance.choice(list(Direction)),
                gap=min(chance.uniform(*chance.choice(GAPS)), longest),
                seconds=min(round(chance.uniform(*LENGTHS.get(kind, (0.0, 0.0))), 2), longest),
                seed=chance.getrandbits(32),
                is_alone=chance.random() < 0.5,
            )


def kinds_of(names: Iterable[str]) -> frozenset[Kind]:
    """The kinds with these names; ``all`` is all of them, ``none`` is none.

    Raises:
        ValueError: there is no such kind.
    """
    found: set[Kind] = set()
    for name in names:
        if name == "all":
            found |= set(Kind)
        elif name != "none":
            found.add(Kind(name))
    return frozenset(found)
