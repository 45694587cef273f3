"""The broker goes away and comes back: what programs see of it, and what becomes of their work."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue, maybe_declare
from greenconn.exceptions import OperationalError, RecoverableConnectionError
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from greenconn.simple import SimpleQueue
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.integration.recovering import restart_app

pytestmark = pytest.mark.halved

#: Seconds for what must come.
SOON = 60.0
#: Seconds for what must come at once; less than the library itself waits for a confirm, which is 30.
PROMPT = 20.0
#: Of the tests below: the broker starts in 5 s when the machine is not busy.
TIMEOUT = 300

#: Seconds between heartbeats: twice that ends a connection, and a busy machine must not.
HEARTBEAT = 4

POLICY = {"max_retries": None, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.5}


def cut(broker: RabbitMQ) -> None:
    """All connections are closed by the broker, which stays."""
    broker.close_connections("by the test")


def kill(broker: RabbitMQ) -> None:
    """Its process is killed, and started again on its data."""
    # It may have noted a queue that was declared within the last second in memory alone.
    broker.evaluate("mnesia:dump_log()")
    broker.kill()
    gevent.sleep(0.3)
    broker.start()


def freeze(broker: RabbitMQ) -> None:
    """Its process stops for longer than the heartbeats allow, with all connections open."""
    broker.pause()
    gevent.sleep(3 * HEARTBEAT)
    broker.resume()


FAULTS: dict[str, Callable[[RabbitMQ], None]] = {
    each.__name__: each for each in (cut, restart_app, kill, freeze)
}


def consumers(broker: RabbitMQ) -> list[tuple[str, str]]:
    """Queue and tag of all consumers that the broker has."""
    rows = broker.ctl("list_consumers", "queue_name", "consumer_tag").splitlines()
    return [(queue, tag) for queue, tag in (row.split("\t") for row in rows)]


class Work:
    """What one kind of program does, in greenlets of its own, until it is told to end."""

    def __init__(self, broker: RabbitMQ, name: str) -> None:
        self.url = broker.url
        self.name = name
        self.is_over = False
        self.got: Counter[Any] = Counter()
        self.greenlets: list[gevent.Greenlet[..., Any]] = []
        self.connection = Connection(self.url, heartbeat=HEARTBEAT)
        self.queue = Queue(name)

    def spawn(self, function: Callable[..., Any], *args: Any) -> None:
        self.greenlets.append(gevent.spawn(function, *args))

    def receive(self, body: Any, message: Any) -> None:
        self.got[body] += 1
        message.ack()

    def has_got(self, body: Any) -> bool:
        return self.got[body] > 0

    def begin(self) -> None:
        """Set up; the broker is there."""

    def check(self) -> None:
        """Look at what has become of it; the broker is there again."""

    def check_consumers(self, tags: list[str]) -> None:
        """Look at the consumers that the broker has on our queue."""
        assert len(tags) == 1

    def send(self, body: Any) -> None:
        """Have it receive *body*."""
        with Connection(self.url) as other:
            Producer(other).publish(body, self.name)

    def end(self) -> None:
        self.is_over = True
        gevent.killall(self.greenlets, timeout=SOON)
        self.connection.close()
        with Connection(self.url) as other:
            other.default_channel.queue_delete(self.name)


class DrainLoop(Work):
    """Three greenlets drain one connection, and do nothing about errors but to count them."""

    def begin(self) -> None:
        self.errors: list[list[BaseException]] = [[], [], []]
        self.consumer = Consumer(self.connection, self.queue, callbacks=[self.receive])
        self.consumer.consume()
        self.tags = dict(self.consumer._active_tags)
        for errors in self.errors:
            self.spawn(self.drain, errors)

    def drain(self, errors: list[BaseException]) -> None:
        while not self.is_over:
            try:
                self.connection.drain_events()
            except self.connection.connection_errors as exc:
                errors.append(exc)

    def check(self) -> None:
        self.send("again")
        until(lambda: self.got["again"], SOON)
        assert [len(errors) for errors in self.errors] == [1, 1, 1], self.errors
        assert self.consumer._active_tags == self.tags
        assert self.connection.session.generation == 2

    def check_consumers(self, tags: list[str]) -> None:
        assert tags == list(self.tags.values())


class Rebuilding(Work):
    """A program that takes care of itself: connects, revives, consumes."""

    def begin(self) -> None:
        self.connection.connect()
        self.consumer = Consumer(self.connection, self.queue, callbacks=[self.receive])
        self.consumer.consume()
        self.spawn(self.run)

    def run(self) -> None:
        connection = self.connection
        while not self.is_over:
            try:
                connection.drain_events(timeout=0.5)
            except TimeoutError:
                continue
            except connection.connection_errors:
                connection.ensure_connection(interval_start=0.1, interval_step=0.1)
                channel = connection.channel()
                self.consumer.revive(channel)
                self.consumer.consume()

    def check(self) -> None:
        self.send("again")
        until(lambda: self.got["again"], SOON)


class MixinLike(Work):
    """kombu's ConsumerMixin, written out: each error begins a new round on a clone."""

    def begin(self) -> None:
        self.is_consuming = Event()
        self.rounds = 0
        self.spawn(self.run)
        assert self.is_consuming.wait(SOON)

    def run(self) -> None:
        errors = (*self.connection.connection_errors, *self.connection.channel_errors)
        while not self.is_over:
            self.rounds += 1
            with suppress(*errors), self.connection.clone() as connection:
                connection.ensure_connection(interval_start=0.1, interval_step=0.1)
                channel = connection.default_channel
                with Consumer(channel, self.queue, callbacks=[self.receive]):
                    self.is_consuming.set()
                    while not self.is_over:
                        with suppress(TimeoutError):
                            connection.drain_events(timeout=0.5)

    def check(self) -> None:
        self.send("again")
        until(lambda: self.got["again"], SOON)
        assert self.rounds == 2


