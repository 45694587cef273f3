"""An application whose handler notes in a file each time that it has done its work."""

from __future__ import annotations

import os
from typing import Any

import gevent

import greenconn
from greenconn.contrib.idempotency import handled_once
from greenconn.contrib.idempotency.redis import RedisIds

app = greenconn.App(os.environ["PAYING_BROKER"])
ids = RedisIds(os.environ["PAYING_IDS"], prefix=os.environ["PAYING_QUEUE"])
done = open(os.environ["PAYING_DONE"], "ab", buffering=0)  # noqa: SIM115 - until the process ends


@app.consumer(greenconn.Queue(os.environ["PAYING_QUEUE"]), concurrency=4)
@handled_once(ids, lease=1.0)
def pay(body: Any, message: Any) -> None:
    """Work for a moment."""
    gevent.sleep(0.005)
    done.write(f"{body}\n".encode())
