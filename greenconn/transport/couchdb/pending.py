"""An index of the waiting messages of one queue, without their content.

Theory.  The ids of a queue sort as its messages are to be delivered, and new ones come behind those
that are there, mostly.  So the queue is read once, page by page, up to a *place*; whatever waits in
front of it and was passed over is known by its id: it was requeued, has a higher priority, or
will be due some time.  The feed of changes brings what is new on either side of the place.

While a read is on its way, its reply and the feed may overtake each other.  So what the feed says
meanwhile is kept until the reply was used, and what is newer than the reply wins.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Final

from greenconn.transport.couchdb.documents import MESSAGE, Range, generation, is_waiting, range_of

__all__ = ["PendingIndex"]

#: Ids in front of the place that are remembered; with more the queue is read anew from the first.
REMEMBERED: Final = 2000


class PendingIndex:
    """The index of one queue.  Nothing here switches."""

    def __init__(self, queue: str) -> None:
        self._all = range_of(MESSAGE, queue)
        self._place = self._all.start
        #: No message comes after the place.
        self.is_done = False
        #: What lies behind the place is held, most likely.
        self.is_sparse = False
        #: In front of the place, and may wait.
        self._returned: set[str] = set()
        #: When it is due, and the id.
        self._later: list[tuple[float, str]] = []
        #: While a read is on its way: id -> the newest generation that the feed has shown.
        self._meanwhile: dict[str, int] | None = None

    @property
    def rest(self) -> Range:
        """The range that was not read yet."""
        return self._all._replace(start=self._place)

    @property
    def may_have_messages(self) -> bool:
        """Whether messages may wait."""
        return bool(self._returned) or not self.is_done

    @property
    def next_due(self) -> float | None:
        """When the next message is due that was read too early; None: there is none."""
        return self._later[0][0] if self._later else None

    def start_over(self, is_sparse: bool = False) -> None:
        """Read the queue from its first message.

        Arguments:
            is_sparse: most of what is there is held, most likely.
        """
        self.is_sparse = is_sparse
        self._place = self._all.start
        self.is_done = False
        self._returned.clear()
        self._later.clear()

    def note(self, doc_id: str, revision: str) -> bool:
        """Note a message of that revision; return whether it waits."""
        if self._meanwhile is not None:
            self._meanwhile[doc_id] = generation(revision)
        if not is_waiting(revision):
            self._returned.discard(doc_id)
            return False
        if doc_id >= self._place:
            if not self.is_done:
                return True  # it will be read
            self._place = doc_id + "\0"  # nothing else lies before it, or the feed will tell
        self._return(doc_id)
        return True

    def forget(self, doc_id: str) -> None:
        """Forget a message."""
        self._returned.discard(doc_id)

    def take_returned(self, limit: int) -> list[str]:
        """Return the first ids in front of the place; they are read now."""
        ids = sorted(self._returned)[:limit]
        self._returned.difference_update(ids)
        return ids

    def watch(self) -> None:
        """Note that a read begins."""
        self._meanwhile = {}

    def passed(self, ids: Iterable[str], is_last: bool) -> None:
        """Note that all up to the last of *ids* was read; *is_last*: there were no more."""
        for doc_id in ids:
            self._place = max(self._place, doc_id + "\0")
        self.is_done = is_last
        # What came in the meantime lay behind the place then.
        for doc_id, number in (self._meanwhile or {}).items():
            if number % 2 and doc_id >= self._place:
                self.is_done = False

    def used(self, known: dict[str, int]) -> None:
        """Note that what was read was used; *known*: id -> generation that it had, or has by now."""
        meanwhile, self._meanwhile = self._meanwhile or {}, None
        for doc_id, number in meanwhile.items():
            if number % 2 and number > known.get(doc_id, 0) and doc_id < self._place:
                self._return(doc_id)

    def delay(self, doc_id: str, due_at: float) -> None:
        """Note a message that is due later."""
        heappush(self._later, (due_at, doc_id))

    def due(self, now: float) -> None:
        """Bring forward what is due."""
        while self._later and self._later[0][0] <= now:
            self._return(heappop(self._later)[1])

    def _return(self, doc_id: str) -> None:
        self._returned.add(doc_id)
        if len(self._returned) > REMEMBERED:
            self._place = min(self._returned)
            self._returned.clear()
            self.is_done = False
