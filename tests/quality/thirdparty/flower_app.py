"""The application that Flower shows: the broker and the way come from the environment."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready

app: Any = Celery("thirdparty", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
if "TRANSPORT" in os.environ:
    app.conf.broker_transport = os.environ["TRANSPORT"]
app.conf.update(
    task_default_queue="flower-tasks",
    broker_connection_retry_on_startup=True,
    worker_send_task_events=True,
    task_send_sent_event=True,
    worker_redirect_stdouts=False,
)


@worker_ready.connect  # type: ignore[untyped-decorator]  # Celery has no types
def tell_ready(**kwargs: Any) -> None:
    print("worker is ready", flush=True)


@app.task(name="add")  # type: ignore[untyped-decorator]  # Celery has no types
def add(one: int, other: int) -> int:
    """Return the sum."""
    return one + other
