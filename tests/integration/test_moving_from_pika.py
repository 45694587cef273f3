"""A program of pika and one of greenconn on one broker."""

from __future__ import annotations

import pytest
from gevent.queue import Queue as Results

from greenconn import Connection, Message, Queue, publish, spawn_consumer
from tests.interpreter import printed

pytest.importorskip("pika")

#: Publishes two bodies to the first queue, and prints what the second one holds.
PROGRAM = """\
import json
import sys
import pika

url, there, here = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.queue_declare(there, durable=True)
channel.confirm_delivery()
decoded = pika.BasicProperties(content_type="application/json", content_encoding="utf-8", priority=3)
channel.basic_publish("", there, b'{"to": "ada"}', mandatory=True)
channel.basic_publish("", there, b'{"to": "grace"}', decoded, mandatory=True)
method, properties, body = channel.basic_get(here, auto_ack=True)
print(json.loads(body), properties.content_type, properties.delivery_mode, properties.headers)
connection.close()
"""


def test_each_reads_what_the_other_publishes(amqp_url: str, unique: str) -> None:
    there, here = Queue(f"{unique}-there"), Queue(f"{unique}-here")
    received: Results[tuple[object, object]] = Results()

    def keep(body: object, message: Message) -> None:
        received.put((body, message.properties.get("priority")))

    with Connection(amqp_url) as connection:
        publish(here, {"to": "alan"}, headers={"step": 1}, connection=connection)
        said = printed("-c", PROGRAM, amqp_url, there.name, here.name, timeout=60)
        assert said.replace(" ", "") == "{'to':'alan'}application/json2{'step':1}\n"
        consumer = spawn_consumer(there, keep, connection=connection)
        try:
            assert [received.get(timeout=60) for _ in range(2)] == [
                ('{"to": "ada"}', None),
                ({"to": "grace"}, 3),
            ]
        finally:
            consumer.stop(10)
            channel = connection.channel()
            channel.queue_delete(there.name)
            channel.queue_delete(here.name)
