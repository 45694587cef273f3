"""Limits, rates, unique keys and debounced messages over brokers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import AlreadyQueued, App, Connection, Limit, Message, Rate
from greenconn.defaults import reset
from greenconn.exceptions import BatchPublishError
from greenconn.limits import CLAIM, WAITED
from greenconn.limits.store import Take, key_of, store_for
from tests.fix_wires import until

pytestmark = pytest.mark.halved

SOON = 60.0
BROKERS = ("amqp", "memory", "redis", "postgresql", "sqlite")


@pytest.fixture(params=BROKERS)
def url(request: pytest.FixtureRequest, unique: str) -> Iterator[str]:
    """The URL of a broker; that of RabbitMQ has its limits in Redis."""
    if request.param == "memory":
        yield f"memory://localhost/{unique}"
        return
    if request.param == "amqp":
        greenconn.configure(limits=request.getfixturevalue("redis_url"))
    yield str(request.getfixturevalue(f"{request.param}_url"))
    reset()


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with Connection(url) as connection:
        yield connection


@pytest.fixture
def queue(connection: Connection, unique: str) -> Iterator[str]:
    connection.default_channel.queue_declare(unique, durable=True, auto_delete=False)
    yield unique
    for name in (unique, f"{unique}.dead"):
        connection.default_channel.queue_delete(name)


def tenant(body: Any, message: Message) -> Any:
    return body["tenant"]


def left(connection: Connection, queue: str) -> int:
    """The number of messages that wait."""
    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


class Running:
    """A handler that counts how many of each tenant run at once."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def __call__(self, body: Any, message: Message) -> None:
        key = body["tenant"]
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        try:
            gevent.sleep(0.02)
        finally:
            self.now[key] -= 1
        self.done[key] += 1


def test_no_more_than_the_limit_run_in_all_processes(
    url: str, connection: Connection, queue: str
) -> None:
    handler = Running()
    bodies = [{"tenant": key} for _ in range(8) for key in "ab"]
    greenconn.publish_many(queue, bodies, connection=connection)
    with Connection(url) as other:
        consumers = [
            greenconn.spawn_consumer(
                queue, handler, connection=each, concurrency=10, limit=Limit(2, key=tenant)
            )
            for each in (connection, other)
        ]
        until(lambda: handler.done == {"a": 8, "b": 8}, SOON)
        assert all(consumer.stop(SOON) for consumer in consumers)
        assert sum(each.stats()["failed"] + each.stats()["retried"] for each in consumers) == 0
    assert max(handler.most.values()) <= 2
    assert left(connection, queue) == 0


def test_a_tenant_that_is_blocked_delays_nobody_else(connection: Connection, queue: str) -> None:
    may_end, done = Event(), Counter[str]()

    def work(body: Any, message: Message) -> None:
        if body["tenant"] == "slow":
            may_end.wait(SOON)
        done[body["tenant"]] += 1

    bodies = [{"tenant": "slow"}] * 50 + [{"tenant": "quick"}] * 20
    greenconn.publish_many(queue, bodies, connection=connection)
    consumer = greenconn.spawn_consumer(
        queue,
        work,
        connection=connection,
        concurrency=4,
        prefetch_count=5,
        limit=Limit(1, key=tenant),
    )
    until(lambda: done["quick"] == 20, SOON)
    assert done["slow"] == 0
    assert consumer.stats()["in_flight"] <= 5
    may_end.set()
    consumer.kill()


@pytest.mark.sampled(2)
def test_a_rate_is_exact_over_all_processes(url: str, connection: Connection, queue: str) -> None:
    started: list[float] = []
    count, burst, interval = 12, 2, 0.2

    def work(body: Any, message: Message) -> None:
        started.append(monotonic())

    greenconn.publish_many(queue, list(range(count)), connection=connection)
    begun = monotonic()
    with Connection(url) as other:
        consumers = [
            greenconn.spawn_consumer(
                queue,
                work,
                connection=each,
                concurrency=10,
                rate=Rate(1 / interval, burst=burst),
            )
            for each in (connection, other)
        ]
        until(lambda: len(started) == count, SOON)
        assert all(consumer.stop(SOON) for consumer in consumers)
    for number, at in enumerate(sorted(started), 1):
        assert at - begun >= (number - burst) * interval


