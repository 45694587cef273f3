"""What does the work that ``web.py`` accepts: ``python examples/web_and_consumer/consumer.py``.

Kill it in the middle of a mail, and another one, or the next one, sends that mail again.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import gevent
from queues import MAIL

import greenconn

URL = os.environ.get("GREENCONN_URL", "sqlite:///mail.db")


def send_mail(body: Any, message: greenconn.Message) -> None:
    """Acknowledged when it returns."""
    gevent.sleep(0.05)  # as a mail server would
    print(f"mail to {body['to']}", flush=True)


def main() -> None:
    greenconn.configure(URL)
    consumer = greenconn.spawn_consumer(MAIL, send_mail, concurrency=10)
    # What runs is finished first, what has not begun goes back.
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, consumer.stop, 10)
    consumer.wait_ready()
    print("ready", flush=True)
    consumer.get()


if __name__ == "__main__":
    main()
