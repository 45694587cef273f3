"""Requests that one greenlet sends without a wait for each reply, on RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue, binding
from greenconn.entity.declaration import Declarations
from greenconn.exceptions import (
    AccessRefused,
    ConnectionError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    ResourceLocked,
)
from greenconn.messaging import Consumer, Producer
from greenconn.transport.amqp.calls import Call, Pipeline
from greenconn.transport.amqp.link import AmqpLink
from greenconn.worker import ConsumerState, spawn_consumer
from tests.fix_amqp import Links
from tests.fix_interrupts import interruptions
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT
from tests.integration.recovering import SOON, lose
from tests.receiving import consuming


def exists(link: AmqpLink, queue: str) -> bool:
    """Whether a queue exists."""
    channel = link.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except NotFound:
        return False
    channel.close()
    return True


def test_each_request_gets_its_own_reply(amqp_link: AmqpLink, unique: str) -> None:
    channel = amqp_link.channel()
    names = [f"{unique}-{number}" for number in range(200)]
    with channel.pipeline() as pipeline:
        for name in names:
            pipeline.send(channel.queue_declare, queue=name, exclusive=True)
            pipeline.send(channel.queue_bind, queue=name, exchange="amq.direct")
        pipeline.send(channel.queue_declare, queue="", exclusive=True)
        # That of another greenlet comes behind them.
        assert channel.queue_declare(unique, exclusive=True).queue == unique
        for name in names:
            assert pipeline.receive() == [name, 0, 0]
            assert pipeline.receive() == []
        name, _, _ = pipeline.receive()
    assert name.startswith("amq.gen-")
    assert channel.queue_declare(name, passive=True).queue == name


def no_queue(pipeline: Pipeline, unique: str) -> None:
    pipeline.send(pipeline.channel.queue_bind, queue=f"{unique}-absent", exchange="amq.direct")


def no_right(pipeline: Pipeline, unique: str) -> None:
    pipeline.send(pipeline.channel.exchange_declare, exchange="amq.mine", type="direct")


def differs(pipeline: Pipeline, unique: str) -> None:
    arguments = {"x-max-length": 3}
    declare = pipeline.channel.queue_declare
    pipeline.send(declare, queue=f"{unique}-1", exclusive=True, arguments=arguments)


def is_locked(pipeline: Pipeline, unique: str) -> None:
    pipeline.send(pipeline.channel.queue_declare, queue=f"{unique}-locked", exclusive=True)


@pytest.mark.parametrize(
    ("error", "send"),
    [
        (NotFound, no_queue),
        (AccessRefused, no_right),
        (PreconditionFailed, differs),
        (ResourceLocked, is_locked),
    ],
)
def test_an_error_is_that_of_its_own_request_and_none_behind_it_is_done(
    amqp_links: Links, unique: str, error: type[Exception], send: Callable[[Pipeline, str], None]
) -> None:
    other, link = amqp_links(), amqp_links()
    locking = other.channel()
    locking.queue_declare(f"{unique}-locked", exclusive=True)
    channel = link.channel()

    def declare(pipeline: Pipeline, number: int) -> None:
        pipeline.send(channel.queue_declare, queue=f"{unique}-{number}", exclusive=True)
        pipeline.send(channel.queue_bind, queue=f"{unique}-{number}", exchange="amq.direct")

    with channel.pipeline() as pipeline:
        for number in range(5):
            declare(pipeline, number)
        send(pipeline, unique)
        with suppress(RecoverableChannelError):  # a slow machine has the error before all are sent
            for number in range(5, 10):
                declare(pipeline, number)
        for number in range(5):
            assert pipeline.receive()[0] == f"{unique}-{number}"
            pipeline.receive()
        with pytest.raises(error):
            pipeline.receive()
        while pipeline.due:
            with pytest.raises(RecoverableChannelError, match="because of another call") as caught:
                pipeline.receive()
            assert not isinstance(caught.value, error)
        with pytest.raises(RecoverableChannelError, match="is closed"):
            declare(pipeline, 10)
    assert not channel.is_open
    assert [exists(link, f"{unique}-{number}") for number in range(10)] == [True] * 5 + [False] * 5


def test_each_switch_of_one_that_pipelines_may_be_its_last(
    amqp_link: AmqpLink, unique: str
) -> None:
    channel = amqp_link.channel()
    names = [f"{unique}-{number}" for number in range(3)]

    def use() -> None:
        with channel.pipeline() as pipeline:
            for name in names:
                pipeline.send(channel.queue_declare, queue=name, exclusive=True)
                pipeline.send(channel.queue_bind, queue=name, exchange="amq.direct")
            for name in names:
                assert pipeline.receive()[0] == name
                assert pipeline.receive() == []

    for _ in interruptions(use):
        # The next caller gets its own answer all the same.
        name = f"{unique}-next"
        assert channel.queue_declare(name, exclusive=True).queue == name


def test_queues_that_the_broker_names_for_a_killed_caller_are_deleted(
    amqp_links: Links, relay: Relay
) -> None:
    link = amqp_links(url=relay.url)
    channel = link.channel()
    named: list[str] = []
    deleted: list[str] = []

    class Record:
        """The names that the broker gave."""

        def queue_declared(self, name: str, *how: Any) -> None:
            named.append(name)

        def queue_deleted(self, name: str) -> None:
            deleted.append(name)

    link.topology = Record()

    def declare() -> None:
        with channel.pipeline() as pipeline:
            for _ in range(3):
                pipeline.send(channel.queue_declare, queue="", exclusive=True)
            pipeline.receive()

    relay.is_passing.clear()
    declaring = gevent.spawn(declare)
    until(lambda: len(channel.calls.pending) == 3)
    declaring.kill()
    relay.is_passing.set()
    until(lambda: len(named) == 3)
    assert deleted == named
    until(lambda: not len(channel.calls.pending))
    assert not any(exists(link, name) for name in named)
    assert channel.is_open


# Declarations of entities


def queues_of(unique: str, count: int) -> list[Queue]:
    """Queues of one exchange, all of which go with their connection."""
    exchange = Exchange(f"{unique}-e", durable=False, auto_delete=True)
    return [
        Queue(f"{unique}-{number}", exchange, f"{number}", durable=False, exclusive=True)
        for number in range(count)
    ]


def declare(channel: Any, queues: list[Queue]) -> None:
    with Declarations(channel) as declarations:
        for queue in queues:
            declarations.declare(queue)
        declarations.finish()


@pytest.mark.parametrize(
    ("error", "culprit"),
    [
        (NotFound, Queue("{}-2", Exchange("{}-absent", no_declare=True), "k", exclusive=True)),
        (PreconditionFailed, Queue("{}-1", exclusive=True, max_length=3)),
        (AccessRefused, Queue("amq.{}", exclusive=True)),
    ],
    ids=["404", "406", "403"],
)
def test_the_entity_that_is_refused_is_named(
    amqp_link: AmqpLink, unique: str, error: type[Exception], culprit: Queue
) -> None:
    bystander = amqp_link.channel()
    queues = queues_of(unique, 20)
    culprit.name = culprit.name.format(unique)
    assert culprit.exchange is not None
    culprit.exchange.name = culprit.exchange.name.format(unique)
    queues.insert(10, culprit)
    channel = amqp_link.channel()
    with pytest.raises(error) as caught:
        declare(channel, queues)
    assert (culprit.exchange.name or culprit.name) in str(caught.value)
    assert not channel.is_open
    assert [exists(amqp_link, f"{unique}-{number}") for number in (9, 10)] == [True, False]
    assert bystander.queue_declare(f"{unique}-0", passive=True).queue == f"{unique}-0"


def test_each_switch_of_one_that_declares_may_be_its_last(amqp_link: AmqpLink, unique: str) -> None:
    channel = amqp_link.channel()
    named: list[str] = []
    queues = queues_of(unique, 3)
    queues.insert(
        1, Queue(f"{unique}-h", exclusive=True, on_declared=lambda name, *how: named.append(name))
    )
    for _ in interruptions(lambda: declare(channel, queues)):
        # The next caller gets its own answer all the same.
        name = f"{unique}-next"
        assert channel.queue_declare(name, exclusive=True).queue == name
    assert set(named) == {f"{unique}-h"}
    assert all(exists(amqp_link, queue.name) for queue in queues)


def test_who_declares_learns_of_a_lost_connection(
    amqp_links: Links, relay: Relay, unique: str
) -> None:
    channel = amqp_links(url=relay.url).channel()
    relay.is_passing.clear()
    declaring = gevent.spawn(declare, channel, queues_of(unique, 5))
    until(lambda: len(channel.calls.pending) == 15)
    relay.cut()
    relay.is_passing.set()
    with gevent.Timeout(WAIT), pytest.raises(ConnectionError):
        declaring.get()


class MostSent:
    """The largest number of requests that a pipeline had without a received reply."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        add = Pipeline.add

        def counting(pipeline: Pipeline, call: Call) -> None:
            add(pipeline, call)
            self.count = max(self.count, pipeline.due)

        monkeypatch.setattr(Pipeline, "add", counting)


