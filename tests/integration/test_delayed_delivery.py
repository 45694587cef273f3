"""Delayed delivery on RabbitMQ: the layout is kombu's, and messages come when they are due."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import kombu as kombu_package
import pytest
from gevent.queue import Queue as GreenQueue
from kombu.transport import native_delayed_delivery

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue, binding
from greenconn.exceptions import PreconditionFailed
from greenconn.transport.native_delayed_delivery import (
    MAX_LEVEL,
    bind_queue_to_native_delayed_delivery_exchange,
    calculate_routing_key,
    declare_levels,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)
from greenconn.worker import spawn_consumer
from tests.brokers.rabbitmq import RabbitMQHandle
from tests.fix_amqp import Links
from tests.fix_relay import RelayFactory
from tests.fix_wires import until

pytestmark = pytest.mark.halved

CAME = 30.0

kombu: Any = kombu_package
kombu_module: Any = native_delayed_delivery


@pytest.fixture
def vhost(rabbitmq: RabbitMQHandle, unique: str) -> Iterator[str]:
    """The address of a virtual host of the test's own: a layout has many queues."""
    yield rabbitmq.add_vhost(unique)
    rabbitmq.delete_vhost(unique)


@pytest.fixture
def connection(vhost: str) -> Iterator[Connection]:
    with Connection(vhost) as connection:
        yield connection


def delayed(connection: Connection, countdown: int, body: Any, key: str, **options: Any) -> None:
    connection.Producer().publish(
        body,
        exchange=level_name(MAX_LEVEL),
        routing_key=calculate_routing_key(countdown, key),
        **options,
    )


def test_levels_are_declared_in_one_round_trip(
    vhost: str, relay_to: RelayFactory, amqp_links: Links
) -> None:
    relay = relay_to(vhost)
    link = amqp_links(url=relay.url)

    def declare(queue_type: str) -> None:
        channel = link.channel()
        relay.is_passing.clear()

        def pass_all() -> None:
            until(lambda: len(channel.calls.pending) == 1 + 4 * (MAX_LEVEL + 1))
            relay.is_passing.set()

        passing = gevent.spawn(pass_all)
        with gevent.Timeout(CAME):
            declare_levels(channel, queue_type)
        passing.get()

    declare("classic")
    channel = link.channel()
    for level in range(MAX_LEVEL + 1):
        channel.queue_declare(level_name(level), passive=True)
    # The one that is refused is named, not the last one.
    with pytest.raises(PreconditionFailed, match="for queue 'celery_delayed_0'"):
        declare("quorum")
    declare("classic")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_messages_come_when_they_are_due(
    connection: Connection, unique: str, queue_type: str
) -> None:
    declare_native_delayed_delivery_exchanges_and_queues(connection, queue_type)
    tasks = Queue("tasks", Exchange("tasks", "topic"), "mail.#")
    other = Queue("other", Exchange("tasks", "topic"), "print.#")
    for queue in (tasks, other):
        queue(connection.default_channel).declare()
        bind_queue_to_native_delayed_delivery_exchange(connection, queue)
    came: GreenQueue[tuple[Any, float]] = GreenQueue()
    consumer = spawn_consumer(
        [tasks, other], lambda body, message: came.put((body, monotonic())), connection=connection
    )
    assert consumer.wait_ready(CAME)
    began = monotonic()
    # The longest first: nobody waits behind it.
    delayed(connection, 3, "three", "mail.new")
    delayed(connection, 2, "two", "print.new")
    delayed(connection, 1, "one", "mail.old")
    connection.Producer().publish("none", exchange="tasks", routing_key="mail.new")
    arrivals = [came.get(timeout=CAME) for _ in range(4)]
    assert [body for body, _ in arrivals] == ["none", "one", "two", "three"]
    for (_, at), least in zip(arrivals, (0.0, 1.0, 2.0, 3.0), strict=True):
        # The broker's clock begins when the message is there, a little after ours.
        assert at - began > least - 0.05
    consumer.stop()


@pytest.mark.full
def test_a_delayed_message_may_be_delayed_again(connection: Connection, unique: str) -> None:
    declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")
    tasks = Queue("tasks", Exchange("tasks", "topic"), "mail.#")
    tasks(connection.default_channel).declare()
    bind_queue_to_native_delayed_delivery_exchange(connection, tasks)
    came: GreenQueue[Any] = GreenQueue()

    def handle(body: Any, message: Any) -> None:
        came.put(message.delivery_info["routing_key"])
        if body:
            # The broker drops a message that was dead-lettered by the same queue before.
            headers = {k: v for k, v in message.headers.items() if not k.startswith("x-")}
            key = message.delivery_info["routing_key"]
            delayed(connection, 1, body - 1, key, headers=headers)

    consumer = spawn_consumer(tasks, handle, connection=connection)
    delayed(connection, 1, 2, "mail.new")
    keys = [came.get(timeout=CAME) for _ in range(3)]
    assert set(keys) == {calculate_routing_key(1, "mail.new")}
    consumer.stop()


@pytest.mark.full
def test_the_layout_is_kombus(
    connection: Connection, vhost: str, rabbitmq: RabbitMQHandle, unique: str
) -> None:
    declare_native_delayed_delivery_exchanges_and_queues(connection, "classic", "ours")
    ours = Queue(
        "ours", bindings=[binding(Exchange("e", "topic"), "a"), binding(Exchange("d"), "b")]
    )
    ours(connection.default_channel).declare()
    bind_queue_to_native_delayed_delivery_exchange(connection, ours, "ours")
    with kombu.Connection(vhost) as theirs:
        kombu_module.declare_native_delayed_delivery_exchanges_and_queues(theirs, "classic", "them")
        e, d = kombu.Exchange("e", "topic"), kombu.Exchange("d")
        queue = kombu.Queue("them", bindings=[kombu.binding(e, "a"), kombu.binding(d, "b")])
        queue(theirs.default_channel).declare()
        kombu_module.bind_queue_to_native_delayed_delivery_exchange(theirs, queue, "them")
        # The same declarations, so neither refuses what the other made.
        kombu_module.declare_native_delayed_delivery_exchanges_and_queues(theirs, "classic", "ours")
    declare_native_delayed_delivery_exchanges_and_queues(connection, "classic", "them")

    def lines(command: str, *columns: str) -> set[str]:
        text = rabbitmq.ctl(command, "-p", unique, "--no-table-headers", *columns)
        return set(text.splitlines())

    for command, columns in (
        ("list_queues", ("name", "durable", "auto_delete", "arguments")),
        ("list_exchanges", ("name", "type", "durable", "auto_delete", "arguments")),
        ("list_bindings", ("source_name", "destination_name", "routing_key", "arguments")),
    ):
        found = lines(command, *columns)
        mine = {line for line in found if "ours" in line}
        kombus = {line.replace("them", "ours") for line in found if "them" in line}
        assert mine == kombus
        assert len(mine) >= 28


@pytest.mark.full
def test_another_queue_type_is_refused(connection: Connection) -> None:
    declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")
    with pytest.raises(PreconditionFailed, match="x-queue-type"):
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")


@pytest.mark.full
def test_a_direct_exchange_is_left_out_and_logged(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")
    queue = Queue("direct", Exchange("direct", "direct"), "key")
    queue(connection.default_channel).declare()
    bind_queue_to_native_delayed_delivery_exchange(connection, queue)
    assert "exchange 'direct' is a direct exchange" in caplog.text
