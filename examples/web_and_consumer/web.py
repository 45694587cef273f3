"""A web worker that leaves the work to another process: ``python examples/web_and_consumer/web.py``.

Without a broker to install: the messages are in a SQLite file, which both processes open.  Start as many
of these and of ``consumer.py`` as you like, in any order::

    python examples/web_and_consumer/consumer.py &
    python examples/web_and_consumer/web.py &
    curl -d ada@example.org http://127.0.0.1:8000/mail
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer
from queues import MAIL

import greenconn
from greenconn.exceptions import OperationalError

URL = os.environ.get("GREENCONN_URL", "sqlite:///mail.db")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Accept an address; it is on the disk when the response says so."""
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
    greenconn.configure(URL)
    server = WSGIServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), application, log=None)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}/mail", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
