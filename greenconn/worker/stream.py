"""Where a consumer of a stream goes on after it was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

__all__ = ["Offset", "StreamPosition"]

Offset: TypeAlias = "str | int | datetime"

OFFSET_HEADER: Final = "x-stream-offset"
#: Answered messages that may be kept until the next look.
SLACK: Final = 64


class StreamPosition:
    """The position in one stream.

    A stream keeps what was acknowledged, and takes nothing back: a consumer that comes again says
    where to begin.  That is the first message that was not answered; it may be handled twice.

    Arguments:
        first: where the program wants to begin.
    """

    __slots__ = ("_first", "_next", "_outstanding", "_trim_above", "_unhandled")

    def __init__(self, first: Offset) -> None:
        self._first = first
        self._next: int | None = None
        #: Messages by offset, in the order in which they came, until they are found answered.
        self._outstanding: dict[int, Any] = {}
        self._trim_above = SLACK
        #: The first offset that was given back.
        self._unhandled: int | None = None

    def watching(self, put: Callable[[Any], None]) -> Callable[[Any], None]:
        """*put*, with an eye on the offsets."""

        def put_and_note(message: Any) -> None:
            offset = message.headers.get(OFFSET_HEADER)
            if isinstance(offset, int):
                self._outstanding[offset] = message
                self._next = offset + 1
                if len(self._outstanding) > self._trim_above:
                    self._trim()
            put(message)

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

    def restart(self) -> Offset:
        """Where to begin now."""
        self._trim()
        unhandled = [] if self._unhandled is None else [self._unhandled]
        if unhandled or self._outstanding:
            self._next = min([*unhandled, *self._outstanding])
        self._outstanding.clear()
        self._unhandled = None
        return self._first if self._next is None else self._next
