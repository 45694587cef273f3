"""Consumers in greenlets of their own: ``python examples/spawn_consumer.py [URL]``.

They acknowledge, retry, reconnect and stop gracefully, without a call of ``drain_events``.
"""

from __future__ import annotations

import logging
import sys

import gevent
from gevent.event import Event

import greenconn
from greenconn import Connection, Message, Queue, Retry

MESSAGES = 20


def main(url: str = "memory://") -> None:
    queue = Queue(f"example-{greenconn.uuid()[:8]}", expires=60)
    handled: list[int] = []
    done = Event()

    def handle(body: int, message: Message) -> None:
        gevent.sleep(0.05)  # other handlers run meanwhile
        if body == 13 and 13 not in failed:
            failed.add(13)
            raise ValueError("unlucky at first")
        handled.append(body)
        if len(handled) == MESSAGES:
            done.set()

    failed: set[int] = set()
    logging.getLogger("greenconn.worker").setLevel(logging.CRITICAL)  # the failure is expected
    with Connection(url) as connection:
        consumer = greenconn.spawn_consumer(
            queue,
            handle,
            connection=connection,
            concurrency=5,
            retry=Retry(tries=3, delay=0.1),
        )
        for number in range(MESSAGES):
            greenconn.publish(queue, number, connection=connection)
        if not done.wait(timeout=30):
            raise SystemExit(f"only {len(handled)} of {MESSAGES} were handled")
        consumer.stop(timeout=10)
        print(f"handled {len(handled)} messages, 5 at once over {connection.as_uri()}")
        print(f"statistics: {consumer.get()}")
        queue(connection).delete()


if __name__ == "__main__":
    main(*sys.argv[1:2])
