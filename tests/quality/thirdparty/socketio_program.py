"""The processes of a python-socketio application whose servers share events over a broker.

``socketio_program.py WAY ROLE URL EVENTS``: a *server* prints its port, a *client* of it prints how
many copies and how many events it received, an *emitter* sends them from a process that has no clients,
and prints when it has sent half of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from gevent import monkey

monkey.patch_all()

if sys.argv[1] == "install_as_kombu":
    from greenconn.compat import install_as_kombu

    install_as_kombu()

import gevent  # noqa: E402 - what the next one imports is chosen above
import socketio  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

if sys.argv[1] == "contrib":
    from greenconn.contrib.socketio import Manager

    make_manager: Any = Manager
else:
    make_manager = socketio.KombuManager

EVENTS = int(sys.argv[4])
#: Seconds between two events.
PAUSE = 0.01
#: Seconds for all events to come.
TIMEOUT = 60.0


def serve(url: str) -> None:
    """Serve until the process is ended."""
    server = socketio.Server(async_mode="gevent", client_manager=make_manager(url))
    http = WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(server), log=None)
    http.start()
    print("port", http.server_port, flush=True)
    http.serve_forever()


def receive(url: str) -> None:
    """Count the events that come from the server, until all are there or it takes too long."""
    client, complete, got = socketio.Client(), Event(), Counter[Any]()

    def on_news(number: Any) -> None:
        got[number] += 1
        if len(got) == EVENTS:
            complete.set()

    client.on("news", on_news)
    client.connect(url, wait_timeout=TIMEOUT)
    print("connected", flush=True)
    complete.wait(TIMEOUT)
    print("copies", got.total() - len(got), flush=True)
    print("received", len(got), flush=True)
    client.disconnect()


def emit(url: str) -> None:
    """Send the events to all clients of all servers."""
    manager = make_manager(url, write_only=True)
    for number in range(EVENTS):
        if number == EVENTS // 2:
            print("half", flush=True)
        manager.emit("news", number)
        gevent.sleep(PAUSE)


if __name__ == "__main__":
    {"server": serve, "client": receive, "emitter": emit}[sys.argv[2]](sys.argv[3])
