"""spawn_consumer over the memory broker and over RabbitMQ."""

from __future__ import annotations

import gc
import os
import random
import textwrap
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import get_hub
from greenlet import gettrace, settrace

from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import AccessRefused, NotFound, PreconditionFailed
from greenconn.green.hub import yield_to_hub
from greenconn.options import Retry
from greenconn.publishing import publish, publish_many
from greenconn.session.session import SessionState
from greenconn.transport import memory
from greenconn.worker import ConsumerGreenlet, ConsumerState, spawn_consumer, stop_consumers
from tests.brokers.rabbitmq import RabbitMQ
from tests.fix_leaks import native_threads, open_sockets
from tests.fix_wires import until
from tests.interpreter import printed
from tests.receiving import consuming

CAME = 20.0


class Broker:
    """What a test does to the broker, through a connection of its own."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)
        self._queues: set[str] = set()

    @property
    def channel(self) -> Any:
        """A channel; another one after an error."""
        return self.connection.default_channel

    def queue(self, name: str, **arguments: Any) -> str:
        """Declare a durable queue; deleted after the test."""
        self.will_be(name)
        self.channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
        return name

    def will_be(self, name: str) -> str:
        """Delete a queue of that name after the test."""
        self._queues.add(name)
        return name

    def publish(self, queue: str, *bodies: Any) -> None:
        """Put messages into a queue; they are there when this returns."""
        publish_many(queue, bodies, connection=self.connection, declare=True)

    def counts(self, queue: str) -> tuple[int, int]:
        """How many messages wait in a queue, and how many consumers it has."""
        reply = self.channel.queue_declare(queue, passive=True)
        return int(reply.message_count), int(reply.consumer_count)

    def consumers_of(self, queue: str) -> int:
        """How many consumers a queue has; 0 too if it does not exist."""
        try:
            return self.counts(queue)[1]
        except NotFound:
            return 0

    def drained(self, queue: str) -> list[Any]:
        """The bodies of all messages that wait, which are gone then."""
        bodies = []
        while (message := self.channel.basic_get(queue, no_ack=True)) is not None:
            bodies.append(message.payload)
        return bodies

    def close(self) -> None:
        """Leave nothing behind."""
        for name in self._queues:
            self.channel.queue_delete(name)
        self.connection.close()


@pytest.fixture(params=["memory", "amqp", "redis"])
def url(request: pytest.FixtureRequest, unique: str) -> Iterator[str]:
    """The address of each broker in turn."""
    if request.param == "amqp":
        yield request.getfixturevalue("amqp_url")
    elif request.param == "redis":
        yield request.getfixturevalue("redis_url")
    else:
        yield f"memory:///{unique}"
        memory.reset(unique)


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """The connection of the program."""
    with Connection(url) as connection:
        yield connection
    stop_consumers(0)


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    """The broker, as others see it."""
    broker = Broker(url)
    yield broker
    broker.close()


@pytest.fixture
def q(broker: Broker, unique: str) -> str:
    """A durable queue."""
    return broker.queue(unique)


def test_messages_are_handled_and_gone(connection: Connection, broker: Broker, q: str) -> None:
    done: list[int] = []
    consumer = spawn_consumer(q, lambda body, message: done.append(body), connection=connection)
    broker.publish(q, *range(500))
    until(lambda: len(done) == 500)
    assert done == list(range(500))
    assert consumer.stop(CAME)
    assert broker.counts(q) == (0, 0)
    assert consumer.get()["handled"] == 500


def test_a_name_is_looked_up_before_it_is_declared(
    connection: Connection, broker: Broker, unique: str
) -> None:
    odd = broker.queue(f"{unique}-odd", **{"x-max-length": 7})
    new = broker.will_be(f"{unique}-new")
    consumers = [
        spawn_consumer(name, print, connection=connection) for name in (odd, new, odd, new)
    ]
    assert all(each.wait_ready(CAME) for each in consumers)
    assert broker.counts(odd) == (0, 2)
    broker.queue(new)  # with the same arguments, or it would be refused
    assert stop_consumers(CAME)


def test_refusals(connection: Connection, broker: Broker, unique: str) -> None:
    q = broker.queue(unique, **{"x-max-length": 7})
    neighbour = consuming(q, print, connection=connection)
    absent = spawn_consumer(f"{unique}-absent", print, connection=connection, passive=True)
    other = spawn_consumer(Queue(q, max_length=8), print, connection=connection)
    with pytest.raises(NotFound):
        absent.wait_ready(CAME)
    with pytest.raises(PreconditionFailed, match="x-max-length"):
        other.wait_ready(CAME)
    exclusive = spawn_consumer(q, print, connection=connection, exclusive=True)
    with pytest.raises(AccessRefused):
        exclusive.wait_ready(CAME)
    for each in (absent, other, exclusive):
        with pytest.raises((NotFound, PreconditionFailed, AccessRefused)):
            each.get(timeout=CAME)
    assert neighbour.state is ConsumerState.RUNNING
    assert broker.counts(q) == (0, 1)


def test_a_handler_publishes_declares_gets_and_consumes(
    connection: Connection, broker: Broker, q: str, unique: str
) -> None:
    done: list[Any] = []
    names = [broker.will_be(f"{unique}-{each}") for each in ("next", "declared")]

    def handler(body: Any, message: Any) -> None:
        publish(names[0], body, connection=connection, declare=True)
        Queue(names[1], Exchange("")).bind(connection).declare()
        publish(names[1], body, connection=connection, declare=True)
        assert connection.default_channel.basic_get(names[1], no_ack=True).payload == body
        spawn_consumer(
            names[0], lambda body, message: done.append(body), connection=connection
        ).wait_ready(CAME)
        consumer.stop()

    broker.publish(q, "x")
    consumer = spawn_consumer(q, handler, connection=connection, prefetch_count=1)
    assert consumer.get(timeout=CAME)["handled"] == 1
    until(lambda: done == ["x"])


def test_prefetch_over_several_queues_is_never_exceeded(
    connection: Connection, broker: Broker, unique: str
) -> None:
    names = [broker.queue(f"{unique}-{number}") for number in range(3)]
    for name in names:
        broker.publish(name, *range(20))
    gate = gevent.event.Event()
    consumer = spawn_consumer(
        names, lambda body, message: gate.wait(), connection=connection, prefetch_count=7
    )
    until(lambda: consumer.stats()["received"] == 7)
    gevent.sleep(0.1)
    assert consumer.stats()["received"] == 7
    assert [20 - broker.counts(name)[0] for name in names] == [3, 2, 2]
    gate.set()
    until(lambda: consumer.stats()["handled"] == 60)


def test_failures_retries_and_the_dead_letter_queue(
    connection: Connection, broker: Broker, unique: str
) -> None:
    dead = broker.queue(f"{unique}-dead")
    q = broker.queue(unique, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead})
    calls: Counter[int] = Counter()

    def handler(body: int, message: Any) -> None:
        calls[body] += 1
        if body % 2:
            raise ValueError(body)

    broker.publish(q, *range(20))
    consumer = spawn_consumer(
        q,
        handler,
        connection=connection,
        retry=Retry(tries=3, delay=0.01),
        on_error="reject",
        concurrency=3,
    )
    until(lambda: broker.counts(dead)[0] == 10)
    assert calls == {number: 3 if number % 2 else 1 for number in range(20)}
    assert consumer.stop(CAME)
    assert consumer.get()["retried"] == 20
    assert sorted(broker.drained(dead)) == list(range(1, 20, 2))
    assert broker.counts(q) == (0, 0)


@pytest.mark.parametrize("how", ["stop", "stop_now", "pause", "kill", "killall"])
@pytest.mark.sampled(6)
def test_ending_under_load_loses_nothing(
    connection: Connection, broker: Broker, q: str, long: bool, how: str
) -> None:
    total = 400
    done: list[int] = []

    def handler(body: int, message: Any) -> None:
        if body % 3:
            yield_to_hub()
        if body % 50 == 7 and body not in failed:
            failed.add(body)
            raise ValueError(body)
        done.append(body)

    for round_ in range(40 if long else 8):
        done.clear()
        failed: set[int] = set()
        broker.publish(q, *range(total))
        consumer = spawn_consumer(
            q,
            handler,
            connection=connection,
            concurrency=1 + 3 * (round_ % 3),
            prefetch_count=50,
            retry=Retry(delay=0.002),
        )
        if round_ % 4:
            assert consumer.wait_ready(CAME)
        for _ in range(round_ * 5):
            yield_to_hub()
        if how == "pause":
            assert consumer.pause(CAME)
            assert consumer.stop(CAME)
        elif how == "kill":
            consumer.kill(timeout=CAME)
        elif how == "killall":
            gevent.killall([consumer], timeout=CAME)
        else:
            consumer.stop(CAME if how == "stop" else 0)
        assert consumer.dead
        # Nothing is held by anybody: on RabbitMQ what was given back is soon there.
        until(lambda: len(set(done)) + broker.counts(q)[0] >= total)
        left = broker.drained(q)
        twice = [number for number, times in Counter([*done, *left]).items() if times > 1]
        assert set(done) | set(left) == set(range(total))
        assert twice == []
        assert broker.counts(q) == (0, 0)


def test_kills_while_it_begins_leave_no_consumer(
    connection: Connection, broker: Broker, q: str, long: bool
) -> None:
    broker.publish(q, *range(30))
    for turns in range(120 if long else 40):
        consumer = spawn_consumer(q, lambda body, message: gevent.sleep(1), connection=connection)
        for _ in range(turns):
            yield_to_hub()
        consumer.kill(timeout=CAME)
        assert consumer.dead
    until(lambda: broker.counts(q) == (30, 0))


@pytest.mark.parametrize("seed", range(2))
def test_random_lives(
    connection: Connection, broker: Broker, unique: str, long: bool, seed: int
) -> None:
    """Consumers come and go on the same channels, are paused and killed, and so are their parts."""
    rng = random.Random(seed)
    names = [broker.queue(f"{unique}-{number}") for number in range(4)]
    done: list[int] = []

    def handler(body: int, message: Any) -> None:
        if rng.random() < 0.5:
            yield_to_hub()
        if rng.random() < 0.05:
            raise gevent.GreenletExit if rng.random() < 0.3 else ValueError
        done.append(body)

    def disturb(consumer: ConsumerGreenlet) -> None:
        lifecycle = consumer.lifecycle
        task, workers = lifecycle._task, list(lifecycle.dispatcher._workers)
        dice = rng.random()
        if dice < 0.3:
            gevent.spawn(consumer.stop, rng.choice([None, 0.0, 0.05]))
        elif dice < 0.5:
            gevent.spawn(consumer.kill)
        elif dice < 0.7:
            gevent.spawn(consumer.pause)
        elif dice < 0.85:
            consumer.resume()
        elif task is not None and task.greenlet is not None and dice < 0.95:
            task.greenlet.kill(block=False)
        elif workers:
            workers[0].greenlet.kill(block=False)

    total = 0
    consumers: list[ConsumerGreenlet] = []
    for _ in range(3000 if long else 300):
        consumers = [each for each in consumers if not each.dead]
        if len(consumers) < 20 and rng.random() < 0.5:
            options: Any = {
                "concurrency": rng.choice([1, 3]),
                "on_error": "requeue",
                "retry": rng.choice([None, Retry(delay=0.002)]),
            }
            queue: Any = rng.choice([names[0], rng.sample(names, 2)])
            consumers.append(spawn_consumer(queue, handler, connection=connection, **options))
        if consumers and rng.random() < 0.5:
            disturb(rng.choice(consumers))
        if rng.random() < 0.1:
            count = rng.randrange(100)
            broker.publish(rng.choice(names), *range(total, total + count))
            total += count
        for _ in range(rng.randrange(10)):
            yield_to_hub()
    assert stop_consumers(CAME)
    until(lambda: len(done) + sum(broker.counts(name)[0] for name in names) >= total)
    left = [body for name in names for body in broker.drained(name)]
    assert sorted([*done, *left]) == list(range(total))
    assert [broker.counts(name) for name in names] == [(0, 0)] * len(names)
    assert connection.session.generation == 1


def test_pause_and_resume_under_load(connection: Connection, broker: Broker, q: str) -> None:
    done: list[int] = []

    def handler(body: int, message: Any) -> None:
        yield_to_hub()
        done.append(body)

    consumer = spawn_consumer(q, handler, connection=connection, concurrency=2)
    broker.publish(q, *range(300))
    for round_ in range(6):
        for _ in range(round_ * 4):
            yield_to_hub()
        assert consumer.pause(CAME)
        number = len(done)
        gevent.sleep(0.01)
        assert len(done) <= number + 2
        # One that the broker had not confirmed when it was paused is cancelled once that has come.
        until(lambda: broker.counts(q)[1] == 0)
        consumer.resume()
    until(lambda: len(done) == 300)
    assert sorted(done) == list(range(300))


@pytest.mark.full
def test_a_thousand_consumers(
    connection: Connection, broker: Broker, unique: str, long: bool
) -> None:
    number = 1000 if long else 200
    names = [broker.will_be(f"{unique}-{each}") for each in range(number)]
    done: list[Any] = []
    assert broker.channel.is_open
    threads, sockets = len(native_threads()), len(open_sockets())
    began = monotonic()
    consumers = [
        spawn_consumer(name, lambda body, message: done.append(body), connection=connection)
        for name in names
    ]
    assert all(each.wait_ready(CAME) for each in consumers)
    took = monotonic() - began
    assert len(open_sockets()) <= sockets + 1
    assert len(native_threads()) == threads
    link = connection.session.life.link
    # One for fifty consumers, at most eight for the lookups.
    assert len([each for each in link.channels.values() if each is not link]) <= number / 50 + 8
    if long:
        assert took < 20.0  # 2 s on a machine that has nothing else to do
    switches = switches_while_idle(0.5)
    assert switches < 50
    for name in names:
        publish(name, name, connection=broker.connection)
    until(lambda: len(done) == number)
    assert stop_consumers(CAME)


def switches_while_idle(seconds: float) -> int:
    """How often greenlets are switched to meanwhile."""
    count = 0
    former: Any = gettrace()

    def trace(event: Any, ends: Any) -> None:
        nonlocal count
        count += ends[1] is not get_hub()
        if former is not None:
            former(event, ends)

    gevent.sleep(0.05)
    settrace(trace)
    try:
        gevent.sleep(seconds)
    finally:
        settrace(former)
    return count


def memory_of_consumers(url: str, prefix: str, number: int) -> float:
    """KiB of resident memory for each idle consumer, in a process of its own."""
    program = """
        import gc, sys
        from greenconn.connection import Connection
        from greenconn.worker import spawn_consumer, stop_consumers

        def resident():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4

        url, prefix, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
        with Connection(url) as connection:
            handler = lambda body, message: None
            for each in range(50):
                spawn_consumer(prefix, handler, connection=connection).wait_ready(30)
            before = resident()
            made = [
                spawn_consumer(prefix, handler, connection=connection) for each in range(number)
            ]
            assert all(each.wait_ready(30) for each in made)
            print((resident() - before) / number)
        """
    return float(printed("-c", textwrap.dedent(program), url, prefix, str(number)))


@pytest.mark.full
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_an_idle_consumer_is_small(url: str, broker: Broker, q: str) -> None:
    if url.startswith("memory"):
        pytest.skip("there the broker is in the process, too")
    assert memory_of_consumers(url, q, 1000) <= 14.0


@pytest.mark.full
def test_a_flood_without_acks_is_bounded(amqp_url: str, unique: str, long: bool) -> None:
    """Messages of 8 KiB that nobody handles: the connection stops reading, the process stays small."""
    broker = Broker(amqp_url)
    q = broker.queue(unique)
    number = 100_000 if long else 20_000
    body = b"x" * 8192
    done = 0

    def handler(body: Any, message: Any) -> None:
        nonlocal done
        done += 1
        if done == 1:
            gate.wait()

    gate = gevent.event.Event()
    with Connection(amqp_url) as connection:
        gc.collect()
        before = resident()
        consumer = consuming(q, handler, connection=connection, no_ack=True)
        for _ in range(number // 1000):
            publish_many(q, [body] * 1000, connection=broker.connection, delivery_mode=1)
        # It pauses above 64 MiB, headers and what Python takes for a message included.
        until(lambda: consumer.stats()["received"] * 8192 > 55 * 2**20)
        assert resident() - before < 200 * 2**20
        # Its own connection waits; the program's one does not.
        assert connection.default_channel.queue_declare(q, passive=True).consumer_count == 1
        gate.set()
        until(lambda: done == number, timeout=120)
        assert consumer.stop(CAME)
        assert resident() - before < 200 * 2**20
    broker.close()


def resident() -> int:
    """Bytes of this process's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.full
