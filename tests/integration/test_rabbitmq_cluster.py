"""A cluster of RabbitMQ: nodes that come and go, and clients that go on at the others."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult

from greenconn import Connection, Queue, publish, publish_many, spawn_consumer
from greenconn.defaults import publishing_connection
from greenconn.exceptions import BatchPublishError, PublishTimeout
from greenconn.green import stream as connect
from tests.brokers.cluster import RabbitMQCluster
from tests.brokers.rabbitmq import RabbitMQ
from tests.integration.processes import run

pytestmark = pytest.mark.full

#: Seconds for what must come while a node starts.
LATE = 60.0
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def connection(rabbitmq_cluster: RabbitMQCluster) -> Iterator[Connection]:
    """A connection that begins at the first node."""
    with Connection(rabbitmq_cluster.url) as connection:
        yield connection


@pytest.mark.parametrize(
    "end", [RabbitMQ.drain, RabbitMQ.stop, RabbitMQ.kill], ids=["drain", "stop", "kill"]
)
def test_what_one_node_took_is_there_at_the_next(
    rabbitmq_cluster: RabbitMQCluster,
    connection: Connection,
    unique: str,
    end: Callable[[RabbitMQ], None],
) -> None:
    first, second, third = rabbitmq_cluster
    assert [rabbitmq_cluster.running(node) for node in rabbitmq_cluster] == [3, 3, 3]
    queue = Queue(unique, queue_arguments=QUORUM)
    publish(queue, "one", connection=connection, timeout=LATE)
    assert port_of(connection) == first.port
    end(first)
    publish(queue, "two", connection=connection, timeout=LATE)
    assert port_of(connection) in (second.port, third.port)
    with connection.SimpleQueue(queue) as simple:
        for body in ("one", "two"):
            message = simple.get(timeout=LATE)
            assert message.payload == body
            message.ack()
    first.start()
    rabbitmq_cluster.await_quorum(second)
    assert rabbitmq_cluster.running(second) == 3
    queue(connection).delete()


def port_of(connection: Connection) -> int | None:
    """Return the port of the node that the publisher of a connection is connected to."""
    publishing = publishing_connection(connection)
    assert publishing.connected
    return publishing.port


def test_a_name_with_several_addresses_leads_to_a_node_that_runs(
    rabbitmq_cluster: RabbitMQCluster, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = list(rabbitmq_cluster)

    def look_up(host: str, port: int) -> list[Any]:
        kind = socket.SOCK_STREAM, socket.IPPROTO_TCP
        return [(socket.AF_INET, *kind, "", ("127.0.0.1", node.port)) for node in nodes]

    monkeypatch.setattr(connect, "_look_up", look_up)
    queue = Queue(unique, queue_arguments=QUORUM)
    got: list[str] = []
    with Connection("amqp://guest:guest@cluster.test//") as connection:
        consumer = spawn_consumer(
            queue, lambda body, message: got.append(body), connection=connection
        )
        assert consumer.wait_ready(LATE)
        for node in nodes:
            rabbitmq_cluster.await_quorum(node)
            node.stop()
            publish(queue, node.name, connection=connection, timeout=LATE)
            node.start()
        with gevent.Timeout(LATE, AssertionError(f"only {got} came")):
            while not {node.name for node in nodes} <= set(got):
                gevent.sleep(0.05)
        assert consumer.stop(LATE)
        queue(connection).delete()


def test_a_classic_queue_whose_node_is_away_is_waited_for(
    rabbitmq_cluster: RabbitMQCluster, connection: Connection, unique: str
) -> None:
    first, second, _ = rabbitmq_cluster
    queue = Queue(unique)
    publish(queue, "before", connection=connection, timeout=LATE)
    with Connection(second.url) as other:
        publish(queue, "elsewhere", connection=other, timeout=LATE)
        first.stop()
        for publisher in (connection, other):
            with pytest.raises(PublishTimeout, match=unique):
                publish(queue, "too early", connection=publisher, timeout=2.0)
            with pytest.raises(BatchPublishError) as caught:
                publish_many(queue, ["too", "early"], connection=publisher, timeout=2.0)
            failures = caught.value.failed.values()
            assert {type(exc) for exc in failures} == {PublishTimeout}, failures
        waiting = [
            gevent.spawn(publish_one_way, queue, ["in time"], connection=each, timeout=2 * LATE)
            for each in (connection, other)
            for publish_one_way in (publish, publish_many)
        ]
        first.start()
        gevent.joinall(waiting, timeout=2 * LATE, raise_error=True)
        assert all(each.ready() for each in waiting)
        queue(other).delete()


def test_what_a_consumer_of_a_killed_node_has_is_redelivered(
    rabbitmq_cluster: RabbitMQCluster, connection: Connection, unique: str
) -> None:
    """RabbitMQ 4.3 keeps it for a minute by default, as long as the node is away."""
    first, second, _ = rabbitmq_cluster
    queue = Queue(unique, queue_arguments={**QUORUM, "x-consumer-disconnected-timeout": 1000})
    redelivered: AsyncResult[str] = AsyncResult()
    with Connection(second.url) as other, Connection(first.url) as lost:
        publish(queue, "held", connection=other, timeout=LATE)
        lost.default_channel.basic_qos(0, 1, False)
        with lost.SimpleQueue(queue) as holding:
            assert holding.get(timeout=LATE).payload == "held"
            consumer = spawn_consumer(
                queue, lambda body, message: redelivered.set(body), connection=other
            )
            assert consumer.wait_ready(LATE)
            first.kill()
            assert redelivered.get(timeout=LATE / 2) == "held"
            assert consumer.stop(LATE)
            lost.close()
        queue(other).delete()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.programs
def test_a_rolling_restart_under_load_loses_nothing() -> None:
    outcome = run("-m", "examples.rabbitmq_cluster.rolling_restart", timeout=900)
    assert (outcome.code, outcome.errors) == (0, ""), outcome.output
    assert " sent, 0 lost, " in outcome.output
    assert "publishes that raised: none" in outcome.output
