"""What a producer is told of its messages, with confirms and without, and over a reconnect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from greenconn import Connection, Producer, Queue
from greenconn.exceptions import PublishNacked, Unroutable
from tests.fix_relay import Relay
from tests.fix_wires import until

SOON = 30.0
POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.05}


@pytest.fixture
def connection(relay: Relay) -> Iterator[Connection]:
    """A connection by way of the relay, with confirms."""
    with Connection(relay.url, transport_options={"confirm_publish": True}) as made:
        yield made


def lose(connection: Connection, relay: Relay) -> None:
    relay.cut()
    until(lambda: not connection.connected)


@pytest.mark.parametrize("retry", [False, True], ids=["once", "retry"])
def test_a_refusal_is_raised_and_not_repeated(
    connection: Connection, relay: Relay, unique: str, retry: bool
) -> None:
    tries: list[Any] = []
    policy = {**POLICY, "errback": lambda exc, interval: tries.append(exc)}
    producer = Producer(connection)
    full = Queue(
        unique, exclusive=True, queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    for _ in range(2):
        producer.publish("fits", unique, declare=[full], retry=retry, retry_policy=policy)
        with pytest.raises(PublishNacked):
            producer.publish("too much", unique, retry=retry, retry_policy=policy)
        with pytest.raises(Unroutable) as caught:
            producer.publish("x", "nowhere", mandatory=True, retry=retry, retry_policy=policy)
        assert (caught.value.reply_code, caught.value.routing_key) == (312, "nowhere")
        # And after it was opened anew: the queue, being exclusive, is empty again.
        lose(connection, relay)
        connection.connect()
    assert tries == []


def test_who_listens_to_returns_learns_of_them_after_a_reconnect(relay: Relay, unique: str) -> None:
    returned: list[Any] = []
    with Connection(relay.url) as connection:
        producer = Producer(
            connection.channel(), on_return=lambda exc, *rest: returned.append(rest[-1].body)
        )
        for number in range(3):
            producer.publish(str(number), unique, mandatory=True, retry=True, retry_policy=POLICY)
            connection.drain_events(timeout=SOON)
            lose(connection, relay)
    assert returned == ["0", "1", "2"]


def test_a_message_that_was_under_way_is_sent_again_while_its_caller_waits(
    connection: Connection, relay: Relay, unique: str
) -> None:
    producer = Producer(connection)
    queue = Queue(unique, expires=60)
    producer.publish(0, unique, declare=[queue])
    relay.is_passing.clear()
    done: list[int] = []

    def publish(number: int) -> None:
        producer.publish(number, unique, retry=True, retry_policy=POLICY, timeout=SOON)
        done.append(number)

    publishing = [gevent.spawn(publish, number) for number in range(1, 31)]
    gevent.sleep(0.05)
    assert done == []
    lose(connection, relay)
    relay.is_passing.set()
    gevent.joinall(publishing, timeout=SOON, raise_error=True)
    assert sorted(done) == list(range(1, 31))
    found = []
    bound = queue(connection)
    while (message := bound.get(no_ack=True)) is not None:
        found.append(message.payload)
    assert set(found) == set(range(31))
    bound.delete()