def test_a_restart_of_the_broker(own_rabbitmq: RabbitMQ, unique: str, long: bool) -> None:
    number = 1000 if long else 120
    broker = Broker(own_rabbitmq.url)
    names = [broker.will_be(f"{unique}-{each}") for each in range(number)]
    done: list[int] = []

    def handler(body: int, message: Any) -> None:
        yield_to_hub()
        done.append(body)

    with Connection(own_rabbitmq.url) as connection:
        consumers = [spawn_consumer(name, handler, connection=connection) for name in names]
        several = spawn_consumer(names[:5], handler, connection=connection)
        assert all(each.wait_ready(CAME) for each in [*consumers, several])
        for position, name in enumerate(names):
            broker.publish(name, position)
        until(lambda: len(done) == number)
        own_rabbitmq.stop_app()
        until(lambda: not connection.connected)
        own_rabbitmq.start_app()
        until(lambda: connection.session.state is SessionState.OPEN)
        assert all(each.wait_ready(CAME) for each in [*consumers, several])
        # The broker counts each of them exactly once.
        listed = dict(
            line.split("\t")
            for line in own_rabbitmq.ctl(
                "list_queues", "-q", "--no-table-headers", "name", "consumers"
            ).splitlines()
        )
        assert [int(listed[name]) for name in names[:5]] == [2] * 5
        assert [int(listed[name]) for name in names[5:]] == [1] * (number - 5)
        for position, name in enumerate(names):
            broker.publish(name, number + position)
        until(lambda: len(set(done)) == 2 * number)
        assert stop_consumers(CAME)
    broker.close()


