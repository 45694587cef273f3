"""A message that cannot be read stops no consumer: it is rejected or told of, and the next comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Consumer, Queue
from greenconn.exceptions import KombuError
from greenconn.mixins import ConsumerMixin, TokenBucket
from tests.integration.redis_clients import control
from tests.quality.fuzz.poison import GOOD, poison

pytestmark = pytest.mark.full

SOON = 30.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Deep nesting has long tracebacks."""
    logger = logging.getLogger("greenconn.worker")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.fixture(params=["amqp", "redis", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of each broker in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/poisoned.db"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def connection(url: str, unique: str) -> Iterator[Connection]:
    """A connection to it, with a queue that was poisoned and has a good message behind."""
    prefix = f"{unique}."
    options = {"global_keyprefix": prefix} if url.startswith("redis") else {}
    with Connection(url, transport_options=options) as connection:
        with connection.channel() as channel:
            Queue(unique, durable=True)(channel).declare()
        poison(url, unique, prefix)
        greenconn.publish(unique, GOOD, connection=connection, declare=True)
        yield connection
        with connection.channel() as channel:
            channel.queue_delete(unique)


def nothing_is_held(connection: Connection, prefix: str) -> bool:
    """Whether everything was answered."""
    if connection.transport_cls != "redis":
        return True
    with control(connection.as_uri(include_password=True)) as command:
        return not command("HLEN", f"{prefix}.unacked")


class Seen:
    """What came out, until the good message."""

    def __init__(self) -> None:
        self.good = Event()
        self.handled = 0

    def handle(self, body: Any, message: Any) -> None:
        """Take a message."""
        self.handled += 1
        if body == GOOD:
            self.good.set()
        assert isinstance(message.headers, dict)
        assert isinstance(message.delivery_info, dict)
        assert repr(message)

    def handle_and_ack(self, body: Any, message: Any) -> None:
        """The same where nobody acknowledges otherwise."""
        self.handle(body, message)
        message.ack()


@pytest.mark.parametrize("options", [{}, {"prefetch_count": 1}, {"batch_size": 3}], ids=str)
def test_spawn_consumer(connection: Connection, unique: str, options: dict[str, Any]) -> None:
    seen = Seen()

    def handle(body: Any, message: Any) -> None:
        bodies = zip(body, message, strict=True) if "batch_size" in options else [(body, message)]
        for each, its_message in bodies:
            seen.handle(each, its_message)

    consumer = greenconn.spawn_consumer(unique, handle, connection=connection, **options)
    assert seen.good.wait(SOON)
    assert consumer.stop(SOON)
    stats = consumer.get()
    assert stats["rejected"] == stats["failed"] > 10
    assert stats["handled"] == seen.handled
    assert nothing_is_held(connection, unique)


def test_spawn_consumer_reports_each(connection: Connection, unique: str) -> None:
    seen, notified = Seen(), list[Exception]()

    def note(message: Any, exc: Exception) -> None:
        assert isinstance(exc, KombuError)
        assert isinstance(message.properties, dict)
        notified.append(exc)
        message.ack()

    consumer = greenconn.spawn_consumer(
        unique, seen.handle, connection=connection, on_decode_error=note
    )
    assert seen.good.wait(SOON)
    assert consumer.stop(SOON)
    assert consumer.get()["failed"] == len(notified) > 10
    assert nothing_is_held(connection, unique)


def test_consumer_reports_each(connection: Connection, unique: str) -> None:
    seen, notified = Seen(), list[Exception]()

    def note(message: Any, exc: Exception) -> None:
        assert isinstance(exc, KombuError)
        notified.append(exc)
        message.reject()

    with (
        connection.channel() as channel,
        Consumer(
            channel,
            [Queue(unique)],
            callbacks=[seen.handle_and_ack],
            on_decode_error=note,
            prefetch_count=1,
            accept=["json"],
        ),
    ):
        while not seen.good.is_set():
            connection.drain_events(timeout=SOON)
    assert len(notified) > 10
    assert nothing_is_held(connection, unique)


def test_consumer_raises_in_who_drains_and_goes_on(connection: Connection, unique: str) -> None:
    seen, raised = Seen(), 0
    callbacks = [seen.handle_and_ack]
    with (
        connection.channel() as channel,
        Consumer(channel, [Queue(unique)], callbacks=callbacks, accept=["json"]),
    ):
        while not seen.good.is_set():
            try:
                connection.drain_events(timeout=SOON)
            except KombuError:
                raised += 1
    assert raised > 10


def test_messages_taken_as_they_are(connection: Connection, unique: str) -> None:
    came, good = [], Event()

    def take(message: Any) -> None:
        came.append(repr(message))
        assert isinstance(message.delivery_info, dict)
        with suppress(KombuError):
            if message.decode() == GOOD:
                good.set()
        message.reject()

    with (
        connection.channel() as channel,
        Consumer(channel, [Queue(unique)], on_message=take, on_decode_error=lambda m, e: take(m)),
    ):
        while not good.is_set():
            connection.drain_events(timeout=SOON)
    assert len(came) > 20
    assert nothing_is_held(connection, unique)


def test_simple_queue(connection: Connection, unique: str) -> None:
    bad = 0
    with connection.SimpleQueue(unique) as queue:
        while True:
            try:
                message = queue.get(timeout=SOON)
                body = message.payload
            except KombuError:
                bad += 1
                continue
            message.ack()
            if body == GOOD:
                break
    assert bad > 10


def test_get(connection: Connection, unique: str) -> None:
    came = raised = 0
    with connection.channel() as channel:
        for message in _taken(channel, unique):
            came += 1
            assert repr(message)
            message.requeue()
        queue = Queue(unique)(channel)
        for _ in range(came):
            try:
                message = queue.get()
            except KombuError:
                raised += 1
            else:
                message.reject()
    assert 0 < raised < came > 20
    with connection.channel() as channel:
        assert channel.queue_purge(unique) == raised
    assert nothing_is_held(connection, unique)


def test_mixin(connection: Connection, unique: str) -> None:
    seen = Seen()

    class Program(ConsumerMixin):
        restart_limit = TokenBucket(1000)

        def __init__(self) -> None:
            self.connection = connection.clone()

        def get_consumers(self, Consumer: Callable[..., Any], channel: Any) -> list[Any]:  # noqa: N803
            return [
                Consumer(queues=[Queue(unique)], callbacks=[seen.handle_and_ack], accept=["json"])
            ]

    program = Program()
    logging.getLogger("greenconn.mixins").setLevel(logging.CRITICAL)
    running = gevent.spawn(program.run)
    try:
        assert seen.good.wait(SOON)
    finally:
        program.should_stop = True
        running.get(timeout=SOON)
        logging.getLogger("greenconn.mixins").setLevel(logging.NOTSET)
    assert nothing_is_held(connection, unique)


def test_rpc_server(connection: Connection, unique: str) -> None:
    server = greenconn.rpc.spawn_server(unique, lambda body: body, connection=connection)
    assert greenconn.rpc.call(unique, 5, connection=connection, timeout=SOON) == 5
    assert server.stop(SOON)
    assert server.get()["rejected"] > 10
    assert nothing_is_held(connection, unique)


def test_giving_back(connection: Connection, unique: str) -> None:
    """They go back to the queue in every way there is, and come again."""
    with connection.channel() as channel:
        first = _taken(channel, unique)
        for message in first:
            message.requeue()
        second = _taken(channel, unique)
        assert len(second) == len(first)
        channel.basic_recover(requeue=True)
        channel.basic_qos(0, 0, False)
        third = _taken(channel, unique)
        assert len(third) == len(first)
    # Those of a channel that was closed, and what a consumer has not seen.
    with (
        connection.channel() as channel,
        Consumer(channel, [Queue(unique)], callbacks=[print], prefetch_count=5),
    ):
        gevent.sleep(0.1)
    with connection.channel() as channel:
        again = _taken(channel, unique)
        assert len(again) == len(first)
        for message in again:
            message.ack()
    assert nothing_is_held(connection, unique)


def _taken(channel: Any, queue: str) -> list[Any]:
    found = []
    while (message := channel.basic_get(queue)) is not None:
        found.append(message)
    return found
