"""Beanstalk under faults: servers that go, come back or freeze, cut connections, dead processes."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from functools import partial
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import (
    PublishNacked,
    PublishTimeout,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from tests.brokers.beanstalk import Beanstalkd
from tests.fix_beanstalk import BeanstalkFactory
from tests.fix_relay import RelayFactory
from tests.fix_wires import until
from tests.integration.beanstalk_clients import SOON, raw_to
from tests.integration.processes import start

pytestmark = pytest.mark.full

#: Consumes from the queue, prints what it gets, and keeps it.
HOLDER = """
import sys
import gevent
import greenconn

def handle(body, message):
    print(body, message.delivery_info["redelivered"], flush=True)
    gevent.sleep(1000)

url, queue, lease = sys.argv[1:]
connection = greenconn.Connection(url, transport_options={"lease": float(lease)})
greenconn.spawn_consumer(queue, handle, connection=connection, prefetch_count=5,
                         concurrency=5).join()
"""


def test_restarts_under_load_lose_nothing(
    own_beanstalk: Beanstalkd, unique: str, long: bool
) -> None:
    restarts, queues, senders = (20, 20, 500) if long else (2, 5, 60)
    names = [f"{unique}.{number}" for number in range(queues)]
    got: Counter[str] = Counter()
    sent: list[str] = []
    is_over = False
    with Connection(own_beanstalk.url) as connection, Connection(own_beanstalk.url) as sending:

        def handle(body: str, message: Any) -> None:
            got[body] += 1

        consumers = [
            greenconn.spawn_consumer(name, handle, connection=connection) for name in names
        ]
        assert all(each.wait_ready(SOON) for each in consumers)

        def send(sender: int) -> None:
            number = 0
            while not is_over:
                body = f"{sender}.{number}"
                greenconn.publish(names[sender % queues], body, connection=sending, timeout=60)
                sent.append(body)
                number += 1
                gevent.sleep(random.random() / 2)

        greenlets = [gevent.spawn(send, number) for number in range(senders)]
        for _ in range(restarts):
            gevent.sleep(random.uniform(0.2, 0.5))
            random.choice((own_beanstalk.stop, own_beanstalk.kill))()
            gevent.sleep(random.uniform(0.1, 0.5))
            own_beanstalk.start()
            before = len(sent)
            until(lambda before=before: len(sent) > before + senders, 20)  # type: ignore[misc]
        is_over = True
        gevent.joinall(greenlets, raise_error=True)
        until(lambda: all(each in got for each in sent), 30)
        assert all(each.stop(SOON) for each in consumers)
    with raw_to(own_beanstalk.url) as raw:
        until(lambda: b"current-jobs-reserved: 0" in raw("stats").body)
        assert all(raw.counts(name).get("current-jobs-ready", "0") == "0" for name in names)
    print(f"{len(sent)} messages, {sum(got.values()) - len(got)} of them twice")


def test_cuts_anywhere_lose_nothing(
    beanstalk_url: str, relay_to: RelayFactory, unique: str, long: bool
) -> None:
    """The relay ends connections after some bytes, so also amid a command."""
    cuts, number, senders = (100, 10_000, 500) if long else (8, 800, 100)
    to_sender, to_consumer = relay_to(beanstalk_url), relay_to(beanstalk_url)
    got: Counter[int] = Counter()
    with Connection(to_consumer.url) as connection, Connection(to_sender.url) as sending:

        def handle(body: int, message: Any) -> None:
            gevent.sleep(0.001)
            got[body] += 1

        consumer = greenconn.spawn_consumer(
            unique, handle, connection=connection, prefetch_count=20, concurrency=10
        )
        assert consumer.wait_ready(SOON)

        def send(first: int) -> None:
            for each in range(first, number, senders):
                greenconn.publish(unique, each, connection=sending, timeout=60)
                gevent.sleep(random.random() * cuts * senders / number / 10)

        greenlets = [gevent.spawn(send, first) for first in range(senders)]
        for _ in range(cuts):
            gevent.sleep(random.uniform(0.02, 0.2))
            random.choice((to_sender, to_consumer)).cut_after(random.randrange(3000))
        gevent.joinall(greenlets, raise_error=True)
        until(lambda: len(got) == number, 60)
        assert consumer.stop(SOON)
    assert set(got) == set(range(number))


def test_replies_cut_and_in_fragments(
    beanstalk_url: str, relay_to: RelayFactory, unique: str
) -> None:
    relay = relay_to(beanstalk_url)
    relay.back_rate = 200_000.0
    got: list[str] = []
    with Connection(relay.url) as connection:

        def handle(body: str, message: Any) -> None:
            got.append(body[:1])

        consumer = greenconn.spawn_consumer(unique, handle, connection=connection)
        assert consumer.wait_ready(SOON)
        with Connection(beanstalk_url) as sending:
            for letter in "abc":
                greenconn.publish(unique, letter * 60_000, connection=sending)
        # The replies with these bodies are under way for most of a second: one is cut.
        gevent.sleep(0.1)
        relay.cut()
        until(lambda: set(got) == set("abc"), 30)
        assert consumer.stop(SOON)


@pytest.mark.long
@pytest.mark.programs
def test_messages_of_the_frozen_come_back(beanstalk_url: str, unique: str) -> None:
    """At the end of the lease; but beanstalkd 1.12 misses that on many a quiet connection."""
    holder = start("-c", HOLDER, beanstalk_url, unique, "1")
    try:
        with Connection(beanstalk_url, transport_options={"lease": 1.0}) as connection:
            greenconn.publish_many(unique, list(range(5)), connection=connection, declare=True)
            for _ in range(5):
                holder.line()
            got: list[int] = []
            consumer = greenconn.spawn_consumer(
                unique, lambda body, message: got.append(body), connection=connection
            )
            gevent.sleep(2.5)  # more than the lease: it is alive, and keeps them
            assert not got
            holder.signal(signal.SIGSTOP)
            gevent.sleep(3.0)
            print(f"{len(got)} of 5 were back after the lease")
            holder.signal(signal.SIGKILL)
            until(lambda: sorted(got) == list(range(5)))
            assert consumer.stop(SOON)
    finally:
        holder.end()


def test_frozen_server_keeps_nobody_for_ever(own_beanstalk: Beanstalkd, unique: str) -> None:
    options = {"reply_timeout": 0.5}
    with Connection(own_beanstalk.url, transport_options=options) as connection:
        got: list[int] = []
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.append(body), connection=connection
        )
        greenconn.publish(unique, 0, connection=connection)
        until(lambda: got == [0])
        own_beanstalk.pause()
        with pytest.raises(PublishTimeout):
            greenconn.publish(unique, 1, connection=connection, timeout=0.2)
        channel = Connection(own_beanstalk.url, connect_timeout=0.3)
        with pytest.raises(Exception, match=r"time|reply") as caught:
            channel.connect()
        assert isinstance(caught.value, (OSError, RecoverableConnectionError))
        channel.close()
        late = gevent.spawn(greenconn.publish, unique, 2, connection=connection, timeout=20)
        gevent.sleep(1.0)
        own_beanstalk.resume()
        late.get(timeout=20)
        until(lambda: 2 in got, 20)
        assert consumer.stop(SOON)


def test_rejected_messages_stay_as_long_as_the_server_drains(
    beanstalk_with: BeanstalkFactory, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In drain mode (SIGUSR1) nothing new is stored, dead letters neither."""
    server = beanstalk_with(is_durable=True)
    dead = Queue(f"{unique}-dead")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
    queue = Queue(unique, queue_arguments=arguments)
    options = {"lease": 1.0}
    numbers = set(range(10))
    with Connection(server.url, transport_options=options) as connection:
        dead(connection).declare()
        queue(connection).declare()
        for number in numbers:
            greenconn.publish(queue, number, connection=connection)
        server.drain()
        seen: Counter[int] = Counter()

        def refuse(body: int, message: Any) -> None:
            seen[body] += 1
            message.reject()

        consumer = greenconn.spawn_consumer(queue, refuse, connection=connection)
        until(lambda: set(seen) == numbers)
        told = f"a dead letter for queue {dead.name!r} could not be stored"
        until(lambda: caplog.text.count(told) >= len(numbers))
        assert "drain mode" in caplog.text
        server.stop()  # which ends that mode
        server.start()
        got: set[int] = set()
        collector = greenconn.spawn_consumer(
            dead, lambda body, message: got.add(body), connection=connection
        )
        until(lambda: got == numbers, SOON)
        assert consumer.stop(SOON)
        assert collector.stop(SOON)


