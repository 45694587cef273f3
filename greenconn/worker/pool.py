"""Greenlets that run handlers, shared by all consumers of a connection.

Lines that have something to do stand in one queue, and a worker serves them one after the other.  Only
one worker is woken at a time: before it begins with a line it wakes the next, if more lines wait and
none is on its way.  So as many workers run as have work, but a thousand lines that get a message each
cost one switch if no handler waits, and as many as there are handlers that do.
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import Greenlet, Timeout, get_hub

from greenconn.green.hub import turn
from greenconn.green.supervisor import spawn
from greenconn.worker.blocking import BlockingMonitor

if TYPE_CHECKING:
    from greenconn.worker.line import Line

__all__ = ["Worker", "WorkerPool"]

logger = logging.getLogger("greenconn.worker")

#: Idle workers that are kept, however few handlers may run at once.
KEPT: Final = 16


class Worker:
    """One greenlet that runs handlers: of one line until that is empty, then of the next.

    Attributes:
        greenlet: it.
        line: what it works on; None between two lines.
        load: what it handles now; None between two messages.
        streak: messages since it looked at the clock.
        looked_at: when the hub had its last turn, as far as this worker knows.
    """

    __slots__ = ("_is_dismissed", "_pool", "greenlet", "line", "load", "looked_at", "streak")

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._is_dismissed = False
        self.line: Line | None = None
        self.load: Any = None
        self.streak = 0
        self.looked_at = monotonic()
        self.greenlet: Greenlet[..., Any] = spawn("worker", self._run)

    def _run(self) -> None:
        pool = self._pool
        try:
            while not self._is_dismissed:
                line = pool.next_line(self)
                if line is not None:
                    self.line = line
                    line.work(self)
                    self.line = None
                elif pool.park(self):
                    get_hub().switch()
                    self.looked_at = monotonic()
                else:
                    return
        except Timeout:
            # Of a handler that started one and left it running.
            logger.warning("a gevent.Timeout of a handler went off after the handler had ended")
        finally:
            line, self.line = self.line, None
            if line is not None:
                line.lost_worker(self)
            pool.forget(self)

    def interrupt(self) -> None:
        """Interrupt the handler, and work no more.  Never switches."""
        # The kill is on its way, and not meant for a handler of another line.
        self._is_dismissed = True
        self.greenlet.kill(block=False)


class WorkerPool:
    """The lines that wait for a worker, and the workers that wait for a line.

    Invariant: while lines wait a worker is on its way, or one that gives the hub a turn will be back.

    Attributes:
        limit: idle workers that are kept.
        monitor: finds handlers that block the hub.
    """

    __slots__ = ("_coming", "_count", "_idle", "_lines", "_turning", "limit", "monitor")

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._idle: list[Worker] = []
        #: The worker that was woken and has not run yet.
        self._coming: Worker | None = None
        #: Workers that give the hub a turn.
        self._turning = 0
        #: Workers that have not ended.
        self._count = 0
        self.limit = KEPT
        self.monitor = BlockingMonitor()

    @property
    def has_work(self) -> bool:
        """Whether a worker has something to do."""
        return self._count > len(self._idle)

    def send(self, line: Line) -> None:
        """Have a worker work on *line* soon.  Never switches."""
        self._lines.append(line)
        if not self._turning and (self._coming is None or self._coming.greenlet.ready()):
            self._wake()

    def turn(self) -> None:
        """Let the hub turn, and no worker begin with a line meanwhile.  May switch.

        Else each would go on where the one before it gave way, and the hub would have to wait for all.
        """
        self._turning += 1
        try:
            turn()
        finally:
            self._turning -= 1
            self._stir()

    def _stir(self) -> None:
        if self._lines and self._coming is None and not self._turning:
            self._wake()

    def _wake(self) -> None:
        if self._idle:
            self._coming = worker = self._idle.pop()
            get_hub().loop.run_callback(worker.greenlet.switch)
        else:
            self._count += 1
            self._coming = Worker(self)
        if not self.monitor.is_running:
            self.monitor.start(lambda: self.has_work)

    def next_line(self, worker: Worker) -> Line | None:
        """Give *worker* the line that has waited longest, and wake another worker for the others."""
        if self._coming is worker:
            self._coming = None
        if not self._lines or self._turning:
            return None
        line = self._lines.popleft()
        self._stir()
        return line

    def park(self, worker: Worker) -> bool:
        """Take an idle worker in; False when there are enough."""
        if len(self._idle) >= self.limit:
            return False
        self._idle.append(worker)
        return True

    def forget(self, worker: Worker) -> None:
        """A worker has ended."""
        self._count -= 1
        if worker in self._idle:
            self._idle.remove(worker)
        if self._coming is worker:
            self._coming = None
        self._stir()

    def resize(self, limit: int) -> None:
        """Keep as many idle workers as *limit* handlers need, and end the others."""
        if not limit:
            self.monitor.stop()
        self.limit = max(KEPT, limit) if limit else 0
        excess, self._idle = self._idle[self.limit :], self._idle[: self.limit]
        for worker in excess:
            get_hub().loop.run_callback(worker.greenlet.switch)  # it finds no place to park
