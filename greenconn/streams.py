"""Offsets of streams: where a consumer starts, and where it resumes after an interruption."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = ["OFFSET", "Offset", "OffsetStore", "StreamPosition", "check_offset", "offset_of"]

#: A stream offset: ``first``, ``last``, ``next``, an interval such as ``1h``, an integer or a time.
Offset: TypeAlias = "str | int | datetime"

#: The consumer argument with the start offset, and the header with the offset of a message.
OFFSET: Final = "x-stream-offset"
#: Above all offsets that RabbitMQ counts.
LAST_OFFSET: Final = 2**63
#: A number of years, months, days, hours, minutes or seconds.  Compiled by the first one.
_INTERVAL: Final = r"[0-9]+[YMDhms]"
#: Where a reader begins depends on the time when it begins.
_MOVING: Final = frozenset({"last", "next"})
#: Settled messages that may be kept until the next look.
SLACK: Final = 64


def check_offset(offset: Any) -> None:
    """Check *offset* before it is sent: on an invalid one, the broker fails and ends the connection.

    Raises:
        ValueError: *offset* is not a valid stream offset.
    """
    if isinstance(offset, str):
        is_offset = offset in ("first", "last", "next") or bool(re.fullmatch(_INTERVAL, offset))
    elif isinstance(offset, int) and not isinstance(offset, bool):
        is_offset = offset >= 0
    else:
        is_offset = isinstance(offset, datetime)
    if not is_offset:
        raise ValueError(
            f"offset must be 'first', 'last', 'next', an integer from 0, a datetime, or an interval "
            f"such as '7D', '1h' or '30s', got {offset!r}"
        )


def offset_of(queue: Any) -> Offset | None:
    """Return the offset at which a consumer of *queue* starts; None if the queue is not a stream."""
    offset: Offset | None = (queue.consumer_arguments or {}).get(OFFSET)
    if offset is None and (queue.queue_arguments or {}).get("x-queue-type") == "stream":
        return "next"  # the broker's own default
    return offset


class OffsetStore(Protocol):
    """A persistent store of the offsets at which stream readers resume after a restart.

    Both methods may switch, can be called by several greenlets concurrently, and must raise an exception
    on failure.
    """

    def load(self, stream: str, reader: str, /) -> int | None:
        """Return the last stored offset, or None if there is none."""
        ...

    def store(self, stream: str, reader: str, offset: int, /) -> object:
        """Store *offset*, the first one that *reader* has not settled; return when it is stored."""
        ...


class StreamPosition:
    """The position of a reader in one stream.

    A stream keeps acknowledged messages and does not requeue rejected ones, so a consumer that
    reconnects must specify the offset to resume from.  It resumes from the first message that was not
    settled or was requeued.  Messages after that one may be handled twice.

    Arguments:
        first: the offset at which the program wants to start.
    """

    __slots__ = ("_began_at", "_first", "_next", "_outstanding", "_trim_above", "_unhandled")

    def __init__(self, first: Offset) -> None:
        self._first = first
        #: When the broker confirmed the reader at first.
        self._began_at: datetime | None = None
        self._next: int | None = None
        #: Messages by offset, in the order in which they came, until they are found settled.
        self._outstanding: dict[int, Any] = {}
        self._trim_above = SLACK
        #: The first offset that was requeued.
        self._unhandled: int | None = None

    def watching(self, put: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function that records the offset of each message and then calls *put*."""

        def put_and_note(message: Message) -> Any:
            offset = message.headers.get(OFFSET)
            if isinstance(offset, int) and 0 <= offset < LAST_OFFSET:
                self._outstanding[offset] = message
                self._next = offset + 1
                if len(self._outstanding) > self._trim_above:
                    self._trim()
            return put(message)

        return put_and_note

    def _trim(self) -> None:
        left = {}
        for offset, message in self._outstanding.items():
            if not message.acknowledged:
                left[offset] = message
            elif message._state == "REQUEUED":
                self._unhandled = (
                    offset if self._unhandled is None else min(offset, self._unhandled)
                )
        self._outstanding = left
        self._trim_above = 2 * len(left) + SLACK

    def note_begin(self) -> None:
        """Record the time when the broker first confirmed the reader."""
        if self._began_at is None:
            self._began_at = datetime.now(timezone.utc)

    @property
    def settled_before(self) -> int | None:
        """The offset of the first message that is not settled; None before the first message is read."""
        self._trim()
        unhandled = [] if self._unhandled is None else [self._unhandled]
        return min([*unhandled, *self._outstanding], default=self._next)

    def begin_at(self, offset: int) -> None:
        """Start at *offset*; all messages before it were settled by another program."""
        self._next = offset
        self._outstanding.clear()
        self._unhandled = None

    @property
    def has_read(self) -> bool:
        """Whether a message has been received."""
        return self._next is not None

    def begin_anew(self) -> None:
        """Reset the offset after the stream was deleted: all messages of its replacement are new."""
        self._first = "first"
        self._next = self._unhandled = None
        self._outstanding.clear()

    def restart(self) -> Offset:
        """Return the offset at which the reader resumes, and forget unsettled messages."""
        self._next = self.settled_before
        self._outstanding.clear()
        self._unhandled = None
        if self._next is not None:
            return self._next
        if self._first in _MOVING and self._began_at is not None:
            # No message yet: those published while the stream was not read must not be missed.
            return self._began_at
        return self._first
