"""Streams: the offset to start from, and the one to resume from after an interruption."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from greenconn.message import Message

__all__ = ["OFFSET", "Offset", "OffsetStore", "StreamPosition", "check_offset", "offset_of"]

#: ``first``, ``last``, ``next``, an interval such as ``1h``; the number of a message; a time.
Offset: TypeAlias = "str | int | datetime"

#: Argument of a consumer and header of its messages.
OFFSET: Final = "x-stream-offset"
#: A number of years, months, days, hours, minutes or seconds.
_INTERVAL: Final = re.compile(r"[0-9]+[YMDhms]", re.ASCII)
#: Where a reader begins depends on the time when it begins.
_MOVING: Final = frozenset({"last", "next"})
#: Settled messages that may be kept until the next look.
SLACK: Final = 64


def check_offset(offset: Any) -> None:
    """Refuse what the broker would crash at, which costs the whole connection.

    Raises:
        ValueError: it is no offset.
    """
    if isinstance(offset, str):
        is_offset = offset in ("first", "last", "next") or _INTERVAL.fullmatch(offset) is not None
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
    """Return the offset at which a consumer of *queue* begins; None if that is no stream."""
    offset: Offset | None = (queue.consumer_arguments or {}).get(OFFSET)
    if offset is None and (queue.queue_arguments or {}).get("x-queue-type") == "stream":
        return "next"  # the broker's own default
    return offset


class OffsetStore(Protocol):
    """A store of the offsets at which the readers of streams go on, beyond the life of a program.

    Both methods may switch, may be called by several greenlets, and raise when they have failed.
    """

    def load(self, stream: str, reader: str, /) -> int | None:
        """Return the offset that was stored last; None if there is none."""
        ...

    def store(self, stream: str, reader: str, offset: int, /) -> object:
        """Return when *offset* is stored: that of the first message that *reader* has not settled."""
        ...


class StreamPosition:
    """The position in one stream.

    A stream keeps what was acknowledged, and takes nothing back: a consumer that reconnects says
    where to begin.  That is the first message that was not settled, or was requeued; what came
    after it may be handled twice.

    Arguments:
        first: where the program wants to begin.
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
        """*put*, with an eye on the offsets."""

        def put_and_note(message: Message) -> Any:
            offset = message.headers.get(OFFSET)
            if isinstance(offset, int):
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
        """Note that the broker has confirmed the reader."""
        if self._began_at is None:
            self._began_at = datetime.now(timezone.utc)

    @property
    def settled_before(self) -> int | None:
        """The offset of the first message that is not settled; None before anything was read."""
        self._trim()
        unhandled = [] if self._unhandled is None else [self._unhandled]
        return min([*unhandled, *self._outstanding], default=self._next)

    def begin_at(self, offset: int) -> None:
        """Begin at *offset*, before which another program has settled all."""
        self._next = offset
        self._outstanding.clear()
        self._unhandled = None

    @property
    def has_read(self) -> bool:
        """Whether anything has come."""
        return self._next is not None

    def begin_anew(self) -> None:
        """Forget the offset of a deleted stream: all in a new one of its name is new."""
        self._first = "first"
        self._next = self._unhandled = None
        self._outstanding.clear()

    def restart(self) -> Offset:
        """Return the offset at which to begin now."""
        self._next = self.settled_before
        self._outstanding.clear()
        self._unhandled = None
        if self._next is not None:
            return self._next
        if self._first in _MOVING and self._began_at is not None:
            # No message yet: those published while the stream was not read must not be missed.
            return self._began_at
        return self._first
