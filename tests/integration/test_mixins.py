"""Programs made with the mixins, on both transports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event

from greenconn.common import Broadcast, collect_replies, maybe_declare, send_reply
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import ChannelError, OperationalError, RecoverableConnectionError
from greenconn.messaging import Producer
from greenconn.mixins import ConsumerMixin, ConsumerProducerMixin, TokenBucket
from greenconn.transport import memory
from tests.fix_wires import until
from tests.receiving import consumer_count

pytestmark = pytest.mark.halved

SOON = 30.0


@pytest.fixture(params=["memory", "amqp", "redis"])
def connection(request: pytest.FixtureRequest, unique: str) -> Iterator[Connection]:
    """A connection to each broker in turn."""
    if request.param == "memory":
        url = f"memory:///{unique}"
    else:
        url = request.getfixturevalue(f"{request.param}_url")
    with Connection(url) as made:
        yield made
        with made.channel() as channel:
            channel.queue_delete(unique)
    if request.param == "memory":
        memory.reset(unique)


class Worker(ConsumerMixin):
    """Notes what it hears, and acknowledges what it gets."""

    restart_limit = TokenBucket(1000)

    def __init__(self, connection: Connection, queue: Queue | str) -> None:
        self.connection = connection
        self.queue = Queue(queue) if isinstance(queue, str) else queue
        self.log: list[str] = []
        self.got: list[Any] = []
        self.ready = Event()
        self.consumers: list[Any] = []

    def get_consumers(self, Consumer: Callable[..., Any], channel: Any) -> list[Any]:  # noqa: N803
        self.log.append("get_consumers")
        return [Consumer(queues=[self.queue], callbacks=[self.on_job], prefetch_count=10)]

    def on_job(self, body: Any, message: Any) -> None:
        self.got.append(body)
        message.ack()

    def on_connection_revived(self) -> None:
        self.log.append("revived")

    def on_consume_ready(
        self, connection: Any, channel: Any, consumers: list[Any], **kwargs: Any
    ) -> None:
        self.log.append(f"ready {kwargs}" if kwargs else "ready")
        self.consumers = consumers
        self.now = connection
        self.ready.set()

    def on_consume_end(self, connection: Any, channel: Any) -> None:
        super().on_consume_end(connection, channel)
        self.log.append("end")

    @contextmanager
    def extra_context(self, connection: Any, channel: Any) -> Iterator[None]:
        self.log.append("enter")
        try:
            yield
        finally:
            self.log.append("leave")


class Answering(ConsumerProducerMixin, Worker):
    """Doubles numbers."""

    def on_job(self, body: Any, message: Any) -> None:
        send_reply(None, message, 2 * body, self.producer, retry=True)
        message.ack()


@contextmanager
def running(worker: ConsumerMixin, **kwargs: Any) -> Iterator[Greenlet[..., Any]]:
    """The program, in a greenlet that has ended afterwards."""
    greenlet = gevent.spawn(worker.run, **kwargs)
    try:
        yield greenlet
    finally:
        worker.should_stop = True
        greenlet.join(SOON)
        assert greenlet.dead


def send(connection: Connection, queue: str, *bodies: Any) -> None:
    for body in bodies:
        Producer(connection).publish(body, queue)


@pytest.mark.parametrize("timeout", [None, SOON])
def test_a_timeout_of_a_callback_while_stopping(
    connection: Connection, unique: str, timeout: float | None
) -> None:
    class Stopping(Worker):
        def on_job(self, body: Any, message: Any) -> None:
            super().on_job(body, message)
            self.should_stop = True
            raise TimeoutError("of the callback")

    worker = Stopping(connection, unique)
    maybe_declare(worker.queue, connection)
    send(connection, unique, 1)
    if timeout is None:  # an error of the network as any other
        assert list(worker.consume()) == []
    else:  # what the caller asked for
        with pytest.raises(TimeoutError, match="callback"):
            list(worker.consume(timeout=timeout))
    assert worker.got == [1]


def test_a_program_consumes_until_it_is_asked_to_stop(connection: Connection, unique: str) -> None:
    worker = Worker(connection, unique)
    with running(worker, safety_interval=0.02, colour="red") as greenlet:
        assert worker.ready.wait(SOON)
        assert worker.log == ["revived", "get_consumers", "enter", "ready {'colour': 'red'}"]
        send(connection, unique, 1, 2, 3)
        until(lambda: worker.got == [1, 2, 3])
        assert consumer_count(connection, unique) == 1
        worker.should_stop = True
        greenlet.join(SOON)
    assert worker.log[4:] == ["leave", "end"]
    assert not worker.now.connected
    assert consumer_count(connection, unique) == 0
    greenlet.get()


def test_it_begins_anew_when_the_connection_is_lost(connection: Connection, unique: str) -> None:
    worker = Worker(connection, unique)
    # On Redis a consumer counts until its lease has ended, and so does one that is gone.
    is_leased = connection.transport.driver_type == "redis"
    with running(worker, safety_interval=0.02):
        for number in range(3):
            assert worker.ready.wait(SOON)
            worker.ready.clear()
            send(connection, unique, number)
            until(lambda number=number: worker.got[-1:] == [number])  # type: ignore[misc]
            if not is_leased:
                assert consumer_count(connection, unique) == 1
            # The link ends below it, as if the broker had gone.
            worker.now.session.life.link.end(RecoverableConnectionError("cut"))
        assert worker.ready.wait(SOON)
    assert worker.log.count("leave") == 4
    assert worker.log.count("end") == 1  # hooks for a good end are not called at a bad one
    assert is_leased or consumer_count(connection, unique) == 0


def test_it_begins_anew_when_its_consumer_was_cancelled(
    connection: Connection, unique: str
) -> None:
    worker = Worker(connection, unique)
    with running(worker, safety_interval=0.02):
        assert worker.ready.wait(SOON)
        worker.ready.clear()
        with connection.channel() as channel:
            channel.queue_delete(unique)
        assert worker.ready.wait(SOON)
        send(connection, unique, "again")
        until(lambda: worker.got == ["again"])
        assert consumer_count(connection, unique) == 1


def test_it_begins_anew_after_an_error_of_the_channel(connection: Connection, unique: str) -> None:
    class Clumsy(Worker):
        def on_job(self, body: Any, message: Any) -> None:
            super().on_job(body, message)
            if body == "oops":
                message.channel.queue_declare(f"{unique}-none", passive=True)

    worker = Clumsy(connection, unique)
    with running(worker, safety_interval=0.02):
        assert worker.ready.wait(SOON)
        worker.ready.clear()
        send(connection, unique, "oops")
        assert worker.ready.wait(SOON)
        send(connection, unique, "fine")
        until(lambda: worker.got[-1:] == ["fine"])
        assert consumer_count(connection, unique) == 1


def test_rounds_are_limited(connection: Connection, unique: str) -> None:
    class Failing(Worker):
        restart_limit = TokenBucket(20)
        tries = 0

        def get_consumers(
            self,
            Consumer: Callable[..., Any],  # noqa: N803
            channel: Any,
        ) -> list[Any]:
            self.tries += 1
            raise ChannelError("not today")

    worker = Failing(connection, unique)
    assert type(Worker(connection, unique).restart_limit) is TokenBucket
    start = time.monotonic()
    with running(worker):
        until(lambda: worker.tries >= 4)
        assert worker.tries <= 2 + 20 * (time.monotonic() - start)


def test_other_errors_end_it(connection: Connection, unique: str) -> None:
    class Broken(Worker):
        def on_job(self, body: Any, message: Any) -> None:
            raise LookupError(body)

    worker = Broken(connection, unique)
    with running(worker) as greenlet:
        assert worker.ready.wait(SOON)
        send(connection, unique, "x")
        with pytest.raises(LookupError):
            greenlet.get(timeout=SOON)
    assert not worker.now.connected
    # The message was not answered.
    assert connection.default_channel.basic_get(unique, no_ack=True).payload == "x"


def test_a_killed_one_leaves_nothing_behind(connection: Connection, unique: str) -> None:
    worker = Answering(connection, unique)
    with running(worker) as greenlet:
        assert worker.ready.wait(SOON)
        publishing = worker.producer_connection
        greenlet.kill(timeout=SOON)
    assert not worker.now.connected
    assert not publishing.connected
    assert consumer_count(connection, unique) == 0


def test_bodies_that_cannot_be_decoded_are_passed_by(
    connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(connection, unique)
    with running(worker, safety_interval=0.02), caplog.at_level(logging.ERROR, "greenconn.mixins"):
        assert worker.ready.wait(SOON)
        Producer(connection).publish("{", unique, content_type="application/json")
        send(connection, unique, "fine")
        until(lambda: worker.got == ["fine"])
    errors = [
        record
        for record in caplog.records
        if record.name == "greenconn.mixins" and record.levelno >= logging.WARNING
    ]
    assert [record.levelname for record in errors] == ["ERROR"]
    assert "application/json" in caplog.text
    assert connection.default_channel.basic_get(unique) is None


def test_iterations_and_silence(connection: Connection, unique: str) -> None:
    class Counting(Worker):
        iterations = 0

        def on_iteration(self) -> None:
            self.iterations += 1

    worker = Counting(connection, unique)
    maybe_declare(worker.queue, connection)
    send(connection, unique, 1, 2)
    consumed = worker.consume(safety_interval=SOON)
    assert [next(consumed), next(consumed)] == [None, None]
    assert (worker.got, worker.iterations) == ([1, 2], 2)
    del consumed  # which closes its channel
    with pytest.raises(TimeoutError):
        next(worker.consume(timeout=0.1, safety_interval=0.02))
    assert worker.iterations > 2
    assert list(worker.consume(limit=3, safety_interval=0.01)) == []
    assert worker.log.count("end") == 1


def test_a_loss_while_stopping_is_no_error(connection: Connection, unique: str) -> None:
    worker = Worker(connection, unique)
    maybe_declare(worker.queue, connection)
    consuming = gevent.spawn(lambda: list(worker.consume()))
    assert worker.ready.wait(SOON)
    gevent.sleep(0)
    worker.should_stop = True
    worker.now.session.life.link.end(RecoverableConnectionError("cut"))
    assert consuming.get(timeout=SOON) == []


def test_errors_of_tidying_up_are_ignored(connection: Connection, unique: str) -> None:
    worker = Worker(connection, unique)

    def fail() -> None:
        raise RecoverableConnectionError("gone")

    assert worker.maybe_conn_error(fail) is None
    assert worker.maybe_conn_error(lambda: 3) == 3


def test_a_broker_that_is_not_there_is_reported() -> None:
    class Notified(Worker):
        connect_max_retries = 1

        def on_connection_error(self, exc: Exception, interval: float) -> None:
            super().on_connection_error(exc, interval)
            self.log.append("error")

    worker = Notified(Connection("amqp://127.0.0.1:1/"), "q")
    with pytest.raises(OperationalError):
        worker.run()
    assert worker.log == ["error"]


def test_several_consumers(connection: Connection, unique: str) -> None:
    exchange = Exchange(f"{unique}-e", type="fanout", auto_delete=True)
    queues = [Broadcast(unique, exchange=exchange) for _ in range(3)]

    class Several(Worker):
        def get_consumers(
            self,
            Consumer: Callable[..., Any],  # noqa: N803
            channel: Any,
        ) -> list[Any]:
            return [Consumer(queues=[queue], callbacks=[self.on_job]) for queue in queues]

    worker = Several(connection, unique)
    with running(worker, safety_interval=0.02):
        assert worker.ready.wait(SOON)
        assert len(worker.consumers) == 3
        Producer(connection, exchange).publish("news")
        until(lambda: worker.got == ["news"] * 3)


def test_a_program_that_answers(connection: Connection, unique: str) -> None:
    worker = Answering(connection, unique)
    replies = Queue(f"{unique}-r", exclusive=True)
    with running(worker, safety_interval=0.02), connection.channel() as channel:
        assert worker.ready.wait(SOON)
        replies(channel).declare()
        producer = Producer(connection)
        for number in range(3):
            producer.publish(number, unique, reply_to=replies.name, correlation_id=str(number))
        found = collect_replies(connection, channel, replies, limit=3, timeout=SOON)
        assert sorted(found) == [0, 2, 4]
        assert worker.producer_connection is not worker.now
        publishing = worker.producer_connection
        assert worker.producer.connection is publishing
    assert not publishing.connected
    assert worker._producer_connection is None


def test_many_greenlets_that_publish_share_one_connection(
    connection: Connection, unique: str
) -> None:
    worker = Answering(connection, unique)
    made = [gevent.spawn(lambda: worker.producer_connection) for _ in range(10)]
    connections = [each.get(timeout=SOON) for each in made]
    assert all(each is connections[0] for each in connections)
    assert connections[0].session.generation == 1
    worker.on_consume_end(connection, connection.default_channel)
    assert not connections[0].connected


def test_replies_that_want_answers(connection: Connection, unique: str) -> None:
    queue = Queue(unique)
    notified: list[str] = []
    with connection.channel() as channel:
        queue(channel).declare()
        send(connection, unique, "a", "b")
        channel.after_reply_message_received = notified.append
        found = collect_replies(connection, channel, queue, limit=1, timeout=SOON, no_ack=False)
        assert list(found) == ["a"]
        assert notified == [unique]
    # RabbitMQ 3.10 requeues what a closed channel held a moment after it has replied.
    until(lambda: queue(connection).queue_declare(passive=True).message_count)
    assert connection.default_channel.basic_get(unique, no_ack=True).payload == "b"
