"""``greenconn.rpc`` over the memory broker and RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic
from typing import Any, TypeAlias

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, ConsumerGreenlet, Exchange, Queue, rpc
from greenconn.exceptions import (
    ContentDisallowed,
    NotFound,
    OperationalError,
    PublishTimeout,
    RemoteError,
    ReplyTimeout,
    Unroutable,
)
from greenconn.transport import memory
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_interrupts import interruptions

WAIT = 30.0

Serve: TypeAlias = Callable[..., ConsumerGreenlet]


@pytest.fixture(params=["memory", "amqp", "redis"])
def connection(request: pytest.FixtureRequest, unique: str) -> Iterator[Connection]:
    """A connection over each transport in turn."""
    is_memory = request.param == "memory"
    url = f"memory:///{unique}" if is_memory else request.getfixturevalue(f"{request.param}_url")
    with Connection(url) as connection:
        yield connection
    if is_memory:
        memory.reset(unique)


@pytest.fixture
def serve(connection: Connection, unique: str) -> Iterator[Serve]:
    """``serve(function)`` starts a server of the queue ``unique``; stopped after the test."""
    servers: list[ConsumerGreenlet] = []

    def start(function: Callable[[Any], Any], **options: Any) -> ConsumerGreenlet:
        server = rpc.spawn_server(unique, function, connection=connection, **options)
        servers.append(server)
        assert server.wait_ready(WAIT)
        return server

    yield start
    for server in servers:
        server.stop(WAIT)
    connection.default_channel.queue_delete(unique)


class Broken(Exception):
    """What a server may raise."""


def double(body: Any) -> Any:
    """A function to serve."""
    return body * 2


def waiting(connection: Connection, queue: str) -> int:
    """How many messages wait in a queue."""
    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


@pytest.mark.parametrize("body", [21, "text", [1, 2], b"bytes", ""])
def test_the_result_is_returned(
    serve: Serve, connection: Connection, unique: str, body: Any
) -> None:
    serve(double)
    assert rpc.call(unique, body, connection=connection) == body * 2
    assert rpc.call(Queue(unique), body, connection=connection) == body * 2


def test_none_is_a_result(serve: Serve, connection: Connection, unique: str) -> None:
    serve(lambda body: None)
    assert rpc.call(unique, {"a": 1}, connection=connection) is None


def test_each_caller_gets_its_own_answer(
    serve: Serve, connection: Connection, unique: str, long: bool
) -> None:
    serve(double, concurrency=20)
    rounds = 100 if long else 10

    def calls(number: int) -> bool:
        return all(
            rpc.call(unique, [number, each], connection=connection) == [number, each] * 2
            for each in range(rounds)
        )

    callers = [gevent.spawn(calls, number) for number in range(100)]
    gevent.joinall(callers, timeout=WAIT, raise_error=True)
    assert [each.value for each in callers] == [True] * 100


def test_the_late_reply_to_a_killed_caller_reaches_nobody(
    serve: Serve, connection: Connection, unique: str
) -> None:
    asked, go_on = Event(), Event()

    def slow(body: Any) -> Any:
        if body == "slow":
            asked.set()
            go_on.wait(WAIT)
        return body

    serve(slow, concurrency=2)
    killed = gevent.spawn(rpc.call, unique, "slow", connection=connection)
    asked.wait(WAIT)
    killed.kill()
    others = [gevent.spawn(rpc.call, unique, each, connection=connection) for each in range(5)]
    go_on.set()
    gevent.joinall(others, timeout=WAIT, raise_error=True)
    assert [each.value for each in others] == list(range(5))


def test_callers_interrupted_anywhere_leave_the_next_one_alone(
    serve: Serve, connection: Connection, unique: str
) -> None:
    serve(double, concurrency=4)
    numbers = count()

    def ask() -> tuple[int, Any]:
        number = next(numbers)
        return number, rpc.call(unique, [number], connection=connection, timeout=WAIT)

    for run in interruptions(ask):
        for number, answer in [run.result or (0, [0, 0]), ask()]:
            assert answer == [number] * 2


def test_a_reply_that_does_not_come_in_time(
    serve: Serve, connection: Connection, unique: str
) -> None:
    go_on = Event()

    def slow(body: Any) -> Any:
        go_on.wait(WAIT)
        return body

    serve(slow, concurrency=2)
    began = monotonic()
    with pytest.raises(ReplyTimeout, match="within 0.3 s"):  # noqa: RUF043
        rpc.call(unique, 1, connection=connection, timeout=0.3)
    assert 0.3 <= monotonic() - began < WAIT
    go_on.set()
    assert rpc.call(unique, 2, connection=connection) == 2


def test_without_time_nothing_is_asked(serve: Serve, connection: Connection, unique: str) -> None:
    asked: list[Any] = []
    serve(asked.append)
    with pytest.raises(PublishTimeout) as caught:
        rpc.call(unique, 1, connection=connection, timeout=0)
    assert not caught.value.maybe_delivered
    rpc.call(unique, 2, connection=connection)
    assert asked == [2]


def test_what_the_function_raises_is_raised_here(
    serve: Serve, connection: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    errors = {"value": ValueError("no value"), "own": Broken("it broke")}

    def fail(body: str) -> None:
        raise errors[body]

    serve(fail)
    with pytest.raises(RemoteError, match="ValueError: no value") as caught:
        rpc.call(unique, "value", connection=connection)
    assert caught.value.remote_type == "ValueError"
    with pytest.raises(RemoteError, match="it broke") as caught:
        rpc.call(unique, "own", connection=connection)
    assert caught.value.remote_type == f"{__name__}.Broken"
    with pytest.raises(RemoteError) as caught:
        rpc.call(unique, "other", connection=connection)
    assert caught.value.remote_type == "KeyError"
    assert caplog.text.count("fail of queue ") == 3


def test_failed_calls_are_not_handled_again(
    serve: Serve, connection: Connection, unique: str
) -> None:
    asked: list[Any] = []

    def fail(body: Any) -> None:
        asked.append(body)
        raise Broken

    server = serve(fail)
    with pytest.raises(RemoteError):
        rpc.call(unique, 1, connection=connection)
    assert server.stop(WAIT)
    assert waiting(connection, unique) == 0
    assert asked == [1]


def test_a_result_that_cannot_be_sent(serve: Serve, connection: Connection, unique: str) -> None:
    serve(lambda body: object())
    with pytest.raises(RemoteError, match="EncodeError"):
        rpc.call(unique, 1, connection=connection)


def test_a_request_that_the_server_does_not_accept(
    serve: Serve, connection: Connection, unique: str
) -> None:
    serve(double, accept=["json"])
    with pytest.raises(RemoteError, match="ContentDisallowed"):
        rpc.call(unique, 1, connection=connection, serializer="pickle")
    assert rpc.call(unique, 1, connection=connection) == 2


def test_a_function_that_takes_too_long(serve: Serve, connection: Connection, unique: str) -> None:
    serve(lambda body: gevent.sleep(WAIT), handler_timeout=0.1)
    with pytest.raises(RemoteError, match="Timeout"):
        rpc.call(unique, 1, connection=connection)


def test_a_function_that_is_interrupted(serve: Serve, connection: Connection, unique: str) -> None:
    begun = Event()

    def wait(body: Any) -> None:
        begun.set()
        Event().wait()

    server = serve(wait)
    calling = gevent.spawn(rpc.call, unique, 1, connection=connection, message_id="one")
    assert begun.wait(WAIT)
    assert server.interrupt("one")
    with pytest.raises(RemoteError, match="'one' was cancelled"):
        calling.get(timeout=WAIT)


def test_replies_of_other_serializers_must_be_accepted(
    serve: Serve, connection: Connection, unique: str
) -> None:
    serve(lambda body: {1, 2}, serializer="pickle")
    assert rpc.call(unique, 1, connection=connection, accept=["pickle"]) == {1, 2}
    with pytest.raises(ContentDisallowed):
        rpc.call(unique, 1, connection=connection)


def test_a_queue_that_does_not_exist_is_reported_at_once_and_not_made(
    connection: Connection, unique: str
) -> None:
    for target in (unique, Queue(unique)):
        began = monotonic()
        with pytest.raises(Unroutable, match=f"'{unique}' .* reached no queue: start its server"):
            rpc.call(target, 1, connection=connection, timeout=WAIT)
        assert monotonic() - began < WAIT / 2
    with connection.channel() as channel, pytest.raises(NotFound):
        channel.queue_declare(unique, passive=True)


def test_a_message_that_wants_no_reply(serve: Serve, connection: Connection, unique: str) -> None:
    handled = Event()
    server = serve(lambda body: handled.set())
    greenconn.publish(unique, 1, connection=connection, declare=True)
    assert handled.wait(WAIT)
    assert server.stop(WAIT)
    assert waiting(connection, unique) == 0


def test_replies_have_the_identifiers_of_their_requests(
    serve: Serve, connection: Connection, unique: str
) -> None:
    serve(double)
    replies = f"{unique}-replies"
    identifiers = ["1", "2", "", "x" * 63, "x" * 255, "\N{SNOWMAN}" * 64, None]
    with connection.SimpleQueue(replies) as queue:
        for number, identifier in enumerate(identifiers):
            greenconn.publish(
                unique,
                number,
                connection=connection,
                reply_to=replies,
                correlation_id=identifier,
            )
            reply = queue.get(timeout=WAIT)
            assert reply.payload == 2 * number
            assert reply.properties.get("correlation_id") == identifier
            assert reply.properties["delivery_mode"] == 1
            reply.ack()
    connection.default_channel.queue_delete(replies)


def test_any_server_that_knows_the_properties_may_answer(
    connection: Connection, unique: str
) -> None:
    def answer(body: Any, message: Any) -> None:
        producer = connection.Producer()
        for correlation_id in ("unknown", message.properties["correlation_id"], "", None):
            producer.publish(
                {"answer": body},
                routing_key=message.properties["reply_to"],
                correlation_id=correlation_id,
            )

    server = greenconn.spawn_consumer(unique, answer, connection=connection)
    assert server.wait_ready(WAIT)
    assert rpc.call(unique, 1, connection=connection) == {"answer": 1}
    assert rpc.call(unique, 2, connection=connection) == {"answer": 2}
    server.stop(WAIT)
    connection.default_channel.queue_delete(unique)


def test_a_server_may_call_another_one(serve: Serve, connection: Connection, unique: str) -> None:
    def ask(body: int) -> Any:
        return body if not body else [body, rpc.call(unique, body - 1, connection=connection)]

    serve(ask, concurrency=5)
    assert rpc.call(unique, 3, connection=connection) == [3, [2, [1, 0]]]


def test_calls_share_one_channel(serve: Serve, connection: Connection, unique: str) -> None:
    serve(double, concurrency=10)
    rpc.call(unique, 1, connection=connection)
    publisher = greenconn.defaults.publishing_connection(connection)
    before = set(publisher.session.life.link.channels)
    calls = [gevent.spawn(rpc.call, unique, each, connection=connection) for each in range(50)]
    gevent.joinall(calls, timeout=WAIT, raise_error=True)
    assert set(publisher.session.life.link.channels) == before


def test_a_call_is_one_send_and_one_receive(amqp_url: str, unique: str) -> None:
    queue, count = Queue(unique, expires=300), 50
    with Connection(amqp_url) as remote, Connection(amqp_url) as connection:
        server = rpc.spawn_server(queue, double, connection=remote)
        assert server.wait_ready(WAIT)
        rpc.call(unique, 1, connection=connection)
        stream = greenconn.defaults.publishing_connection(connection).session.life.link.stream
        sends, receives = stream.writer.sends, stream.receives
        for number in range(count):
            assert rpc.call(unique, number, connection=connection) == 2 * number
        assert stream.writer.sends - sends == count
        # A reply may come in two pieces, and heartbeats come too.
        assert count <= stream.receives - receives <= count + 5
        server.stop(WAIT)


def test_closing_the_connection_ends_the_calls(
    serve: Serve, connection: Connection, unique: str
) -> None:
    asked, go_on = Event(), Event()

    def slow(body: Any) -> Any:
        asked.set()
        go_on.wait(WAIT)

    serve(slow)
    with Connection(connection.as_uri(include_password=True)) as caller:
        calls = [gevent.spawn(rpc.call, unique, 1, connection=caller) for _ in range(3)]
        asked.wait(WAIT)
        caller.close()
        for call in calls:
            with pytest.raises(OperationalError, match=r"may have been executed|closed"):
                call.get(timeout=WAIT)
    go_on.set()


def test_a_lost_connection_ends_the_calls_and_the_next_one_works(
    serve: Serve, connection: Connection, unique: str
) -> None:
    asked, go_on = Event(), Event()

    def slow(body: Any) -> Any:
        asked.set()
        go_on.wait(WAIT)
        return body

    serve(slow, concurrency=10)
    with Connection(connection.as_uri(include_password=True)) as caller:
        calls = [gevent.spawn(rpc.call, unique, each, connection=caller) for each in range(5)]
        asked.wait(WAIT)
        publisher = greenconn.defaults.publishing_connection(caller)
        link = publisher.session.life.link
        link.end(ConnectionResetError("cut"))
        for call in calls:
            with pytest.raises(OperationalError, match="may have been executed"):
                call.get(timeout=WAIT)
        go_on.set()
        assert rpc.call(unique, "next", connection=caller) == "next"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reply_to": "q"}, "reply_to"),
        ({"correlation_id": "c"}, "correlation_id"),
        ({"tiemout": 1}, "tiemout"),
        ({"exchange": "x"}, "exchange"),
        ({"timeout": "1"}, "timeout"),
    ],
)
def test_wrong_options_of_a_call(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        rpc.call("q", 1, connection="memory://", **options)


def test_an_exchange_is_no_server() -> None:
    with pytest.raises(TypeError, match="name of a queue"):
        rpc.call(Exchange("x"), 1, connection="memory://")  # type: ignore[call-overload]


@pytest.mark.parametrize("option", ["retry", "batch_size", "no_ack", "on_decode_error", "foo"])
def test_wrong_options_of_a_server(option: str) -> None:
    options: dict[str, Any] = {option: 1}
    with pytest.raises(TypeError, match=option):
        rpc.spawn_server("q", double, connection="memory://", **options)


def test_a_server_needs_a_function() -> None:
    with pytest.raises(TypeError, match="callable"):
        rpc.spawn_server("q", None, connection="memory://")  # type: ignore[arg-type]


@pytest.mark.full
def test_servers_and_callers_survive_a_restart(own_rabbitmq: RabbitMQ, unique: str) -> None:
    with Connection(own_rabbitmq.url) as connection:
        server = rpc.spawn_server(unique, double, connection=connection, concurrency=5)
        assert server.wait_ready(WAIT)
        assert rpc.call(unique, 1, connection=connection) == 2
        own_rabbitmq.stop_app()
        early = gevent.spawn(rpc.call, unique, 2, connection=connection, timeout=WAIT)
        early.join(timeout=0.2)
        own_rabbitmq.start_app()
        # Asked while the broker was away: nothing was sent then, so it waits.
        assert early.get(timeout=WAIT) == 4
        assert rpc.call(unique, 3, connection=connection) == 6
        server.stop(WAIT)
        connection.default_channel.queue_delete(unique)
