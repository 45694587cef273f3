"""Turns of the consumers of a queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from greenconn.transport.virtual.consumer import Consumer

__all__ = ["Turns"]


class Turns:
    """The consumers that have room: by priority, and in turn among those of one priority.

    A consumer without room is *parked*: it is not in here, and comes back by :meth:`add` when it
    has room again.
    """

    __slots__ = ("_levels", "_order")

    def __init__(self) -> None:
        self._levels: dict[int, deque[Consumer]] = {}
        #: The queues of ``_levels``, the highest priority first.
        self._order: list[deque[Consumer]] = []

    def __bool__(self) -> bool:
        return any(self._order)

    def add(self, consumer: Consumer) -> None:
        """Put *consumer* behind those of its priority."""
        consumer.is_parked = False
        level = self._levels.get(consumer.priority)
        if level is None:
            level = self._levels[consumer.priority] = deque()
            self._order = [self._levels[each] for each in sorted(self._levels, reverse=True)]
        level.append(consumer)

    def discard(self, consumer: Consumer) -> None:
        """Take *consumer* out, if it is in."""
        if not consumer.is_parked:
            consumer.is_parked = True
            self._levels[consumer.priority].remove(consumer)

    def ready(self) -> Iterator[Consumer]:
        """Those who are in, in no certain order."""
        for level in self._order:
            yield from level

    def first(self) -> Consumer | None:
        """The consumer that is served next; it stays in.  None when nobody has room."""
        for level in self._order:
            while level:
                consumer = level[0]
                if consumer.has_room():
                    return consumer
                consumer.is_parked = True
                level.popleft()
        return None

    def take(self) -> Consumer | None:
        """Take out the consumer that is served next; None when nobody has room."""
        for level in self._order:
            while level:
                consumer = level.popleft()
                consumer.is_parked = True
                # What bounds a whole channel may have been used up by its other consumers.
                if consumer.has_room():
                    return consumer
        return None
