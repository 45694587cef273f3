"""The messages that wait in a queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenconn.transport.memory.queue import Queue
    from greenconn.transport.virtual.publishing import Envelope

__all__ = ["Entry", "Store", "size_of"]


def size_of(body: Any) -> int:
    """Bytes of a body as it would be on a wire."""
    return len(body.encode()) if isinstance(body, str) else len(body or b"")


class Entry:
    """One message in one queue: waiting there, or delivered and not yet answered."""

    __slots__ = (
        "envelope",
        "exchange",
        "expires_at",
        "position",
        "priority",
        "queue",
        "redelivered",
        "routing_key",
        "size",
    )

    def __init__(
        self,
        queue: Queue,
        envelope: Envelope,
        exchange: str,
        routing_key: str,
        position: int,
        expires_at: float | None = None,
        priority: int = 0,
    ) -> None:
        self.queue = queue
        #: What was published.  Shared by the queues it went to: nobody changes it.
        self.envelope = envelope
        self.exchange = exchange
        self.routing_key = routing_key
        #: Where in the queue it came; a message that is given back returns to this place.
        self.position = position
        #: When it is too old to be delivered, by the broker's clock; None never.
        self.expires_at = expires_at
        self.priority = priority
        self.redelivered = False
        #: Bytes of the body, where the queue counts them.
        self.size = 0


class _Lane:
    """The messages of one priority, by position.

    Messages leave in order.  So whatever was given back was once taken from the head, and stands
    before everything that was never taken: a small heap before a queue is a sorted whole.
    """

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Entry] = deque()
        self.returned: list[tuple[int, Entry]] = []

    def head(self) -> Entry:
        return self.returned[0][1] if self.returned else self.fresh[0]


class Store:
    """Waiting messages: the higher priority first, then by position.

    Arguments:
        max_priority: the highest there is; others are lowered to it.
    """

    __slots__ = ("_filled", "_lanes", "count", "size")

    def __init__(self, max_priority: int = 0) -> None:
        self._lanes = [_Lane() for _ in range(max_priority + 1)]
        #: Bit n is set while lane n has messages.
        self._filled = 0
        self.count = 0
        #: Sum of their sizes.
        self.size = 0

    def add(self, entry: Entry) -> None:
        """Take in a new message."""
        self._lanes[entry.priority].fresh.append(entry)
        self._filled |= 1 << entry.priority
        self.count += 1
        self.size += entry.size

    def put_back(self, entry: Entry) -> None:
        """Take back one that was taken out, to the place where it was."""
        heappush(self._lanes[entry.priority].returned, (entry.position, entry))
        self._filled |= 1 << entry.priority
        self.count += 1
        self.size += entry.size

    def take(self) -> Entry:
        """Take out the one whose turn it is.  There must be one."""
        return self._take_from(self._filled.bit_length() - 1)

    def _take_from(self, priority: int) -> Entry:
        lane = self._lanes[priority]
        fresh, returned = lane.fresh, lane.returned
        entry = heappop(returned)[1] if returned else fresh.popleft()
        if not (fresh or returned):
            self._filled &= ~(1 << priority)
        self.count -= 1
        self.size -= entry.size
        return entry

    def _filled_priorities(self) -> Iterator[int]:
        filled = self._filled
        while filled:
            priority = filled.bit_length() - 1
            yield priority
            filled &= ~(1 << priority)

    def next_expiry(self) -> float | None:
        """When the next message at the head of its priority is too old; None: never."""
        times = [self._lanes[each].head().expires_at for each in self._filled_priorities()]
        return min((each for each in times if each is not None), default=None)

    def take_expired(self, now: float) -> Entry | None:
        """Take out a head that is too old.  Behind the heads nobody looks, as in RabbitMQ."""
        for priority in self._filled_priorities():
            expires_at = self._lanes[priority].head().expires_at
            if expires_at is not None and expires_at <= now:
                return self._take_from(priority)
        return None

    def clear(self) -> int:
        """Drop everything and return how many there were."""
        count = self.count
        self._lanes = [_Lane() for _ in self._lanes]
        self._filled = self.count = self.size = 0
        return count

    def __iter__(self) -> Iterator[Entry]:
        """The messages in the order in which they would be taken."""
        for priority in self._filled_priorities():
            lane = self._lanes[priority]
            yield from (entry for _, entry in sorted(lane.returned, key=lambda pair: pair[0]))
            yield from lane.fresh
