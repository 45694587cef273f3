"""What a user expects of every transport, whole: from a large body to a consumer that is killed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.broker.link import LeasedLink
from greenconn.green.deadline import Deadline
from tests.fix_wires import until
from tests.integration.capabilities import Can, Kind, needs
from tests.integration.contract import Side
from tests.integration.processes import start

SOON = 30.0
#: Less than the longest wait of a claim.
QUICK = 15.0
LARGE = 256 * 1024

#: Binds a queue to a fan-out exchange, prints what comes, and keeps it.
HOLDER = """
import json
import sys
import gevent
import greenconn

def handle(body, message):
    print(body, flush=True)
    gevent.sleep(1000)

url, options, exchange, name = sys.argv[1:]
queue = greenconn.Queue(name, greenconn.Exchange(exchange, "fanout"))
with greenconn.Connection(url, transport_options=json.loads(options)) as connection:
    consumer = greenconn.spawn_consumer(queue, handle, connection=connection,
                                        prefetch_count=3, concurrency=3)
    assert consumer.wait_ready(20)
    print("ready", flush=True)
    consumer.join()
"""


def test_large_body(side: Side) -> None:
    channel, queue = side.open_queue()
    text = "é" * (LARGE // 2)
    data = bytes(range(256)) * (LARGE // 256)
    side.send(channel, text, "", queue)
    message = channel.prepare_message(
        data, content_type="application/data", content_encoding="binary"
    )
    channel.basic_publish_confirm(message, "", queue, timeout=SOON)
    assert side.get(channel, queue).body == text
    assert side.get(channel, queue).body == data


def test_unicode_everywhere(side: Side) -> None:
    channel = side.channel()
    exchange = f"{side.name('x')}-größe.✓"
    channel.exchange_declare(exchange, "topic", durable=False, auto_delete=False)
    side._exchanges.append(exchange)
    queue = side.queue(channel)
    channel.queue_bind(queue, exchange, "größe.*")
    headers = {"ключ": "значение ✓", "nested": {"ü": ["ö", "\u2028"]}}
    side.send(channel, "тело ✓ \U0001f600", exchange, "größe.✓", headers=headers)
    message = side.get(channel, queue)
    assert message.body == "тело ✓ \U0001f600"
    assert message.headers["ключ"] == "значение ✓"
    assert message.headers["nested"] == {"ü": ["ö", "\u2028"]}
    assert message.delivery_info["routing_key"] == "größe.✓"
    assert message.delivery_info["exchange"] == exchange


@needs(Can.NAMES)
def test_names_of_all_kinds(side: Side) -> None:
    channel = side.channel()
    for name in ("письма @home/☃", "a b\tc", "$%&", "x" * 150):
        queue = side.queue(channel, f"{side.name()}-{name}")
        side.send(channel, name, "", queue)
        assert side.get(channel, queue).body == name
        assert channel.queue_declare(queue, passive=True).queue == queue


@pytest.fixture
def connect(broker_kind: Kind, kind_url: str) -> Callable[[], Connection]:
    """Open a connection, for a ``with``, with the options of its kind."""

    def connect() -> Connection:
        return Connection(kind_url, transport_options=dict(broker_kind.options))

    return connect


def test_messages_wait_for_the_next_connection(
    connect: Callable[[], Connection], unique: str
) -> None:
    exchange = Exchange(f"{unique}-x", "direct")
    with connect() as connection, connect() as keeper:
        keeper.ensure_connection()
        queue = Queue(unique, exchange, "key")
        producer = connection.Producer(exchange=exchange, routing_key="key")
        for number in range(5):
            producer.publish({"n": number}, declare=[queue])
        held = queue(connection).get()
        assert held.payload == {"n": 0}
    with connect() as connection:
        bound: Any = queue(connection)
        bound.queue_declare(passive=True)
        payloads = []
        while (message := bound.get()) is not None:
            payloads.append(message.payload["n"])
            message.ack()
        assert sorted(payloads) == list(range(5))
        bound.delete()
        exchange(connection).delete()


@pytest.mark.sampled(3)
def test_hundred_consumers(
    broker_kind: Kind, connect: Callable[[], Connection], unique: str, long: bool
) -> None:
    count = 20 if broker_kind.is_slow and not long else 100
    names = [f"{unique}-{number}" for number in range(count)]
    got: Counter[str] = Counter()

    def handle(body: str, message: Any) -> None:
        got[body] += 1

    with connect() as connection:
        consumers = [
            greenconn.spawn_consumer(name, handle, connection=connection) for name in names
        ]
        assert all(each.wait_ready(SOON) for each in consumers)
        senders = [
            gevent.spawn(greenconn.publish, name, name, connection=connection, timeout=SOON)
            for name in names * (10 if long else 1)
        ]
        gevent.joinall(senders, raise_error=True)
        until(lambda: len(got) == count and sum(got.values()) >= len(senders), SOON)
        stops = [gevent.spawn(each.stop, SOON) for each in consumers]
        assert all(each.get() for each in stops)
        with connection.channel() as channel:
            deletes = [gevent.spawn(channel.queue_delete, name) for name in names]
            gevent.joinall(deletes, raise_error=True)


def test_consumers_of_one_connection_stop_one_after_another(
    broker_kind: Kind, connect: Callable[[], Connection], unique: str
) -> None:
    """Each stop ends the wait of a claim that was just begun anew for the others."""
    names = [f"{unique}-{number}" for number in range(5)]
    with connect() as connection:
        consumers = [greenconn.spawn_consumer(name, print, connection=connection) for name in names]
        assert all(each.wait_ready(SOON) for each in consumers)
        assert all(each.stop(QUICK) for each in consumers)
        with connection.channel() as channel:
            for name in names:
                channel.queue_delete(name)


@needs(Can.SERVER)
@pytest.mark.programs
def test_server_is_killed_and_comes_back(
    broker_kind: Kind, request: pytest.FixtureRequest, unique: str, long: bool
) -> None:
    if broker_kind.title == "AMQP" and not long:
        pytest.skip("a RabbitMQ takes its time to start: with --long")
    assert broker_kind.server is not None
    server: Any = request.getfixturevalue(broker_kind.server)
    keeps = Can.DURABLE not in broker_kind.lacks
    first, kept = unique, f"{unique}-kept"
    second = first if keeps else f"{unique}-anew"
    got: set[str] = set()

    def handle(body: str, message: Any) -> None:
        got.add(body)

    with Connection(server.url, transport_options=dict(broker_kind.options)) as connection:
        greenconn.publish(Queue(kept), "kept", connection=connection)
        consumer = greenconn.spawn_consumer(Queue(first), handle, connection=connection)
        greenconn.publish(Queue(first), "before", connection=connection)
        until(lambda: "before" in got, SOON)
        server.kill()
        publishing = gevent.spawn(
            greenconn.publish, Queue(second), "while away", connection=connection, timeout=60
        )
        gevent.sleep(0.3)
        server.start()
        publishing.get(timeout=60)
        # One that keeps nothing has no queue for the consumer that was there: another begins.
        other = None if keeps else greenconn.spawn_consumer(second, handle, connection=connection)
        greenconn.publish(Queue(second), "after", connection=connection, timeout=60)
        until(lambda: {"while away", "after"} <= got, 60)
        for each in (consumer, other):
            assert each is None or each.stop(SOON)
        if keeps:
            message = Queue(kept)(connection).get()
            assert message is not None
            assert message.payload == "kept"
            message.ack()
        for name in (first, second, kept):
            connection.default_channel.queue_delete(name)


@needs(Can.PROCESSES)
@pytest.mark.programs
@pytest.mark.sampled(3)
def test_killed_consumer_loses_nothing(
    broker_kind: Kind, kind_url: str, connect: Callable[[], Connection], unique: str, long: bool
) -> None:
    if broker_kind.is_slow and not long:
        pytest.skip("it takes 5 s with the stand-in: with --long")
    exchange = Exchange(f"{unique}-x", "fanout")
    holder = start(
        "-c", HOLDER, kind_url, json.dumps(dict(broker_kind.options)), exchange.name, unique
    )
    try:
        assert holder.line() == "ready"
        with connect() as connection:
            queue = Queue(unique, exchange)
            producer = connection.Producer(exchange=exchange, serializer="json")
            for number in range(5):
                producer.publish(number, declare=[queue])
            held = {int(holder.line()) for _ in range(3)}
            got: dict[int, bool] = {}

            def handle(body: int, message: Any) -> None:
                got[body] = bool(message.delivery_info["redelivered"])

            consumer = greenconn.spawn_consumer(unique, handle, connection=connection)
            until(lambda: len(got) == 2, SOON)
            assert not held & set(got)
            holder.signal(signal.SIGKILL)
            until(lambda: len(got) == 5, SOON)
            assert all(got[body] for body in held)
            assert consumer.stop(SOON)
            connection.default_channel.queue_delete(unique)
            connection.default_channel.exchange_delete(exchange.name)
    finally:
        holder.end()


@needs(Can.PROCESSES, Can.SHARED)
@pytest.mark.programs
@pytest.mark.sampled(2)
def test_binding_of_another_process_counts(
    broker_kind: Kind, kind_url: str, connect: Callable[[], Connection], unique: str, long: bool
) -> None:
    if broker_kind.is_slow and not long:
        pytest.skip("it takes 5 s with the stand-in: with --long")
    options = json.dumps(dict(broker_kind.options))
    exchange = Exchange(f"{unique}-x", "fanout")
    holder = start("-c", HOLDER, kind_url, options, exchange.name, unique)
    try:
        assert holder.line() == "ready"
        with connect() as connection:
            producer = connection.Producer(exchange=exchange, serializer="json")
            producer.publish(1, declare=[exchange])
            assert holder.line() == "1"
            holder.signal(signal.SIGKILL)
            connection.default_channel.queue_delete(unique)
            connection.default_channel.exchange_delete(exchange.name)
    finally:
        holder.end()


#: Consumes from a queue of each kind, and prints what comes.
SUBSCRIBER = """
import json
import sys
import greenconn
from greenconn import Exchange, Queue

