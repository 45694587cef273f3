"""A slot: the result that one greenlet waits for and any other provides, once.

It is what a request leaves with the reader.  Filling it never switches, so the reader and hub
callbacks may.  Delivery is accepted or it did not happen: ``offer`` returns False when the waiter has
left (it was killed, or its deadline ended), and the caller then keeps or passes on the value.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, TypeVar

from gevent import get_hub
from greenlet import getcurrent

from greenconn.green.deadline import Deadline
from greenconn.green.timeouts import Timeouts

__all__ = ["Slot"]

T = TypeVar("T")

_EMPTY, _VALUE, _ERROR, _LEFT = range(4)


class Slot(Generic[T]):
    """The result that one greenlet waits for.

    ``offer`` and ``fail`` may be called from the reader or from a hub callback: they never switch.
    The waiter is woken through a hub callback, which switches to it without anything in between: a
    slot costs one callback and no lock.

    States: empty -> value | error (filled), or empty -> left (the waiter was killed or timed out).
    """

    __slots__ = ("_content", "_hub", "_state", "_wake", "_waking", "on_left")

    #: Value or error; unset before.
    _content: Any
    #: The hub of the waiter, set before ``_wake``; a switch from another hub would never wake it.
    _hub: Any

    def __init__(self, on_left: Callable[[Slot[Any]], None] | None = None) -> None:
        self._state = _EMPTY
        self._wake: Callable[..., Any] | None = None
        #: The hub's callback that will wake the waiter, from the filling on.
        self._waking: Any = None
        #: Called (without switching) when the waiter leaves before the slot was filled.
        self.on_left = on_left

    @property
    def is_filled(self) -> bool:
        """Whether a value or an error has come."""
        return self._state in (_VALUE, _ERROR)

    @property
    def has_value(self) -> bool:
        """Whether a value has come."""
        return self._state == _VALUE

    @property
    def has_left(self) -> bool:
        """Whether the waiter was killed or timed out before anything came."""
        return self._state == _LEFT

    @property
    def value(self) -> T:
        """The value; only when there is one."""
        assert self._state == _VALUE
        content: T = self._content
        return content

    def offer(self, value: T) -> bool:
        """Fill the slot; return False if the waiter has left, or the slot was filled before."""
        if self._state != _EMPTY:
            return False
        self._state = _VALUE
        self._content = value
        if self._wake is not None:
            hub = self._hub
            if get_hub() is hub:
                self._waking = hub.loop.run_callback(self._wake)
            else:
                self._waking = hub.loop.run_callback_threadsafe(self._wake)
        return True

    def fail(self, exc: BaseException) -> bool:
        """Make the waiter raise *exc*; return False if it has left, or the slot was filled before."""
        if self._state != _EMPTY:
            return False
        self._state = _ERROR
        self._content = exc
        if self._wake is not None:
            hub = self._hub
            if get_hub() is hub:
                self._waking = hub.loop.run_callback(self._wake)
            else:
                self._waking = hub.loop.run_callback_threadsafe(self._wake)
        return True

    def exchange(self, value: T) -> T:
        """Replace the value, which the waiter has not taken yet, by *value*."""
        assert self._state == _VALUE
        old, self._content = self._content, value
        given: T = old
        return given

    def expire(self) -> None:
        """Wake the waiter, whose deadline has ended.  In the hub, by its ``Timeouts``."""
        # A value that came first wakes the waiter by itself, unless a signal has interrupted the
        # greenlet that filled the slot.
        if self._wake is not None and self._waking is None:
            self._wake()

    def wait(self, deadline: Deadline) -> T:
        """Wait until the slot is filled.  May switch.  One greenlet, once.

        Raises:
            TimeoutError: the deadline ended first; the slot counts as left.
            BaseException: what ``fail`` was given, or what was thrown into this greenlet.
        """
        if self._state == _EMPTY:
            hub: Any = get_hub()
            timeouts: Timeouts | None = None
            at = deadline.at
            if at is not None:
                if at <= monotonic():
                    self._leave()
                    raise TimeoutError("timed out")
                try:
                    timeouts = hub.greenconn_timeouts
                except AttributeError:
                    timeouts = hub.greenconn_timeouts = Timeouts(hub.loop)
            self._hub = hub
            try:
                if at is not None and timeouts is not None:
                    if not timeouts.waiting:
                        timeouts.timer.ref = True
                    timeouts.waiting[self] = at
                    if at < timeouts.noted_before:
                        timeouts.note(self, at)
                self._wake = getcurrent().switch
                hub.switch()
            except BaseException:
                # Killed, or a Timeout: a value that came meanwhile stays for the caller to give back.
                self._leave()
                raise
            finally:
                # First what would wake this greenlet when it waits for something else.
                self._wake = None
                if self._waking is not None:
                    # Killed between the filling and its callback, which must not come any more.
                    self._waking.stop()
                if timeouts is not None:
                    timeouts.waiting.pop(self, None)
                    if not timeouts.waiting:
                        timeouts.timer.ref = False
        if self._state == _VALUE:
            content: T = self._content
            return content
        if self._state == _ERROR:
            raise _own(self._content)
        self._leave()
        raise TimeoutError("timed out")

    def _leave(self) -> None:
        if self._state == _EMPTY:
            self._state = _LEFT
            if self.on_left is not None:
                self.on_left(self)


def _own(exc: BaseException) -> BaseException:
    """Return a copy of *exc* for one greenlet: many may get one error, each with its own traceback."""
    try:
        from copy import copy  # when something fails

        own = copy(exc)
    except Exception:
        return exc
    own.args = exc.args  # amqp's errors are built with other arguments than they keep
    own.__cause__ = exc.__cause__  # a copy has neither context nor traceback
    return own