class Simple(Work):
    """A simple queue, one greenlet that puts and one that gets."""

    def begin(self) -> None:
        self.simple = SimpleQueue(self.connection, self.name)
        self.puts = 0
        self.spawn(self.put)
        self.spawn(self.get)
        until(lambda: len(self.got) > 3, SOON)

    def put(self) -> None:
        while not self.is_over:
            self.simple.put(self.puts, retry=True, retry_policy=POLICY)
            self.puts += 1
            gevent.sleep(0.01)

    def get(self) -> None:
        errors = self.connection.connection_errors
        while not self.is_over:
            with suppress(*errors):
                message = self.simple.get(timeout=SOON)
                self.got[message.payload] += 1
                message.ack()

    def check(self) -> None:
        seen = len(self.got)
        until(lambda: len(self.got) > seen + 5, SOON)

    def end(self) -> None:
        gevent.killall(self.greenlets, timeout=SOON)
        self.greenlets.clear()
        self.simple.close()
        Exchange(self.name)(self.connection).delete()
        super().end()


class Publishing(Work):
    """Many greenlets share a producer that confirms and tries again: what it took is not lost."""

    AT_ONCE = 20

    def begin(self) -> None:
        self.connection = self.connection.clone(transport_options={"confirm_publish": True})
        self.producer = Producer(self.connection)
        maybe_declare(self.queue, self.connection)
        self.start()

    def start(self) -> None:
        self.done = 0
        for number in range(self.AT_ONCE):
            self.spawn(self.publish, number)
        until(lambda: self.done > 3 * self.AT_ONCE, SOON)

    def publish(self, number: int) -> None:
        count = 0
        while not self.is_over:
            count += 1
            body = f"{number}.{count}"
            self.send_one(body)
            self.got[body] = 0  # taken by the broker
            self.done += 1
            gevent.sleep(0.01)

    def send_one(self, body: str) -> None:
        self.producer.publish(body, self.name, retry=True, retry_policy=POLICY)

    def check(self) -> None:
        done = self.done
        until(lambda: self.done > done + 3 * self.AT_ONCE, SOON)
        self.is_over = True
        gevent.joinall(self.greenlets, timeout=SOON, raise_error=True)
        channel = self.connection.default_channel
        while (message := channel.basic_get(self.name, no_ack=True)) is not None:
            self.got[message.decode()] += 1
        lost = [body for body, times in self.got.items() if not times]
        assert lost == []

    def check_consumers(self, tags: list[str]) -> None:
        assert tags == []


