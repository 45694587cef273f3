"""The application of the Celery tests: broker, queue and results come from the environment."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery
from celery.signals import worker_ready, worker_shutdown
from kombu.entity import Queue

from tests.integration import stacks

stacks.print_on_signal()
broker = os.environ["BROKER"]
scheme = os.environ.get("SCHEME")
if scheme:
    import greenconn.contrib.celery  # gives kombu the schemes

    assert scheme in greenconn.contrib.celery.SCHEMES
    broker = f"{scheme}://{broker.partition('://')[2]}"
app: Any = Celery("greenconn-tests", broker=broker, backend=os.environ["RESULTS"])
if not scheme and "TRANSPORT" in os.environ:
    app.conf.broker_transport = os.environ["TRANSPORT"]
arguments = {"x-queue-type": "quorum"} if os.environ.get("QUORUM") else None
app.conf.update(
    task_default_queue=os.environ["QUEUE"],
    task_queues=[Queue(os.environ["QUEUE"], queue_arguments=arguments)],
    control_exchange=os.environ["QUEUE"],
    event_exchange=os.environ["QUEUE"] + ".ev",
    broker_connection_retry_on_startup=True,
    worker_send_task_events=True,
    task_send_sent_event=True,
    worker_enable_remote_control=True,
    result_expires=60,
    worker_redirect_stdouts=False,
)


@worker_ready.connect
def tell_ready(**kwargs: Any) -> None:
    print("ready", flush=True)


@worker_shutdown.connect
def tell_shutdown(**kwargs: Any) -> None:
    print("shut down", flush=True)


@app.task
def add(x: int, y: int) -> int:
    """The usual one."""
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    """The end of a chord."""
    return sum(numbers)


@app.task(bind=True, max_retries=3)
def flaky(self: Any, failures: int) -> int:
    """Succeeds when it was tried again often enough."""
    if self.request.retries < failures:
        raise self.retry(countdown=0.05)
    return int(self.request.retries)


@app.task
def fail() -> None:
    """Raises."""
    raise ValueError("wrong")


@app.task(bind=True, acks_late=True)
def unlucky(self: Any) -> None:
    """Ends only when it is delivered again."""
    print("unlucky began", flush=True)
    if not self.request.delivery_info["redelivered"]:
        time.sleep(3600)
    print("unlucky ended", flush=True)


@app.task(acks_late=True)
def slow(seconds: float, number: int = 0) -> int:
    """Takes its time, in a greenlet."""
    print("slow began", number, flush=True)
    time.sleep(seconds)
    print("slow ended", number, flush=True)
    return number
