"""The application of the Celery benchmark: counts its tasks, and prints what they cost."""

from __future__ import annotations

import json
import os
import resource
import sys
from time import perf_counter
from typing import Any

from celery import Celery
from celery.signals import worker_ready

QUEUE = "greenconn-bench-celery"
COUNT = int(os.environ.get("TASKS", "0"))

app: Any = Celery("benchmarks", broker=os.environ["BROKER"])
app.conf.update(
    broker_transport=os.environ.get("TRANSPORT") or None,
    broker_connection_retry_on_startup=True,
    task_default_queue=QUEUE,
    task_default_delivery_mode="transient",
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_redirect_stdouts=False,
    # Celery's own care for kombu's heartbeats takes 0.1 s in each turn of a gevent worker's loop.
    broker_heartbeat=int(os.environ.get("HEARTBEAT", "120")),
)

_done = 0
_begin = (0.0, 0.0)


def _now() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, perf_counter()


@worker_ready.connect
def begin(**kwargs: Any) -> None:
    """The worker is about to take tasks."""
    global _begin
    _begin = _now()


@app.task
def work(number: int, text: str) -> None:
    """Does nothing; the last one tells what all have cost."""
    global _done
    _done += 1
    if _done == COUNT:
        cpu, wall = (end - start for end, start in zip(_now(), _begin, strict=True))
        print(json.dumps({"cpu": cpu / COUNT * 1e6, "rate": COUNT / wall}))
        sys.stdout.flush()
