"""A program that sends the mails that ``web.py`` has accepted.  Start as many as you like."""

from __future__ import annotations

import os
import signal
from typing import Any

import gevent
from queues import MAIL

import greenconn


def send_mail(mail: dict[str, Any], message: greenconn.Message) -> None:
    """Send a mail; it is acknowledged when this returns, and retried when this raises."""
    gevent.sleep(0.05)  # as a mail server would
    print(f"mail to {mail['to']}", flush=True)


def main() -> None:
    greenconn.configure(os.environ.get("GREENCONN_URL", "sqlite:///mail.db"))
    consumer = greenconn.spawn_consumer(
        MAIL, send_mail, concurrency=10, retry=greenconn.Retry(tries=5)
    )
    # Running handlers finish within 10 seconds; other messages are requeued.
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, consumer.stop, 10)
    consumer.wait_ready()
    print("ready", flush=True)
    consumer.get()


if __name__ == "__main__":
    main()
