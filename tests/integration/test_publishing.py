"""``greenconn.publish`` over the memory broker and RabbitMQ: what it promises, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from threading import Thread
from typing import Any, TypeAlias

import gevent
import pytest
from gevent import monkey

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.defaults import publishing_connection
from greenconn.exceptions import (
    BatchPublishError,
    ConnectionBlocked,
    EncodeError,
    NotFound,
    OperationalError,
    PreconditionFailed,
    PublishNacked,
    PublishRefused,
    PublishTimeout,
    Unroutable,
    WrongHub,
)
from greenconn.transport import memory
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_interrupts import interruptions
from tests.receiving import bodies_in

WAIT = 30.0

Bodies: TypeAlias = Callable[[str], list[Any]]


@pytest.fixture(params=["memory", "amqp", "redis"])
def connection(request: pytest.FixtureRequest, unique: str) -> Iterator[Connection]:
    """A connection over each transport in turn; queues that begin with ``unique`` are deleted."""
    is_memory = request.param == "memory"
    url = f"memory:///{unique}" if is_memory else request.getfixturevalue(f"{request.param}_url")
    with Connection(url) as connection:
        yield connection
    if is_memory:
        memory.reset(unique)


@pytest.fixture
def queue(connection: Connection, unique: str) -> Iterator[str]:
    """The name of a queue that does not exist; deleted after the test."""
    yield unique
    connection.default_channel.queue_delete(unique)


@pytest.fixture
def exchange(connection: Connection, unique: str) -> Iterator[str]:
    """The name of an exchange that does not exist; deleted after the test."""
    yield f"{unique}-x"
    connection.default_channel.exchange_delete(f"{unique}-x")


def publishing_link(connection: Connection) -> Any:
    """The link that publishes for *connection*."""
    return publishing_connection(connection).session.life.link


# What it promises


def test_a_message_is_there_when_it_returns(connection: Connection, queue: str) -> None:
    greenconn.publish(
        queue, {"to": "ada"}, connection=connection, headers={"n": 1}, message_id="m", declare=True
    )
    channel = connection.default_channel
    assert channel.queue_declare(queue, passive=True).message_count == 1
    message = channel.basic_get(queue, no_ack=True)
    assert message.decode() == {"to": "ada"}
    assert message.headers == {"n": 1}
    assert message.properties["delivery_mode"] == 2
    assert message.properties["message_id"] == "m"


def test_a_plain_name_is_declared_durable_only_if_it_does_not_exist(
    connection: Connection, queue: str, unique: str
) -> None:
    greenconn.publish(queue, 1, connection=connection, declare=True)
    # Declaring it again with the same arguments is allowed, with others not.
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, auto_delete=False)
    channel.close()
    other = f"{unique}-other"
    connection.default_channel.queue_declare(
        other, durable=True, auto_delete=False, arguments={"x-max-length": 1}
    )
    greenconn.publish(other, "as it is", connection=connection, declare=True)
    assert bodies_in(connection, other) == ["as it is"]
    connection.default_channel.queue_delete(other)


def test_an_exclusive_queue_of_another_connection_may_be_published_to(
    connection: Connection, unique: str
) -> None:
    connection.default_channel.queue_declare(unique, exclusive=True)
    greenconn.publish(unique, "mine", connection=connection, declare=True)
    assert bodies_in(connection, unique) == ["mine"]


def test_a_queue_object_is_declared_with_its_bindings(
    connection: Connection, queue: str, exchange: str
) -> None:
    bound = Queue(queue, Exchange(exchange), routing_key="k", max_length=5)
    greenconn.publish(bound, "direct", connection=connection, declare=True)
    greenconn.publish(Exchange(exchange), "bound", routing_key="k", connection=connection)
    assert bodies_in(connection, queue) == ["direct", "bound"]


def test_other_arguments_than_the_queue_has_are_named(connection: Connection, queue: str) -> None:
    greenconn.publish(queue, 1, connection=connection, declare=True)
    with pytest.raises(PublishRefused, match="durable") as caught:
        greenconn.publish(Queue(queue, durable=False), 2, connection=connection)
    assert isinstance(caught.value.__cause__, PreconditionFailed)
    greenconn.publish(queue, 3, connection=connection, declare=True)
    assert bodies_in(connection, queue) == [1, 3]


def test_an_exchange_without_queue_is_unroutable(connection: Connection, exchange: str) -> None:
    with pytest.raises(Unroutable) as caught:
        greenconn.publish(Exchange(exchange), 1, routing_key="k", connection=connection)
    assert (caught.value.exchange, caught.value.routing_key) == (exchange, "k")
    greenconn.publish(
        Exchange(exchange), 1, routing_key="k", mandatory=False, connection=connection
    )


def test_a_queue_that_was_deleted_is_declared_again_after_one_error(
    connection: Connection, queue: str
) -> None:
    for target in (queue, Queue(queue)):
        greenconn.publish(target, 1, connection=connection, declare=True)
        connection.default_channel.queue_delete(queue)
        with pytest.raises(Unroutable):
            greenconn.publish(target, 2, connection=connection, declare=True)
        greenconn.publish(target, 3, connection=connection, declare=True)
        assert bodies_in(connection, queue) == [3]
        connection.default_channel.queue_delete(queue)
        connection.session.life.declared_entities.clear()


def skip_unbounded(connection: Connection) -> None:
    if connection.transport.driver_type == "redis":
        pytest.skip("Redis lists have no bounds")


def test_a_full_queue_refuses(connection: Connection, queue: str) -> None:
    skip_unbounded(connection)
    full = Queue(queue, queue_arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    for number in range(2):
        greenconn.publish(full, number, connection=connection, declare=True)
    with pytest.raises(PublishNacked):
        greenconn.publish(full, 2, connection=connection, declare=True)
    assert bodies_in(connection, queue) == [0, 1]
    greenconn.publish(full, 3, connection=connection, declare=True)


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        (Exchange("greenconn-test-nowhere", no_declare=True), NotFound),
        (Exchange("greenconn-test-nowhere", passive=True), NotFound),
    ],
)
def test_refusals_have_the_broker_s_reply_as_cause(
    connection: Connection, target: Exchange, cause: type[Exception]
) -> None:
    with pytest.raises(PublishRefused) as caught:
        greenconn.publish(target, 1, connection=connection, declare=True)
    assert isinstance(caught.value.__cause__, cause)


def test_other_arguments_than_the_exchange_has_are_named(
    connection: Connection, exchange: str
) -> None:
    connection.default_channel.exchange_declare(exchange, "direct", auto_delete=False)
    with pytest.raises(PublishRefused, match="type") as caught:
        greenconn.publish(Exchange(exchange, type="topic", durable=False), 1, connection=connection)
    assert isinstance(caught.value.__cause__, PreconditionFailed)


def test_an_exchange_of_an_unknown_type_affects_nobody_else(
    connection: Connection, queue: str, exchange: str
) -> None:
    errors = run_together(
        connection,
        [(queue, number, {}) for number in range(20)]
        + [(Exchange(exchange, type="x-nobodys"), "evil", {})]
        + [(queue, number, {}) for number in range(20, 40)],
    )
    assert list(errors) == [20]
    assert isinstance(errors[20], PublishRefused)
    assert set(range(40)) <= set(bodies_in(connection, queue))


def run_together(
    connection: Connection, calls: list[tuple[Any, Any, dict[str, Any]]]
) -> dict[int, BaseException]:
    """Publish each in a greenlet; the errors by position."""
    greenlets = [
        gevent.spawn(_outcome, target, body, connection=connection, **options)
        for target, body, options in calls
    ]
    gevent.joinall(greenlets, timeout=WAIT, raise_error=True)
    assert all(each.ready() for each in greenlets)
    return {number: each.value for number, each in enumerate(greenlets) if each.value is not None}


def _outcome(*args: Any, **options: Any) -> Exception | None:
    try:
        greenconn.publish(*args, **options, declare=True)
    except Exception as exc:
        return exc
    return None


def test_only_the_culprits_are_refused(connection: Connection, queue: str, long: bool) -> None:
    for _ in range(20 if long else 3):
        greenconn.publish(queue, "first", connection=connection, declare=True)
        calls: list[tuple[Any, Any, dict[str, Any]]] = [
            (queue, number, {}) for number in range(100)
        ]
        calls[30] = (Exchange("greenconn-test-gone", no_declare=True), 30, {})
        calls[60] = (queue, 60, {"user_id": "foreign"})
        has_users = connection.transport.driver_type == "amqp"
        culprits = [30, 60] if has_users else [30]
        errors = run_together(connection, calls)
        assert sorted(errors) == culprits
        assert all(isinstance(exc, PublishRefused) for exc in errors.values())
        good = set(range(100)) - set(culprits)
        found = bodies_in(connection, queue)
        assert len(found) >= len(good)
        assert good <= set(found)


def test_many_greenlets_share_one_channel(connection: Connection, queue: str, long: bool) -> None:
    greenconn.publish(queue, "first", connection=connection, declare=True)
    link = publishing_link(connection)
    before = set(link.channels)
    number = 1000 if long else 100
    assert not run_together(connection, [(queue, each, {}) for each in range(number)])
    assert set(link.channels) == before
    assert sorted(bodies_in(connection, queue)[1:]) == list(range(number))


def test_absent_names_share_few_channels(connection: Connection, unique: str, long: bool) -> None:
    names = [f"{unique}-{number}" for number in range(1000 if long else 200)]
    connection.connect()
    greenconn.publish(names[0], 0, connection=connection, declare=True)
    link = publishing_link(connection)
    most = 0

    def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(link.channels))
            gevent.sleep(0.001)

    watcher = gevent.spawn(watch)
    errors = run_together(connection, [(name, name, {"timeout": None}) for name in names])
    watcher.kill()
    assert not errors
    # Two more: channel 0, or the default one, and the one that publishes.
    assert most <= 8 + 3
    for name in names:
        assert bodies_in(connection, name)[-1] == name
        connection.default_channel.queue_delete(name)


def test_killed_publishers_leave_everything_whole(connection: Connection, queue: str) -> None:
    greenconn.publish(queue, "first", connection=connection, declare=True)
    publishers = [
        gevent.spawn(greenconn.publish, queue, number, connection=connection, declare=True)
        for number in range(100)
    ]
    gevent.sleep(0)
    gevent.killall(publishers[::2])
    gevent.joinall(publishers[1::2], timeout=WAIT, raise_error=True)
    assert all(each.successful() for each in publishers[1::2])
    assert not run_together(connection, [(queue, number, {}) for number in range(100, 150)])
    found = bodies_in(connection, queue)
    assert set(range(1, 100, 2)) | set(range(100, 150)) <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("target_of", [str, Queue])
def test_publishers_interrupted_anywhere_leave_everything_whole(
    connection: Connection, unique: str, target_of: Callable[[str], Any]
) -> None:
    """From connecting and looking the queue up to the confirm."""
    numbers = count()
    names: list[str] = []
    lives: list[Connection] = []

    def publish() -> None:
        lives.append(connection.clone())
        names.append(f"{unique}-{next(numbers)}")
        greenconn.publish(target_of(names[-1]), "first", connection=lives[-1], declare=True)

    for run in interruptions(publish):
        life, name = lives.pop(), names[-1]
        assert run.was_interrupted or run.raised is None
        target = target_of(name)
        greenconn.publish(target, "second", connection=life, declare=True)
        greenconn.publish_many(target, ["third", "fourth"], connection=life, declare=True)
        life.close()
        assert bodies_in(connection, name)[-3:] == ["second", "third", "fourth"]
        connection.default_channel.queue_delete(name)


def test_timeouts_of_gevent_only_end_the_wait(connection: Connection, queue: str) -> None:
    greenconn.publish(queue, "first", connection=connection, declare=True)
    for number in range(30):
        with gevent.Timeout(number * 0.0001, False):  # type: ignore[arg-type]  # gevent takes it
            greenconn.publish(queue, number, connection=connection, declare=True)
    greenconn.publish(queue, "last", connection=connection, declare=True)
    assert bodies_in(connection, queue)[-1] == "last"


def test_urls_are_kept(unique: str) -> None:
    url = f"memory:///{unique}"
    greenconn.publish("q", 1, connection=url, declare=True)
    greenconn.publish("q", 2, connection=url, declare=True)
    with Connection(url) as connection:
        assert bodies_in(connection, "q") == [1, 2]
    memory.reset(unique)


def test_a_closed_connection_is_opened_again_and_can_be_closed_again(
    connection: Connection, queue: str
) -> None:
    greenconn.publish(queue, 1, connection=connection, declare=True)
    connection.close()
    greenconn.publish(queue, 2, connection=connection, declare=True)
    link = publishing_link(connection)
    connection.close()
    assert not link.is_open
    assert bodies_in(connection, queue) == [1, 2]


def test_after_a_switch_the_other_broker_is_meant(unique: str, amqp_url: str) -> None:
    with Connection(amqp_url) as connection:
        greenconn.publish(unique, "there", connection=connection, declare=True)
        connection.default_channel.queue_delete(unique)
        connection.switch(f"memory:///{unique}")
        greenconn.publish(unique, "here", connection=connection, declare=True)
        assert bodies_in(connection, unique) == ["here"]
    memory.reset(unique)


def test_another_thread_needs_a_connection_of_its_own(connection: Connection, queue: str) -> None:
    greenconn.publish(queue, 1, connection=connection, declare=True)
    caught: list[BaseException] = []

    def publish() -> None:
        try:
            greenconn.publish(queue, 2, connection=connection, declare=True)
        except BaseException as exc:
            caught.append(exc)
        finally:
            gevent.get_hub().destroy()

    if monkey.is_module_patched("threading"):
        pytest.skip("threads are greenlets here")
    thread = Thread(target=publish)
    thread.start()
    thread.join(WAIT)
    assert isinstance(caught[0], WrongHub)
    assert "clone" in str(caught[0])


def test_bodies_that_cannot_be_encoded_reach_nobody(connection: Connection, queue: str) -> None:
    with pytest.raises(EncodeError):
        greenconn.publish(queue, object(), connection=connection, declare=True)
    greenconn.publish(queue, 1, connection=connection, declare=True)
    assert bodies_in(connection, queue) == [1]


def test_headers_that_cannot_be_sent_affect_nobody_else(connection: Connection, queue: str) -> None:
    if connection.transport.driver_type == "memory":
        pytest.skip("the memory broker takes any object")
    calls: list[tuple[Any, Any, dict[str, Any]]] = [(queue, number, {}) for number in range(20)]
    calls[10] = (queue, 10, {"headers": {"x": object()}})
    errors = run_together(connection, calls)
    assert list(errors) == [10]
    assert isinstance(errors[10], ValueError)


# Batches


def test_a_batch_keeps_its_order(connection: Connection, queue: str, long: bool) -> None:
    number = 20_000 if long else 2500
    bodies = (each for each in range(number))
    assert (
        greenconn.publish_many(queue, bodies, connection=connection, timeout=WAIT, declare=True)
        == number
    )
    if not long:
        assert bodies_in(connection, queue) == list(range(number))
    assert greenconn.publish_many(queue, [], connection=connection, declare=True) == 0


def test_the_errors_of_a_batch_are_by_position(connection: Connection, queue: str) -> None:
    skip_unbounded(connection)
    full = Queue(queue, queue_arguments={"x-max-length": 3, "x-overflow": "reject-publish"})
    with pytest.raises(BatchPublishError, match="2 of 5 messages were not published") as caught:
        greenconn.publish_many(full, range(5), connection=connection, declare=True)
    assert sorted(caught.value.failed) == [3, 4]
    assert all(isinstance(exc, PublishNacked) for exc in caught.value.failed.values())
    assert caught.value.taken == 5
    assert bodies_in(connection, queue) == [0, 1, 2]


def test_a_body_of_a_batch_that_cannot_be_encoded_is_left_out(
    connection: Connection, queue: str
) -> None:
    with pytest.raises(BatchPublishError) as caught:
        greenconn.publish_many(queue, [0, object(), 2], connection=connection, declare=True)
    assert isinstance(caught.value.failed[1], EncodeError)
    assert list(caught.value.failed) == [1]
    assert bodies_in(connection, queue) == [0, 2]


def test_what_a_generator_gave_before_its_error_is_published(
    connection: Connection, queue: str
) -> None:
    def bodies() -> Iterator[int]:
        yield from range(1500)
        raise LookupError("no more")

    with pytest.raises(LookupError):
        greenconn.publish_many(queue, bodies(), connection=connection, declare=True)
    assert bodies_in(connection, queue) == list(range(1500))


def test_a_batch_of_unroutable_messages_fails_one_by_one(
    connection: Connection, exchange: str
) -> None:
    with pytest.raises(BatchPublishError) as caught:
        greenconn.publish_many(Exchange(exchange), range(3), connection=connection)
    assert [type(exc) for exc in caught.value.failed.values()] == [Unroutable] * 3


def test_a_batch_to_nowhere_is_given_up(connection: Connection) -> None:
    target = Exchange("greenconn-test-nowhere", passive=True)
    with pytest.raises(BatchPublishError, match="the others were not checked") as caught:
        greenconn.publish_many(target, iter(range(5000)), connection=connection, declare=True)
    assert caught.value.taken == len(caught.value.failed) < 5000
    with pytest.raises(BatchPublishError) as listed:
        greenconn.publish_many(target, list(range(5000)), connection=connection, declare=True)
    assert listed.value.taken == len(listed.value.failed) == 5000


def test_a_batch_that_closes_its_channel_goes_on_one_by_one(
    connection: Connection, queue: str
) -> None:
    target = Exchange("greenconn-test-nowhere", no_declare=True)
    others = gevent.spawn(
        greenconn.publish_many, queue, range(500), connection=connection, timeout=WAIT, declare=True
    )
    with pytest.raises(BatchPublishError) as caught:
        greenconn.publish_many(target, range(20), connection=connection, declare=True)
    assert [type(exc) for exc in caught.value.failed.values()] == [PublishRefused] * 20
    assert others.get(timeout=WAIT) == 500
    found = bodies_in(connection, queue)
    assert set(found) == set(range(500))


def test_a_batch_without_time(connection: Connection, queue: str) -> None:
    with pytest.raises(BatchPublishError) as caught:
        greenconn.publish_many(queue, [1, 2], connection=connection, timeout=0, declare=True)
    for exc in caught.value.failed.values():
        assert isinstance(exc, PublishTimeout)
        assert not exc.maybe_delivered


# Brokers that go away


@pytest.fixture
def own(own_rabbitmq: RabbitMQ) -> Iterator[Connection]:
    """A connection to a RabbitMQ that may be stopped."""
    with Connection(own_rabbitmq.url) as connection:
        yield connection


class Publishers:
    """A hundred greenlets that publish, one message after the other, until they are told to end."""

    def __init__(self, connection: Connection, queue: str, number: int = 100) -> None:
        self.returned: set[tuple[int, int]] = set()
        self.is_over = False
        self._greenlets = [
            gevent.spawn(self._publish, connection, queue, each) for each in range(number)
        ]

    def _publish(self, connection: Connection, queue: str, number: int) -> None:
        count = 0
        while not self.is_over:
            greenconn.publish(
                queue, [number, count], connection=connection, timeout=60, declare=True
            )
            self.returned.add((number, count))
            count += 1
            gevent.sleep(0.01)

    def wait_for(self, more: int) -> None:
        """Wait until *more* messages were published."""
        target = len(self.returned) + more
        with gevent.Timeout(WAIT):
            while len(self.returned) < target:
                for each in self._greenlets:
                    if each.ready():
                        each.get()
                gevent.sleep(0.01)

    def end(self) -> None:
        """End in good order."""
        self.is_over = True
        gevent.joinall(self._greenlets, timeout=WAIT, raise_error=True)
        assert all(each.ready() for each in self._greenlets)


@pytest.mark.parametrize("how", ["stop_app", "kill"])
@pytest.mark.sampled(1)
def test_nothing_that_was_published_is_lost_when_the_broker_restarts(
    own: Connection, own_rabbitmq: RabbitMQ, unique: str, how: str, long: bool
) -> None:
    own.default_channel.queue_declare(unique, durable=True, auto_delete=False)
    if how == "kill":
        own_rabbitmq.settle()
    publishers = Publishers(own, unique)
    for _ in range(3 if long else 1):
        publishers.wait_for(300)
        if how == "kill":
            own_rabbitmq.kill()
            own_rabbitmq.start()
        else:
            own_rabbitmq.stop_app()
            own_rabbitmq.start_app()
        publishers.wait_for(300)
    publishers.end()
    found = [tuple(each) for each in bodies_in(own, unique)]
    assert publishers.returned <= set(found)
    # Each greenlet's messages are in its order, whatever came twice.
    for number in range(100):
        counts = list(dict.fromkeys(count for who, count in found if who == number))
        assert counts == sorted(counts)
    own.default_channel.queue_delete(unique)


@pytest.mark.full
def test_a_batch_survives_a_restart(own: Connection, own_rabbitmq: RabbitMQ, unique: str) -> None:
    def bodies() -> Iterator[int]:
        for number in range(6000):
            if number == 3000:
                own_rabbitmq.stop_app()
                gevent.spawn_later(0.1, own_rabbitmq.start_app)
            yield number

    assert (
        greenconn.publish_many(unique, bodies(), connection=own, timeout=60, declare=True) == 6000
    )
    found = bodies_in(own, unique)
    assert list(dict.fromkeys(found)) == list(range(6000))
    own.default_channel.queue_delete(unique)


def test_a_memory_alarm_blocks_until_it_is_over(
    own: Connection, own_rabbitmq: RabbitMQ, unique: str
) -> None:
    greenconn.publish(unique, 0, connection=own, declare=True)
    link = publishing_link(own)
    own_rabbitmq.set_memory_alarm(True)
    with gevent.Timeout(WAIT):
        # The broker tells a connection only when that publishes.
        while link.flow_control.blocked is None:
            try:
                greenconn.publish(unique, "unconfirmed", connection=own, timeout=0.2, declare=True)
            except (PublishTimeout, ConnectionBlocked):
                pass
    with pytest.raises(ConnectionBlocked, match="alarm"):
        greenconn.publish(unique, 1, connection=own, timeout=0.2, declare=True)
    # Consuming goes on meanwhile: it has its own socket.
    assert own.default_channel.queue_declare(unique, passive=True).message_count >= 1
    waiting = gevent.spawn(greenconn.publish, unique, 2, connection=own, timeout=WAIT, declare=True)
    own_rabbitmq.set_memory_alarm(False)
    waiting.get(timeout=WAIT)
    found = bodies_in(own, unique)
    assert 1 not in found
    assert found[-1] == 2
    own.default_channel.queue_delete(unique)


@pytest.mark.full
def test_a_login_that_is_refused_is_reported_at_once(own_rabbitmq: RabbitMQ) -> None:
    url = own_rabbitmq.url.replace("guest:guest", "guest:wrong-secret")
    with gevent.Timeout(5.0), Connection(url) as connection:
        with pytest.raises(OperationalError, match="ACCESS_REFUSED") as caught:
            greenconn.publish("q", 1, connection=connection, timeout=WAIT, declare=True)
        with pytest.raises(BatchPublishError, match="ACCESS_REFUSED"):
            greenconn.publish_many("q", [1, 2], connection=connection, timeout=WAIT, declare=True)
    assert "wrong-secret" not in json.dumps(str(caught.value))
