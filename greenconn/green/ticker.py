"""A clock on the hub: it calls a function at an interval and notices when the hub was blocked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent import get_hub

from greenconn.green.supervisor import spawn
from greenconn.green.weak import weakly

__all__ = ["Ticker"]

logger = logging.getLogger("greenconn.green")

#: A tick that comes later than this many intervals after the one before means a blocked hub.
LATE = 1.5


class Ticker:
    """Calls ``function(lag)`` in the hub, each *interval* seconds, until it is stopped.

    A hub that was blocked gets one tick afterwards, then a whole interval until the next, never a
    burst.  The timer keeps no process alive, nor the object whose method *function* is.

    Arguments:
        interval: seconds, above 0.
        function: called in the hub with the seconds by which the tick came late, 0.0 when it was
            in time (see :data:`LATE`); it must not switch.  What it raises is logged by a greenlet,
            once for each streak of failures, and the ticks go on.
        name: for the logs.
    """

    __slots__ = ("_failed", "_function", "_last", "_timer", "interval", "lag", "name")

    def __init__(self, interval: float, function: Callable[[float], object], name: str) -> None:
        if not interval > 0.0:
            raise ValueError(f"interval of ticker {name!r} must be above 0 s, got {interval!r}")
        self.interval = interval
        self.name = name
        #: Seconds by which the latest tick came late.
        self.lag = 0.0
        self._function = weakly(function)
        self._timer: Any = None
        self._last = 0.0
        self._failed = False

    @property
    def is_running(self) -> bool:
        """Whether ticks come."""
        return self._timer is not None

    def start(self) -> None:
        """Begin: the first tick comes after one interval.  Again: does nothing."""
        if self._timer is None:
            self.lag = 0.0
            self._failed = False
            self._last = monotonic()
            self._timer = get_hub().loop.timer(self.interval, self.interval, ref=False)
            self._timer.start(self._tick, update=True)

    def stop(self) -> None:
        """End: no tick comes any more.  Again: does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _tick(self) -> None:
        # In the hub.
        timer = self._timer
        if timer is None:
            return
        now = monotonic()
        passed = now - self._last
        self._last = now
        self.lag = passed - self.interval if passed > LATE * self.interval else 0.0
        if self.lag:
            timer.again(self._tick, update=True)
        try:
            self._function(self.lag)
        except Exception as exc:
            if not self._failed:
                self._failed = True
                # A handler of the log may switch, and this is the hub.
                spawn("log", _log, self.name, exc)
        else:
            self._failed = False

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<Ticker {self.name!r}: {self.interval:g} s, {state}>"


def _log(name: str, exc: Exception) -> None:
    logger.error(
        "ticker %r: its function failed, and is called again at the next interval",
        name,
        exc_info=exc,
    )
