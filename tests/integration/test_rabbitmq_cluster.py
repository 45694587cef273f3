"""A cluster of RabbitMQ: nodes that come and go, and clients that go on at the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from greenconn import Connection, Queue, publish
from greenconn.defaults import publishing_connection
from tests.brokers.cluster import RabbitMQCluster
from tests.brokers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.full

#: Seconds for what must come while a node starts.
LATE = 60.0


@pytest.fixture
def connection(rabbitmq_cluster: RabbitMQCluster) -> Iterator[Connection]:
    """A connection that begins at the first node."""
    with Connection(rabbitmq_cluster.url) as connection:
        yield connection


@pytest.mark.parametrize("end", [RabbitMQ.stop, RabbitMQ.kill], ids=["stop", "kill"])
def test_what_one_node_took_is_there_at_the_next(
    rabbitmq_cluster: RabbitMQCluster,
    connection: Connection,
    unique: str,
    end: Callable[[RabbitMQ], None],
) -> None:
    first, second, third = rabbitmq_cluster
    assert [rabbitmq_cluster.running(node) for node in rabbitmq_cluster] == [3, 3, 3]
    queue = Queue(unique, queue_arguments={"x-queue-type": "quorum"})
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
