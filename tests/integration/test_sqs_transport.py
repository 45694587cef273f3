"""What is SQS' alone: FIFO queues, delays, attributes, redrive and predefined queues."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import greenconn
from greenconn.exceptions import ContentTooLarge, NotFound, OperationalError, PreconditionFailed
from greenconn.transport.SQS import Transport, UndefinedQueueException
from tests.fix_sqs import Connect
from tests.integration.contract import SOON
from tests.integration.sqs_clients import attributes_of, declared, store_of

pytestmark = pytest.mark.halved


def taker(got: list[Any]) -> Callable[[Any, Any], None]:
    """A callback that acknowledges, and keeps the bodies."""

    def take(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    return take


def test_fifo_queue_keeps_the_order_of_each_group(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect()
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


def test_fifo_queue_takes_a_message_once(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect()
    queue = declared(connection, f"{unique}.fifo")
    producer = connection.Producer()
    for _ in range(2):
        producer.publish("x", routing_key=queue.name, MessageDeduplicationId="same")
    message = queue.get(no_ack=True)
    assert message is not None
    assert message.payload == "x"
    assert queue.get() is None
    queue.delete()


def test_attributes_and_tags_of_queues(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect(
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


def test_attributes_of_messages(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect(
        fetch_message_attributes={
            "MessageSystemAttributeNames": ["SentTimestamp"],
            "MessageAttributeNames": ["All"],
        }
    )
    queue = declared(connection, unique)
    connection.Producer().publish("x", routing_key=unique, message_attributes={"colour": "red"})
    message = queue.get(no_ack=True)
    assert message is not None
    received = message.properties["delivery_info"]["sqs_message"]
    assert received["MessageAttributes"]["colour"]["StringValue"] == "red"
    assert {"SentTimestamp", "ApproximateReceiveCount"} <= set(received["Attributes"])
    queue.delete()


def test_rejected_message_stays_for_a_redrive_policy(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect(lease=1)
    dead = declared(connection, f"{unique}-dead")
    policy = {
        "deadLetterTargetArn": attributes_of(connection, dead.name)["QueueArn"],
        "maxReceiveCount": "1",
    }
    other = sqs_connect(lease=1, sqs_creation_attributes={"RedrivePolicy": json.dumps(policy)})
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


def test_failed_message_goes_the_way_of_a_redrive_policy(sqs_connect: Connect, unique: str) -> None:
    def fail(body: Any, message: Any) -> None:
        raise KeyError("no such article")

    connection = sqs_connect(lease=1)
    dead = declared(connection, f"{unique}-kept")
    policy = {
        "deadLetterTargetArn": attributes_of(connection, dead.name)["QueueArn"],
        "maxReceiveCount": "1",
    }
    other = sqs_connect(lease=1, sqs_creation_attributes={"RedrivePolicy": json.dumps(policy)})
    queue = declared(other, unique)
    consumer = greenconn.spawn_consumer(unique, fail, connection=other)
    greenconn.publish(unique, "bad", connection=other)
    got: list[str] = []
    with connection.Consumer([dead], callbacks=[taker(got)]):
        while not got:
            connection.drain_events(timeout=SOON)
    assert got == ["bad"]
    assert consumer.stop(SOON)
    queue.delete()
    dead.delete()


def test_predefined_queues(sqs_connect: Connect, unique: str) -> None:
    maker = sqs_connect()
    declared(maker, unique)
    url = store_of(maker).queues.get(unique).url
    keys = {"access_key_id": "AKIAOTHER", "secret_access_key": "another-secret"}
    connection = sqs_connect(
        predefined_queues={
            "mail": {"url": url, **keys, "backoff_policy": {1: 600}, "backoff_tasks": ["app.flaky"]}
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


def test_message_that_is_too_large(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect()
    queue = declared(connection, unique)
    with pytest.raises((ContentTooLarge, OperationalError), match="max_message_size"):
        connection.Producer().publish("x" * 700_000, routing_key=unique)
    small = sqs_connect(sqs_base64_encoding=False, body_encoding=None)
    small.Producer().publish("x" * 200_000, routing_key=unique)
    message = queue.get(no_ack=True)
    assert message is not None
    assert len(message.payload) == 200_000
    queue.delete()


def test_characters_that_sqs_does_not_take(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect(sqs_base64_encoding=False)
    queue = declared(connection, unique)
    text = "\x00\x0b\ufffe\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
    connection.Producer().publish(text, routing_key=unique, headers={"h": text})
    message = queue.get(no_ack=True)
    assert message is not None
    assert (message.payload, message.headers["h"]) == (text, text)
    queue.delete()
    with pytest.raises(PreconditionFailed):
        declared(connection, "not a name of SQS")


def test_queue_that_was_deleted_by_somebody_else(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect(wait_time_seconds=1)
    queue = declared(connection, unique)
    cancelled: list[str] = []
    connection.default_channel.basic_consume(
        unique, callback=lambda message: None, on_cancel=cancelled.append
    )
    other = sqs_connect()
    other.default_channel.queue_delete(unique)
    while not cancelled:
        connection.drain_events(timeout=SOON)
    with pytest.raises(NotFound):
        connection.channel().queue_declare(unique, passive=True)
    assert queue.name == unique


def test_empty_queue_is_left_when_the_consumer_goes(sqs_connect: Connect, unique: str) -> None:
    """Its poll goes on, and what it brings goes back at once."""
    connection = sqs_connect(lease=30)
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
