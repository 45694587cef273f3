"""kombu and greenconn on one RabbitMQ: each reads what the other wrote, and what it gave back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import Timeout

import greenconn
from greenconn import serialization
from tests.integration.contract import SOON, collecting

kombu: Any = pytest.importorskip("kombu")

SERIALIZERS = ["json", "pickle", "yaml", "msgpack"]
COMPRESSIONS = [None, "zlib", "bzip2", "lzma"]
DIRECTIONS = [("kombu", "greenconn"), ("greenconn", "kombu")]

Side = tuple[Any, Any]
Sides = Callable[[str], Side]


@pytest.fixture
def side(amqp_url: str) -> Iterator[Sides]:
    """A library by its name, and a new connection of it."""
    opened: list[Any] = []

    def side(name: str) -> Side:
        library = greenconn if name == "greenconn" else kombu
        opened.append(library.Connection(amqp_url))
        return library, opened[-1]

    yield side
    for each in opened:
        each.close()


@pytest.fixture(autouse=True)
def _all_serializers() -> Iterator[None]:
    for library in (kombu, serialization):
        library.enable_insecure_serializers()
    yield
    for library in (kombu, serialization):
        library.disable_insecure_serializers(["json"])


def consumed(into: Side, queues: list[Any], count: int, **options: Any) -> list[Any]:
    """Consume and acknowledge so many messages: bodies and messages."""
    library, connection = into
    got: list[Any] = []

    def take(body: Any, message: Any) -> None:
        message.ack()
        got.append((body, message))

    with Timeout(SOON), library.Consumer(connection, queues, callbacks=[take], **options):
        while len(got) < count:
            try:
                connection.drain_events(timeout=0.05)
            except TimeoutError:
                pass
            gevent.sleep(0)  # kombu blocks the hub of an unpatched process
    return got


def declared(out: Side, name: str, **options: Any) -> Any:
    """Make a queue that goes by itself."""
    library, connection = out
    queue = library.Queue(name, durable=False, expires=60, **options)
    queue(connection.default_channel).declare()
    return queue


def sent(connection: Any) -> None:
    """Wait until the broker has what was published on the default channel."""
    connection.default_channel.queue_declare("", exclusive=True)


@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_bodies_headers_and_properties(
    sender: str, receiver: str, serializer: str, compression: str | None, side: Sides, unique: str
) -> None:
    if serializer == "msgpack":
        pytest.importorskip("msgpack")
    out, into = side(sender), side(receiver)
    declared(out, unique)
    body = {"text": "caf\u00e9", "list": [1, 2.5, None, True], "deep": {"a": "b" * 500}}
    out[0].Producer(out[1]).publish(
        body,
        routing_key=unique,
        serializer=serializer,
        compression=compression,
        headers={"mine": {"n": 1}, "list": [1, "two"]},
        correlation_id="cid",
        reply_to="me",
        message_id="mid",
        priority=3,
        expiration=60,
    )
    queue = into[0].Queue(unique, no_declare=True)
    ((found, message),) = consumed(
        into, [queue], 1, accept=["json", "pickle", "yaml", "msgpack"], auto_declare=False
    )
    assert found == body
    assert message.headers["mine"] == {"n": 1}
    assert message.headers["list"] == [1, "two"]
    properties = message.properties
    names = ("correlation_id", "reply_to", "message_id", "priority", "delivery_mode", "expiration")
    assert [properties[name] for name in names] == ["cid", "me", "mid", 3, 2, "60000"]
    assert message.delivery_info["routing_key"] == unique


@pytest.mark.parametrize("body", [b"\x00\xff", "t\u00e9xt", ""])
@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
def test_bodies_that_are_not_serialised(
    sender: str, receiver: str, body: Any, side: Sides, unique: str
) -> None:
    out, into = side(sender), side(receiver)
    declared(out, unique)
    out[0].Producer(out[1]).publish(body, routing_key=unique)
    queue = into[0].Queue(unique, no_declare=True)
    ((found, _),) = consumed(into, [queue], 1, auto_declare=False)
    assert found == body or (body == "" and found in ("", b""))


@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
def test_priorities(sender: str, receiver: str, side: Sides, unique: str) -> None:
    out, into = side(sender), side(receiver)
    declared(out, unique, max_priority=9)
    producer = out[0].Producer(out[1])
    for number, priority in enumerate([0, 9, 5, 3, 9]):
        producer.publish(number, routing_key=unique, priority=priority)
    sent(out[1])
    queue = into[0].Queue(unique, no_declare=True)
    got = consumed(into, [queue], 5, prefetch_count=1, auto_declare=False)
    assert [body for body, _ in got] == [1, 4, 2, 3, 0]


@pytest.mark.parametrize(("sender", "receiver"), DIRECTIONS)
@pytest.mark.parametrize(
    ("kind", "binding", "key"), [("topic", "a.#", "a.b"), ("direct", "k", "k"), ("fanout", "", "x")]
)
def test_exchanges(
    sender: str, receiver: str, kind: str, binding: str, key: str, side: Sides, unique: str
) -> None:
    out, into = side(sender), side(receiver)
    exchange = into[0].Exchange(unique, kind, durable=False, auto_delete=True)
    queues = [declared(into, f"{unique}.{n}", exchange=exchange, routing_key=binding) for n in "ab"]
    # The other one declares the same, and finds it equivalent.
    same = out[0].Exchange(unique, kind, durable=False, auto_delete=True)
    out[0].Producer(out[1], same).publish("hello", routing_key=key)
    got = consumed(into, queues, 2)
    assert [body for body, _ in got] == ["hello", "hello"]


@pytest.mark.parametrize(("first", "second"), DIRECTIONS)
def test_what_one_had_not_settled_is_delivered_to_the_other(
    first: str, second: str, side: Sides, unique: str
) -> None:
    one, other = side(first), side(second)
    declared(other, unique)
    producer = other[0].Producer(other[1])
    for number in range(3):
        producer.publish(number, routing_key=unique)
    sent(other[1])
    channel = one[1].channel()
    held = [channel.basic_get(unique) for _ in range(3)]
    held = [channel.message_to_python(each) for each in held]
    held[0].requeue()
    held[1].ack()
    one[1].close()  # the third is not answered
    queue = other[0].Queue(unique, no_declare=True)
    got = consumed(other, [queue], 2, auto_declare=False)
    assert [body for body, _ in got] == [0, 2]
    assert all(message.delivery_info["redelivered"] for _, message in got)


@pytest.mark.parametrize(("client", "server"), DIRECTIONS)
def test_replies(client: str, server: str, side: Sides, unique: str) -> None:
    asking, answering = side(client), side(server)
    requests = declared(answering, unique)
    replies = declared(asking, f"{unique}.replies", exclusive=True)
    asking[0].Producer(asking[1]).publish(
        [20, 3], routing_key=unique, reply_to=replies.name, correlation_id="1"
    )
    ((numbers, request),) = consumed(answering, [requests], 1)
    exchange, producer = answering[0].Exchange(""), answering[0].Producer(answering[1])
    common = importlib.import_module(f"{server}.common")
    common.send_reply(exchange, request, sum(numbers), producer)
    ((total, reply),) = consumed(asking, [replies], 1)
    assert (total, reply.properties["correlation_id"]) == (23, "1")


def test_both_work_on_one_queue(side: Sides, unique: str, long: bool) -> None:
    """Workers of both kinds share the messages: each is handled once."""
    count = 2000 if long else 100
    theirs, ours = side("kombu"), side("greenconn")
    declared(theirs, unique)
    got: list[Any] = []
    consumer = collecting(ours[1], unique, got, prefetch_count=5)
    producer = theirs[0].Producer(theirs[1])
    for number in range(count):
        producer.publish(number, routing_key=unique)
    queue = theirs[0].Queue(unique, no_declare=True)

    def take(body: Any, message: Any) -> None:
        message.ack()
        got.append(body)

    with (
        Timeout(SOON * 2),
        theirs[0].Consumer(
            theirs[1], [queue], callbacks=[take], prefetch_count=5, auto_declare=False
        ),
    ):
        while len(got) < count:
            try:
                theirs[1].drain_events(timeout=0.01)
            except TimeoutError:
                pass
            gevent.sleep(0)
    consumer.stop(SOON)
    assert sorted(got) == list(range(count))
