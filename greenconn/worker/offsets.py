"""The stored offset of one reader of one stream: loaded when it begins, stored while it reads.

It is stored after so many messages, after so many seconds, and when the reader ends, if it has changed.
What is stored is the offset of the first message that is not settled, so after a crash the messages
since then are handled again, and none is left out.

One greenlet stores at a time, and nothing kills it, so that an older offset never replaces a newer one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenconn.exceptions import error_text
from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import OnDemand
from greenconn.green.ticker import Ticker
from greenconn.streams import OffsetStore, StreamPosition

if TYPE_CHECKING:
    from greenconn.message import Message

logger = logging.getLogger("greenconn.worker")


class OffsetRecorder:
    """The stored offset of one reader of one stream.

    Arguments:
        store: where it is kept.
        stream, reader: their names.
        position: the reader's.
        every: messages after which it is stored.
        interval: seconds after which it is stored.
    """

    def __init__(
        self,
        store: OffsetStore,
        stream: str,
        reader: str,
        position: StreamPosition,
        every: int,
        interval: float,
    ) -> None:
        self._store = store
        self._stream = stream
        self._reader = reader
        self._position = position
        self._every = every
        self._ticker = Ticker(interval, self._on_tick, f"offset of {reader}@{stream}")
        #: Messages since it was stored.
        self._count = 0
        self._stored: int | None = None
        self._is_loaded = False
        self._has_failed = False
        self._storing = OnDemand("store-offset", self._store_latest)
        #: Whether it is to be stored, by the greenlet that is storing if there is one.
        self._is_wanted = False

    def load(self) -> None:
        """Begin where the reader has ended, once until it stands down.  May switch.

        Raises:
            Exception: what the store raised.
        """
        if self._is_loaded:
            return
        offset = self._store.load(self._stream, self._reader)
        if offset is not None:
            # Where this one was before it stood down may not have been stored.
            self._position.begin_at(max(offset, self._position.settled_before or 0))
        self._stored = offset
        self._is_loaded = True
        self._ticker.start()

    def counting(self, put: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return *put*, with a count of the messages."""

        def put_and_count(message: Message) -> Any:
            self._count += 1
            if self._count >= self._every:
                self._begin()
            return put(message)

        return put_and_count

    @property
    def _due(self) -> int | None:
        """The offset that is to be stored; None while there is nothing new."""
        offset = self._position.settled_before
        return None if offset == self._stored or not self._is_loaded else offset

    def _on_tick(self, lag: float) -> None:
        # In the hub.
        if self._due is not None:
            self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._is_wanted = True
        self._storing.start()

    def _store_latest(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                offset = self._due
                if offset is not None:
                    self._store.store(self._stream, self._reader, offset)
                    self._stored = offset
                    self._has_failed = False
        except Exception as exc:
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            logger.log(
                level,
                "offset of reader %r in stream %r was not stored, trying again: %s: %s",
                self._reader,
                self._stream,
                type(exc).__name__,
                error_text(exc),
                extra={"queue": self._stream, "consumer": self._reader},
            )

    def finish(self, deadline: Deadline) -> None:
        """Store the last offset, if that can be done before *deadline*.  May switch.

        After that :meth:`load` begins anew.
        """
        while self._due is not None and not deadline.has_ended:
            is_last = self._storing.greenlet is None
            self._begin()
            assert self._storing.greenlet is not None
            self._storing.greenlet.join(deadline.left())
            if is_last:
                break
        self.stand_down()

    def stand_down(self) -> None:
        """Store nothing until :meth:`load` is called again: another reader may.  Never switches."""
        self._ticker.stop()
        self._is_loaded = False

    def stop(self) -> None:
        """Store no more by itself.  Never switches."""
        self._ticker.stop()
