"""What is measured, each in a process of its own: ``python -m benchmarks.sqs.works NAME URL COUNT``.

Prints the client's CPU in microseconds a message, for publishing and for consuming with acks, as JSON.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import process_time
from typing import Any
from urllib.parse import urlsplit

BODY = {"to": "ada@example.com", "text": "x" * 200}
#: Greenlets that publish at the same time.
PUBLISHERS = 50


class Stopwatch:
    """CPU of this process, a message."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.figures: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        began = process_time()
        yield
        self.figures[name] = (process_time() - began) / self._count * 1e6


def ours(url: str, count: int, watch: Stopwatch) -> None:
    """greenconn: one connection."""
    import gevent

    from greenconn import Connection, Queue

    with Connection(url) as connection:
        queue = Queue(uuid.uuid4().hex)(connection.default_channel)
        queue.declare()
        producer = connection.Producer()
        with watch.of("publish, 1 greenlet"):
            for _ in range(count):
                producer.publish(BODY, routing_key=queue.name)
        _take(connection, queue, count, watch, "consume + ack")

        def publish() -> None:
            for _ in range(count // PUBLISHERS):
                producer.publish(BODY, routing_key=queue.name)

        with watch.of(f"publish, {PUBLISHERS} greenlets"):
            gevent.joinall([gevent.spawn(publish) for _ in range(PUBLISHERS)], raise_error=True)
        queue.delete()


def kombu(url: str, count: int, watch: Stopwatch) -> None:
    """kombu, which cannot publish from several greenlets on one connection."""
    from kombu import Connection, Queue

    options = {"region": "us-east-1", "is_secure": False, "wait_time_seconds": 1}
    with Connection(url, transport_options=options) as connection:
        queue = Queue(uuid.uuid4().hex)(connection.default_channel)
        queue.declare()
        producer = connection.Producer()
        with watch.of("publish, 1 greenlet"):
            for _ in range(count):
                producer.publish(BODY, routing_key=queue.name)
        _take(connection, queue, count, watch, "consume + ack")
        queue.delete()


def _take(connection: Any, queue: Any, count: int, watch: Stopwatch, name: str) -> None:
    got = 0

    def take(body: Any, message: Any) -> None:
        nonlocal got
        got += 1
        message.ack()

    with connection.Consumer([queue], callbacks=[take], prefetch_count=100), watch.of(name):
        while got < count:
            connection.drain_events(timeout=30)


def http(url: str, count: int, watch: Stopwatch) -> None:
    """The HTTP of ours: the same requests, written and signed before, their answers not read."""
    from greenconn import Connection, Queue
    from greenconn.green.deadline import Deadline

    with Connection(url) as connection:
        queue = Queue(uuid.uuid4().hex)(connection.default_channel)
        queue.declare()
        made: list[tuple[Any, ...]] = []
        web = connection.connection.store.queues.get(queue.name).service._web
        ask = web.request

        def note(*args: Any, **kwargs: Any) -> Any:
            made.append((args, kwargs))
            return ask(*args, **kwargs)

        web.request = note
        connection.Producer().publish(BODY, routing_key=queue.name)
        args, kwargs = made[-1]
        with watch.of("one request"):
            for _ in range(count):
                ask(*args, **{**kwargs, "deadline": Deadline(10)})
        queue.delete()


def boto(url: str, count: int, watch: Stopwatch) -> None:
    """The driver of kombu's: boto3's calls alone."""
    import boto3

    parts = urlsplit(url)
    client = boto3.client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=f"http://{parts.hostname}:{parts.port}",
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
    )
    address = client.create_queue(QueueName=uuid.uuid4().hex)["QueueUrl"]
    body = json.dumps(BODY)
    with watch.of("publish, 1 greenlet"):
        for _ in range(count):
            client.send_message(QueueUrl=address, MessageBody=body)
    got = 0
    with watch.of("consume + ack"):
        while got < count:
            for each in client.receive_message(QueueUrl=address, MaxNumberOfMessages=10)[
                "Messages"
            ]:
                client.delete_message(QueueUrl=address, ReceiptHandle=each["ReceiptHandle"])
                got += 1
    client.delete_queue(QueueUrl=address)


WORKS: dict[str, Callable[[str, int, Stopwatch], None]] = {
    "greenconn": ours,
    "kombu": kombu,
    "its HTTP alone": http,
    "boto3 alone": boto,
}


def main() -> None:
    """Do one."""
    name, url, count = sys.argv[1:]
    watch = Stopwatch(int(count))
    WORKS[name](url, int(count), watch)
    print(json.dumps(watch.figures))


if __name__ == "__main__":
    main()
