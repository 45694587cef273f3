"""Requests that one greenlet sends without a wait for each reply, on RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from greenconn.exceptions import (
    AccessRefused,
    ConnectionError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
    ResourceLocked,
)
from greenconn.transport.amqp.calls import Pipeline
from greenconn.transport.amqp.link import AmqpLink
from tests.fix_amqp import Links
from tests.fix_interrupts import interruptions
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.amqp_clients import WAIT


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
    amqp_links: Links,
    unique: str,
    error: type[Exception],
    send: Callable[[Pipeline, str], None],
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
        for number in range(5, 10):
            declare(pipeline, number)
        for number in range(5):
            assert pipeline.receive()[0] == f"{unique}-{number}"
            pipeline.receive()
        with pytest.raises(error):
            pipeline.receive()
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


def test_all_learn_of_a_lost_connection(amqp_links: Links, relay: Relay, unique: str) -> None:
    channel = amqp_links(url=relay.url).channel()
    relay.is_passing.clear()
    with gevent.Timeout(WAIT), channel.pipeline() as pipeline:
        for number in range(3):
            pipeline.send(channel.queue_declare, queue=f"{unique}-{number}", exclusive=True)
        relay.cut()
        relay.is_passing.set()
        for _ in range(3):
            with pytest.raises(ConnectionError):
                pipeline.receive()
