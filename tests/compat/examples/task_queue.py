"""A queue of tasks with priorities by queue, and a worker that is a ConsumerMixin."""

import sys

from kombu import Connection, Exchange, Queue
from kombu.log import get_logger
from kombu.mixins import ConsumerMixin
from kombu.pools import producers
from kombu.utils.functional import reprcall

url, name = sys.argv[1:]
logger = get_logger(__name__)
exchange = Exchange(f"{name}.tasks", type="direct", durable=False, auto_delete=True)
queues = {
    key: Queue(f"{name}.{key}", exchange, routing_key=key, auto_delete=True, durable=False)
    for key in ("high", "low")
}
TASKS = {"hello": lambda who="world": f"hello {who}", "fail": lambda: 1 / 0}


class Worker(ConsumerMixin):
    def __init__(self, connection, wanted):
        self.connection = connection
        self.wanted = wanted

    def get_consumers(self, Consumer, channel):
        return [
            Consumer(
                queues=list(queues.values()), accept=["pickle", "json"], callbacks=[self.process]
            )
        ]

    def on_consume_ready(self, connection, channel, consumers, **kwargs):
        print("ready with", len(consumers))
        send("low", "hello", kwargs={"who": "kombu"})
        send("low", "fail")
        send("high", "hello")

    def process(self, body, message):
        call = reprcall(body["fun"], body["args"], body["kwargs"])
        try:
            print(call, "->", TASKS[body["fun"]](*body["args"], **body["kwargs"]))
        except Exception as exc:
            print(call, "raised", type(exc).__name__)
        message.ack()
        self.wanted -= 1
        if not self.wanted:
            self.should_stop = True


def send(key, fun, args=(), kwargs=None):
    payload = {"fun": fun, "args": args, "kwargs": kwargs or {}}
    with producers[connection].acquire(block=True) as producer:
        producer.publish(
            payload,
            serializer="pickle",
            compression="bzip2",
            exchange=exchange,
            declare=[exchange],
            routing_key=key,
        )


with Connection(url) as connection:
    worker = Worker(connection, 3)
    worker.run()
    print("stopped", worker.should_stop)
