"""gunicorn's settings, with each hook by itself."""

from __future__ import annotations

from typing import Any

from greenconn.contrib import gunicorn as green

worker_class = "gevent"
workers = 2
#: Seconds that requests and handlers have when a worker shuts down.
graceful_timeout = 20

post_fork = green.post_fork
worker_int = green.worker_int
worker_exit = green.worker_exit


def post_worker_init(worker: Any) -> None:
    """Consumers belong into the workers, so that ``--preload`` is safe too."""
    green.post_worker_init(worker)
    from tests.integration.gunicorn_apps.web_shop import (
        start_consumers,
    )  # only now: gunicorn has patched this process

    start_consumers()
