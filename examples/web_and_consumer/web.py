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
    """Accept an address; the mail is in the queue when the response says so."""

    def respond(status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
        return [f"{text}\n".encode()]

    if environ["REQUEST_METHOD"] != "POST":
        return respond("405 Method Not Allowed", "POST an address", ("Allow", "POST"))
    address = environ["wsgi.input"].read(1000).decode(errors="replace").strip()
    if "@" not in address:
        return respond("400 Bad Request", "POST an address")
    try:
        greenconn.publish(MAIL, {"to": address}, timeout=5)
    except OperationalError as exc:
        return respond("503 Service Unavailable", f"not now: {exc}", ("Retry-After", "10"))
    return respond("202 Accepted", "accepted")


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