def test_the_place_is_free_when_the_handler_has_ended_whatever_its_end(
    connection: Connection, queue: str
) -> None:
    calls = Counter[str]()

    def work(body: str, message: Message) -> None:
        calls[body] += 1
        if body == "raises":
            raise LookupError
        if body == "hangs":
            gevent.sleep(SOON)
        if body == "exits" and calls[body] == 1:
            raise gevent.GreenletExit

    bodies = ["raises", "hangs", "exits", "returns"]
    greenconn.publish_many(queue, bodies, connection=connection)
    consumer = greenconn.spawn_consumer(
        queue,
        work,
        connection=connection,
        limit=Limit(1, lease=1000),
        retry={"tries": 2, "delay": 0.05},
        on_error="discard",
        handler_timeout=0.2,
    )
    until(lambda: (consumer.stats()["handled"], consumer.stats()["rejected"]) == (2, 2), SOON)
    assert calls == {"raises": 2, "hangs": 2, "exits": 2, "returns": 1}
    assert consumer.stop(SOON)
    take = Take(queue, "another", key_of("p", queue, ""), 1, 1.0)
    assert store_for(connection, "a test").ask([take])[0].is_taken


# -- unique


def test_one_message_of_a_key_is_queued_until_it_is_handled(
    connection: Connection, queue: str
) -> None:
    handled: list[Any] = []
    greenconn.publish(queue, 1, connection=connection, unique="sync:7", message_id="first")
    with pytest.raises(AlreadyQueued, match="'first' with key 'sync:7'") as caught:
        greenconn.publish(queue, 2, connection=connection, unique="sync:7")
    assert (caught.value.message_id, caught.value.key) == ("first", "sync:7")
    greenconn.publish(queue, 3, connection=connection, unique="sync:8")
    consumer = greenconn.spawn_consumer(
        queue, lambda body, message: handled.append(body), connection=connection
    )
    until(lambda: len(handled) == 2, SOON)
    until(lambda: published(connection, queue, 4), SOON)
    until(lambda: len(handled) == 3, SOON)
    assert sorted(handled) == [1, 3, 4]
    assert consumer.stop(SOON)


def published(connection: Connection, queue: str, body: Any, **options: Any) -> bool:
    """Whether a message with the key could be published."""
    try:
        greenconn.publish(queue, body, connection=connection, **{"unique": "sync:7", **options})
    except AlreadyQueued:
        return False
    return True


@pytest.mark.sampled(2)
def test_a_retry_keeps_the_key_and_its_end_gives_it_back(
    connection: Connection, queue: str
) -> None:
    tried = Event()
    may_fail = Event()
    calls: list[Any] = []

    def work(body: Any, message: Message) -> None:
        calls.append(body)
        tried.set()
        may_fail.wait(SOON)
        raise LookupError

    greenconn.publish(queue, "a", connection=connection, unique="sync:7")
    consumer = greenconn.spawn_consumer(
        queue,
        work,
        connection=connection,
        retry={"tries": 2, "delay": 1.5, "jitter": False},
    )
    assert tried.wait(SOON)
    assert not published(connection, queue, "b")
    may_fail.set()
    until(lambda: consumer.stats()["retried"] == 1, SOON)
    assert not published(connection, queue, "b")
    until(lambda: consumer.stats()["rejected"] == 1, SOON)
    assert len(calls) == 2
    assert consumer.stop(SOON)
    assert published(connection, queue, "b")


def test_a_key_until_the_handler_has_started(connection: Connection, queue: str) -> None:
    started, may_end = Event(), Event()

    def work(body: Any, message: Message) -> None:
        started.set()
        may_end.wait(SOON)

    assert published(connection, queue, 1, until="started")
    assert not published(connection, queue, 2, until="started")
    consumer = greenconn.spawn_consumer(queue, work, connection=connection)
    assert started.wait(SOON)
    until(lambda: published(connection, queue, 2, until="started"), SOON)
    may_end.set()
    until(lambda: consumer.stats()["handled"] == 2, SOON)
    assert consumer.stop(SOON)


