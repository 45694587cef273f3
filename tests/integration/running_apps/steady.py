"""An application whose handlers say where they ran, and that waits in them if it is told to."""

from __future__ import annotations

import os
from typing import Any

import gevent

import greenconn

app = greenconn.App()
QUEUE = os.environ["STEADY_QUEUE"]


@app.consumer(QUEUE, concurrency=4, on_error="requeue")
def handle(body: Any, message: Any) -> None:
    """Print the body and the process; wait for so long as it says."""
    print("begun", body["id"], os.getpid(), flush=True)
    gevent.sleep(body.get("seconds", 0))
    print("handled", body["id"], os.getpid(), flush=True)


@app.rpc(f"{QUEUE}-pid")
def pid(body: Any) -> int:
    """Return the process."""
    return os.getpid()
