"""An application that publishes and handles orders, and returns the metrics of all its workers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import greenconn
from greenconn import health
from greenconn.contrib import prometheus

QUEUE = os.environ["QUEUE"]

prometheus.instrument()
metrics = prometheus.wsgi_app()


def start() -> None:
    """Start the consumer of a worker."""
    queue = greenconn.Queue(QUEUE, expires=120)
    greenconn.spawn_consumer(queue, lambda body, message: None, name=QUEUE)


def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Respond to a request."""
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    greenconn.publish(QUEUE, {"item": "teapot"})
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"worker": os.getpid()}).encode()]


application = health.Probes(answer, timeout=1.0)
