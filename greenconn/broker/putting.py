"""Storing messages: what many greenlets publish meanwhile leaves together, in the next call.

Nobody waits for others: the first message leaves at once, and what comes while its call is on its way
makes up the next call.  A caller that is killed leaves nothing behind: what is not on its way yet is
dropped, what is on its way is stored, and nobody is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.port import Entry, NoQueue
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.link import StoreLink

__all__ = ["Putting"]

#: Bytes that a message takes beside its body, about.
OVERHEAD: Final = 256


class _Parcel:
    """The entries of one publish, and who waits for what becomes of them."""

    __slots__ = ("errors", "is_begun", "left", "slot")

    def __init__(self, count: int) -> None:
        #: Gets None, or why it was not stored.
        self.slot: Slot[Exception | None] = Slot()
        self.left = count
        self.errors: list[Exception] = []
        self.is_begun = False

    def answer(self, count: int, error: Exception | None) -> None:
        """One of its entries was stored, or not."""
        self.left -= 1
        if error is not None:
            self.errors.append(error)
        if not self.left:
            self.slot.offer(self._outcome(count))

    def _outcome(self, count: int) -> Exception | None:
        for error in self.errors:
            if not isinstance(error, NoQueue):
                return error
        # Where others have it, it was not in vain.
        return self.errors[0] if len(self.errors) == count else None


class Putting:
    """What the channels of one link publish."""

    __slots__ = ("_greenlets", "_link", "_pending")

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._pending: deque[tuple[_Parcel, Entry, int]] = deque()
        self._greenlets: set[Greenlet[..., Any]] = set()

    def put(self, entries: Sequence[Entry]) -> Slot[Exception | None]:
        """Store the entries of one message; what the result gets is why it is not.  Never switches."""
        parcel = _Parcel(len(entries))
        for entry in entries:
            self._pending.append((parcel, entry, len(entries)))
        if len(self._greenlets) < self._link.store.put_calls:
            self._greenlets.add(spawn("put", self._run))
        return parcel.slot

    @property
    def is_busy(self) -> bool:
        """Whether something is not stored yet."""
        return bool(self._greenlets)

    def stop(self, exc: BaseException) -> None:
        """The link is gone: nobody's message is stored any more.  Never switches."""
        pending, self._pending = self._pending, deque()
        for parcel, _, _ in pending:
            parcel.slot.fail(exc)
        self._link.kill(self._greenlets)

    def _take(self) -> list[tuple[_Parcel, Entry, int]]:
        """Take what one call may store; a publisher that has left wants nothing any more."""
        store, pending = self._link.store, self._pending
        batch: list[tuple[_Parcel, Entry, int]] = []
        size = 0
        while pending and len(batch) < store.put_limit:
            parcel, entry, _ = pending[0]
            if parcel.slot.has_left and not parcel.is_begun:
                pending.popleft()
                continue
            size += len(entry.envelope["body"]) + OVERHEAD
            if batch and size > store.put_bytes:
                break
            parcel.is_begun = True
            batch.append(pending.popleft())
        return batch

    def _run(self) -> None:
        current = self._link.current()
        try:
            while batch := self._take():
                self._store(batch)
        finally:
            self._greenlets.discard(current)

    def _store(self, batch: list[tuple[_Parcel, Entry, int]]) -> None:
        link = self._link
        try:
            outcomes = link.store.put([entry for _, entry, _ in batch])
        except BaseException as exc:
            failure = link.failed(exc, "storing messages", is_told=True)
            for parcel, _, _ in batch:
                parcel.slot.fail(failure)
            if not isinstance(exc, Exception):
                raise
            return
        for (parcel, entry, count), error in zip(batch, outcomes, strict=True):
            parcel.answer(count, error)
            if error is None:
                if not entry.delay:
                    link.ripen(entry.queue)
            elif isinstance(error, NoQueue):
                link.directory.forget(entry.queue)