def test_a_key_for_some_seconds(connection: Connection, queue: str) -> None:
    assert published(connection, queue, 1, until=0.5)
    assert not published(connection, queue, 2)
    until(lambda: published(connection, queue, 2, until=0.5), SOON)
    assert left(connection, queue) == 2


def test_a_publish_that_fails_gives_its_key_back(connection: Connection, unique: str) -> None:
    for _ in range(2):
        with pytest.raises(greenconn.exceptions.Unroutable):
            greenconn.publish(
                unique, 1, connection=connection, unique="a", declare=False, timeout=SOON
            )


def test_unique_keys_of_many_messages(connection: Connection, queue: str) -> None:
    greenconn.publish(queue, {"id": 2}, connection=connection, unique="2")
    with pytest.raises(BatchPublishError) as caught:
        greenconn.publish_many(
            queue,
            [{"id": number} for number in (1, 2, 3, 1)],
            connection=connection,
            unique=lambda body: str(body["id"]),
        )
    assert {*caught.value.failed} == {1, 3}
    assert all(isinstance(error, AlreadyQueued) for error in caught.value.failed.values())
    until(lambda: left(connection, queue) == 3, SOON)


# -- debounce


@pytest.mark.sampled(2)
def test_of_a_burst_the_last_is_handled(connection: Connection, queue: str) -> None:
    handled: list[Any] = []
    for number in range(5):
        greenconn.publish(queue, number, connection=connection, debounce="doc:3", delay=1)
    greenconn.publish_many(queue, "xy", connection=connection, debounce=lambda body: body, delay=1)
    consumer = greenconn.spawn_consumer(
        queue, lambda body, message: handled.append(body), connection=connection, concurrency=3
    )
    until(lambda: consumer.stats()["skipped"] == 4 and len(handled) == 3, SOON)
    assert {*handled} == {4, "x", "y"}
    assert consumer.stats()["handled"] == 3
    assert consumer.stop(SOON)
    assert left(connection, queue) == 0


@pytest.mark.sampled(2)
def test_batches_skip_and_free_keys(connection: Connection, queue: str) -> None:
    batches: list[list[Any]] = []
    for number in range(3):
        greenconn.publish(queue, number, connection=connection, debounce="doc:3", delay=1)
    greenconn.publish(queue, "one", connection=connection, unique="sync:7")
    consumer = greenconn.spawn_consumer(
        queue,
        lambda bodies, messages: batches.append(bodies),
        connection=connection,
        batch_size=10,
        batch_interval=0.1,
    )
    until(lambda: sum(map(len, batches)) == 2, SOON)
    until(lambda: consumer.stats()["skipped"] == 2, SOON)
    assert {each for batch in batches for each in batch} == {2, "one"}
    until(lambda: published(connection, queue, "two"), SOON)
    assert consumer.stop(SOON)


# -- round trips