def handle(body, message):
    print(message.delivery_info["routing_key"], body, flush=True)

url, options, name = sys.argv[1:]
queues = [
    Queue(f"{name}-own", Exchange(f"{name}-x"), f"{name}-own", exclusive=True, durable=False),
    Queue(f"{name}-auto", auto_delete=True, durable=False),
    Queue(f"{name}-durable"),
]
with greenconn.Connection(url, transport_options=json.loads(options)) as connection:
    consumers = [
        greenconn.spawn_consumer(each, handle, connection=connection) for each in queues
    ]
    for each in consumers:
        assert each.wait_ready(20)
    print("ready", flush=True)
    consumers[0].join()
"""
#: What one publishes while another is still suspended, or begins anew.
PROBE = "probe"


@needs(Can.PROCESSES)
@pytest.mark.programs
@pytest.mark.sampled(2)
def test_process_that_was_suspended_beyond_its_lease_begins_anew(
    broker_kind: Kind, kind_url: str, connect: Callable[[], Connection], unique: str, long: bool
) -> None:
    """Others may take it for dead; when it goes on, all its queues have all their messages."""
    if (broker_kind.is_slow or broker_kind.title == "AMQP") and not long:
        pytest.skip("its stand-in is slow, or nobody shares a lease with it: with --long")
    options = dict(broker_kind.options)
    names = [f"{unique}-{kind}" for kind in ("own", "auto", "durable")]
    program = start("-c", SUBSCRIBER, kind_url, json.dumps(options), unique)
    lines: list[str] = []
    reader = gevent.spawn(program.read_into, lines)
    try:
        until(lambda: lines == ["ready"], SOON)
        with connect() as connection:
            program.suspend(kind_url)
            suspended_at = monotonic()
            while monotonic() - suspended_at < 2.5 * options.get("lease", 1.0):
                with connect() as other:  # looks for the dead
                    try:
                        other.default_channel.queue_declare(names[0], passive=True)
                    except other.channel_errors:
                        pass  # it is exclusive, or gone with the dead
                gevent.sleep(0.1)
            program.signal(signal.SIGCONT)
            channel = connection.default_channel
            is_shared = Can.SHARED not in broker_kind.lacks

            def publish(queue: str, body: Any) -> None:
                message = channel.prepare_message(str(body), content_type="text/plain")
                exchange = f"{unique}-x" if is_shared and queue == names[0] else ""
                channel.basic_publish_confirm(message, exchange, queue, timeout=SOON)

            def is_probed() -> bool:
                for name in names:
                    publish(name, PROBE)
                gevent.sleep(0.1)
                return {f"{name} {PROBE}" for name in names} <= set(lines)

            until(is_probed, SOON)
            for number in range(10):
                for name in names:
                    publish(name, number)
            expected = {f"{name} {number}" for name in names for number in range(10)}
            until(lambda: expected <= set(lines), SOON)
    finally:
        reader.kill()
        program.end()
        with connect() as connection:
            for name in names:
                try:
                    connection.channel().queue_delete(name)
                except connection.channel_errors:
                    pass  # it is the program's until its lease ends
            connection.default_channel.exchange_delete(f"{unique}-x")


@pytest.fixture
def late(broker_kind: Kind, connect: Callable[[], Connection], unique: str) -> Iterator[Connection]:
    """A connection whose messages have leases that are renewed, with a queue of the test's name."""
    if broker_kind.title in ("beanstalk", "SQS"):
        pytest.skip("its server counts the lease, and may tell of its end late")
    with connect() as connection:
        link = connection.default_channel.connection
        if not isinstance(link, LeasedLink) or link.settler.renewal_interval is None:
            pytest.skip("the connection holds messages")
        queue = Queue(unique)(connection.default_channel)
        queue.declare()
        yield connection
        queue.delete()