@pytest.fixture
def most_sent(monkeypatch: pytest.MonkeyPatch) -> MostSent:
    return MostSent(monkeypatch)


#: So that the consumer's own recovery declares, and nothing else.
APART = {"topology_recovery": False}


@pytest.mark.parametrize(
    ("declares", "goes", "count"),
    [(True, False, 15), (True, True, 15), (False, False, 5)],
    ids=["declares", "auto_delete", "looks"],
)
def test_the_queues_of_a_consumer_are_recovered_without_a_wait_for_each(
    relay: Relay, unique: str, most_sent: MostSent, declares: bool, goes: bool, count: int
) -> None:
    exchange = Exchange(f"{unique}-e", durable=False)
    queues = [
        Queue(f"{unique}-{number}", exchange, str(number), durable=False, auto_delete=goes)
        for number in range(5)
    ]
    bodies: list[Any] = []
    with Connection(relay.url, transport_options=APART) as connection:
        if not declares:
            for queue in queues:
                queue(connection).declare()
        consumer = Consumer(connection, queues, no_ack=True, auto_declare=declares)
        consumer.register_callback(lambda body, message: bodies.append(body))
        consumer.consume()
        assert not most_sent.count
        lose(relay, connection)
        assert most_sent.count == count
        producer = Producer(connection)
        for number in range(5):
            producer.publish(number, str(number), exchange=exchange, declare=[], retry=True)
        with gevent.Timeout(SOON):
            while len(bodies) < 5:
                connection.drain_events(timeout=SOON)
        assert sorted(bodies) == list(range(5))
        consumer.cancel()
        for queue in queues:
            queue(connection).delete()
        exchange(connection).delete()


