"""What tests of RabbitMQ's channels do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from greenconn.transport.amqp.channel import Channel
from tests.fix_wires import until

WAIT = 20.0


class Sink:
    """Notes what it is given, as the reader wants it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.errors: list[BaseException] = []
        self.taken: Callable[[Any], None] | None = None

    def deliver(self, message: Any) -> None:
        self.messages.append(message)

    def cancelled(self, exc: BaseException) -> None:
        self.errors.append(exc)

    def requeue_unseen(self) -> None:
        for each in self.messages:
            each.put_back()


def message(channel: Channel, body: str = "body") -> Any:
    return channel.prepare_message(body, None, "text/plain", "utf-8", None, {"delivery_mode": 1})


def fill(channel: Channel, amqp_queue: str, number: int) -> None:
    """Put the messages ``0`` to ``number - 1`` into a amqp_queue."""
    for each in range(number):
        channel.basic_publish(message(channel, str(each)), "", amqp_queue)
    until(lambda: channel.queue_declare(amqp_queue, passive=True).message_count == number)


def counts(channel: Channel, amqp_queue: str) -> tuple[int, int]:
    """Messages that are ready, and consumers."""
    declared = channel.queue_declare(amqp_queue, passive=True)
    return declared.message_count, declared.consumer_count


def all_of(greenlets: list[Any]) -> list[Any]:
    """Their values; errors are raised."""
    gevent.joinall(greenlets, timeout=WAIT, raise_error=True)
    assert all(each.ready() for each in greenlets)
    return [each.value for each in greenlets]