class ShortCall(Publishing):
    """``greenconn.publish``, from many greenlets at once."""

    def begin(self) -> None:
        self.start()

    def send_one(self, body: str) -> None:
        publish(self.name, body, connection=self.connection, timeout=SOON, declare=True)


@contextmanager
def at_work(broker: RabbitMQ, name: str) -> Iterator[list[Work]]:
    """All kinds of programs at once."""
    kinds = (DrainLoop, Rebuilding, MixinLike, Simple, Publishing, ShortCall)
    works: list[Work] = [kind(broker, f"{name}-{kind.__name__}") for kind in kinds]
    with Connection(broker.url) as connection:
        for work in works:
            connection.default_channel.queue_declare(work.name, durable=True, auto_delete=False)
    broker.settle()
    try:
        for work in works:
            work.begin()
        yield works
    finally:
        broker.mend()
        for work in works:
            work.end()


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize(
    "fault",
    [
        "cut",
        "kill",
        pytest.param("restart_app", marks=pytest.mark.long),
        pytest.param("freeze", marks=pytest.mark.long),
    ],
)
@pytest.mark.full
def test_all_goes_on(fault: str, own_rabbitmq: RabbitMQ, unique: str) -> None:
    with at_work(own_rabbitmq, unique) as works:
        for work in works:
            if not isinstance(work, (Simple, Publishing)):
                work.send("before")
                until(partial(work.has_got, "before"))
        FAULTS[fault](own_rabbitmq)
        for work in works:
            work.check()
        found = consumers(own_rabbitmq)
        for work in works:
            work.check_consumers([tag for queue, tag in found if queue == work.name])
            for greenlet in work.greenlets:
                if greenlet.dead:
                    greenlet.get()


@pytest.mark.full
def test_a_thousand_greenlets_that_find_the_connection_dead_cause_one_reconnect(
    relay: Relay, unique: str
) -> None:
    with Connection(relay.url) as connection:
        queue = Queue(unique, expires=300)(connection.default_channel)
        queue.declare()
        producer = Producer(connection)
        simple = connection.SimpleQueue(queue)

        def ensured() -> Any:
            return connection.ensure(producer, producer.publish)("ensured", unique)

        calls: list[Callable[[], Any]] = [
            lambda: producer.publish("x", unique, retry=True),
            lambda: producer.publish("x", unique),
            lambda: connection.channel().close(),
            lambda: connection.default_channel.queue_declare(unique, passive=True),
            lambda: queue.queue_declare(passive=True),
            lambda: simple.put("x"),
            lambda: connection.ensure_connection().default_channel,
            ensured,
            connection.connect,
        ]
        for number in range(3):
            assert relay.accepted == 1 + number
            relay.cut()
            until(lambda: not connection.connected)
            greenlets = [gevent.spawn(calls[each % len(calls)]) for each in range(1000)]
            gevent.joinall(greenlets, timeout=SOON, raise_error=True)
        assert relay.accepted == 4
        assert connection.session.generation == 4
        queue.delete()


