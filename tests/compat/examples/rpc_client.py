"""Asks for Fibonacci numbers.  Arguments: URL, name, numbers."""

import sys

from kombu import Connection, Consumer, Producer, Queue, uuid

url, name, *numbers = sys.argv[1:]


class Client:
    def __init__(self, connection):
        self.connection = connection
        self.callback_queue = Queue(uuid(), exclusive=True, auto_delete=True)

    def on_response(self, message):
        if message.properties["correlation_id"] == self.correlation_id:
            self.response = message.payload["result"]

    def call(self, n):
        self.response = None
        self.correlation_id = uuid()
        with Producer(self.connection) as producer:
            producer.publish(
                {"n": n},
                exchange="",
                routing_key=name,
                declare=[self.callback_queue],
                reply_to=self.callback_queue.name,
                correlation_id=self.correlation_id,
            )
        with Consumer(
            self.connection,
            on_message=self.on_response,
            queues=[self.callback_queue],
            no_ack=True,
        ):
            while self.response is None:
                self.connection.drain_events(timeout=30)
        return self.response


with Connection(url) as connection:
    client = Client(connection)
    for number in numbers:
        print("fib", number, client.call(int(number)))
