"""A time limit for calls that take no deadline."""

from __future__ import annotations

from types import TracebackType

from gevent import Timeout

from greenconn.green.deadline import Deadline

__all__ = ["TimeLimit"]


class TimeLimit:
    """A context that raises ``TimeoutError`` when *deadline* ends while something in it waits.

    It is a ``gevent.Timeout`` inside, a BaseException: what is called may take a ``TimeoutError``
    for an error of the network and try again, this it lets through.

    Arguments:
        deadline: when the block must be left.
        what: names the block in the error.
    """

    __slots__ = ("_deadline", "_timer", "_what")

    def __init__(self, deadline: Deadline, what: str) -> None:
        self._deadline = deadline
        self._what = what
        self._timer: Timeout | None = None

    def __enter__(self) -> None:
        left = self._deadline.left()
        if left is not None:
            self._timer = Timeout.start_new(left)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        timer, self._timer = self._timer, None
        if timer is None:
            return
        timer.close()
        if exc is timer:
            raise TimeoutError(
                f"{self._what} took longer than {self._deadline.timeout:g} s"
            ) from None
