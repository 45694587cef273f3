"""A web server that accepts mails and leaves it to ``consumer.py`` to send them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.pywsgi import WSGIServer
from queues import MAIL

import greenconn
from greenconn.exceptions import OperationalError


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Accept an address; the mail is on the disk when the response says so."""
    if environ["REQUEST_METHOD"] != "POST":
        start_response("405 Method Not Allowed", [("Allow", "POST")])
        return [b"POST an address\n"]
    address = environ["wsgi.input"].read().decode()
    try:
        greenconn.publish(MAIL, {"to": address}, timeout=5)
    except OperationalError as exc:
        start_response("503 Service Unavailable", [("Retry-After", "10")])
        return [f"not now: {exc}\n".encode()]
    start_response("202 Accepted", [("Content-Type", "text/plain")])
    return [b"accepted\n"]


def main() -> None:
    greenconn.configure(os.environ.get("GREENCONN_URL", "sqlite:///mail.db"))
    server = WSGIServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), application, log=None)
    server.start()
    # Running requests finish within 10 seconds.
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop, 10)
    print(f"http://127.0.0.1:{server.server_port}/mail", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