def test_close_ends_recovery(relay: Relay, unique: str) -> None:
    connection = Connection(relay.url)
    Consumer(connection, Queue(unique, auto_delete=True)).consume()
    draining = [gevent.spawn(connection.drain_events) for _ in range(3)]
    gevent.sleep(0)
    relay.server.stop()
    for each in draining:
        with pytest.raises(connection.connection_errors):
            each.get(timeout=SOON)
    # It is being recovered; who drains now waits for that.
    draining = [gevent.spawn(connection.drain_events) for _ in range(3)]
    gevent.sleep(0.3)
    assert not any(each.dead for each in draining)
    connection.close()
    for each in draining:
        with pytest.raises(RecoverableConnectionError, match="closed"):
            each.get(timeout=SOON)
    accepted = relay.accepted
    relay.server.start()
    gevent.sleep(1.0)
    assert relay.accepted == accepted
    with pytest.raises(RecoverableConnectionError):
        connection.drain_events(timeout=0.1)
    # Until somebody uses it again, and then without what it had.
    assert connection.channel().queue_declare(unique, auto_delete=True).consumer_count == 0
    connection.close()


@pytest.mark.parametrize("was_consuming", [True, False])
def test_a_simple_queue_waits_for_the_broker_as_long_as_its_caller(
    relay: Relay, unique: str, was_consuming: bool
) -> None:
    with Connection(relay.url) as connection:
        simple = connection.SimpleQueue(unique, queue_opts={"expires": 60})
        if was_consuming:
            with pytest.raises(simple.Empty):
                simple.get(timeout=0)
        connection.connect_timeout = 0.2  # which is not how long it waits
        relay.server.stop()
        until(lambda: not connection.connected)
        getting = gevent.spawn(simple.get, timeout=SOON)
        with pytest.raises((simple.Empty, OSError)):
            simple.get(timeout=0.5)
        gevent.sleep(0.5)
        assert not getting.dead
        connection.connect_timeout = 5
        relay.server.start()
        simple.put("there", retry=True)
        message = getting.get(timeout=SOON)
        assert message.payload == "there"
        message.ack()
        simple.close()
        simple.queue.delete()
        simple.queue.exchange(connection).delete()


def test_what_was_declared_is_known_for_one_life(relay: Relay, unique: str) -> None:
    with Connection(relay.url) as connection:
        exchange = Exchange(unique)
        queue = Queue(unique, exchange, "k")
        producer = Producer(connection, exchange, "k")
        producer.publish("1", declare=[queue])
        declared = connection.declared_entities
        assert len(declared) == 2
        with connection.clone() as other:  # as an operator, or a restart, would
            other.default_channel.queue_delete(unique)
            other.default_channel.exchange_delete(unique)
        relay.cut()
        until(lambda: not connection.connected)
        assert connection.declared_entities == set()
        producer.publish("2", declare=[queue], retry=True)
        assert len(connection.declared_entities) == 2
        assert connection.declared_entities is not declared
        assert queue(connection).get(no_ack=True).payload == "2"
        queue(connection).delete()
        exchange(connection).delete()


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_link_that_is_cut_again_and_again(
    relay: Relay, unique: str, seed: int, long: bool
) -> None:
    """Whatever is under way when it happens: nothing hangs, nothing is lost, one consumer stays."""
    rng = random.Random(seed)
    seconds = 40.0 if long else 1.0
    taken: set[str] = set()
    received: Counter[str] = Counter()
    is_over = Event()
    options = {"confirm_publish": True}
    with Connection(relay.url, transport_options=options, heartbeat=5) as connection:
        queue = Queue(unique, expires=300)
        errors = (*connection.connection_errors, *connection.channel_errors)
        maybe_declare(queue, connection)
        producer, consumer = Producer(connection), Consumer(connection, queue, prefetch_count=20)

        def receive(body: Any, message: Any) -> None:
            received[body] += 1
            message.ack()

        consumer.register_callback(receive)
        consumer.consume()

        def drain() -> None:
            while True:
                with suppress(*errors):
                    connection.drain_events()

        def produce(number: int) -> None:
            for each in count():
                if is_over.is_set():
                    return
                body = f"{number}.{each}"
                if number % 2:
                    producer.publish(body, unique, retry=True, retry_policy=POLICY)
                else:
                    publish(unique, body, connection=connection, timeout=SOON, declare=True)
                taken.add(body)
                gevent.sleep(rng.random() * 0.01)

        def meddle(number: int) -> None:
            """Calls of all kinds, each of which may fail, none of which may hang."""
            name = f"{unique}-{number}"
            other = Queue(name, Exchange(f"{name}-e", auto_delete=True), name, auto_delete=True)
            while not is_over.is_set():
                with suppress(*errors), connection.channel() as channel:
                    bound = other(channel)
                    bound.declare()
                    with Consumer(channel, bound, callbacks=[lambda body, message: None]):
                        channel.basic_publish(channel.prepare_message("x"), routing_key=name)
                        bound.get()
                gevent.sleep(rng.random() * 0.01)

        def destroy() -> None:
            end = monotonic() + seconds
            for number in count(1):
                gevent.sleep(rng.random() * 0.2)
                if number % 3 == 0:  # else it may be cut ever again before it is open
                    until(lambda: connection.connected, SOON)
                relay.cut()
                if monotonic() > end and connection.session.generation > 5:
                    break
            is_over.set()

        drainers = [gevent.spawn(drain) for _ in range(2)]
        workers: list[gevent.Greenlet[..., None]] = []
        workers += [gevent.spawn(produce, number) for number in range(10)]
        workers += [gevent.spawn(meddle, number) for number in range(3)]
        workers.append(gevent.spawn(destroy))
        gevent.joinall(workers, timeout=seconds + SOON, raise_error=True)
        assert all(each.dead for each in workers)
        until(lambda: taken <= received.keys(), SOON)
        until(connection.session.ready_life, SOON)  # after the last cut too
        with connection.channel() as channel:
            until(lambda: channel.queue_declare(unique, passive=True).consumer_count == 1, SOON)
        gevent.killall(drainers)
        consumer.cancel()
        queue(connection).delete()


