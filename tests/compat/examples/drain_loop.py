"""Loops that drain: with time-outs, with limits, with eventloop and itermessages."""

import sys
from itertools import islice

from kombu import Connection, Queue, eventloop
from kombu.common import itermessages, maybe_declare

url, name = sys.argv[1:]
queue = Queue(name, durable=False)
got = []


def keep(body, message):
    got.append(body)
    message.ack()


with Connection(url) as connection:
    channel = connection.default_channel
    bound = queue(channel)
    print("declared", maybe_declare(bound), maybe_declare(bound))
    producer = connection.Producer()
    for number in range(5):
        producer.publish(number, routing_key=name)
    with connection.Consumer(queue, callbacks=[keep]):
        for _ in eventloop(connection, limit=1, timeout=30):
            pass
        while len(got) < 5:
            connection.drain_events(timeout=30)
        try:
            connection.drain_events(timeout=0.05)
        except TimeoutError:
            print("nothing more")
    print("got", got)
    for number in range(3):
        producer.publish({"number": number}, routing_key=name)
    messages = itermessages(connection, channel, queue, limit=3, timeout=30)
    for body, message in islice(messages, 3):
        print("message", body["number"])
        message.ack()
    for _ in eventloop(connection, limit=1, timeout=0.05, ignore_timeouts=True):
        pass
    bound.delete()
print("done")