#: The options of a publish, and its own round trips.
KEYS: dict[str, tuple[dict[str, Any], int]] = {
    "no key": ({}, 0),
    "unique": ({"unique": "sync:7"}, 1),
    "debounce": ({"debounce": "doc:3", "delay": 1}, 2),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.sampled(2)
def test_a_message_costs_two_round_trips(connection: Connection, queue: str, kind: str) -> None:
    options, of_publish = KEYS[kind]
    store = store_for(connection, "a test")
    handled = Event()
    greenconn.publish(queue, {"tenant": "a"}, connection=connection, **options)
    assert store.round_trips == of_publish
    consumer = greenconn.spawn_consumer(
        queue,
        lambda body, message: handled.set(),
        connection=connection,
        limit=Limit(1, key=tenant),
    )
    assert handled.wait(SOON)
    assert consumer.stop(SOON)
    assert store.round_trips == of_publish + 2


def test_messages_that_come_together_share_round_trips(connection: Connection, queue: str) -> None:
    count = 100
    store = store_for(connection, "a test")
    bodies = [{"tenant": number} for number in range(count)]
    greenconn.publish_many(queue, bodies, connection=connection)
    before = store.round_trips
    consumer = greenconn.spawn_consumer(
        queue,
        lambda body, message: None,
        connection=connection,
        concurrency=count,
        limit=Limit(1, key=tenant),
    )
    until(lambda: consumer.stats()["handled"] == count, SOON)
    assert consumer.stop(SOON)
    assert store.round_trips - before <= count / 2


# -- hostile headers


FORGED: list[Any] = [
    1,
    "",
    "h",
    "x0123456789abcdef:'a'",
    "h0123456789abcdef:",
    "h0123456789abcdef:'sync:7'",
    "s0123456789abcdef:'sync:7'",
    "h0123456789abcdef:" + "a" * 5000,
    "d" + "0" * 32 + ":'doc'",
    "d" + "f" * 32 + ":'doc'",
    ["h"],
]
WAITS: list[Any] = [-1, 10**30, "1", 1.5, True, []]
HEADERS = [{CLAIM: value} for value in FORGED] + [{WAITED: value} for value in WAITS]


@pytest.mark.sampled(2)
def test_forged_headers_neither_free_keys_nor_lose_messages(
    connection: Connection, queue: str
) -> None:
    handled: list[Any] = []
    is_over = Event()

    def handle(body: Any, message: Message) -> None:
        if body == "last":
            is_over.wait(SOON)  # its key is claimed meanwhile
        handled.append(body)

    greenconn.publish(queue, "last", connection=connection, unique="sync:7")
    for number, headers in enumerate(HEADERS):
        try:
            greenconn.publish(
                queue, number, connection=connection, headers=headers, message_id="any"
            )
        except (ValueError, OverflowError, greenconn.exceptions.PublishRefused):
            handled.append(number)  # the broker takes no such number
    consumer = greenconn.spawn_consumer(
        queue, handle, connection=connection, limit=Limit(5), rate=Rate(100), concurrency=5
    )
    until(lambda: {*handled} >= {*range(len(HEADERS))}, SOON)
    assert not published(connection, queue, "other")
    is_over.set()
    until(lambda: "last" in handled, SOON)
    assert consumer.stop(SOON)


# -- what is refused


def test_what_cannot_be_is_refused(unique: str, amqp_url: str) -> None:
    def work(body: Any, message: Message) -> None: ...

    with Connection(f"memory://localhost/{unique}") as connection:
        for options in ({"limit": Limit(1)}, {"rate": Rate(1)}):
            for further in ({"no_ack": True}, {"batch_size": 2}, {"offset": "first"}):
                with pytest.raises(ValueError, match=r"must be None (with|for)"):
                    greenconn.spawn_consumer(
                        unique, work, connection=connection, **options, **further
                    )
        exchange = greenconn.Exchange("e")
        for wrong, text in (
            ({"unique": "a", "debounce": "b"}, "debounce must be None with unique"),
            ({"until": 1}, "until must be None without unique"),
            ({"unique": "a", "until": "never"}, "until must be"),
            ({"unique": "a", "until": 0}, "until must be"),
            ({"unique": ""}, "unique must be text of 1 to 255"),
            ({"unique": 1}, "unique must be text"),
            ({"debounce": "a"}, "delay must be given"),
            ({"unique": "a", "transaction": object()}, "unique must be None with transaction"),
            ({"unique": "a", "message_id": "\n"}, "message_id must be printable"),
        ):
            with pytest.raises((ValueError, TypeError), match=text):
                greenconn.publish("q", 1, connection=connection, **wrong)
        with pytest.raises(ValueError, match="must be None for an exchange"):
            greenconn.publish(exchange, 1, connection=connection, unique="a")
        with pytest.raises(TypeError, match="unique must be a function"):
            greenconn.publish_many("q", [1], connection=connection, unique="a")  # type: ignore[arg-type]
    remedy = "pass limits='redis://...'"
    with Connection(amqp_url) as connection:
        with pytest.raises(ValueError, match=remedy):
            greenconn.spawn_consumer(unique, work, connection=connection, limit=Limit(1))
        with pytest.raises(ValueError, match=remedy):
            greenconn.publish(unique, 1, connection=connection, unique="a")
    with pytest.raises(ValueError, match="limits must be the URL"):
        greenconn.configure(limits=amqp_url)
    with pytest.raises(TypeError, match="limits must be a URL"):
        App(limits=1)  # type: ignore[arg-type]
