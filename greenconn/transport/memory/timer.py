"""A timer on the hub."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from gevent import get_hub


class Clock(Protocol):
    """A clock with alarms.  (Tests set it themselves.)"""

    def now(self) -> float:
        """Return the time in seconds, which never goes back."""
        ...

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in *delay* seconds; return what stops that."""
        ...


class HubClock:
    """The monotonic clock, and timers of one hub."""

    def __init__(self) -> None:
        self._hub = get_hub()

    def now(self) -> float:
        """Return the seconds of the monotonic clock."""
        return monotonic()

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in the hub; it must not switch."""
        timer = self._hub.loop.timer(delay)
        timer.start(function, update=True)
        return timer.close


class Timer:
    """Calls *function* at a time that can be changed.  Holds a timer only while it is set."""

    def __init__(self, clock: Clock, function: Callable[[], Any]) -> None:
        self._clock = clock
        self._function = function
        self._stop: Callable[[], Any] | None = None
        #: When it calls, by its clock; None while it is not set.
        self.at: float | None = None

    def set(self, at: float) -> None:
        """Call at *at* instead of whenever it was set to."""
        self.stop()
        self.at = at
        self._stop = self._clock.call_later(max(at - self._clock.now(), 0.0), self._on_time)

    def stop(self) -> None:
        """Call no more, until it is set again."""
        self.at = None
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()

    def _on_time(self) -> None:
        at = self.at
        if at is not None and at > self._clock.now():
            self.set(at)  # A timer may be early by the loop's resolution.
            return
        self.stop()
        self._function()
