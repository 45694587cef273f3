"""Hooks for gunicorn's gevent worker: its consumers are shut down gracefully.

In ``gunicorn.conf.py``::

    from greenconn.contrib.gunicorn import post_fork, post_worker_init, worker_exit, worker_int

When a worker is asked to stop, its consumers stop taking messages at once.  Its requests continue, and
may publish and call; servers of ``rpc`` continue, too, since a request may wait for their reply.  When
the requests have ended, or their time is up, running handlers finish and the servers stop.  Then
publishes get their confirms, and all connections are closed, those that publish last.  All of it ends
before the arbiter would kill the worker.

Nothing here is needed to be safe: after a fork the library forgets what it inherits by itself, and what
a worker that dies has not acknowledged is redelivered.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable
from typing import Any, Final

import gevent

from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.session.session import Session, sessions_in_use
from greenconn.worker.consumer import ConsumerGreenlet, running_consumers, stop_all

__all__ = ["post_fork", "post_worker_init", "worker_exit", "worker_int"]

logger = logging.getLogger("greenconn.contrib.gunicorn")

#: What tells a worker to go.
SIGNALS: Final = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)
#: Seconds, at most, that are kept of a worker's time for interrupting handlers and closing.
MARGIN: Final = 2.0


class WorkerShutdown:
    """The end of one worker.

    Arguments:
        worker: gunicorn's.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._deadline: Deadline | None = None
        self._stopping: gevent.Greenlet[..., Any] | None = None

    def begin(self) -> None:
        """Have the consumers take nothing more.  Never switches: signals' handlers call it."""
        if self._stopping is None:
            self._deadline = deadline = Deadline(_less(self._worker.cfg.graceful_timeout))
            self._stopping = spawn("gunicorn-stop", self._stop_consumers, deadline)

    def _stop_consumers(self, deadline: Deadline) -> None:
        """Stop the consumers that no request waits for."""
        _stop([each for each in running_consumers() if not each.answers_calls], deadline)

    def finish(self) -> None:
        """Let handlers and publishers finish, then close all connections.  May switch."""
        self.begin()
        assert self._stopping is not None
        assert self._deadline is not None
        # From now on the arbiter gets no more heartbeats of the worker.
        deadline = self._deadline
        if self._worker.cfg.timeout:
            deadline = deadline.within(_less(self._worker.cfg.timeout))
        self._stopping.join(deadline.left())
        _stop(running_consumers(), deadline)
        sessions = sessions_in_use()
        publishing = [each for each in sessions if _may_publish(each)]
        _close_all(each for each in sessions if each not in publishing)
        settling = [spawn("gunicorn-settle", _settle, each, deadline) for each in publishing]
        gevent.joinall(settling)
        _close_all(publishing)


def _stop(consumers: list[ConsumerGreenlet], deadline: Deadline) -> None:
    if not stop_all(consumers, deadline):
        logger.warning(
            "handlers had not ended when the worker stopped, so they were interrupted, and their "
            "messages requeued"
        )


def _less(seconds: float) -> float:
    """*seconds* without what interrupting and closing take."""
    return seconds - min(MARGIN, seconds / 4)


def _may_publish(session: Session) -> bool:
    """Return whether it is not for consumers alone."""
    services = session.services
    return services.publisher is not None or services.consumers is None


def _settle(session: Session, deadline: Deadline) -> None:
    """Wait for the confirms of publishes in progress."""
    settle = getattr(session.life.link, "settle", None)
    if settle is not None:
        try:
            settle(deadline)
        except TimeoutError:
            logger.warning("%s did not confirm all publishes in time", session.broker.label)


def _close_all(sessions: Iterable[Session]) -> None:
    gevent.joinall([spawn("gunicorn-close", each.close) for each in sessions])


_shutdown: WorkerShutdown | None = None


def _shutdown_of(worker: Any) -> WorkerShutdown:
    global _shutdown
    if _shutdown is None:
        _shutdown = WorkerShutdown(worker)
    return _shutdown


def post_fork(server: Any, worker: Any) -> None:
    """Look at what the worker inherits: nothing of it is used.

    Consumers that an application started before the fork (``--preload``) do not run in the workers;
    that is said in gunicorn's log.
    """
    global _shutdown
    _shutdown = None
    inherited = [each.lifecycle.options.name for each in running_consumers()]
    if inherited:
        server.log.warning(
            "greenconn: %d consumers were started before the fork and do not run in worker %s: start "
            "them in the hook post_worker_init (%s)",
            len(inherited),
            worker.pid,
            ", ".join(str(name) for name in inherited[:5]),
        )


def post_worker_init(worker: Any) -> None:
    """Have the consumers stop taking as soon as the worker gets TERM, QUIT or INT."""
    shutdown = _shutdown_of(worker)
    for number in SIGNALS:
        _chain(number, shutdown)


def _chain(number: int, shutdown: WorkerShutdown) -> None:
    previous = signal.getsignal(number)
    if not callable(previous):
        return

    def told_to_go(signum: int, frame: Any) -> None:
        shutdown.begin()
        previous(signum, frame)

    signal.signal(number, told_to_go)
    if number == signal.SIGTERM:
        signal.siginterrupt(number, False)  # as gunicorn has it


def worker_int(worker: Any) -> None:
    """Have the consumers stop taking: the worker is to end at once (INT or QUIT)."""
    _shutdown_of(worker).begin()


def worker_exit(server: Any, worker: Any) -> None:
    """Let handlers finish, then close all connections, those that publish last.  May switch.

    It takes no longer than what is left of ``graceful_timeout``, or than ``timeout``.
    """
    if worker.pid == os.getpid():  # gunicorn calls it in the arbiter too, for a worker that is gone
        _shutdown_of(worker).finish()
