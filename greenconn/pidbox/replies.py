"""The replies to the commands of one mailbox, each handed to the greenlet that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import time
from typing import TYPE_CHECKING, Any, Final

from greenconn.caching import LRUCache
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = ["Replies", "clock_of", "taken_from"]

#: Tickets whose replies are kept although nobody waits for them yet, and replies to one of them.
UNCLAIMED: Final = 100
#: Logical clocks beyond this were never counted to, and would not fit into a header before long.
LATEST: Final = 1 << 62


class Replies:
    """The sink of all consumers of a mailbox's reply queue.

    Several greenlets may collect at once: the broker gives each reply to any of their consumers, and
    its ticket says whose it is.  Those of a ticket that nobody has asked for are kept for a while.
    """

    def __init__(self) -> None:
        self.taken: Callable[[Any], None] | None = None
        self._collecting: dict[str, Inbox[Any]] = {}
        self._unclaimed: LRUCache[str, list[Any]] = LRUCache(limit=UNCLAIMED)

    # In the reader.

    def deliver(self, message: Message) -> None:
        """Hand a reply to the greenlet with its ticket."""
        if self.taken is not None:
            self.taken(message)
        headers = message.headers
        ticket, expires = headers.get("ticket"), headers.get("expires")
        if isinstance(expires, (int, float)) and 0 < expires < time():
            return
        if ticket is None and len(self._collecting) == 1:
            # Of a node that sends no tickets: it can be nobody else's.
            next(iter(self._collecting.values())).put(message)
        elif not isinstance(ticket, str):
            return  # of nobody who has asked
        elif ticket in self._collecting:
            self._collecting[ticket].put(message)
        elif ticket in self._unclaimed:
            kept = self._unclaimed[ticket]
            if len(kept) < UNCLAIMED:
                kept.append(message)
        else:
            self._unclaimed[ticket] = [message]

    def cancelled(self, exc: BaseException) -> None:
        """Let all who wait raise *exc*: no more replies will come."""
        for inbox in self._collecting.values():
            inbox.fail(exc)

    def give_back(self) -> None:
        """Do nothing: replies need no answer."""

    # In those who collect.

    @property
    def is_idle(self) -> bool:
        """Whether nobody collects."""
        return not self._collecting

    @contextmanager
    def of(self, ticket: str) -> Iterator[Inbox[Any]]:
        """Collect the replies with *ticket* while this context lasts."""
        inbox = self._collecting[ticket] = Inbox()
        for message in self._unclaimed.data.pop(ticket, ()):
            inbox.put(message)
        try:
            yield inbox
        finally:
            del self._collecting[ticket]


def taken_from(inbox: Inbox[Any], limit: int | None, deadline: Deadline) -> Iterator[Any]:
    """Yield *limit* messages at most (None, 0: without limit), until the deadline.  May switch."""
    taken = 0
    while not limit or taken < limit:
        try:
            message = inbox.get(deadline)
        except TimeoutError:
            return
        taken += 1
        yield message


def clock_of(message: Message) -> int:
    """The logical clock that came with *message*; 0 where there is none that can be believed."""
    clock = message.headers.get("clock")
    return clock if isinstance(clock, int) and 0 < clock < LATEST else 0
