"""Serves Fibonacci numbers, as many calls as are asked for.  Arguments: URL, name, number of calls."""

import sys

from kombu import Connection, Queue
from kombu.mixins import ConsumerProducerMixin

url, name, wanted = sys.argv[1:]


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


class Server(ConsumerProducerMixin):
    def __init__(self, connection, wanted):
        self.connection = connection
        self.wanted = wanted

    def get_consumers(self, Consumer, channel):
        return [
            Consumer(
                queues=[Queue(name, auto_delete=False, durable=False, expires=60)],
                on_message=self.on_request,
                accept={"application/json"},
                prefetch_count=1,
            )
        ]

    def on_consume_ready(self, connection, channel, consumers, **kwargs):
        print("ready", flush=True)

    def on_request(self, message):
        self.producer.publish(
            {"result": fib(message.payload["n"])},
            exchange="",
            routing_key=message.properties["reply_to"],
            correlation_id=message.properties["correlation_id"],
            serializer="json",
            retry=True,
        )
        message.ack()
        self.wanted -= 1
        self.should_stop = not self.wanted


with Connection(url) as connection:
    Server(connection, int(wanted)).run()
    print("served")
