"""Consumers of Dramatiq's workers that are closed, dropped or refused."""

from __future__ import annotations

import gc
from typing import Any

import pytest

pytest.importorskip("dramatiq")

from dramatiq import MessageProxy

from greenconn.contrib.dramatiq import GreenconnBroker
from greenconn.contrib.dramatiq.broker import GreenconnConsumer
from tests.fix_wires import until


def consume(broker: GreenconnBroker, prefetch: int = 1) -> GreenconnConsumer:
    broker.declare_queue("work", ensure=True)
    return GreenconnConsumer(broker, "work", prefetch, 30_000)


def take(consumer: GreenconnConsumer) -> MessageProxy:
    message = next(consumer)
    assert message is not None
    return message


def test_it_has_the_attributes_of_dramatiqs_consumers(broker: GreenconnBroker) -> None:
    consumer = consume(broker, 3)
    assert (consumer.broker, consumer.queue_name) == (broker, "work")
    assert (consumer.prefetch, consumer.timeout) == (3, 30_000)
    assert broker.consumer_class is GreenconnConsumer
    consumer.close()


def test_outcomes(broker: GreenconnBroker, actor: Any) -> None:
    for _ in range(3):
        actor.send()
    consumer = consume(broker)
    consumer.ack(take(consumer))
    consumer.nack(take(consumer))
    again = take(consumer)
    consumer.requeue([again])
    consumer.ack(take(consumer))
    until(lambda: broker.get_queue_message_counts("work") == (0, 0, 1), what="a dead letter")
    consumer.close()


def test_one_that_is_closed_requeues_its_messages(broker: GreenconnBroker, actor: Any) -> None:
    actor.send()
    consumer = consume(broker)
    take(consumer)
    consumer.close()
    assert broker.get_queue_message_counts("work") == (1, 0, 0)
    assert broker.held["work"] == 0


def test_one_that_is_dropped_is_closed(broker: GreenconnBroker, actor: Any) -> None:
    actor.send()
    consumer = consume(broker)
    take(consumer)
    greenlet = consumer._receiver.greenlet
    del consumer
    gc.collect()
    until(greenlet.ready, what="its end")
    assert broker.get_queue_message_counts("work") == (1, 0, 0)
