"""A chat whose clients may be connected to any of gunicorn's workers."""

from __future__ import annotations

import os
from typing import Any

import socketio

from greenconn.contrib.socketio import Manager

# Over websockets alone, workers can share a port: a client stays with the worker that it connected to.
server = socketio.Server(
    async_mode="gevent",
    client_manager=Manager(),
    transports=["websocket"],
    always_connect=True,  # connect() may emit to its client
)
app = socketio.WSGIApp(server, static_files={"/": "index.html"})


@server.event
def connect(sid: str, environ: dict[str, Any]) -> None:
    server.emit("welcome", {"worker": os.getpid()}, to=sid)


@server.event
def say(sid: str, text: str) -> bool:
    """Send a line to the clients of all workers.

    What is returned is the acknowledgement to the client: the broker has the line.
    """
    server.emit("said", {"text": text[:1000], "worker": os.getpid()})
    return True
