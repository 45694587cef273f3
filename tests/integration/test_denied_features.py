"""What greenconn declares by itself, on a RabbitMQ that denies all deprecated features.

In a virtual host whose queues are quorum queues by default, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.common import Broadcast
from greenconn.exceptions import InternalError, PreconditionFailed
from greenconn.options import Retry
from greenconn.pidbox import Mailbox
from greenconn.transport.native_delayed_delivery import (
    MAX_LEVEL,
    bind_queue_to_native_delayed_delivery_exchange,
    calculate_routing_key,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_brokers import Brokers

CAME = 30.0
DEPRECATED = (
    *("transient_nonexcl_queues", "global_qos", "classic_queue_mirroring"),
    *("ram_node_type", "queue_master_locator"),
)


@pytest.fixture(scope="module")
def denying(newer_amqp_url: str, brokers: Brokers) -> Iterator[RabbitMQ]:
    """A RabbitMQ 4 that denies what is deprecated."""
    broker = brokers.start(
        RabbitMQ,
        settings={f"deprecated_features.permit.{feature}": "false" for feature in DEPRECATED},
    )
    yield broker
    broker.kill()
    broker.close()


@pytest.fixture(scope="module", params=["classic", "quorum"])
def url(request: pytest.FixtureRequest, denying: RabbitMQ) -> str:
    """The address of a virtual host whose queues are of that type by default."""
    denying.ctl("add_vhost", request.param, "--default-queue-type", request.param)
    denying.ctl("set_permissions", "-p", request.param, "guest", ".*", ".*", ".*")
    return denying.url_of(request.param)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with Connection(url) as connection:
        yield connection


def test_the_features_are_denied(connection: Connection) -> None:
    with pytest.raises(InternalError, match="transient_nonexcl_queues"):
        Queue("brief", durable=False, queue_arguments={"x-queue-type": "classic"})(
            connection.default_channel
        ).declare()


def test_retries(connection: Connection) -> None:
    """In the program, then by the broker, then as a dead letter."""
    failed = Queue("failed")
    payments = Queue(
        "payments",
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": failed.name},
    )
    counts: list[int] = []
    deaths: GreenQueue[Any] = GreenQueue()

    def fail(body: str, message: Any) -> None:
        counts.append(message.delivery_count)
        if len(counts) == 2:
            message.requeue()
        else:
            raise OSError("not now")

    consumers = [
        greenconn.spawn_consumer(
            payments, fail, retry=Retry(tries=2, delay=0.01), connection=connection
        ),
        greenconn.spawn_consumer(
            failed, lambda body, message: deaths.put(message.headers), connection=connection
        ),
    ]
    for consumer in consumers:
        assert consumer.wait_ready(CAME)
    greenconn.publish(payments, "x", connection=connection)
    death = deaths.get(timeout=CAME)["x-death"][0]
    assert (death["reason"], death["queue"]) == ("rejected", "payments")
    assert counts == [0, 0, 1, 1]
    for consumer in consumers:
        assert consumer.stop(CAME)


def test_a_queue_with_priorities(connection: Connection, url: str) -> None:
    """A queue of the default type; quorum queues have priorities without being told so."""
    queue = Queue("urgent", max_priority=5)
    if url.endswith("/quorum"):
        with pytest.raises(PreconditionFailed, match="leave out max_priority"):
            queue(connection.default_channel).declare()
        queue = Queue("urgent")
    queue(connection.default_channel).declare()
    for priority in (1, 5, 3):
        greenconn.publish(queue, priority, priority=priority, connection=connection)
    channel = connection.default_channel
    bodies = [int(channel.basic_get(queue.name, no_ack=True).body) for _ in range(3)]
    assert bodies == [5, 3, 1]


def test_commands(connection: Connection) -> None:
    mailbox = Mailbox("commands", type="fanout", connection=connection)
    with connection.clone() as listening:
        node = mailbox(listening).Node("a", state={}, handlers={"ping": lambda state: "pong"})
        node.channel = listening.channel()
        node.listen()
        drainer = gevent.spawn(_drain, listening)
        assert mailbox.multi_call("ping", timeout=CAME, limit=1) == [{"a": "pong"}]
        drainer.kill()


def _drain(connection: Connection) -> None:
    while True:
        connection.drain_events()


def test_a_broadcast(connection: Connection) -> None:
    got: GreenQueue[Any] = GreenQueue()
    consumers = [
        greenconn.spawn_consumer(
            Broadcast("news"), lambda body, message: got.put(body), connection=connection
        )
        for _ in range(2)
    ]
    for consumer in consumers:
        assert consumer.wait_ready(CAME)
    connection.Producer().publish("x", exchange="news")
    assert [got.get(timeout=CAME) for _ in consumers] == ["x", "x"]
    for consumer in consumers:
        consumer.stop(CAME)


def test_delays(connection: Connection) -> None:
    declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
    tasks = Queue("tasks", Exchange("tasks", "topic"), "mail.#")
    tasks(connection.default_channel).declare()
    bind_queue_to_native_delayed_delivery_exchange(connection, tasks)
    got: GreenQueue[Any] = GreenQueue()
    consumer = greenconn.spawn_consumer(
        tasks, lambda body, message: got.put(body), connection=connection
    )
    connection.Producer().publish(
        "late", exchange=level_name(MAX_LEVEL), routing_key=calculate_routing_key(1, "mail.x")
    )
    assert got.get(timeout=CAME) == "late"
    consumer.stop(CAME)


def test_a_prefetch_for_the_channel_is_not_asked_for(connection: Connection) -> None:
    """kombu's consumer asks for it; the broker would end the connection."""
    channel = connection.default_channel
    channel.basic_qos(0, 5, True)
    channel.queue_declare("plain", durable=True, auto_delete=False)
    greenconn.publish("plain", "x", connection=connection)
    assert channel.basic_get("plain", no_ack=True).body == "x"
    assert connection.session.generation == 1
