"""The processes of a python-socketio application whose servers share events by ``KombuManager``.

``socketio_program.py WAY ROLE URL EVENTS``: a *server* prints its port, a *client* of it prints how
many events it received, an *emitter* sends them from a process that has no clients.
"""

from __future__ import annotations

import sys
from typing import Any

from gevent import monkey

monkey.patch_all()

if sys.argv[1] != "kombu":
    from greenconn.compat import install_as_kombu

    install_as_kombu()

import socketio  # noqa: E402 - what it imports is chosen above
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

EVENTS = int(sys.argv[4])
#: Seconds for all events to come.
TIMEOUT = 60.0


def serve(url: str) -> None:
    """Serve until the process is ended."""
    server = socketio.Server(async_mode="gevent", client_manager=socketio.KombuManager(url))
    http = WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(server), log=None)
    http.start()
    print("port", http.server_port, flush=True)
    http.serve_forever()


def receive(url: str) -> None:
    """Count the events that come from the server, until all are there or it takes too long."""
    client, complete, got = socketio.Client(), Event(), set()

    def on_news(number: Any) -> None:
        got.add(number)
        if len(got) == EVENTS:
            complete.set()

    client.on("news", on_news)
    client.connect(url)
    print("connected", flush=True)
    complete.wait(TIMEOUT)
    print("received", len(got), flush=True)
    client.disconnect()


def emit(url: str) -> None:
    """Send the events to all clients of all servers."""
    manager = socketio.KombuManager(url, write_only=True)
    for number in range(EVENTS):
        manager.emit("news", number)


if __name__ == "__main__":
    {"server": serve, "client": receive, "emitter": emit}[sys.argv[2]](sys.argv[3])
