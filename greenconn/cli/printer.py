"""The handler of ``greenconn consume``: it prints and counts messages, and ends after enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from greenconn.cli.records import write_line

if TYPE_CHECKING:
    from greenconn.message import Message


class MessagePrinter:
    """Prints and counts messages.

    Arguments:
        wanted: after how many it is enough; None never.
        show: makes the line of a message; its body is None where it was not decoded.
        is_raw: a message is printed whether or not its body can be decoded.
        is_no_ack: the broker deleted the messages when it sent them.

    Attributes:
        handled: how many were printed and acknowledged.
    """

    def __init__(
        self,
        wanted: int | None,
        show: Callable[[Any, Message], str],
        *,
        is_raw: bool,
        is_no_ack: bool,
    ) -> None:
        self.handled = 0
        self._wanted = wanted
        self._show = show
        self._is_raw = is_raw
        self._is_no_ack = is_no_ack
        self._error: Exception | None = None
        self._came = Event()
        self._is_over = Event()

    def handle(self, body: Any, message: Message) -> None:
        """Print one message, then acknowledge it.  May switch."""
        if self._is_over.is_set() and not self._is_no_ack:
            message.put_back()
            return
        try:
            write_line(self._show(body, message))
        except Exception as exc:
            self._fail(message, exc)
            return
        message.ack()  # which sends nothing without acknowledgements
        self.handled += 1
        self._came.set()
        if self.handled == self._wanted:
            self._is_over.set()

    def refuse(self, message: Message, exc: Exception) -> None:
        """Print a message whose body cannot be decoded, or leave it in its queue.  May switch."""
        if self._is_raw and not message.errors:
            self.handle(None, message)
        else:
            self._fail(message, exc)

    def wait(self, consumer: gevent.Greenlet[..., Any], longest_pause: float | None) -> None:
        """Wait until there were enough, or none came for *longest_pause* seconds.

        Raises:
            Exception: what went wrong with a message, or what ended the consumer.
        """
        consumer.rawlink(self._note_end)
        while not self._is_over.is_set():
            self._came.clear()
            if not gevent.wait([self._is_over, self._came], timeout=longest_pause, count=1):
                break
        consumer.unlink(self._note_end)
        if self._error is not None:
            raise self._error
        if consumer.ready():
            consumer.get()

    def _fail(self, message: Message, exc: Exception) -> None:
        if not self._is_no_ack:
            message.requeue()
        if self._error is None:
            self._error = exc
        self._is_over.set()

    def _note_end(self, consumer: gevent.Greenlet[..., Any]) -> None:
        self._is_over.set()
