"""An application that says which process has heard a broadcast; it also is one of WSGI, for gunicorn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import greenconn

PREFIX = os.environ["HEARD_PREFIX"]
KEPT = os.environ.get("HEARD_KEPT")

app = greenconn.App()


def news(number: int) -> greenconn.Broadcast:
    """Return what one of the consumers listens to."""
    if not KEPT:
        return greenconn.Broadcast(f"{PREFIX}-news")
    queue = f"{PREFIX}.{{host}}.{{slot}}.{number}"
    return greenconn.Broadcast(f"{PREFIX}-news", queue, keep=timedelta(minutes=5))


def tell(number: int, body: Any) -> None:
    """Tell the test who has heard it."""
    (queue,) = app.consumers[number].lifecycle.options.queues
    assert isinstance(queue, greenconn.Broadcast)
    report = {"id": body, "pid": os.getpid(), "consumer": number, "queue": queue.name}
    app.publish(f"{PREFIX}-heard", report, declare=True)


@app.consumer(news(0))
def hear(body: Any, message: Any) -> None:
    """Tell who has heard it."""
    tell(0, body)


@app.consumer(news(1))
def hear_too(body: Any, message: Any) -> None:
    """Do the same: another consumer of the same process."""
    tell(1, body)


def application(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request."""
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]
