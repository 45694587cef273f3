"""Every code block of the page about Redis runs on one, and its access list is enough."""

from __future__ import annotations

import re

import gevent

import greenconn
from greenconn import Connection
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.integration.contract import SOON, collecting
from tests.integration.pages import run_blocks
from tests.unit.test_docs import ROOT

PAGE = ROOT / "docs" / "redis.rst"


def test_the_code_blocks_run(own_redis: RedisServer, patched: bool) -> None:
    run_blocks(PAGE.read_text(), own_redis.url, patched)


def test_the_access_list_is_enough(own_redis: RedisServer) -> None:
    found = re.search(r"^    (ACL SETUSER app.*?)\n\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    with Connection(own_redis.url) as control:
        link = control.connection
        link.commands.call(pack("FLUSHALL"))
        link.commands.call(pack(*found[1].split()))
        options = {"global_keyprefix": "app:", "client_name": "app"}
        url = own_redis.url.replace("//", "//app:password@")
        with Connection(url, transport_options=options) as connection:
            got: list[object] = []
            queues = [
                greenconn.Queue("plain", expires=60),
                greenconn.Queue("bound", greenconn.Exchange("x", "topic"), "a.#"),
                greenconn.Queue("fanned", greenconn.Exchange("f", "fanout"), auto_delete=True),
            ]
            consumer = collecting(connection, queues, got)
            assert connection.connection.commands.is_tracking
            greenconn.publish("plain", 1, connection=connection)
            greenconn.publish(
                greenconn.Exchange("x", "topic"), 2, routing_key="a.b", connection=connection
            )
            greenconn.publish(greenconn.Exchange("f", "fanout"), 3, connection=connection)
            with gevent.Timeout(SOON):
                while set(got) != {1, 2, 3}:
                    gevent.sleep(0.01)
            assert connection.connection.placement.partition("").sweeper.sweep() == 0
            assert consumer.stop(SOON)
            channel = connection.default_channel
            channel.queue_declare("plain", arguments={"x-expires": 60000}, durable=True)
            channel.queue_purge("plain")
            message = channel.prepare_message("x")
            channel.basic_publish(message, "", "plain")
            channel.basic_get("plain").requeue()
            channel.queue_delete("plain")
            channel.queue_delete("bound")
            channel.exchange_delete("x")
        link.commands.call(pack("ACL", "DELUSER", "app"))
