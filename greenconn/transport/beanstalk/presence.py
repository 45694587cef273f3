"""Who consumes: links with consumers of a queue watch a tube that never has a job.

The server counts who watches it, and stops counting a link that is gone.  Exclusive consumers watch
another one beside it, and links with exclusive queues one of their own.
"""

from __future__ import annotations

from typing import Final

from greenconn.transport.beanstalk.desk import Desk, number_of
from greenconn.wire.beanstalk import line, tube_of

__all__ = ["Presence"]

#: What these tubes begin with; no queue's tube does.
CONSUMERS: Final = b"$consumers."
EXCLUSIVE: Final = b"$exclusive."
OWNER: Final = b"$owner."


class Presence:
    """The queues that one link consumes from, as others see it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._watched: set[bytes] = set()

    def enrol(self, queue: str, consumers: int, *, exclusive: bool) -> bool:
        """This link has so many consumers; see :meth:`Store.enrol`.  May switch.

        Two that want to be alone at the same moment may both be refused, but never both succeed.
        """
        name = tube_of(queue)
        shared, alone = CONSUMERS + name, EXCLUSIVE + name
        if not consumers:
            self._ignore(shared, alone)
            return True
        if not exclusive and shared in self._watched:
            return True
        tubes = [shared, alone] if exclusive else [shared]
        # First be seen, then look: of two who come at the same time one sees the other at least.
        self._watched.update(tubes)
        commands = [line(b"watch", each) for each in tubes]
        stats = [line(b"stats-tube", shared), line(b"stats-tube", alone)]
        replies = self._desk.ask([*commands, *stats])
        others, lonely = (
            number_of(self._desk.read_counts(each), b"current-watching") for each in replies[-2:]
        )
        own = int(alone in self._watched)
        may = lonely <= own and not (exclusive and others > 1)
        if not may:
            self._ignore(*tubes)
        return may

    def others(self, queue: str) -> int:
        """How many other links consume from a queue.  May switch."""
        tube = CONSUMERS + tube_of(queue)
        watching = number_of(self._desk.counts(tube), b"current-watching")
        return max(watching - int(tube in self._watched), 0)

    # -- links with exclusive queues

    def live(self, owner: str) -> None:
        """Be known to live, as the owner of exclusive queues.  May switch."""
        tube = OWNER + tube_of(owner)
        if tube not in self._watched:
            self._watched.add(tube)
            self._desk.ask([line(b"watch", tube)])

    def is_alive(self, owner: str) -> bool:
        """Whether the link of an exclusive queue is there.  May switch."""
        counts = self._desk.counts(OWNER + tube_of(owner))
        return number_of(counts, b"current-watching") > 0

    def _ignore(self, *tubes: bytes) -> None:
        for tube in tubes:
            if tube in self._watched:
                self._watched.discard(tube)
                self._desk.pipeline.post(line(b"ignore", tube), _nothing)


def _nothing(reply: object) -> None:
    """A reply that tells nothing."""
