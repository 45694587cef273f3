"""gunicorn's settings: the module is loaded before the workers, whose consumers begin in themselves."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from greenconn.contrib import gunicorn as green
from greenconn.contrib.prometheus import child_exit as child_exit

preload_app = True
post_fork = green.post_fork
worker_int = green.worker_int
worker_exit = green.worker_exit


def post_worker_init(worker: Any) -> None:
    """Start the consumer."""
    green.post_worker_init(worker)
    import_module("metered").start()