@pytest.mark.full
def test_a_restart_under_load(own_rabbitmq: RabbitMQ, unique: str) -> None:
    broker = Broker(own_rabbitmq.url)
    q = broker.queue(unique)
    done: list[int] = []

    def handler(body: int, message: Any) -> None:
        gevent.sleep(0.001)
        done.append(body)

    broker.publish(q, *range(1500))
    with Connection(own_rabbitmq.url) as connection:
        consumer = spawn_consumer(q, handler, connection=connection, concurrency=5)
        until(lambda: len(done) > 100)
        own_rabbitmq.stop_app()
        own_rabbitmq.start_app()
        until(lambda: len(set(done)) == 1500)
        # Again came only what was received and not acked: at most the prefetch.
        assert len(done) - 1500 <= 10
        assert consumer.stats()["failed"] == 0
        assert consumer.stop(CAME)
        assert broker.counts(q) == (0, 0)
    broker.close()


@pytest.mark.full
def test_a_broker_that_does_not_answer_holds_nobody_up(own_rabbitmq: RabbitMQ, unique: str) -> None:
    with Connection(own_rabbitmq.url) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, durable=True, auto_delete=False)
        gate = gevent.event.Event()
        stopped, killed = (
            spawn_consumer(unique, lambda body, message: gate.wait(), connection=connection)
            for _ in range(2)
        )
        assert stopped.wait_ready(CAME)
        assert killed.wait_ready(CAME)
        publish_many(unique, range(15), connection=connection)
        until(lambda: stopped.stats()["in_flight"] + killed.stats()["in_flight"] == 2)
        own_rabbitmq.pause()
        began = monotonic()
        assert stopped.stop(0.5) is False
        killed.kill(timeout=CAME)
        assert killed.dead
        assert monotonic() - began < 20.0
        own_rabbitmq.resume()
        until(lambda: stopped.dead)
        until(lambda: channel.queue_declare(unique, passive=True).message_count == 15)
        channel.queue_delete(unique)


