"""The producers and consumers of greenconn.compat, as programs of carrot's days use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from greenconn import Connection
from greenconn.compat import Consumer, ConsumerSet, Publisher, entry_to_queue


class Feed(Consumer):
    """Named by its class."""

    exchange = "feed"
    routing_key = "news"
    auto_delete = True


def make(connection: Connection, unique: str, **kwargs: Any) -> tuple[Publisher, Consumer]:
    names: dict[str, Any] = {"exchange": unique, "routing_key": "news", "auto_delete": True}
    consumer = Consumer(connection, queue=unique, **names, **kwargs)
    return Publisher(connection, **names), consumer


def keeper(got: list[Any]) -> Callable[[Any, Any], None]:
    """A callback that keeps bodies and acknowledges."""

    def keep(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    return keep


def test_messages_are_fetched_one_by_one(url: str, unique: str) -> None:
    with Connection(url) as connection:
        publisher, consumer = make(connection, unique)
        with publisher, consumer:
            assert consumer.fetch() is None
            for number in range(3):
                publisher.send({"number": number})
            publisher.backend.queue_declare(unique, passive=True)  # the broker has them
            first = consumer.fetch()
            assert first.payload == {"number": 0}
            first.ack()
            bodies = [message.payload for message in consumer.iterqueue(limit=1)]
            assert bodies == [{"number": 1}]
            assert next(iter(consumer)).payload == {"number": 2}
            assert next(iter(consumer)) is None
            assert list(consumer.iterqueue()) == []


def test_fetch_calls_the_callbacks_when_asked(memory_url: str, unique: str) -> None:
    with Connection(memory_url) as connection:
        publisher, consumer = make(connection, unique)
        got: list[Any] = []
        consumer.register_callback(lambda body, message: got.append(body))
        publisher.send("hello")
        consumer.fetch(no_ack=True, enable_callbacks=True)
        assert got == ["hello"]
        with pytest.raises(NotImplementedError, match="fetch"):
            consumer.process_next()
        consumer.close()
        publisher.close()


def test_callbacks_are_called_by_wait(url: str, unique: str) -> None:
    with Connection(url) as connection:
        publisher, consumer = make(connection, unique)
        got: list[Any] = []
        consumer.register_callback(keeper(got))
        for number in range(4):
            publisher.send(number)
        consumer.wait(limit=3)
        assert got == [0, 1, 2]
        next(consumer.iterconsume(limit=1))
        assert got == [0, 1, 2, 3]
        consumer.close()
        publisher.close()


def test_a_queue_is_discarded_whole(url: str, unique: str) -> None:
    with Connection(url) as connection:
        publisher, consumer = make(connection, unique)
        with publisher, consumer:
            publisher.send("a")
            publisher.send("b")
            publisher.backend.queue_declare(unique, passive=True)
            assert consumer.discard_all() == 2
            with pytest.raises(NotImplementedError, match="filterfunc"):
                consumer.discard_all(lambda message: True)


def test_attributes_may_be_those_of_the_class(memory_url: str, unique: str) -> None:
    with Connection(memory_url) as connection, Feed(connection, queue=unique) as feed:
        (queue,) = feed.queues
        assert queue.exchange is not None
        assert (queue.exchange.name, queue.routing_key, queue.name) == ("feed", "news", unique)
        assert queue.auto_delete
        assert queue.exchange.auto_delete
        assert queue.durable


def test_a_set_consumes_from_several_queues(url: str, unique: str) -> None:
    options: dict[str, Any] = {"exchange": unique, "exchange_type": "direct", "auto_delete": True}
    with Connection(url) as connection:
        publisher, consumer = make(connection, f"{unique}.1")
        described = {f"{unique}.2": {**options, "routing_key": "b"}}
        several = ConsumerSet(connection, from_dict=described, consumers=[consumer])
        several.add_consumer_from_dict(f"{unique}.3", **options, routing_key="c")
        got: list[Any] = []
        several.register_callback(keeper(got))
        assert len(several.queues) == 3
        publisher.send("one")
        publisher.send("two", exchange=unique, routing_key="b")
        publisher.send("three", exchange=unique, routing_key="c")
        list(several.iterconsume(limit=3))
        assert sorted(got) == ["one", "three", "two"]
        assert several.discard_all() == 0
        several.close()
        assert not several.channel.is_open
        consumer.close()
        publisher.close()


def test_a_set_leaves_a_channel_that_was_given_open(memory_url: str, unique: str) -> None:
    with Connection(memory_url) as connection, connection.channel() as channel:
        other = ConsumerSet(connection, channel=channel)
        _, consumer = make(connection, unique)
        other.add_consumer(consumer)
        assert [queue.name for queue in other.queues] == [unique]
        other.close()
        assert channel.is_open
        consumer.close()


def test_an_entry_becomes_a_queue() -> None:
    queue = entry_to_queue("mail", exchange="letters", routing_key="in", binding_key="in")
    assert queue.exchange is not None
    assert (queue.name, queue.exchange.name, queue.routing_key) == ("mail", "letters", "in")
