"""A periodic call in the hub, which measures how long the hub was blocked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent import get_hub

from greenconn.green.hub import weakly
from greenconn.green.supervisor import spawn

logger = logging.getLogger("greenconn.green")

#: A tick is late if it comes more than this many intervals after the one before.
LATE = 1.5


class Ticker:
    """A timer that calls ``function(lag)`` in the hub every *interval* seconds.

    After the hub was blocked there is a single tick, not one for each missed interval, and the next one
    comes a whole interval later.  The timer keeps neither the process alive nor the object whose
    method *function* is.

    Arguments:
        interval: seconds between ticks, above 0.
        function: called in the hub with the seconds by which the tick is late, or 0.0 (see
            :data:`LATE`); it must not switch.  If it raises, the ticks continue; the first error of
            a series is logged.
        name: the name in the log.

    Raises:
        ValueError: *interval* is not above 0.
    """

    def __init__(self, interval: float, function: Callable[[float], object], name: str) -> None:
        if not interval > 0.0:
            raise ValueError(f"interval of ticker {name!r} must be above 0 s, got {interval!r}")
        self.interval = interval
        self.name = name
        #: Seconds by which the last tick was late.
        self.lag = 0.0
        self._function = weakly(function)
        self._timer: Any = None
        self._last: float  # set with the timer, as the next is
        self._failed: bool  # whether the last call failed

    @property
    def is_running(self) -> bool:
        """Whether the ticker was started and not stopped."""
        return self._timer is not None

    def start(self) -> None:
        """Start; the first tick comes after one interval.  A second call does nothing."""
        if self._timer is None:
            self.lag = 0.0
            self._failed = False
            self._last = monotonic()
            self._timer = get_hub().loop.timer(self.interval, self.interval, ref=False)
            self._timer.start(self._tick, update=True)

    def stop(self) -> None:
        """Stop, so that there are no more ticks.  A second call does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
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
                # In a greenlet, since a log handler may switch.
                spawn("log", _log, self.name, exc)
        else:
            self._failed = False

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<Ticker {self.name!r}: {self.interval:g} s, {state}>"


def _log(name: str, exc: Exception) -> None:
    logger.error(
        "ticker %r: the function failed; it is called again after the next interval",
        name,
        exc_info=exc,
    )