@pytest.mark.full
@pytest.mark.parametrize("how", ["close", "collect", "lost"])
def test_nobody_is_left_waiting(relay: Relay, unique: str, how: str) -> None:
    """Whoever waits for a broker that is silent is told when the connection ends, at once."""
    connection = Connection(relay.url, transport_options={"confirm_publish": True})
    queue = Queue(unique, expires=60)(connection.channel())
    queue.declare()
    producer, simple = Producer(connection), connection.SimpleQueue(queue)
    with pytest.raises(simple.Empty):
        simple.get(timeout=0)
    publish(unique, "x", connection=connection, declare=True)
    simple.get(timeout=SOON).ack()
    channel = connection.channel()
    relay.is_passing.clear()
    calls: list[Callable[[], Any]] = [
        lambda: producer.publish("x", unique),
        lambda: channel.queue_declare(unique, passive=True),
        lambda: channel.basic_get(unique),
        lambda: channel.basic_consume(unique, callback=print),
        lambda: channel.basic_qos(0, 1, False),
        connection.drain_events,
        simple.get,
        connection.channel,
        lambda: maybe_declare(Queue(f"{unique}-2"), connection),
    ]
    if how != "collect":  # which is about this connection, not about the one that publishes for it
        calls.append(
            lambda: publish(unique, "x", connection=connection, timeout=SOON, declare=True)
        )
    waiting = [gevent.spawn(each) for each in calls * 5]
    gevent.sleep(0.1)
    assert not any(each.dead for each in waiting)
    errors: tuple[type[BaseException], ...] = (OperationalError, *connection.connection_errors)
    if how == "lost":
        relay.is_passing.set()  # or the relay would not notice that it is cut
        relay.server.stop()
        gevent.sleep(0.1)
        connection.close()
    else:
        getattr(connection, how)()
    for each in waiting:
        with suppress(*errors):
            each.get(timeout=PROMPT)
    assert all(each.dead for each in waiting)
    connection.close()
    relay.is_passing.set()