def test_a_consumer_whose_queue_is_refused_harms_no_other_one(
    relay: Relay, amqp_url: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    queues = [Queue(f"{unique}-{number}", durable=False, expires=600) for number in range(4)]
    with (
        Connection(amqp_url) as other,
        Connection(relay.url, transport_options=APART) as connection,
    ):
        failing = Consumer(connection.channel(), queues[:3])
        failing.consume()
        bodies: list[Any] = []
        sound = Consumer(connection, queues[3], no_ack=True)
        sound.register_callback(lambda body, message: bodies.append(body))
        sound.consume()

        def change() -> None:
            queues[1](other).delete()
            Queue(queues[1].name, durable=False, max_length=7)(other).declare()

        lose(relay, connection, change)
        Producer(other).publish("here", queues[3].name)
        with pytest.raises(PreconditionFailed, match=queues[1].name), gevent.Timeout(SOON):
            while True:
                connection.drain_events(timeout=SOON)
        with gevent.Timeout(SOON):
            while not bodies:
                connection.drain_events(timeout=SOON)
        assert bodies == ["here"]
        assert "cannot be recovered" in caplog.text
        sound.cancel()
        for queue in queues:
            queue(other).delete()


def test_a_consumer_begins_without_a_wait_for_each_declaration(
    amqp_url: str, unique: str, most_sent: MostSent
) -> None:
    done: list[Any] = []
    [queue] = queues_of(unique, 1)
    with Connection(amqp_url) as connection:
        consumer = consuming(queue, lambda body, message: done.append(body), connection=connection)
        assert most_sent.count == 3
        Producer(connection).publish("here", "0", exchange=queue.exchange)
        until(lambda: done)
        assert done == ["here"]
        assert consumer.stop()


def test_a_declaration_of_many_that_is_refused_is_named_and_harms_no_neighbour(
    amqp_url: str, unique: str
) -> None:
    done: list[Any] = []
    absent = f"{unique}-absent"
    with Connection(amqp_url) as connection:
        [queue] = queues_of(unique, 1)
        neighbour = consuming(queue, lambda body, message: done.append(body), connection=connection)
        failing = Queue(
            f"{unique}-f",
            bindings=[
                binding(Exchange("amq.direct"), "1"),
                binding(Exchange(absent, no_declare=True), "2"),
                binding(Exchange("amq.topic"), "3"),
            ],
            exclusive=True,
        )
        consumer = spawn_consumer(failing, print, connection=connection)
        with pytest.raises(NotFound, match=absent):
            consumer.get(timeout=SOON)
        assert neighbour.state is ConsumerState.RUNNING
        Producer(connection).publish("here", "0", exchange=queue.exchange)
        until(lambda: done)
        assert neighbour.stop()
