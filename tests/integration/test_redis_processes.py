"""Several processes, and many connections, on one Redis."""

from __future__ import annotations

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.exceptions import PublishTimeout
from greenconn.messaging import Producer
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.integration.contract import SOON, Store
from tests.integration.processes import run
from tests.integration.test_redis_transport import commands_of

#: Forks while a connection consumes, listens to fan-out and has sent a large body; both go on.
FORKING = """
import os, sys
import gevent
import greenconn
from greenconn import Connection, Exchange, Producer, Queue

connection = Connection(sys.argv[1])
got = []
fanout = Exchange("forked-x", "fanout")
queues = [Queue("forked"), Queue("forked-fan", fanout)]

def handle(body, message):
    got.append(body)

def until(wanted):
    with gevent.Timeout(10):
        while got != wanted:
            gevent.sleep(0.01)

consumer = greenconn.spawn_consumer(queues, handle, connection=connection)
assert consumer.wait_ready(30)
Producer(connection).publish(b"x" * 2_000_000, routing_key="forked-big")
greenconn.publish("forked", 1, connection=connection, declare=True)
until([1])
pid = os.fork()
if not pid:
    code = 1
    try:
        got.clear()
        own = greenconn.spawn_consumer("forked-child", handle, connection=connection)
        assert own.wait_ready(30)
        greenconn.publish("forked-child", 2, connection=connection, declare=True)
        until([2])
        own.stop(5)
        connection.close()
        code = 0
    finally:
        os._exit(code)
with gevent.Timeout(20):
    while not os.waitpid(pid, os.WNOHANG)[0]:
        gevent.sleep(0.01)
greenconn.publish("forked", 3, connection=connection, declare=True)
until([1, 3])
Producer(connection, fanout).publish(4)
until([1, 3, 4])
assert connection.session.generation == 1
assert consumer.stop(5)
connection.close()
print("both went on")
"""


def test_fork(own_redis: RedisServer, patched: bool) -> None:
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    outcome = run("-c", prefix + FORKING, own_redis.url)
    assert outcome.code == 0, outcome.errors
    assert outcome.output.strip() == "both went on"


def test_many_that_wait_for_one_queue_do_not_stampede(own_redis: RedisServer, long: bool) -> None:
    waiting = 50 if long else 15
    number = 2000 if long else 400
    connections = [Connection(own_redis.url) for _ in range(waiting)]
    store = Store()
    try:
        for connection in connections:
            channel = connection.default_channel
            channel.queue_declare("shared")
            channel.basic_consume("shared", no_ack=True, sink=store)
        with Connection(own_redis.url) as sending:
            before = commands_of(sending, "evalsha")
            producer = Producer(sending)
            for each in range(number):
                producer.publish(each, routing_key="shared")
                gevent.sleep(0.001)
            with gevent.Timeout(SOON):
                while len(store) < number:
                    gevent.sleep(0.01)
            claims = commands_of(sending, "evalsha") - before
        assert len(store) == number
        # All at once for each message would be as many as wait, each time.
        assert claims < number * waiting / 3
    finally:
        for connection in connections:
            connection.close()


def test_publish_to_a_frozen_server(own_redis: RedisServer) -> None:
    with Connection(own_redis.url) as connection:
        greenconn.publish("frozen", 1, connection=connection, declare=True)
        own_redis.pause()
        with pytest.raises(PublishTimeout) as caught:
            greenconn.publish("frozen", 2, connection=connection, timeout=0.3, declare=True)
        assert caught.value.maybe_delivered
        with pytest.raises(PublishTimeout):
            Producer(connection).publish(3, routing_key="frozen", timeout=0.3)
        own_redis.resume()
        greenconn.publish("frozen", 4, connection=connection, declare=True)
        link = connection.connection
        assert link.commands.call(pack("LLEN", "frozen")) == 4
        link.commands.call(pack("DEL", "frozen"))
