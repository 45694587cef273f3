"""gunicorn's settings for the project."""

from __future__ import annotations

from typing import Any

from greenconn.contrib import gunicorn as green

worker_class = "gevent"
workers = 2
graceful_timeout = 20
post_fork = green.post_fork
worker_int = green.worker_int
worker_exit = green.worker_exit


def post_worker_init(worker: Any) -> None:
    """Start the consumers."""
    green.post_worker_init(worker)
    from letters.consumers import start  # only now: Django has been set up by the application

    start()
