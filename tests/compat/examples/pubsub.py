"""Everybody hears what is broadcast."""

import sys

from kombu import Connection
from kombu.common import Broadcast
from kombu.pools import connections

url, name = sys.argv[1:]


heard = []


def listener(who):
    def hear(body, message):
        heard.append(body)
        print(who, "heard", body)
        message.ack()

    return hear


with Connection(url) as connection:
    queues = [Broadcast(name, unique=True) for _ in range(3)]
    consumers = [
        connection.Consumer(queue, callbacks=[listener(number)])
        for number, queue in enumerate(queues)
    ]
    for consumer in consumers:
        consumer.consume()
    with connections[connection].acquire(block=True) as other:
        other.Producer().publish("to all", exchange=queues[0].exchange)
    while len(heard) < len(consumers):
        connection.drain_events(timeout=30)
    for consumer in consumers:
        consumer.cancel()
print("done")
