"""A timedelta is taken wherever seconds are."""

from __future__ import annotations

import typing
from collections.abc import Callable
from datetime import timedelta
from queue import Empty
from time import monotonic
from typing import Any

import pytest

import greenconn
from greenconn import Connection, Limit, Queue, Rate, Retry, rpc
from greenconn.checks import in_seconds
from greenconn.common import Broadcast, drain_consumer, eventloop
from greenconn.contrib.idempotency import MemoryIds, handled_once
from greenconn.contrib.outbox.relay import RelayOptions
from greenconn.credentials import Token
from greenconn.exceptions import PublishTimeout, ReplyTimeout
from greenconn.green.deadline import Deadline
from greenconn.options import AmqpOptions, ConnectOptions, MemoryOptions
from greenconn.pidbox import Mailbox
from greenconn.service.health import Watchdog, check
from greenconn.service.periodic import Every
from greenconn.session.broker import Parameters
from greenconn.testing import MemoryBroker
from greenconn.transport.beanstalk import BeanstalkOptions
from greenconn.transport.couchdb import CouchOptions
from greenconn.transport.mongodb import MongoOptions
from greenconn.transport.native_delayed_delivery import calculate_routing_key
from greenconn.transport.postgresql import PostgresOptions
from greenconn.transport.redis.options import RedisOptions
from greenconn.transport.sqlite.database import SqliteOptions
from greenconn.transport.SQS import SQSOptions
from greenconn.utils.functional import retry_over_time
from greenconn.worker.options import ConsumerOptions

TWO = timedelta(seconds=2)
SHORT = timedelta(milliseconds=1)
#: For what must be begun before it is over.
BRIEF = timedelta(milliseconds=200)
SOON = timedelta(seconds=30)

#: Options that are numbers, but no seconds.
OTHERS = {"Retry.backoff", "MongoOptions.port"}
RECORDS = (
    *(AmqpOptions, ConnectOptions, MemoryOptions, Parameters, Retry),
    *(BeanstalkOptions, CouchOptions, MongoOptions, PostgresOptions, RedisOptions),
    *(SqliteOptions, SQSOptions),
)


def seconds_of(cls: type[Any]) -> list[tuple[type[Any], str]]:
    """The options of a class that are numbers of seconds."""
    hints = typing.get_type_hints(cls)
    names = getattr(cls, "fields", None) or cls.__dataclass_fields__
    return [
        (cls, name)
        for name in names
        if hints.get(name) in (float, float | None) and f"{cls.__name__}.{name}" not in OTHERS
    ]


@pytest.mark.parametrize(
    ("cls", "name"), [each for cls in (*RECORDS, RelayOptions) for each in seconds_of(cls)]
)
def test_options(cls: Any, name: str) -> None:
    assert getattr(cls(**{name: TWO}), name) == 2.0
    assert type(getattr(cls(**{name: TWO}), name)) is float
    with pytest.raises(ValueError, match=rf"{name} must be a number of seconds"):
        cls(**{name: -TWO})


@pytest.mark.parametrize(
    "name", ["store_interval", "handler_timeout", "blocking_threshold", "batch_interval"]
)
def test_options_of_consumers(name: str) -> None:
    further = {"batch_size": 3} if name.startswith("batch") else {}
    options: dict[str, Any] = {name: TWO, **further}
    made = ConsumerOptions(queues=("q",), handler=lambda body, message: None, **options)
    assert getattr(made, name) == 2.0


def test_whole_seconds_of_sqs() -> None:
    options: Any = SQSOptions
    made = options(sts_token_timeout=timedelta(hours=1), get_wait_time=TWO)
    assert (made.sts_token_timeout, made.get_wait_time) == (3600, 2)


def test_connections_and_entities() -> None:
    connection = Connection("amqp://", connect_timeout=TWO, heartbeat=TWO)
    assert (connection.connect_timeout, connection.heartbeat) == (2.0, 2.0)
    connection.connect_timeout = 3 * TWO  # type: ignore[assignment]
    assert connection.clone(heartbeat=SHORT).connect_timeout == 6.0
    queue = Queue("q", expires=TWO, message_ttl=SHORT)
    assert (queue.expires, queue.message_ttl) == (2.0, 0.001)
    assert Broadcast("q", expires=TWO).expires == 2.0
    mailbox = Mailbox("m", queue_ttl=TWO, queue_expires=TWO, reply_queue_expires=TWO)
    assert mailbox.get_queue("h").message_ttl == mailbox.get_reply_queue().expires == 2.0


