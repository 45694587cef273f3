"""Hooks for gunicorn's gevent worker: its consumers are shut down gracefully.

In ``gunicorn.conf.py``, the one line for a :class:`greenconn.App` that each worker is to run, which
works without one, too::

    globals().update(greenconn.contrib.gunicorn.hooks("shop.tasks:app"))

or the hooks by their names::

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

import os
import signal
from collections.abc import Callable
from typing import Any, Final

import gevent

from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.running.program import load_app
from greenconn.shutdown import stop_and_close, stop_gracefully, time_for_handlers
from greenconn.worker.consumer import running_consumers

__all__ = ["hooks", "post_fork", "post_worker_init", "worker_exit", "worker_int"]

#: What tells a worker to go.
SIGNALS: Final = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


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
            self._deadline = deadline = Deadline(
                time_for_handlers(self._worker.cfg.graceful_timeout)
            )
            self._stopping = spawn("gunicorn-stop", self._stop_consumers, deadline)

    def _stop_consumers(self, deadline: Deadline) -> None:
        """Stop the consumers that no request waits for."""
        stop_gracefully([each for each in running_consumers() if not each.answers_calls], deadline)

    def finish(self) -> None:
        """Let handlers and publishers finish, then close all connections.  May switch."""
        self.begin()
        assert self._stopping is not None
        assert self._deadline is not None
        # From now on the arbiter gets no more heartbeats of the worker.
        deadline = self._deadline
        if self._worker.cfg.timeout:
            deadline = deadline.within(time_for_handlers(self._worker.cfg.timeout))
        self._stopping.join(deadline.left())
        stop_and_close(deadline)


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


def hooks(application: str | None = None) -> dict[str, Callable[..., None]]:
    """Return all hooks, by their names in gunicorn's configuration.

    Arguments:
        application: ``module:name`` of a :class:`greenconn.App`, which each worker imports and starts
            when it is ready; None: nothing is started.
    """

    def start(worker: Any) -> None:
        post_worker_init(worker)
        if application is not None:
            load_app(application).start()

    return {
        "post_fork": post_fork,
        "post_worker_init": start,
        "worker_int": worker_int,
        "worker_exit": worker_exit,
    }
