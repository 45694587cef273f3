"""What is SQS' alone: FIFO queues, delays, attributes, redrive, predefined queues, topics."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenconn import Connection, Exchange, Queue
from greenconn.entity import Queue as EntityQueue
from greenconn.exceptions import (
    ContentTooLarge,
    NotAllowed,
    NotFound,
    OperationalError,
    PreconditionFailed,
)
from greenconn.transport.SQS import Transport, UndefinedQueueException
from greenconn.transport.SQS.store import SqsStore
from tests.integration.contract import SOON

Connect = Callable[..., Connection]


@pytest.fixture
def connect(sqs_url: str) -> Iterator[Connect]:
    """Makes connections that are closed after the test."""
    made: list[Connection] = []

    def make(url: str = sqs_url, **options: Any) -> Connection:
        options = {"get_wait_time": 0, "lease": 5, **options}
        made.append(Connection(url, transport_options=options))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


def taker(got: list[Any]) -> Callable[[Any, Any], None]:
    """A callback that acknowledges, and keeps the bodies."""

    def take(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    return take


def store_of(connection: Connection) -> SqsStore:
    """What talks to SQS for it."""
    store = connection.connection.store
    assert isinstance(store, SqsStore)
    return store


def attributes_of(connection: Connection, name: str) -> dict[str, str]:
    """All that SQS says of a queue."""
    return store_of(connection).queues.get(name).attributes("All")


def declared(connection: Connection, name: str, **options: Any) -> EntityQueue:
    """A queue that is there."""
    queue = Queue(name, **options)(connection.default_channel)
    queue.declare()
    return queue


def test_fifo_queue_keeps_the_order_of_each_group(connect: Connect, unique: str) -> None:
    connection = connect()
    queue = declared(connection, f"{unique}.fifo")
    producer = connection.Producer()
    for number in range(6):
        producer.publish(number, routing_key=queue.name, MessageGroupId=f"g{number % 2}")
    got: list[int] = []
    with connection.Consumer([queue], callbacks=[taker(got)]):
        while len(got) < 6:
            connection.drain_events(timeout=SOON)
    assert [n for n in got if n % 2] == [1, 3, 5]
    assert [n for n in got if not n % 2] == [0, 2, 4]
    assert attributes_of(connection, queue.name)["FifoQueue"] == "true"
    queue.delete()


def test_fifo_queue_takes_a_message_once(connect: Connect, unique: str) -> None:
    connection = connect()
    queue = declared(connection, f"{unique}.fifo")
    producer = connection.Producer()
    for _ in range(2):
        producer.publish("x", routing_key=queue.name, MessageDeduplicationId="same")
    message = queue.get(no_ack=True)
    assert message is not None
    assert message.payload == "x"
    assert queue.get() is None
    queue.delete()


def test_delayed_message_comes_later(connect: Connect, unique: str) -> None:
    connection = connect()
    queue = declared(connection, unique)
    connection.Producer().publish("later", routing_key=unique, headers={"x-delay": 800})
    assert queue.get() is None
    got: list[str] = []
    with connection.Consumer([queue], callbacks=[taker(got)]):
        while not got:
            connection.drain_events(timeout=SOON)
    with pytest.raises(PreconditionFailed, match="at most 900 s"):
        connection.Producer().publish("x", routing_key=unique, headers={"x-delay": 901_000})
    queue.delete()


def test_attributes_and_tags_of_queues(connect: Connect, unique: str) -> None:
    connection = connect(
        **{
            "sqs-creation-attributes": {"MessageRetentionPeriod": "120"},
            "queue_tags": {"team": "mail"},
            "queue_name_prefix": "pre.",
            "visibility_timeout": 77,
        }
    )
    queue = declared(connection, unique)
    found = attributes_of(connection, unique)
    assert found["MessageRetentionPeriod"] == "120"
    assert found["VisibilityTimeout"] == "77"
    assert found["QueueArn"].endswith(f":pre-{unique}")
    tags = store_of(connection).queues.get(unique).call("ListQueueTags")
    assert tags["Tags"] == {"team": "mail"}
    queue.delete()


def test_attributes_of_messages(connect: Connect, unique: str) -> None:
    connection = connect(
        fetch_message_attributes={
            "MessageSystemAttributeNames": ["SentTimestamp"],
            "MessageAttributeNames": ["All"],
        }
    )
    queue = declared(connection, unique)
    connection.Producer().publish("x", routing_key=unique, message_attributes={"colour": "red"})
    message = queue.get(no_ack=True)
    assert message is not None
    told = message.properties["delivery_info"]["sqs_message"]
    assert told["MessageAttributes"]["colour"]["StringValue"] == "red"
    assert {"SentTimestamp", "ApproximateReceiveCount"} <= set(told["Attributes"])
    queue.delete()


def test_rejected_message_stays_for_a_redrive_policy(connect: Connect, unique: str) -> None:
    connection = connect(lease=1)
    dead = declared(connection, f"{unique}-dead")
    policy = {
        "deadLetterTargetArn": attributes_of(connection, dead.name)["QueueArn"],
        "maxReceiveCount": "1",
    }
    other = connect(lease=1, sqs_creation_attributes={"RedrivePolicy": json.dumps(policy)})
    queue = declared(other, unique)
    other.Producer().publish("bad", routing_key=unique)
    message = queue.get()
    assert message is not None
    message.reject()
    got: list[str] = []
    callbacks = [taker(got)]
    # SQS moves it when somebody looks for messages and it has come back.
    with (
        other.Consumer([queue], callbacks=callbacks),
        connection.Consumer([dead], callbacks=callbacks),
    ):
        while not got:
            connection.drain_events(timeout=SOON)
    assert got == ["bad"]
    queue.delete()
    dead.delete()


def test_predefined_queues(connect: Connect, unique: str) -> None:
    maker = connect()
    declared(maker, unique)
    url = store_of(maker).queues.get(unique).url
    keys = {"access_key_id": "AKIAOTHER", "secret_access_key": "another-secret"}
    connection = connect(
        predefined_queues={
            "mail": {
                "url": url,
                **keys,
                "backoff_policy": {1: 600},
                "backoff_tasks": ["app.flaky"],
            }
        }
    )
    assert "another-secret" not in repr(connection.transport.options)
    queue = declared(connection, "mail")
    connection.Producer().publish("x", routing_key="mail", headers={"task": "app.flaky"})
    message = queue.get()
    assert message is not None
    assert message.payload == "x"
    message.requeue()  # its policy says: in ten minutes
    connection.default_channel.queue_declare("mail", passive=True)  # it was told by now
    assert queue.get() is None
    queue.delete()  # nobody deletes what others have defined
    assert maker.default_channel.queue_declare(unique, passive=True).queue == unique
    with pytest.raises(UndefinedQueueException):
        connection.channel().queue_declare("other")
    maker.default_channel.queue_delete(unique)


def test_message_that_is_too_large(connect: Connect, unique: str) -> None:
    connection = connect()
    queue = declared(connection, unique)
    with pytest.raises((ContentTooLarge, OperationalError), match="max_message_size"):
        connection.Producer().publish("x" * 700_000, routing_key=unique)
    small = connect(sqs_base64_encoding=False, body_encoding=None)
    small.Producer().publish("x" * 200_000, routing_key=unique)
    message = queue.get(no_ack=True)
    assert message is not None
    assert len(message.payload) == 200_000
    queue.delete()


def test_characters_that_sqs_does_not_take(connect: Connect, unique: str) -> None:
    connection = connect(sqs_base64_encoding=False)
    queue = declared(connection, unique)
    text = "\x00\x0b\ufffe\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
    connection.Producer().publish(text, routing_key=unique, headers={"h": text})
    message = queue.get(no_ack=True)
    assert message is not None
    assert (message.payload, message.headers["h"]) == (text, text)
    queue.delete()
    with pytest.raises(PreconditionFailed):
        declared(connection, "not a name of SQS")


def test_topics_reach_other_processes(connect: Connect, unique: str) -> None:
    exchange = Exchange(unique, "fanout")
    connection, publisher = connect(), connect()
    queues = [declared(connection, f"{unique}-{n}", exchange=exchange) for n in range(2)]
    publisher.Producer().publish("all", exchange=exchange, declare=[exchange])
    for queue in queues:
        message = queue.get(no_ack=True)
        assert message is not None
        assert message.payload == "all"
    channel = connection.default_channel
    bound = {each["destination"] for each in channel.get_bindings()}
    assert {queue.name for queue in queues} <= bound
    queues[0].unbind_from(exchange)
    publisher.Producer().publish("one", exchange=exchange)
    message = queues[1].get(no_ack=True)
    assert message is not None
    assert message.payload == "one"
    assert queues[0].get() is None
    # Deleted by somebody else, so nobody unsubscribed it.
    store_of(publisher).queues.get(queues[1].name).call("DeleteQueue")
    assert channel.remove_stale_sns_subscriptions(unique) == 1
    queues[0].delete()
    channel.exchange_delete(unique)


def test_topic_that_was_deleted_elsewhere_is_made_again(
    connect: Connect, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(unique, "fanout")
    connection, other = connect(), connect()
    queues = [declared(connection, f"{unique}-{n}", exchange=exchange) for n in range(3)]
    producer = connection.Producer()
    producer.publish("before", exchange=exchange, declare=[exchange])
    store_of(other).queues.get(queues[2].name).call("DeleteQueue")
    store_of(other).topics.drop(unique)
    producer.publish("after", exchange=exchange)
    for queue in queues[:2]:
        got = [queue.get(no_ack=True) for _ in range(2)]
        assert sorted(each.payload for each in got if each is not None) == ["after", "before"]
    assert caplog.text.count("was deleted elsewhere") == 1
    for queue in queues[:2]:
        queue.delete()
    connection.default_channel.exchange_delete(unique)


def test_policy_of_a_queue_names_all_its_topics(connect: Connect, unique: str) -> None:
    connection = connect()
    exchanges = [Exchange(f"{unique}-{n}", "fanout") for n in range(2)]
    queue = declared(connection, unique, exchange=exchanges[0])
    exchanges[1](connection.default_channel).declare()
    queue.bind_to(exchanges[1])
    policy = json.loads(attributes_of(connection, unique)["Policy"])
    sources = {each["Condition"]["ArnLike"]["aws:SourceArn"] for each in policy["Statement"]}
    assert {arn.rpartition(":")[2] for arn in sources} == {each.name for each in exchanges}
    queue.delete()
    for exchange in exchanges:
        connection.default_channel.exchange_delete(exchange.name)


def test_no_fanout(connect: Connect, unique: str) -> None:
    connection = connect(supports_fanout=False)
    with pytest.raises(NotAllowed, match="supports_fanout=True"):
        Exchange(unique, "fanout")(connection.default_channel).declare()


def test_fanout_where_the_account_does_not_allow_topics(
    connect: Connect, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(unique, "fanout")
    refusing = {"predefined_exchanges": {"another": {"arn": "arn:aws:sns:us-east-1:1:another"}}}
    connection = connect(queue_name_prefix=unique, **refusing)
    with caplog.at_level(logging.WARNING):
        queue = declared(connection, "q", exchange=exchange)
    assert "reaches only queues that this process binds" in caplog.text
    connection.Producer().publish("here", exchange=exchange)
    message = queue.get(no_ack=True)
    assert message is not None
    assert message.payload == "here"
    queue.delete()
    strict = connect(supports_fanout=True, region="us-west-2", **refusing)
    with pytest.raises(NotAllowed, match="not in predefined_exchanges"):
        exchange(strict.default_channel).declare()


def test_queue_that_was_deleted_by_somebody_else(connect: Connect, unique: str) -> None:
    connection = connect(wait_time_seconds=1)
    queue = declared(connection, unique)
    cancelled: list[str] = []
    connection.default_channel.basic_consume(
        unique, callback=lambda message: None, on_cancel=cancelled.append
    )
    other = connect()
    other.default_channel.queue_delete(unique)
    while not cancelled:
        connection.drain_events(timeout=SOON)
    with pytest.raises(NotFound):
        connection.channel().queue_declare(unique, passive=True)
    assert queue.name == unique


def test_empty_queue_is_left_when_the_consumer_goes(connect: Connect, unique: str) -> None:
    """Its poll goes on, and what it brings goes back at once."""
    connection = connect(lease=30)
    queue = declared(connection, unique)
    consumer = connection.Consumer([queue], callbacks=[])
    consumer.consume()
    connection.default_channel.queue_declare(unique, passive=True)
    consumer.cancel()
    got: list[str] = []
    connection.Producer().publish("x", routing_key=unique)
    callbacks = [taker(got)]
    with connection.Consumer([queue], callbacks=callbacks):
        while not got:
            connection.drain_events(timeout=SOON)
    queue.delete()


def test_where_it_connects() -> None:
    options = Transport.Options(client_config={"read_timeout": 3})
    assert options.client_config == {"read_timeout": 3}
    with pytest.raises(ValueError, match="at most 20 s"):
        Transport.Options(wait_time_seconds=21)
    with pytest.raises(ValueError, match=r"\.fifo"):
        Transport.Options(predefined_queues={"a.fifo": {"url": "https://sqs/1/a"}})
