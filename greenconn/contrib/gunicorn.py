"""Hooks that gracefully shut down the consumers of gunicorn's gevent workers.

Add one line to ``gunicorn.conf.py``, with the :class:`greenconn.App` that each worker starts, or without
an argument if there is none::

    globals().update(greenconn.contrib.gunicorn.hooks("shop.tasks:app"))

Alternatively, import the hooks by name::

    from greenconn.contrib.gunicorn import (
        post_fork, post_worker_init, pre_fork, worker_exit, worker_int
    )

When a worker receives a stop signal, its consumers immediately stop receiving messages.  Requests
continue, and may publish messages and make RPC calls.  RPC servers also continue, since a request may
wait for their reply.  When the requests have ended, or their time is up, running handlers finish and the
RPC servers stop.  Then pending publishes wait for their publisher confirms, and all connections are
closed, those that publish last.  The shutdown ends before the arbiter would kill the worker.

The hooks are not required for safety: after a fork, the library discards inherited connections by
itself, and messages that a killed worker has not acknowledged are redelivered.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import gevent

from greenconn.green.deadline import Deadline
from greenconn.green.supervisor import spawn
from greenconn.identity import note_slot
from greenconn.service.app import stop_and_close, stop_gracefully, time_for_handlers
from greenconn.service.program import load_app
from greenconn.worker.consumer import running_consumers

__all__ = ["hooks", "post_fork", "post_worker_init", "pre_fork", "worker_exit", "worker_int"]

#: The signals that stop a worker.
SIGNALS: Final = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class WorkerShutdown:
    """The graceful shutdown of one worker.

    Arguments:
        worker: the worker object of gunicorn.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._deadline: Deadline | None = None
        self._stopping: gevent.Greenlet[..., Any] | None = None

    def begin(self) -> None:
        """Stop the consumers from receiving messages.

        Never switches: it is called by signal handlers.
        """
        if self._stopping is None:
            self._deadline = deadline = Deadline(
                time_for_handlers(self._worker.cfg.graceful_timeout)
            )
            self._stopping = spawn("gunicorn-stop", self._stop_consumers, deadline)

    def _stop_consumers(self, deadline: Deadline) -> None:
        """Stop all consumers except those that a request may be waiting for."""
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


def pre_fork(server: Any, worker: Any) -> None:
    """Set the number of the new worker, for ``{slot}`` of a :class:`greenconn.Broadcast` that is kept.

    A worker that replaces another one gets the number of that: on HUP before the old one has ended.
    """
    used = Counter(getattr(each, "greenconn_slot", None) for each in server.WORKERS.values())
    worker.greenconn_slot = min(range(max(1, server.num_workers)), key=lambda slot: used[slot])


def post_fork(server: Any, worker: Any) -> None:
    """Check the state that a new worker inherits, none of which is used.

    Consumers that an application started before the fork (``--preload``) do not run in the workers.  A
    warning in gunicorn's log names them.
    """
    global _shutdown
    _shutdown = None
    slot = getattr(worker, "greenconn_slot", None)
    if slot is not None:
        note_slot(slot)
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
    """Make the consumers stop receiving messages when the worker receives TERM, QUIT or INT."""
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
    """Stop the consumers from receiving messages: the worker must end immediately (INT or QUIT)."""
    _shutdown_of(worker).begin()


def worker_exit(server: Any, worker: Any) -> None:
    """Wait for handlers to finish, then close all connections, those that publish last.  May switch.

    This takes no longer than the rest of ``graceful_timeout``, and no longer than ``timeout``.
    """
    if worker.pid == os.getpid():  # gunicorn calls it in the arbiter too, for a worker that is gone
        _shutdown_of(worker).finish()


def hooks(application: str | None = None) -> dict[str, Callable[..., None]]:
    """Return all hooks as a dict, by their names in gunicorn's configuration.

    Arguments:
        application: the location (``module:name``) of a :class:`greenconn.App`, which each worker
            imports and starts when it is ready.  None starts no application.
    """

    def start(worker: Any) -> None:
        post_worker_init(worker)
        if application is not None:
            load_app(application).start()

    return {
        "pre_fork": pre_fork,
        "post_fork": post_fork,
        "post_worker_init": start,
        "worker_int": worker_int,
        "worker_exit": worker_exit,
    }
