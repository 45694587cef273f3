"""Handlers that block the hub.

In a handler that computes, or that waits in a library which gevent does not know, nothing else of the
process runs: no other handler, no request, no heartbeat.  To read the clock for each message would cost
more than may be spent on it, so the hub is sampled: while a worker has something to do, a timer looks
how late it is.  What held it up were the handlers that were called meanwhile, or the one that was called
last before (see :mod:`greenconn.green.blocking_monitor`).  While no worker has work there is no timer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from gevent import get_hub
from gevent.monkey import is_module_patched

from greenconn.green.blocking_monitor import HANDLERS, name_of
from greenconn.green.supervisor import spawn

__all__ = ["THRESHOLD", "BlockingMonitor"]

logger = logging.getLogger("greenconn.worker")

#: Seconds that a handler may run without a switch before a warning.
THRESHOLD: Final = 0.5
#: Seconds between two looks.  A block is measured too short by this at most.
INTERVAL: Final = 0.1
#: Handlers that are warned of in the life of a process, at most.
LIMIT: Final = 1000

#: Names of handlers that were warned of.
_told: Final[set[str]] = set()


class BlockingMonitor:
    """Finds the handlers of one connection that block the hub.

    Attributes:
        is_running: whether it looks.
    """

    __slots__ = ("_looked_at", "_thresholds", "_timer", "is_running")

    def __init__(self) -> None:
        #: Handlers by their names -> seconds, and the queue.
        self._thresholds: dict[str, tuple[float, str]] = {}
        self._timer: Any = None
        self._looked_at = 0.0
        self.is_running = False

    def know(self, handler: object, threshold: float | None, queue: str) -> None:
        """Look after a handler.  Never switches.

        Arguments:
            threshold: seconds; None leaves it alone.
            queue: for the log.
        """
        if threshold is None:
            self._thresholds.pop(name_of(handler), None)
        else:
            self._thresholds[name_of(handler)] = (threshold, queue)

    def start(self, has_work: Callable[[], bool]) -> None:
        """Look from now on, until *has_work* says no.  Never switches."""
        if not self._thresholds:
            return
        self.is_running = True
        self._looked_at = monotonic()
        self._timer = get_hub().loop.timer(INTERVAL, INTERVAL, ref=False)
        self._timer.start(self._look, has_work)

    def stop(self) -> None:
        """Look no more.  Never switches.  Again: does nothing."""
        self.is_running = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _look(self, has_work: Callable[[], bool]) -> None:
        # In the hub.
        before, self._looked_at = self._looked_at, monotonic()
        blocked = self._looked_at - before - INTERVAL
        if blocked >= INTERVAL:
            self._judge(self._looked_at - blocked)
        if not has_work():
            self.stop()

    def _judge(self, since: float) -> None:
        for name, seconds in HANDLERS.shares_within(since, self._looked_at).items():
            threshold, queue = self._thresholds.get(name, (None, ""))
            if threshold is None or seconds < threshold or name in _told or len(_told) >= LIMIT:
                continue
            _told.add(name)
            spawn("log", _tell, name, queue, seconds)


def _tell(name: str, queue: str, seconds: float) -> None:
    if is_module_patched("time") and is_module_patched("socket"):
        cause = (
            "It is, so the handler computes, or calls a library that gevent does not know: run that in "
            "gevent's threadpool"
        )
    else:
        cause = "It is not: call gevent.monkey.patch_all() first, or use gevent.sleep and the like"
    logger.warning(
        "handler %s of queue %r blocked the hub for %.1f s (with one message or several in a "
        "row): no other handler, request or heartbeat could run. Is the process monkey-patched? "
        "%s (logged once for each handler)",
        name,
        queue,
        seconds,
        cause,
    )