@contextmanager
def taking_over(late: Connection, other: Connection, queue: str) -> Iterator[list[Any]]:
    """Renew the leases of *late* no more, as if its process were suspended; yield what *other* gets."""
    link: Any = late.default_channel.connection
    link.leases.stop()
    taken: list[Any] = []
    consumer = greenconn.spawn_consumer(
        queue, lambda body, message: taken.append(body), connection=other
    )
    yield taken
    assert consumer.stop(SOON)


@needs(Can.PROCESSES)
@pytest.mark.sampled(4)
def test_a_lease_that_has_ended_is_not_confirmed(
    late: Connection, connect: Callable[[], Connection], unique: str
) -> None:
    """A holder that asks, as the leader of a schedule does, learns that another has its message."""
    link: Any = late.default_channel.connection
    queue = Queue(unique)(late.default_channel)
    with connect() as other:
        for body in range(3):
            greenconn.publish(queue, body, connection=late)
        messages: list[Any] = [queue.get() for _ in range(3)]
        assert all(link.leases.confirm(each.handle, Deadline(SOON)) for each in messages)
        with taking_over(late, other, unique) as taken:
            until(lambda: len(taken) == 3, SOON)
            confirmed = [link.leases.confirm(each.handle, Deadline(SOON)) for each in messages]
            assert confirmed == [False] * 3, taken
            # Which changes nothing.
            for each, settle in zip(messages, ("ack", "requeue", "reject"), strict=True):
                getattr(each, settle)()
            late.flush(SOON)
            greenconn.publish(queue, "last", connection=late)
            until(lambda: taken[-1] == "last", SOON)
            assert sorted(taken[:-1]) == [0, 1, 2]


