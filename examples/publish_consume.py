"""Publish and consume the way kombu does: ``python examples/publish_consume.py [URL]``."""

from __future__ import annotations

import sys
from typing import Any

from greenconn import Connection, Exchange, Message, Queue, uuid


def main(url: str = "memory://") -> None:
    name = f"example-{uuid()[:8]}"
    exchange = Exchange(name, type="topic")
    queue = Queue(name, exchange, routing_key="user.#")
    received = []

    def handle(body: Any, message: Message) -> None:
        print(f"received {body} as {message.delivery_info['routing_key']}")
        received.append(body)
        message.ack()

    with Connection(url) as connection:
        with connection.Consumer(queue, callbacks=[handle]):
            producer = connection.Producer(exchange=exchange)
            for number in range(3):
                producer.publish({"id": number}, routing_key="user.new")
            while len(received) < 3:
                connection.drain_events(timeout=10)
        queue(connection).delete()
        exchange(connection).delete()
    print(f"{len(received)} messages over {connection.as_uri()}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
