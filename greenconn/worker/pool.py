"""Greenlets that run handlers, reused by all consumers of a connection."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from gevent import Greenlet, Timeout, get_hub

from greenconn.green.supervisor import spawn

if TYPE_CHECKING:
    from greenconn.worker.line import Line

__all__ = ["Worker", "WorkerPool"]

logger = logging.getLogger("greenconn.worker")

#: Idle workers that are kept, however few handlers may run at once.
KEPT: Final = 16


class Worker:
    """One greenlet that runs handlers: of one line until that is empty, then of another.

    Attributes:
        greenlet: it.
        line: what it was sent to; None while it is idle.
        load: what it handles now; None between two messages.
    """

    __slots__ = ("greenlet", "line", "load", "pool")

    def __init__(self, pool: WorkerPool, line: Line) -> None:
        self.pool = pool
        self.line: Line | None = line
        self.load: Any = None
        self.greenlet: Greenlet[..., Any] = spawn("worker", self._run)

    def _run(self) -> None:
        try:
            while self.line is not None:
                self.line.work(self)
                self.line = None
                if not self.pool.park(self):
                    return
                get_hub().switch()
        except Timeout:
            # Of a handler that started one and left it running.
            logger.warning("a gevent.Timeout of a handler went off after the handler had ended")
        finally:
            self.pool.forget(self)
            line, self.line = self.line, None
            if line is not None:
                line.lost_worker(self)


class WorkerPool:
    """A stack of idle workers.

    Attributes:
        limit: idle ones that are kept.
    """

    __slots__ = ("_idle", "limit")

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self.limit = KEPT

    def send(self, line: Line) -> Worker:
        """Have a worker work on *line* soon.  Never switches."""
        if not self._idle:
            return Worker(self, line)
        worker = self._idle.pop()
        worker.line = line
        get_hub().loop.run_callback(worker.greenlet.switch)
        return worker

    def park(self, worker: Worker) -> bool:
        """Take an idle worker in; False when there are enough."""
        if len(self._idle) >= self.limit:
            return False
        self._idle.append(worker)
        return True

    def forget(self, worker: Worker) -> None:
        """A worker has ended."""
        if worker in self._idle:
            self._idle.remove(worker)

    def resize(self, limit: int) -> None:
        """Keep as many idle workers as *limit* handlers need, and end the others."""
        self.limit = max(KEPT, limit) if limit else 0
        excess, self._idle = self._idle[self.limit :], self._idle[: self.limit]
        for worker in excess:
            get_hub().loop.run_callback(worker.greenlet.switch)  # without a line it ends