@needs(Can.PROCESSES)
@pytest.mark.sampled(4)
def test_no_handler_begins_with_what_others_have_taken(
    late: Connection, connect: Callable[[], Connection], unique: str
) -> None:
    """A process goes on that was suspended: what it had received is stale."""
    link: Any = late.default_channel.connection
    with connect() as other:
        lost: list[int] = []
        late.default_channel.events["lease_lost"].add(lost.append)
        begun: list[Any] = []
        goes_on = Event()

        def handle(body: Any, message: Any) -> None:
            begun.append(body)
            goes_on.wait(SOON)

        suspended = greenconn.spawn_consumer(unique, handle, connection=late, prefetch_count=3)
        assert suspended.wait_ready(SOON)
        for body in range(3):
            greenconn.publish(unique, body, connection=late)
        until(lambda: suspended.stats()["received"] == 3, SOON)
        with taking_over(late, other, unique) as taken:
            until(lambda: sorted(taken) == [0, 1, 2], SOON)
            link.leases.renew()
            until(lambda: lost == [3] or link.lost is not None, SOON)
            goes_on.set()
            until(lambda: suspended.stats()["handled"] == 1, SOON)
            assert begun == [0]
            assert suspended.stop(SOON)
        assert sorted(taken) == [0, 1, 2]


