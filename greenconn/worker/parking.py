"""Parked handlers: handlers that wait for their turn and have not begun with their message.

A decorator of handlers that waits before it calls the handler says so::

    with Parked(message) as parked:
        wait_for_the_turn()
        parked.begin()
        return handler(body, message)

To the consumer, such a message is one that no handler has begun: when its channel is lost, or the broker
takes its messages back, the message is dropped here, as the broker redelivers it, and the wait ends at
once by :class:`NotBegun`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gevent import GreenletExit, Timeout, get_hub, getcurrent

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from greenconn.message import Message

#: Messages whose handlers wait, each with its wait.
_parked: Final[dict[Message, Parked]] = {}


class NotBegun(GreenletExit):
    """Raised where a handler waits for its turn, when its message was dropped."""


class Parked:
    """The wait of the current greenlet for its turn with *message*."""

    __slots__ = ("_greenlet", "_is_dropped", "_message")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._greenlet: Any = getcurrent()
        self._is_dropped = False

    def __enter__(self) -> Self:
        _parked[self._message] = self
        return self

    def begin(self) -> None:
        """End the wait.  Never switches.

        Raises:
            NotBegun: the message was dropped.
        """
        if self._is_dropped:
            raise NotBegun
        _parked.pop(self._message, None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._greenlet = None
        if self._is_dropped:
            # A failure at the same moment is not the message's: that is elsewhere already.
            if exc is None or isinstance(exc, (Exception, Timeout)):
                raise NotBegun from None
        elif _parked.get(self._message) is self:
            del _parked[self._message]

    def drop(self) -> None:
        """Note that the message was dropped, and end the wait soon.  Never switches."""
        self._is_dropped = True
        get_hub().loop.run_callback(self._end)

    def _end(self) -> None:
        # In the hub; the turn may have come meanwhile.
        if self._greenlet is not None:
            self._greenlet.throw(NotBegun())


def drop_parked(message: Message) -> bool:
    """End the wait for the turn of *message*; False: no handler waits with it.  Never switches."""
    parked = _parked.pop(message, None)
    if parked is None:
        return False
    parked.drop()
    return True