def test_values() -> None:
    assert in_seconds(TWO) == 2.0
    assert in_seconds(None) is None
    assert 1.9 < (Deadline(TWO).left() or 0) <= 2.0
    assert Deadline(TWO).timeout == 2.0
    assert Deadline(-TWO).has_ended
    assert 1.9 < (Deadline.of(TWO).within(SOON).left() or 0) <= 2.0
    assert Every(timedelta(minutes=1)).following(0) == 60.0
    assert 1.9 < (Token("secret", TWO).expires_in or 0) <= 2.0
    policy = Retry.of({"delay": SHORT, "max_delay": TWO})
    assert policy is not None
    assert (policy.delay, policy.max_delay) == (0.001, 2.0)
    with pytest.raises(ValueError, match="delay must be at most 60"):
        Retry(delay=timedelta(hours=1))
    assert Rate(1, per=TWO).per == 2.0
    assert Limit(1, lease=TWO).lease == 2.0
    handled_once(MemoryIds(), ttl=SOON, lease=TWO)
    assert calculate_routing_key(TWO - SHORT, "q") == calculate_routing_key(2, "q")
    watchdog = Watchdog(TWO)
    assert watchdog.after == 2.0
    watchdog.stop()


def test_publishing_and_consuming(broker: MemoryBroker) -> None:
    greenconn.publish("q", 1, timeout=SOON, expires=TWO)
    greenconn.publish_many("q", [2], timeout=SOON, expiration=TWO, delay=SOON)
    with broker.connection() as connection:
        producer = connection.Producer()
        producer.publish(3, "q", expiration=TWO, timeout=SOON, confirm_timeout=SOON)
        producer.publish(
            4, "q", expires=TWO, retry=True, delay=TWO, retry_policy={"interval_max": TWO}
        )
        producer.publish(5, "q", confirm_timeout=SOON)
    assert [each.payload for each in broker.messages("q")] == [1, 3, 5]
    assert {each.properties.get("expiration") for each in broker.messages("q")} == {"2000", None}
    broker.clock.move(timedelta(seconds=2))
    assert [each.payload for each in broker.messages("q")] == [5, 4]
    handled: list[Any] = []
    consumer = greenconn.spawn_consumer(
        "q", lambda body, message: handled.append(body), handler_timeout=SOON
    )
    assert consumer.wait_ready(SOON)
    assert check(SOON).is_ready
    assert consumer.pause(SOON)
    assert consumer.stop(SOON)
    consumer.join(SOON)
    assert consumer.get(timeout=SOON)["handled"] == len(handled)
    assert greenconn.stop_consumers(SOON)
    with pytest.raises(
        (ReplyTimeout, PublishTimeout)
    ):  # on a busy machine even that takes too long
        rpc.call("q", 1, timeout=BRIEF)


def test_waiting(broker: MemoryBroker) -> None:
    with broker.connection() as connection:
        waits: list[tuple[type[Exception], Callable[[], object]]] = [
            (TimeoutError, lambda: connection.drain_events(timeout=SHORT)),
            (TimeoutError, lambda: next(eventloop(connection, timeout=SHORT))),
            (Empty, lambda: connection.SimpleQueue("q").get(timeout=SHORT)),
        ]
        for error, wait in waits:
            with pytest.raises(error):
                wait()
        consumer = connection.Consumer(Queue("q"))
        assert list(drain_consumer(consumer, limit=1, timeout=SHORT)) == []
        pool = connection.Pool(1)
        with pool.acquire(block=True, timeout=SOON), pytest.raises(pool.LimitExceeded):
            pool.acquire(block=True, timeout=SHORT)
        connection.flush(SOON)
        assert connection.ensure_connection(timeout=SOON, interval_start=SHORT) is connection
        assert connection.ensure(None, lambda: 1, interval_max=SHORT, timeout=SOON)() == 1
        assert Mailbox("m", connection=connection).multi_call("c", timeout=BRIEF) == []


def test_repeating() -> None:
    calls: list[float] = []

    def fail() -> None:
        calls.append(monotonic())
        raise KeyError

    with pytest.raises(KeyError):
        retry_over_time(
            fail,
            KeyError,
            max_retries=2,
            interval_start=SHORT,
            interval_step=SHORT,
            interval_max=SHORT,
        )
    assert len(calls) == 3


def test_a_publish_that_cannot_leave_ends() -> None:
    connection = Connection("amqp://127.0.0.1:1//", connect_timeout=SHORT)
    with connection, pytest.raises(PublishTimeout):
        greenconn.publish("q", 1, connection=connection, timeout=SHORT)