#: Owns a queue alone, and is the only one who consumes from another.
OWNER = """
import json
import sys
import gevent
import greenconn
from greenconn import Exchange, Queue

url, options, name = sys.argv[1:]
news = Exchange(f"{name}-x", "direct", durable=True)
with greenconn.Connection(url, transport_options=json.loads(options)) as connection:
    channel = connection.default_channel
    Queue(f"{name}-own", news, "own", exclusive=True, durable=False)(channel).declare()
    Queue(f"{name}-auto", news, "auto", auto_delete=True, durable=False)(channel).declare()
    channel.basic_consume(f"{name}-auto", callback=print)
    print("ready", flush=True)
    gevent.sleep(1000)
"""


@needs(Can.PROCESSES)
@pytest.mark.programs
@pytest.mark.sampled(3)
def test_what_a_killed_process_owned_is_free_after_its_lease(
    broker_kind: Kind, kind_url: str, connect: Callable[[], Connection], unique: str, long: bool
) -> None:
    """Its exclusive queue can be declared by others, and nothing is bound to what is gone."""
    if broker_kind.title == "SQS" and not long:
        pytest.skip("nobody locks a queue of SQS: with --long")
    options = json.dumps(dict(broker_kind.options))
    program = start("-c", OWNER, kind_url, options, unique)
    try:
        assert program.line().strip() == "ready"
        program.signal(signal.SIGKILL)
        name = f"{unique}-own"

        def is_free() -> bool:
            try:
                connection.channel().queue_declare(name, durable=True, auto_delete=False)
            except connection.channel_errors:
                gevent.sleep(0.1)
                return False
            return True

        with connect() as connection:
            until(is_free, SOON)
            connection.default_channel.queue_delete(name)
            connection.default_channel.queue_delete(f"{unique}-auto")
            connection.default_channel.exchange_delete(f"{unique}-x")
    finally:
        program.end()


def test_a_header_that_cannot_be_sent_is_named_and_affects_nobody_else(
    broker_kind: Kind, connect: Callable[[], Connection], unique: str
) -> None:
    if broker_kind.url is None:
        pytest.skip("the memory broker takes any object")

    class Secret:
        def __repr__(self) -> str:
            return "do not tell"

    with connect() as connection:
        greenconn.publish(unique, "before", connection=connection, declare=True)
        link = connection.session.life.link
        headers = {"fine": "do not tell", "token": [Secret()]}
        publishers = [
            gevent.spawn(greenconn.publish, unique, number, connection=connection)
            for number in range(5)
        ]
        with pytest.raises(ValueError, match="header 'token': a value of type list") as caught:
            greenconn.publish(unique, "never", connection=connection, headers=headers)
        assert "do not tell" not in str(caught.value)
        gevent.joinall(publishers, raise_error=True)
        assert connection.session.life.link is link
        channel = connection.channel()
        assert channel.queue_declare(unique, passive=True).message_count == 6
        channel.queue_delete(unique)
