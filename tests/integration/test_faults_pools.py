"""Pools of real connections under many callers, kills, cuts and forgetful programs."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import LimitExceeded, OperationalError, RecoverableConnectionError
from greenconn.messaging import Producer
from greenconn.pools import ProducerPool
from tests.fix_relay import Relay
from tests.fix_wires import until
from tests.receiving import bodies_in

pytestmark = pytest.mark.full

SOON = 30.0
LIMIT = 10


def counted(connection: Connection, queue: str) -> Counter[Any]:
    """Take all messages out of *queue*, and count them by body."""
    return Counter(bodies_in(connection, queue))


def check_is_whole(pool: Any, limit: int) -> None:
    """Nothing is held, nobody waits, and all places can be had."""
    until(lambda: pool.stats()["in_use"] == 0)
    assert pool.stats()["waiting"] == 0
    all_of_them = [pool.acquire(block=False) for _ in range(limit)]
    with pytest.raises(LimitExceeded):
        pool.acquire(block=False)
    for each in all_of_them:
        each.release()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_cut", [False, True], ids=["steady", "cut"])
def test_many_callers_share_ten_connections(
    relay: Relay, unique: str, is_cut: bool, long: bool
) -> None:
    """In the order of arrival, within the limit, whoever is killed or runs out of time."""
    rng = random.Random(5)
    callers = 10_000 if long else 1_000
    arrivals: list[int] = []
    served: list[int] = []
    published: set[int] = set()
    direct = Connection(relay.url)
    direct.default_channel.queue_declare(unique, durable=True, auto_delete=False)
    pool = direct.Pool(LIMIT)
    errors: tuple[type[BaseException], ...] = (OperationalError, *direct.connection_errors)

    def one(number: int) -> None:
        timer = gevent.Timeout(rng.random() * 0.5) if number % 7 == 0 else None
        try:
            if timer is not None:
                timer.start()
            arrivals.append(number)
            with pool.acquire(block=True) as connection:
                served.append(number)
                connection.ensure_connection()
                Producer(connection).publish(number, unique, retry=is_cut)
                connection.default_channel.queue_declare(unique, passive=True)
                published.add(number)
                if rng.random() < 0.2:
                    gevent.sleep(rng.random() * 0.01)
        except gevent.Timeout:
            pass
        except errors:
            assert is_cut
        finally:
            if timer is not None:
                timer.close()

    greenlets = []
    for number in range(callers):
        greenlets.append(gevent.spawn(one, number))
        if number % 50 == 0:
            gevent.sleep(0.001)  # they do not come all at once
            target = rng.choice(greenlets)
            target.kill(block=False)
            assert pool.stats()["in_use"] <= LIMIT
        if is_cut and number % 300 == 150:
            relay.cut()
    gevent.joinall(greenlets, timeout=500, raise_error=True)
    assert all(each.dead for each in greenlets)
    assert served == sorted(served), "somebody was overtaken"
    assert arrivals == sorted(arrivals)
    check_is_whole(pool, LIMIT)
    assert relay.most <= LIMIT + 1  # and the one that is not pooled
    found = counted(direct, unique)
    if not is_cut:
        assert published <= found.keys()
        assert len(published) > callers / 3
        assert relay.accepted <= 2 * LIMIT  # who is killed may take an attempt along
    direct.default_channel.queue_delete(unique)
    pool.force_close_all()
    direct.close()
    until(lambda: relay.open == 0)


def test_the_limit_holds_while_connections_are_opened(relay: Relay) -> None:
    relay.delay = 0.1
    template = Connection(relay.url)
    pool = template.Pool(3)

    def one(number: int) -> None:
        with pool.acquire(block=True, timeout=SOON) as connection:
            connection.connect()
            if number % 5 == 0:
                connection.collect()  # the next one has to connect again

    greenlets = [gevent.spawn(one, number) for number in range(30)]
    gevent.joinall(greenlets[5:8], timeout=0.15)
    for each in greenlets[::4]:
        each.kill(block=False)
    gevent.joinall(greenlets, timeout=SOON, raise_error=True)
    assert relay.most <= 3
    check_is_whole(pool, 3)
    pool.force_close_all()


def test_preloaded_connections_count(relay: Relay) -> None:
    pool = Connection(relay.url).Pool(3, preload=2)
    assert relay.open == 2
    one, two, three = (pool.acquire() for _ in range(3))
    for each in (one, two, three):
        each.connect()
    assert relay.most == 3
    pool.force_close_all()
    until(lambda: relay.open == 0)


def test_dead_connections_are_replaced_without_an_error(relay: Relay, unique: str) -> None:
    template = Connection(relay.url, transport_options={"confirm_publish": True})
    pool = template.Pool(3)
    producers = ProducerPool(template.Pool(3), limit=3)
    with pool.acquire() as connection:
        connection.default_channel.queue_declare(unique, arguments={"x-expires": 60_000})
    for round_ in range(3):
        held = [pool.acquire() for _ in range(3)]
        makers = [producers.acquire() for _ in range(3)]
        for each in held:
            each.connect()
        for each in makers:
            each.publish(round_, unique)
        for each in (*held, *makers):
            each.release()
        relay.cut()
        until(lambda: relay.open == 0)
        gevent.sleep(0.01)  # until it is noticed here
        accepted = relay.accepted
        for _ in range(10):
            with pool.acquire(block=True) as connection:
                connection.Producer().publish("pool", unique)
                assert connection.channel().queue_declare(unique, passive=True).queue == unique
            with producers.acquire(block=True) as producer:
                producer.publish("producers", unique)
        # Last in, first out: one connection of each pool was needed.
        assert relay.accepted == accepted + 2
    check_is_whole(pool, 3)
    check_is_whole(producers, 3)
    with pool.acquire() as connection:
        found = counted(connection, unique)
        assert found == {"pool": 30, "producers": 30, 0: 3, 1: 3, 2: 3}
        connection.default_channel.queue_delete(unique)
    for each in (pool, producers, producers.connections):
        each.force_close_all()


def test_a_late_release_frees_nothing_of_the_next_holders(amqp_url: str, unique: str) -> None:
    pool = Connection(amqp_url).Pool(1)
    first = pool.acquire()
    core = first.session
    first.connect()
    first.release()
    second = pool.acquire()
    assert second.session is core
    for late in (first.release, first.close, first.release, lambda: pool.release(first)):
        late()
    with first:
        pass
    pool.replace(first)
    assert pool.stats()["in_use"] == 1
    assert second.connected
    with pytest.raises(LimitExceeded):
        pool.acquire()
    uses: list[Callable[[], Any]] = [
        first.connect,
        first.channel,
        lambda: first.default_channel,
        lambda: first.connected,
        lambda: first.drain_events(timeout=0),
        first.ensure_connection,
        lambda: first.Producer().publish("x", unique),
        lambda: first.SimpleQueue(unique),
        lambda: first.Consumer(Queue(unique)),
        first.clone,
        first.collect,
        first.heartbeat_check,
    ]
    link = second.connection
    for use in uses:
        try:
            use()
        except TimeoutError:
            pass  # there was nothing to drain
    assert second.connected
    assert second.connection is link
    assert first == second
    second.default_channel.basic_qos(0, 1, False)
    second.release()
    check_is_whole(pool, 1)
    pool.force_close_all()


def test_a_pool_of_channels_follows_its_connection(relay: Relay, unique: str) -> None:
    with Connection(relay.url) as connection:
        pool = connection.ChannelPool(3)
        for _ in range(3):
            held, idle = pool.acquire(), pool.acquire()
            queue = held.queue_declare(unique, arguments={"x-expires": 60_000}).queue
            idle.release()
            waiting = [gevent.spawn(pool.acquire, block=True) for _ in range(4)]
            gevent.sleep(0)
            for each in waiting[:2]:
                each.get(timeout=SOON)
            relay.cut()
            until(lambda: not connection.connected)
            with pytest.raises(RecoverableConnectionError):
                held.queue_declare(queue, passive=True)
            assert pool.stats()["in_use"] == 3
            held.release()
            channel = waiting[2].get(timeout=SOON)
            assert channel.queue_declare(queue, passive=True).queue == queue
            for each in waiting[:2]:
                each.get().release()
            other = waiting[3].get(timeout=SOON)
            for each in (channel, other):
                assert each.queue_declare(queue, passive=True).queue == queue
                each.release()
            check_is_whole(pool, 3)
        pool.force_close_all()


def test_a_channel_that_an_error_closed_is_not_lent_again(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        pool = connection.ChannelPool(1)
        for _ in range(5):
            with pool.acquire() as channel:
                dead = channel.channel_id
                with pytest.raises(connection.channel_errors):
                    channel.queue_declare(unique, passive=True)
            with pool.acquire() as channel:
                assert channel.is_open
                assert channel.basic_qos(0, 1, False) is None
        assert dead
        pool.force_close_all()


def test_connections_that_are_dropped_come_back(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Connection(relay.url).Pool(2, trace_acquire=True)

    def forget_both(in_a_circle: bool) -> None:
        one, two = pool.acquire(), pool.acquire()
        one.connect()
        two.connect()
        if in_a_circle:
            one.friend, two.friend = two, one

    for in_a_circle in (False, True, False):
        forget_both(in_a_circle)
        waiting = gevent.spawn(pool.acquire, block=True)
        gevent.sleep(0)
        gc.collect()
        waiting.get(timeout=SOON).release()
        check_is_whole(pool, 2)
    assert relay.accepted == 2
    assert "forget_both" in caplog.text
    pool.force_close_all()


def test_holders_are_named_when_none_is_free(amqp_url: str) -> None:
    pool = Connection(amqp_url).Pool(1)
    may_end = Event()

    def hold() -> None:
        with pool.acquire() as connection:
            connection.connect()
            may_end.wait(SOON)

    holder = gevent.spawn(hold)
    holder.name = "the one who holds it"
    gevent.sleep(0.05)
    with pytest.raises(LimitExceeded, match="the one who holds it") as caught:
        pool.acquire(block=True, timeout=0.05)
    assert "guest:guest" not in str(caught.value)
    may_end.set()
    holder.get(timeout=SOON)
    pool.force_close_all()


def test_many_callers_share_a_pool_of_producers(relay: Relay, unique: str, long: bool) -> None:
    """A place and a connection each, and both come back, whoever is killed or runs out of time."""
    rng = random.Random(7)
    callers = 5_000 if long else 500
    template = Connection(relay.url, transport_options={"confirm_publish": True})
    template.default_channel.queue_declare(unique, durable=True, auto_delete=False)
    producers = ProducerPool(template.Pool(3), limit=5)
    published: set[int] = set()

    def one(number: int) -> None:
        timeout = gevent.Timeout(rng.random() * 0.2 if number % 3 == 0 else None)
        with suppress(gevent.Timeout), timeout, producers.acquire(block=True) as producer:
            producer.publish(number, unique)
            published.add(number)

    greenlets = []
    for number in range(callers):
        greenlets.append(gevent.spawn(one, number))
        if number % 20 == 0:
            gevent.sleep(0.001)
            rng.choice(greenlets).kill(block=False)
    gevent.joinall(greenlets, timeout=SOON, raise_error=True)
    check_is_whole(producers, 3)  # as many as there are connections
    check_is_whole(producers.connections, 3)
    assert published <= counted(template, unique).keys()
    assert len(published) > callers / 3
    template.default_channel.queue_delete(unique)
    producers.force_close_all()
    producers.connections.force_close_all()
    template.close()


def test_who_hand_connections_on_share_their_sends(amqp_url: str, unique: str) -> None:
    """Each greenlet runs because of the one before, all of them in one turn of the hub."""
    callers, each = 200, 5
    template = Connection(amqp_url)
    template.default_channel.queue_declare(unique, durable=True, auto_delete=False)
    producers = ProducerPool(template.Pool(2), limit=2)
    held = [producers.acquire(block=True) for _ in range(2)]
    writers = [producer.channel.connection.writer for producer in held]

    def some() -> None:
        for number in range(each):
            with producers.acquire(block=True) as producer:
                producer.publish(number, unique)

    greenlets = [gevent.spawn(some) for _ in range(callers)]
    until(lambda: producers.stats()["waiting"] == callers)
    before = sum(writer.sends for writer in writers)
    for producer in held:
        producer.release()
    gevent.joinall(greenlets, timeout=SOON, raise_error=True)
    assert sum(writer.sends for writer in writers) - before < callers * each / 4
    held = [producers.acquire(block=True) for _ in range(2)]
    for producer in held:
        producer.channel.queue_declare(unique, passive=True)  # behind what was published
        producer.release()
    assert counted(template, unique) == dict.fromkeys(range(each), callers)
    template.default_channel.queue_delete(unique)
    producers.force_close_all()
    producers.connections.force_close_all()
    template.close()