@pytest.mark.parametrize("retry", [False, True])
def test_publishers_learn_that_the_server_drains(
    beanstalk_with: BeanstalkFactory, unique: str, retry: bool
) -> None:
    server = beanstalk_with()
    with Connection(server.url) as connection, connection.SimpleQueue(unique) as simple:
        generation, producer = connection.session.generation, connection.Producer()
        publish = partial(producer.publish, "refused", routing_key=unique, retry=retry)
        server.drain()
        with pytest.raises(PublishNacked, match="drain mode"):
            until(publish)  # None, as long as the signal has not come
        with pytest.raises(PublishNacked, match="drain mode"):
            simple.put("refused")
        for declare in (Queue(f"{unique}-new")(connection).declare, partial(simple_of, connection)):
            with pytest.raises(RecoverableChannelError, match="drain mode"):
                declare()
        assert connection.session.generation == generation


def simple_of(connection: Connection) -> None:
    """Declare a queue, an exchange and a binding."""
    connection.SimpleQueue("new")


def test_server_that_is_away_at_first(beanstalk_with: BeanstalkFactory, unique: str) -> None:
    server = beanstalk_with()
    server.kill()
    with Connection(server.url) as connection:
        got: list[int] = []
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.append(body), connection=connection
        )
        assert not consumer.wait_ready(0.2)
        publishes = [
            gevent.spawn(greenconn.publish, unique, each, connection=connection, timeout=30)
            for each in range(200)
        ]
        gevent.sleep(0.2)
        server.start()
        gevent.joinall(publishes, raise_error=True, timeout=30)
        until(lambda: sorted(set(got)) == list(range(200)), 20)
        assert consumer.stop(SOON)


