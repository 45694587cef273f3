"""Consumers, as other links see them: a link with consumers of a queue watches an empty tube.

The server counts who watches it, and stops counting a link that is gone.  Exclusive consumers watch
another one beside it, and links with exclusive queues one of their own.
"""

from __future__ import annotations

from typing import Final

from greenconn.transport.beanstalk.connection import CommandConnection, ignore_reply, number_of
from greenconn.wire.beanstalk import line, tube_of

__all__ = ["Presence"]

#: Prefixes of these tubes; no queue's tube has one.
CONSUMERS: Final = b"$consumers."
EXCLUSIVE: Final = b"$exclusive."
OWNER: Final = b"$owner."


class Presence:
    """The queues that one link consumes from, as others see it."""

    def __init__(self, server: CommandConnection) -> None:
        self._server = server
        self._watched: set[bytes] = set()

    def set_consumers(self, queue: str, consumers: int, *, exclusive: bool) -> bool:
        """Note how many consumers this link has; see :meth:`Store.set_consumers`.  May switch.

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
        replies = self._server.ask([*commands, *stats])
        others, lonely = (
            number_of(self._server.read_counts(each), b"current-watching") for each in replies[-2:]
        )
        own = int(alone in self._watched)
        may = lonely <= own and not (exclusive and others > 1)
        if not may:
            self._ignore(*tubes)
        return may

    def other_consumers(self, queue: str) -> int:
        """Return the number of other links that consume from a queue.  May switch."""
        tube = CONSUMERS + tube_of(queue)
        watching = number_of(self._server.counts(tube), b"current-watching")
        return max(watching - int(tube in self._watched), 0)

    # -- links with exclusive queues

    def live(self, owner: str) -> None:
        """Show that the owner of exclusive queues is alive.  May switch."""
        tube = OWNER + tube_of(owner)
        if tube not in self._watched:
            self._watched.add(tube)
            self._server.ask([line(b"watch", tube)])

    def is_alive(self, owner: str) -> bool:
        """Return whether the link of an exclusive queue is connected.  May switch."""
        counts = self._server.counts(OWNER + tube_of(owner))
        return number_of(counts, b"current-watching") > 0

    def _ignore(self, *tubes: bytes) -> None:
        for tube in tubes:
            if tube in self._watched:
                self._watched.discard(tube)
                self._server.pipeline.post(line(b"ignore", tube), ignore_reply)
