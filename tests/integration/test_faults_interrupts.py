"""Public calls that are interrupted at each of their switches leave everything as it should be."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import LimitExceeded, Unroutable
from greenconn.green.hub import turn
from greenconn.green.slot import Slot
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from greenconn.simple import SimpleQueue
from greenconn.transport import memory
from greenconn.transport.amqp.channel import Channel
from greenconn.transport.amqp.message import Delivery
from greenconn.transport.amqp.rpc import Call
from greenconn.transport.base import Link
from greenconn.transport.memory.channel import Channel as MemoryChannel
from greenconn.transport.redis.channel import Channel as RedisChannel
from greenconn.transport.redis.message import Delivery as RedisDelivery
from greenconn.transport.redis.sent import Sent
from greenconn.wire.confirms import Outstanding
from tests.fix_interrupts import INTERRUPTIONS, Interruption, Run, interruptions
from tests.fix_relay import Relay
from tests.fix_wires import until

SOON = 20.0
#: What must not pile up.
KINDS = (
    *(Slot, Call, Outstanding, Sent, Link, gevent.Timeout),
    *(Delivery, RedisDelivery, Channel, MemoryChannel, RedisChannel),
)


@pytest.fixture(params=["amqp", "memory", "redis"])
def url(request: pytest.FixtureRequest, unique: str) -> Iterator[str]:
    """The address of a broker of each kind."""
    if request.param == "amqp":
        yield str(request.getfixturevalue("amqp_url"))
    elif request.param == "redis":
        yield str(request.getfixturevalue("redis_url"))
    else:
        yield f"memory://localhost/{unique}"
        memory.reset(unique)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """An open connection that confirms."""
    with Connection(url, transport_options={"confirm_publish": True}) as made:
        made.connect()
        yield made


@pytest.fixture
def queue(connection: Connection, unique: str) -> Iterator[Queue]:
    """A declared queue."""
    made = Queue(unique, expires=300)(connection.channel())
    made.declare()
    yield made
    connection.channel().queue_delete(unique)


Interrupted = Callable[[Callable[[], Any]], Iterator[Run]]


@pytest.fixture
def interrupted(long: bool) -> Interrupted:
    """Runs of a function, interrupted at each switch, and at many moments while it waits there.

    In the end nothing may be left of those who waited.
    """

    def runs(function: Callable[[], Any]) -> Iterator[Run]:
        yield from interruptions(function, delays=(0, 1, 2, 3) if long else (0, 1))
        for moment in range(1, 120) if long else range(1, 30, 3):
            yield Moment(function, moment, INTERRUPTIONS[moment % 3]()).run()

    def checked(function: Callable[[], Any]) -> Iterator[Run]:
        before: Counter[str] | None = None
        for number, run in enumerate(runs(function)):
            yield run
            if number == 3:
                before = _waiting()
        assert before is not None
        grown = _waiting() - before
        # As many as are there while everything works, but not one for each run.
        assert all(count < 10 for count in grown.values()), grown

    return checked


def _waiting() -> Counter[str]:
    """How many objects there are of each kind of those that somebody who waits leaves somewhere."""
    gevent.sleep(0.02)  # until what is being closed is
    gc.collect()
    found = (type(each) for each in gc.get_objects())
    return Counter(each.__name__ for each in found if issubclass(each, KINDS))


class Moment(Run):
    """A run that is interrupted some time after its first switch, in steps of 0.1 ms."""

    def __init__(self, function: Callable[[], Any], moment: int, error: BaseException) -> None:
        super().__init__(function, 1, error)
        self._seconds = moment * 0.0001

    def _later(self, delay: int) -> None:
        timer = gevent.get_hub().loop.timer(self._seconds, ref=False)

        def end() -> None:
            timer.close()
            self._interrupt()

        timer.start(end)


def judge(run: Run) -> bool:
    """Whether *run* came to its end; it must have done so, or have raised what was thrown in."""
    if run.raised is None:
        return True
    assert run.was_interrupted, repr(run.raised)
    assert isinstance(run.raised, (gevent.GreenletExit, Interruption, gevent.Timeout)), run.raised
    return False


def channels_of(connection: Connection) -> int:
    """How many channels the connection has open now."""
    link = connection.session.life.link
    found = getattr(link, "channels", None)
    return len(found) if found is not None else -1


def works(connection: Connection, name: str) -> None:
    """Twenty operations, each of which must do what it says."""
    name = f"{name}-w"
    channel = connection.default_channel
    channel.queue_declare(name, durable=True, auto_delete=False)
    producer = Producer(connection)
    for number in range(4):
        producer.publish(number, name)
    with connection.channel() as other:
        for number in range(4):
            take(other, name, number)
        publish(name, "x", connection=connection, timeout=SOON)
        take(other, name, "x")
    with pytest.raises(connection.channel_errors), connection.channel() as other:
        other.queue_declare(f"{name}-none", passive=True)
    with pytest.raises(Unroutable):
        publish(Exchange(""), "x", connection=connection, routing_key=f"{name}-none")
    assert channel.queue_delete(name) == 0


def take(channel: Any, queue: str, body: Any) -> None:
    """Take the next message of *queue*, which must be *body*."""
    with gevent.Timeout(SOON):
        while (message := channel.basic_get(queue)) is None:
            turn()  # an unconfirmed one may be on its way
    assert message.decode() == body
    message.ack()


def test_connecting(interrupted: Interrupted, url: str, unique: str) -> None:
    current = Connection(url)

    def connect() -> None:
        current.connect()

    for run in interrupted(connect):
        if judge(run):
            assert current.connected
        works(current, unique)
        current.close()
        current = Connection(url)


def test_default_channel(interrupted: Interrupted, url: str, unique: str) -> None:
    connection = Connection(url)

    def use() -> Any:
        return connection.default_channel

    for number, run in enumerate(interrupted(use)):
        if judge(run):
            assert run.result is connection.default_channel
        assert connection.default_channel is connection.default_channel
        works(connection, unique)
        if number % 2:
            connection.default_channel.close()
        else:
            connection.close()
            connection = Connection(url)
    connection.close()


def test_channel(interrupted: Interrupted, connection: Connection, unique: str) -> None:
    works(connection, unique)
    before = channels_of(connection)
    for run in interrupted(connection.channel):
        if judge(run):
            run.result.close()
        works(connection, unique)
        until(lambda: channels_of(connection) == before)


def test_closing_a_channel(interrupted: Interrupted, connection: Connection, unique: str) -> None:
    works(connection, unique)
    before = channels_of(connection)

    def close() -> None:
        channel.close()

    channel = connection.channel()
    for run in interrupted(close):
        judge(run)
        assert not channel.is_open or not run.switches
        channel.close()
        works(connection, unique)
        until(lambda: channels_of(connection) == before)
        channel = connection.channel()
    channel.close()


def test_closing(interrupted: Interrupted, url: str, unique: str) -> None:
    current = Connection(url)

    def close() -> None:
        current.close()

    works(current, unique)
    for run in interrupted(close):
        judge(run)
        current.close()
        assert not current.connected
        current = Connection(url)
        works(current, unique)
    current.close()


@pytest.mark.parametrize("is_confirmed", [False, True], ids=["plain", "confirmed"])
@pytest.mark.parametrize("declares", [False, True], ids=["known", "declared"])
def test_publish(
    interrupted: Interrupted, url: str, unique: str, is_confirmed: bool, declares: bool
) -> None:
    options = {"confirm_publish": True} if is_confirmed else {}
    with Connection(url, transport_options=options) as connection:
        exchange = Exchange(unique)
        queue = Queue(unique, exchange, unique)
        queue(connection).declare()
        producer = Producer(connection, exchange, unique)
        number = 0

        def send() -> None:
            if declares:
                connection.declared_entities.clear()
            producer.publish(number, declare=[queue] if declares else None, timeout=SOON)

        for run in interrupted(send):
            was_sent = judge(run)
            producer.publish("after", retry=True)
            channel = connection.default_channel
            assert channel.queue_declare(unique, passive=True)
            bodies: list[Any] = []
            while not bodies or bodies[-1] != "after":
                message = channel.basic_get(unique, no_ack=True)
                if message is None:
                    turn()
                else:
                    bodies.append(message.decode())
            assert bodies in ([number, "after"], ["after"])
            assert not was_sent or bodies[0] == number
            with pytest.raises(Unroutable):
                publish(exchange, "x", connection=connection, routing_key="nobody")
            works(connection, unique)
            number += 1
        queue(connection).delete()
        exchange(connection).delete()


def test_short_publish(interrupted: Interrupted, connection: Connection, unique: str) -> None:
    """``greenconn.publish``, to queues that are known and to those that are not."""
    number = 0

    def send() -> None:
        publish(name, number, connection=connection, timeout=SOON)

    name = f"{unique}-0"
    names = {name}
    for run in interrupted(send):
        was_sent = judge(run)
        publish(name, "after", connection=connection, timeout=SOON)
        channel = connection.default_channel
        bodies: list[Any] = []
        while (message := channel.basic_get(name, no_ack=True)) is not None:
            bodies.append(message.decode())
        assert bodies in ([number, "after"], ["after"])
        assert not was_sent or bodies[0] == number
        works(connection, unique)
        number += 1
        if number % 3:
            name = f"{unique}-{number}"
            names.add(name)
    for name in names:
        connection.default_channel.queue_delete(name)


def test_declare(interrupted: Interrupted, connection: Connection, unique: str) -> None:
    queue = Queue(unique, Exchange(unique, auto_delete=True), unique, auto_delete=True)
    bound = queue(connection.channel())
    for run in interrupted(bound.declare):
        judge(run)
        bound.declare()
        Producer(connection, bound.exchange, unique).publish("x")
        assert bound.get(no_ack=True).payload == "x"
        bound.delete()
        works(connection, unique)


def test_declare_of_a_queue_that_the_broker_names(
    interrupted: Interrupted, amqp_url: str, rabbitmq: Any, unique: str
) -> None:
    """One whose name nobody heard is not left behind."""
    label = f"x-greenconn-{unique}"
    with Connection(amqp_url) as connection:
        channel = connection.channel()

        def declare() -> str:
            declared = channel.queue_declare(
                auto_delete=False, arguments={"x-expires": 60_000, label: True}
            )
            return str(declared.queue)

        for run in interrupted(declare):
            if judge(run):
                channel.queue_delete(run.result)
            works(connection, unique)
        vhost = connection.virtual_host
        listed = rabbitmq.ctl("list_queues", "-p", vhost, "name", "arguments")
        assert label not in listed


def test_get(interrupted: Interrupted, connection: Connection, queue: Queue, unique: str) -> None:
    producer = Producer(connection)
    for number in range(3):
        producer.publish(number, unique)
    for run in interrupted(queue.get):
        if judge(run):
            assert run.result.payload in range(3)
            run.result.requeue()
        messages = [queue.get() for _ in range(4)]
        deadline = gevent.Timeout(SOON)
        with deadline:
            while sum(each is not None for each in messages) < 3:
                messages.append(queue.get())
        found = [each for each in messages if each is not None]
        assert sorted(each.payload for each in found) == [0, 1, 2]
        for each in found:
            each.requeue()
        works(connection, unique)
    until(lambda: queue.queue_declare(passive=True).message_count == 3)


def test_drain_events(
    interrupted: Interrupted, connection: Connection, queue: Queue, unique: str
) -> None:
    """A message that was on its way to a greenlet that is killed goes to the next one."""
    got: list[Any] = []
    producer = Producer(connection)

    def receive(body: Any, message: Any) -> None:
        got.append(body)
        turn()  # a place to be interrupted at
        message.ack()

    def drain() -> None:
        if number % 2:
            sending.append(gevent.spawn(producer.publish, number, unique))
        else:
            producer.publish(number, unique)
        connection.drain_events(timeout=SOON)

    number = 0
    sending: list[gevent.Greenlet[..., Any]] = []
    with Consumer(connection, queue, callbacks=[receive]) as consumer:
        for run in interrupted(drain):
            judge(run)
            gevent.joinall(sending, timeout=SOON)
            producer.publish("after", unique)
            with gevent.Timeout(SOON):
                while "after" not in got:
                    connection.drain_events()
            assert got in ([number, "after"], ["after"])
            got.clear()
            number += 1
            consumer.recover(requeue=True)  # what was interrupted in its callback
            with suppress(TimeoutError):
                while True:
                    connection.drain_events(timeout=0.05)
            got.clear()
            works(connection, unique)
            assert queue.queue_declare(passive=True) == (unique, 0, 1)


def test_consume_and_cancel(
    interrupted: Interrupted, connection: Connection, queue: Queue, unique: str
) -> None:
    def count() -> int:
        return int(queue.queue_declare(passive=True).consumer_count)

    got: list[Any] = []

    def receive(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    def consume() -> None:
        consumer.consume()

    def cancel() -> None:
        consumer.cancel()

    def check() -> None:
        got.clear()
        Producer(connection).publish("x", unique)
        with gevent.Timeout(SOON):
            while not got:
                connection.drain_events()
        assert got == ["x"]

    consumer = Consumer(connection, queue, callbacks=[receive], prefetch_count=5)
    for run in interrupted(consume):
        if not judge(run):
            assert not consumer.consuming_from(unique)
            until(lambda: count() == 0)
            consumer.consume()
        assert count() == 1
        check()
        works(connection, unique)
        consumer.cancel()
        assert count() == 0
    consumer.consume()
    for run in interrupted(cancel):
        judge(run)
        assert not consumer.consuming_from(unique)
        consumer.cancel()
        until(lambda: count() == 0)
        consumer.consume()
        check()
        works(connection, unique)
    consumer.cancel()
    assert not connection.session._members._all


def test_simple_queue(interrupted: Interrupted, connection: Connection, unique: str) -> None:
    number = 0

    def put() -> None:
        simple.put(number)

    def get() -> Any:
        return simple.get(timeout=SOON)

    simple = SimpleQueue(connection, unique)
    for run in interrupted(put):
        was_put = judge(run)
        simple.put("after")
        bodies: list[Any] = []
        while "after" not in bodies:
            message = simple.get(timeout=SOON)
            bodies.append(message.payload)
            message.ack()
        assert bodies in ([number, "after"], ["after"])
        assert not was_put or bodies[0] == number
        number += 1
    for is_fresh in (False, True):
        simple.put("one")
        for run in interrupted(get):
            if judge(run):
                assert run.result.payload == "one"
                run.result.requeue()
            message = simple.get(timeout=SOON)
            assert message.payload == "one"
            message.requeue()
            works(connection, unique)
            if is_fresh:
                simple.close()
        simple.get(timeout=SOON).ack()
    simple.close()
    assert simple.qsize() == 0
    simple.queue.delete()
    simple.queue.exchange(connection).delete()


def test_pools(interrupted: Interrupted, url: str, unique: str) -> None:
    template = Connection(url)
    pool, channels = template.Pool(2), template.ChannelPool(2)

    def acquire() -> None:
        with pool.acquire(block=True) as connection:
            connection.connect()
            connection.default_channel  # noqa: B018
            turn()

    def acquire_channel() -> None:
        with channels.acquire(block=True):
            turn()

    def wait() -> None:
        gevent.spawn_later(0.001, held.release)
        pool.acquire(block=True, timeout=SOON).release()

    for function, of in ((acquire, pool), (acquire_channel, channels), (wait, pool)):
        held = pool.acquire()
        for run in interrupted(function):
            judge(run)
            if function is wait:
                until(lambda: pool.stats()["in_use"] == 0)
                held = pool.acquire()
                assert of.stats()["in_use"] == 1
            else:
                assert of.stats()["in_use"] == (of is pool)
            works(held, unique)
            assert of.stats()["waiting"] == 0
        held.release()
        both = [of.acquire(), of.acquire()]
        with pytest.raises(LimitExceeded):
            of.acquire()
        for each in both:
            each.release()
    for each in (channels, pool):
        each.force_close_all()
    template.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "what", ["publish", "short", "declare", "drain", "get", "consume", "channel"]
)
def test_calls_that_find_the_connection_dead(
    interrupted: Interrupted, relay: Relay, unique: str, what: str
) -> None:
    """Who is killed while it waits for a reconnect takes nobody else's along."""
    relay.delay = 0.001
    options = {"confirm_publish": True}
    with Connection(relay.url, transport_options=options) as connection:
        queue = Queue(unique, expires=300)(connection.channel())
        queue.declare()
        got: list[Any] = []

        def receive(body: Any, message: Any) -> None:
            got.append(body)
            message.ack()

        def drain() -> None:
            connection.drain_events(timeout=0.1)

        def count() -> int:
            return int(
                connection.default_channel.queue_declare(unique, passive=True).consumer_count
            )

        producer = Producer(connection)
        simple = SimpleQueue(connection, queue)
        consumer = Consumer(connection, queue, callbacks=[receive])
        if what == "drain":
            consumer.consume()
        calls: dict[str, Callable[[], Any]] = {
            "publish": lambda: producer.publish("x", unique, retry=True, timeout=SOON),
            "short": lambda: publish(unique, "x", connection=connection, timeout=SOON),
            "declare": lambda: queue.queue_declare(passive=True),
            "drain": drain,
            "get": lambda: simple.get(timeout=0.1),
            "consume": consumer.consume,
            "channel": lambda: connection.channel().close(),
        }

        def call() -> None:
            with suppress(TimeoutError, simple.Empty):
                calls[what]()

        for run in interrupted(call):
            judge(run)
            works(connection, unique)
            if what in ("drain", "consume"):
                consumer.consume()
            elif what == "get":
                with suppress(simple.Empty):
                    simple.get(timeout=0.01)
            until(lambda: count() == (what in ("drain", "consume", "get")))
            relay.cut()
            until(lambda: not connection.connected)
        consumer.cancel()
        simple.close()
        queue.delete()
