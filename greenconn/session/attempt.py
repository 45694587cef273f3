"""One attempt to open a link, shared by all greenlets that want one."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Any

from gevent.event import Event
from greenlet import GreenletExit, getcurrent

from greenconn.exceptions import AMQPError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.green.supervisor import spawn
from greenconn.session.life import drop

__all__ = ["Attempt", "Outcome"]


class Outcome:
    """How an attempt ended: a link, or the error that all who waited for it get.

    Attributes:
        link: what was opened, or None.
        error: why it failed, or None.
    """

    __slots__ = ("_traceback", "error", "link")

    def __init__(self, link: object, error: BaseException | None = None) -> None:
        self.link: Any = link
        self.error = error
        self._traceback: TracebackType | None = None if error is None else error.__traceback__

    def shorten(self) -> None:
        """Leave of a foreseen error what its text says: each of those who wait gets it."""
        error = self.error
        if isinstance(error, (OSError, AMQPError)):
            self._traceback = None
            error.__cause__ = None
            error.__suppress_context__ = True

    def result(self) -> Any:
        """Return the link.

        Raises:
            BaseException: the error.
        """
        if self.error is not None:
            # Each caller begins with the traceback of the attempt, not with another caller's.
            raise self.error.with_traceback(self._traceback)
        return self.link


class Attempt:
    """One attempt, from the moment somebody wants it until its outcome.

    It runs in a greenlet of its own.  A caller that is killed does not cancel it for the others; when
    the last one is killed, so is the attempt.  A caller whose deadline ends leaves it running: the
    next call finds it under way or done, so that programs which wait in short steps get their link.

    Arguments:
        dial: opens a link.  May switch; cleans up when it is killed.
        settle: called once, before those who wait get the outcome.  Never switches.
        start_at: time on the monotonic clock to begin at.

    Attributes:
        outcome: None until it is over.
        was_abandoned: the last caller was killed before there was an outcome.
    """

    def __init__(
        self, dial: Callable[[], Any], settle: Callable[[Attempt], None], start_at: float
    ) -> None:
        self.outcome: Outcome | None = None
        self.was_abandoned = False
        self._dial = dial
        self._settle = settle
        self._start_at = start_at
        self._hurried: Event | None = None
        self._waiters: dict[Slot[None], None] = {}
        self._is_over = False
        self._greenlet = spawn("connect", self._run)

    def hurry(self, start_at: float) -> None:
        """Begin at *start_at* if that is earlier than what was planned."""
        if start_at < self._start_at:
            self._start_at = start_at
            if self._hurried is not None:
                self._hurried.set()

    def wait(self, deadline: Deadline) -> Outcome | None:
        """Wait for the outcome; None when the deadline ended first.  May switch.

        Raises:
            BaseException: what was thrown into the caller, never the attempt's own error.
        """
        slot: Slot[None] = Slot()
        self._waiters[slot] = None
        try:
            slot.wait(deadline)
        except BaseException as exc:
            if isinstance(exc, TimeoutError) and deadline.has_ended:
                return None
            if len(self._waiters) == 1 and self.outcome is None:
                self.was_abandoned = True
                self.abort(RecoverableConnectionError("nobody waits for the connection any more"))
            raise
        finally:
            self._waiters.pop(slot, None)
        return self.outcome

    def abort(self, exc: BaseException) -> None:
        """End it now; whoever waits gets *exc*.  Never switches."""
        if not self._is_over:
            self._end(Outcome(None, exc))
            self._greenlet.kill(block=False)

    def forget(self) -> None:
        """After a fork, in the child: end it, before it shakes hands on the parent's socket."""
        self._is_over = True
        self._waiters = {}
        if self._greenlet is not getcurrent():
            self._greenlet.kill(block=False)

    def _run(self) -> None:
        link, error = None, None
        try:
            self._wait_for_start()
            link = self._dial()
        except (GreenletExit, SystemExit, KeyboardInterrupt) as exc:
            # These are for the greenlet that they hit, not for those who wait for it.
            interrupted = RecoverableConnectionError(f"connecting was interrupted ({exc!r})")
            self._end(Outcome(None, interrupted))
            raise
        except BaseException as exc:
            error = exc
        if not self._is_over:
            self._end(Outcome(link, error))
        elif link is not None:
            # Aborted while the link was already on its way to us.
            drop(link)

    def _wait_for_start(self) -> None:
        while (left := self._start_at - monotonic()) > 0.0:
            self._hurried = Event()
            self._hurried.wait(left)

    def _end(self, outcome: Outcome) -> None:
        if self._is_over:
            return
        self._is_over = True
        self.outcome = outcome
        try:
            self._settle(self)
        finally:
            for slot in self._waiters:
                slot.offer(None)
