"""Fan-out exchanges in Redis: without pushes, over gaps and reconnects, and for who leaves one."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent import Timeout

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.messaging import Producer
from greenconn.wire.resp import pack
from tests.fix_brokers import RedisFactory
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting


@pytest.mark.full
def test_fanout_without_pushes(redis_with: RedisFactory) -> None:
    server = redis_with("--rename-command", "HELLO", "")
    got: list[Any] = []
    with Connection(server.url) as connection:
        queue = greenconn.Queue("f", greenconn.Exchange("fx", "fanout"))
        consumer = collecting(connection, queue, got)
        Producer(connection, greenconn.Exchange("fx", "fanout")).publish("x")
        until(lambda: got)
        assert consumer.stop(SOON)


def test_fanout_reports_gaps(redis_with: RedisFactory) -> None:
    server = redis_with()
    got: list[Any] = []
    notified: list[tuple[str, float]] = []
    with Connection(server.url) as connection, Connection(server.url) as control:
        channel = connection.default_channel
        channel.events["fanout_gap"].add(lambda *args: notified.append(args))
        exchange = greenconn.Exchange("fx", "fanout")
        queue = greenconn.Queue("f", exchange)
        with greenconn.Consumer(
            channel, [queue], callbacks=[lambda body, message: got.append(body)]
        ):
            control.connection.commands.call(pack("CLIENT", "KILL", "TYPE", "pubsub"))
            with Timeout(SOON):
                while not notified:
                    try:
                        connection.drain_events(timeout=0.05)
                    except TimeoutError:
                        pass
            Producer(control, exchange).publish("x")
            connection.drain_events(timeout=SOON)
    assert notified[0][0] == "f"
    assert got == ["x"]


@pytest.mark.parametrize("empties", [False, True], ids=["keeps", "empties"])
def test_bindings_after_a_reconnect(redis_with: RedisFactory, empties: bool) -> None:
    server = redis_with()
    got: list[Any] = []
    fanout = greenconn.Exchange("fx", "fanout")
    topic = greenconn.Exchange("tx", "topic")
    queues = [greenconn.Queue("f", fanout), greenconn.Queue("t", topic, "a.#")]
    with Connection(server.url) as connection, Connection(server.url) as control:
        consumer = collecting(connection, queues, got)
        control.connect()
        if empties:
            control.connection.commands.call(pack("FLUSHALL"))
        control.connection.commands.call(pack("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        until(lambda: connection.session.generation == 2)
        assert consumer.wait_ready(SOON)
        until(lambda: control.connection.commands.call(pack("PUBSUB", "NUMPAT")) == 2)
        Producer(control, fanout).publish("x")
        Producer(control, topic).publish("y", "a.b")
        until(lambda: len(got) == 2)
        assert sorted(got) == ["x", "y"]
        assert consumer.stop(SOON)


def test_leaving_a_fanout_exchange_is_no_silence(
    redis_with: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """What has no reply of its own must not look like a reply that is late."""
    server = redis_with()
    got: list[Any] = []
    options = {"reply_timeout": 0.4, "health_check_interval": 0.2}
    with Connection(server.url, transport_options=options) as connection:
        exchanges = [Exchange(f"f{number}", "fanout") for number in range(2)]
        consumers = [
            greenconn.spawn_consumer(
                Queue(f"q{number}", exchange),
                lambda body, message: got.append(body),
                connection=connection,
            )
            for number, exchange in enumerate(exchanges)
        ]
        assert all(each.wait_ready(SOON) for each in consumers)
        assert consumers[0].stop(SOON)
        gevent.sleep(1.0)
        greenconn.publish(exchanges[1], "x", connection=connection)
        until(lambda: got == ["x"])
        assert consumers[1].stop(SOON)
    assert "gap" not in caplog.text