def test_idle_connection_notices_that_its_server_is_gone(
    beanstalk_with: BeanstalkFactory, unique: str
) -> None:
    server = beanstalk_with()
    with Connection(server.url) as connection:
        connection.ensure_connection()
        server.kill()
        until(lambda: not connection.connected)


def test_hundred_consumers_share_two_sockets(
    beanstalk_url: str, relay_to: RelayFactory, unique: str
) -> None:
    relay = relay_to(beanstalk_url)
    got: Counter[str] = Counter()
    names = [f"{unique}.{number}" for number in range(100)]
    with Connection(relay.url) as connection, Connection(beanstalk_url) as sending:

        def handle(body: str, message: Any) -> None:
            got[body] += 1

        consumers = [
            greenconn.spawn_consumer(name, handle, connection=connection) for name in names
        ]
        assert all(each.wait_ready(20) for each in consumers)
        for _ in range(3):
            for name in random.sample(names, 100):
                greenconn.publish(name, name, connection=sending)
        until(lambda: got == dict.fromkeys(names, 3), 20)
        assert relay.accepted == 2
        stops = [gevent.spawn(each.stop, SOON) for each in consumers]
        assert all(each.get() for each in stops)
        channel = sending.default_channel
        for name in names:
            channel.queue_delete(name)


def test_forks(beanstalk_url: str, unique: str) -> None:
    """The child says nothing over the parent's connections, and opens its own."""
    with Connection(beanstalk_url) as connection:
        got: list[str] = []
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.append(body), connection=connection
        )
        greenconn.publish(unique, "parent", connection=connection)
        until(lambda: got == ["parent"])
        child = os.fork()
        if not child:
            try:
                greenconn.publish(unique, "child", connection=connection, timeout=SOON)
                os._exit(0)
            except BaseException as exc:
                print(repr(exc), flush=True)
            finally:
                os._exit(1)
        with gevent.Timeout(20):
            while True:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    break
                gevent.sleep(0.02)
        assert status == 0
        until(lambda: sorted(got) == ["child", "parent"])
        greenconn.publish(unique, "again", connection=connection)
        until(lambda: len(got) == 3)
        assert consumer.stop(SOON)


def test_rejected_ones_are_kicked(beanstalk_url: str, unique: str) -> None:
    with Connection(beanstalk_url) as connection, connection.channel() as channel:
        queue: Any = Queue(unique, durable=False)(channel)
        queue.declare()
        for body in "abc":
            connection.Producer().publish(body, routing_key=unique, serializer="json")
        for _ in range(3):
            queue.get().reject()
        assert queue.get() is None
        assert channel.kick(unique, 2) == 2
        assert channel.kick(unique) == 1
        messages = [queue.get() for _ in range(3)]
        assert [each.payload for each in messages] == ["a", "b", "c"]
        assert all(each.delivery_info["redelivered"] for each in messages)
        for each in messages:
            each.ack()
        queue.delete()


def test_nothing_is_taken_for_a_consumer_that_left(beanstalk_url: str, unique: str) -> None:
    with Connection(beanstalk_url) as connection, connection.channel() as channel:
        queue: Any = Queue(unique, durable=False)(channel)
        queue.declare()
        for number in range(20):
            got: list[int] = []

            def handle(body: int, message: Any, got: list[int] = got) -> None:
                got.append(body)

            consumer = greenconn.spawn_consumer(unique, handle, connection=connection)
            greenconn.publish(unique, number, connection=connection)
            until(lambda got=got, number=number: got == [number])  # type: ignore[misc]
            assert consumer.stop(SOON)
            greenconn.publish(unique, "later", connection=connection)
            message = queue.get()
            assert message is not None
            assert message.payload == "later"
            message.ack()
        queue.delete()