def test_a_deleted_queue_comes_back_and_its_neighbours_stay(
    connection: Connection, broker: Broker, unique: str
) -> None:
    names = [broker.queue(f"{unique}-{each}") for each in range(20)]
    done: list[str] = []
    consumers = [
        spawn_consumer(name, lambda body, message: done.append(body), connection=connection)
        for name in names
    ]
    assert all(each.wait_ready(CAME) for each in consumers)
    for name in names[:3]:
        broker.channel.queue_delete(name)
    until(lambda: all(broker.consumers_of(name) == 1 for name in names[:3]))
    assert all(each.wait_ready(CAME) for each in consumers)
    for name in names:
        publish(name, name, connection=connection)
    until(lambda: sorted(done) == sorted(names))


def test_a_channel_that_the_broker_closes_hits_only_its_own(amqp_url: str, unique: str) -> None:
    broker = Broker(amqp_url)
    names = [broker.queue(f"{unique}-{each}") for each in range(60)]
    with Connection(amqp_url) as connection:
        consumers = [spawn_consumer(name, print, connection=connection) for name in names]
        assert all(each.wait_ready(CAME) for each in consumers)
        channels = list(dict.fromkeys(_channel_of(each) for each in consumers))
        assert len(channels) == 2
        on_it = [each for each in consumers if _channel_of(each) is channels[0]]
        with pytest.raises(NotFound):
            channels[0].queue_declare(f"{unique}-absent", passive=True)
        assert {each.state for each in on_it} == {ConsumerState.RECOVERING}
        others = [each for each in consumers if each not in on_it]
        assert {each.state for each in others} == {ConsumerState.RUNNING}
        assert all(each.wait_ready(CAME) for each in consumers)
        assert [broker.counts(name)[1] for name in names] == [1] * 60
        assert connection.session.generation == 1
    broker.close()


def _channel_of(consumer: Any) -> Any:
    return consumer.lifecycle._subscriptions[0]._sink.channel


@pytest.mark.full
def test_a_broker_that_is_away_is_waited_for(own_rabbitmq: RabbitMQ, unique: str) -> None:
    own_rabbitmq.stop_app()
    done: list[Any] = []
    with Connection(own_rabbitmq.url) as connection:
        consumer = spawn_consumer(
            unique, lambda body, message: done.append(body), connection=connection
        )
        assert consumer.wait_ready(0.5) is False
        own_rabbitmq.start_app()
        assert consumer.wait_ready(CAME) is True
        publish(unique, "x", connection=connection)
        until(lambda: done == ["x"])
        assert consumer.stop(CAME)
        connection.default_channel.queue_delete(unique)
