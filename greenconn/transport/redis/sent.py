"""What was published and not answered yet."""

from __future__ import annotations

from typing import Any

from greenconn.abc import DeadlineLike
from greenconn.exceptions import PublishTimeout
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.transport.redis.pipeline import ENDLESS, Pipeline

__all__ = ["Sent", "Window"]


class Sent:
    """A publish whose answer is waited for.

    Arguments:
        slot: gets the last of its replies.
        replies: get the others.
    """

    __slots__ = ("_pipeline", "_replies", "_slot", "_what")

    def __init__(
        self, pipeline: Pipeline, slot: Slot[Any], replies: list[Any] | None, what: str
    ) -> None:
        self._pipeline = pipeline
        self._slot = slot
        self._replies = replies
        self._what = what

    def wait(self, deadline: DeadlineLike | None = None) -> Any:
        """Return when the server has the message.  May switch.

        Raises:
            PublishTimeout: no answer before the deadline; the server may have it.
            redis.exceptions.ResponseError: the server refused it.
            LinkLost: the connection went first; the server may have it.
        """
        try:
            reply = self._slot.wait(deadline or ENDLESS)  # type: ignore[arg-type]
        except TimeoutError as exc:
            if not self._slot.has_left or deadline is None:
                raise
            raise PublishTimeout(
                f"{self._pipeline.where} did not answer a publish to {self._what} within "
                f"{deadline.timeout:g} s: it may have it",
                maybe_delivered=True,
            ) from exc
        if isinstance(reply, Exception):
            raise self._pipeline.error(reply, f"publishing to {self._what}")
        for each in self._replies or ():
            if isinstance(each, Exception):
                raise self._pipeline.error(each, f"publishing to {self._what}")
        return reply


class Window:
    """The unanswered publishes of one channel that nobody waits for.

    Arguments:
        size: how many there may be.
    """

    __slots__ = ("_error", "_size", "_waiters", "unanswered")

    def __init__(self, size: int) -> None:
        self._size = size
        self.unanswered = 0
        self._error: Exception | None = None
        self._waiters: list[Slot[None]] = []

    def take(self, reply: Any) -> None:
        """One is answered.  In the reader."""
        self.unanswered -= 1
        if isinstance(reply, Exception) and self._error is None:
            self._error = reply
        # Half of it at a time, so that a publisher is woken once for many.
        if self._waiters and self.unanswered <= self._size // 2:
            waiters, self._waiters = self._waiters, []
            for slot in waiters:
                slot.offer(None)

    def error(self) -> Exception | None:
        """What went wrong with one of them, once."""
        error, self._error = self._error, None
        return error

    def wait(self, deadline: Deadline) -> None:
        """Wait until there is room for one more.  May switch.

        Raises:
            TimeoutError: there was none before the deadline.
        """
        while self.unanswered >= self._size:
            slot: Slot[None] = Slot()
            self._waiters.append(slot)
            slot.wait(deadline)
