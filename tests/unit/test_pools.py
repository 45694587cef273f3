"""The pools that a program shares, over real connections to the memory broker."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from greenconn import pools
from greenconn.connection import Connection, PooledConnection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import (
    ConnectionLimitExceeded,
    LimitExceeded,
    NotBoundError,
    OperationalError,
    WrongHub,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import yield_to_hub
from greenconn.messaging import Producer
from greenconn.resource import ConnectionPool
from greenconn.transport import memory
from tests.fix_interrupts import Signal, signals
from tests.scripted import PlainTransport
from tests.unit.green.test_pool import settle

URL = "memory://me:secret@localhost/pools"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Nothing is shared between tests, those of other modules neither."""
    pools.reset()
    yield
    pools.reset()
    pools.set_limit(10)
    memory.reset()


@pytest.fixture
def connection() -> Iterator[Connection]:
    """What the pools are made for."""
    with Connection(URL) as connection:
        yield connection


# Pools of connections


def test_a_pooled_connection_is_of_the_class_and_equal(connection: Connection) -> None:
    pool = connection.Pool(2)
    assert isinstance(pool, ConnectionPool)
    one = pool.acquire()
    assert isinstance(one, PooledConnection)
    assert isinstance(one, Connection)
    assert one is not connection
    assert not one.connected  # nothing is opened before it is needed
    one.default_channel.queue_declare("q", auto_delete=False)
    one.release()
    two = pool.acquire()
    assert two is not one
    assert two == one
    assert len({one, two}) == 1
    assert two != connection
    assert two.connected
    # As with kombu, what was bound to it goes on working.
    Exchange("later", channel=one).declare()
    one.release()
    assert pool.stats()["in_use"] == 1
    two.release()
    pool.force_close_all()


def test_a_connection_that_was_closed_is_replaced(connection: Connection) -> None:
    pool = connection.Pool(1)
    with pool.acquire() as one:
        one.connect()
        link = one.connection
    with pool.acquire() as two:
        two.session.close()
    with pool.acquire() as three:
        three.connect()
        assert three.connection is not link
    pool.force_close_all()


def test_a_facade_to_which_nothing_refers_is_lent_again(connection: Connection) -> None:
    pool = connection.Pool(1)
    lent = pool.acquire()
    lent.tenant = "of the first holder"
    lent.release()
    identity = id(lent)
    del lent
    pool.acquire().release()  # a pool keeps two
    again = pool.acquire()
    assert id(again) == identity
    assert not hasattr(again, "tenant")
    assert again.default_channel is not None
    assert pool.stats()["in_use"] == 1
    again.release()
    again.release()
    pool.release(again)
    assert pool.stats() | {"in_use": 0, "idle": 1} == pool.stats()


def test_a_former_holder_keeps_its_facade(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    pool = connection.Pool(1)
    formers = []
    for _ in range(5):
        formers.append(pool.acquire())
        formers[-1].release()
    assert len({id(each) for each in formers}) == 5
    held = pool.acquire()
    for former in formers:
        former.release()
        pool.release(former)
        pool.replace(former)
        assert former is not held
        assert former.default_channel is held.default_channel
    assert len([each for each in caplog.records if "used after its release" in each.message]) == 1
    assert pool.stats()["in_use"] == 1
    held.release()
    assert pool.stats()["in_use"] == 0


def test_a_facade_that_is_lent_again_and_dropped_comes_back(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    pool = connection.Pool(1)
    for times in range(1, 4):
        pool.acquire().release()
        pool.acquire().release()
        pool.acquire()  # dropped
        gc.collect()
        pool.acquire(block=True, timeout=30).release()
        settle()
        assert caplog.text.count("garbage-collected without being released") == times
    assert pool.stats()["created"] == 1


def warmed(pool: ConnectionPool) -> ConnectionPool:
    """*pool*, whose facades can be lent again from now on."""
    for _ in range(3):
        pool.acquire().release()
    return pool


@pytest.mark.parametrize(
    ("timeout", "error"),
    [("5", TypeError), (True, TypeError), (float("nan"), ValueError), (float("inf"), ValueError)],
)
def test_a_timeout_that_is_none_is_refused_although_one_is_idle(
    connection: Connection, timeout: Any, error: type[Exception]
) -> None:
    pool = warmed(connection.Pool(1))
    with pytest.raises(error, match="timeout must be"):
        pool.acquire(timeout=timeout)
    for good in (0, 5, 0.5, -1.0, Deadline(5.0)):
        pool.acquire(timeout=good).release()
    assert pool.stats() | {"in_use": 0, "idle": 1, "created": 1} == pool.stats()


def test_a_connection_that_is_lent_again_belongs_to_one_hub(
    connection: Connection, thread: ThreadPool
) -> None:
    pool = warmed(connection.Pool(1))
    with pytest.raises(WrongHub):
        thread.apply(pool.acquire)
    held = pool.acquire()
    for end in (held.release, held.replace, held.__exit__, lambda: pool.release(held)):
        with pytest.raises(WrongHub):
            thread.apply(end)
    assert pool.stats()["in_use"] == 1
    assert held.default_channel is not None
    held.release()
    assert pool.stats()["in_use"] == 0


def test_a_connection_is_not_lent_again_once_its_hub_was_destroyed(thread: ThreadPool) -> None:
    def work() -> None:
        pool = warmed(Connection(URL).Pool(1))
        gevent.get_hub().destroy(destroy_loop=True)
        with pytest.raises(WrongHub):
            pool.acquire()

    thread.apply(work)


def test_a_pool_releases_only_what_it_has_lent(connection: Connection) -> None:
    pool, other = warmed(connection.Pool(1)), warmed(connection.Pool(1))
    held = pool.acquire()
    other.release(held)
    other.release(None)
    other.release(connection)
    assert [each.stats()["in_use"] for each in (pool, other)] == [1, 0]
    pool.release(held)
    assert pool.stats()["in_use"] == 0


def test_who_waits_gets_what_is_lent_again(connection: Connection) -> None:
    pool = warmed(connection.Pool(1))
    order: list[int] = []

    def use(number: int) -> None:
        for _ in range(2):
            with pool.acquire(block=True):
                order.append(number)
                yield_to_hub()

    gevent.joinall([gevent.spawn(use, number) for number in range(3)], raise_error=True)
    assert order == [0, 1, 2] * 2
    assert pool.stats() | {"in_use": 0, "created": 1} == pool.stats()


# Pools of channels


def test_a_pool_of_channels_follows_its_connection(connection: Connection) -> None:
    pool = connection.ChannelPool(1)
    with pool.acquire() as channel:
        link = channel.connection
    connection.collect()
    connection.connect()
    with pool.acquire() as channel:
        assert channel.connection is not link
        channel.queue_declare("q", auto_delete=False)
    pool.force_close_all()


# Pools of producers


def test_a_former_producer_cannot_publish(connection: Connection) -> None:
    pool = pools.producers[connection]
    producer = pool.acquire()
    producer.publish("one", routing_key="nowhere")
    producer.release()
    other = pool.acquire()
    with pytest.raises((NotBoundError, OperationalError)):
        producer.publish("two", routing_key="nowhere")
    producer.release()
    assert pool.stats()["in_use"] == 1
    other.publish("three", routing_key="nowhere")
    other.close()
    assert pool.stats()["in_use"] == 0


def test_a_producer_keeps_its_connection_while_nobody_wants_it(connection: Connection) -> None:
    below = connection.Pool(2)
    pool = pools.ProducerPool(below, limit=2)
    with pool.acquire() as producer:
        link = producer.channel.connection
        former = producer.connection
        assert below.stats()["in_use"] == pool.stats()["in_use"] == 1
        assert [name for name, _ in below.holders()] == ["main"]
    assert below.stats()["in_use"] == 0
    assert below.stats()["idle"] == 1
    assert not below.holders()
    with pool.acquire() as producer:
        assert producer.channel.connection is link
        assert former.default_channel.connection is link
    # The bare connection is that one, not another.
    with below.acquire() as bare:
        assert bare.connection is link
        assert pool.stats()["idle"] == 0
    assert below.stats()["created"] == 1
    below.force_close_all()


@pytest.mark.parametrize("gives_back", ["release", "drop"])
def test_who_waits_for_a_connection_gets_it_before_later_producers(
    connection: Connection, gives_back: str
) -> None:
    below = connection.Pool(1)
    pool = pools.ProducerPool(below, limit=1)
    held = [pool.acquire()]
    order: list[str] = []

    def take(name: str, source: Any) -> None:
        with source.acquire(block=True, timeout=5):
            order.append(name)

    greenlets = []
    for name, source in (("connection", below), ("one", pool), ("two", pool)):
        greenlets.append(gevent.spawn(take, name, source))
        yield_to_hub()
    if gives_back == "release":
        held.pop().release()
    else:
        del held[0]
        gc.collect()
    gevent.joinall(greenlets, timeout=10, raise_error=True)
    assert order == ["connection", "one", "two"]
    assert below.stats()["in_use"] == pool.stats()["in_use"] == 0
    below.force_close_all()


def warmed_producers(connection: Connection) -> pools.ProducerPool:
    """A pool of one producer, which can be lent again from now on."""
    pool = pools.ProducerPool(connection.Pool(1), limit=1)
    for _ in range(3):
        pool.acquire().release()
    return pool


def test_a_producer_to_which_nothing_refers_is_lent_again_as_if_it_was_new(
    connection: Connection,
) -> None:
    pool = warmed_producers(connection)
    Queue("letters")(connection.default_channel).declare()
    seen = []
    for _ in range(6):
        with pool.acquire(block=True) as producer:
            seen.append(id(producer))
            assert producer.exchange == Exchange("")
            assert producer.exchange.channel is producer.channel
            assert (producer.routing_key, producer.serializer, producer.auto_declare) == (
                "",
                None,
                True,
            )
            assert (producer.compression, producer.on_return, producer.batches) == (
                None,
                None,
                None,
            )
            assert not hasattr(producer, "tenant")
            producer.publish("one", routing_key="letters")
            producer.exchange = Exchange("of-one-holder")(producer.channel)
            producer.serializer = "yaml"
            producer.routing_key = producer.compression = "zlib"
            producer.auto_declare = False
            producer.on_return = print
            producer.batches = {}
            producer.tenant = "of one holder"
            producer.publish = None
        with pytest.raises(NotBoundError):
            Producer.publish(producer, "late")
    assert seen[2:] == [*seen[:2]] * 2
    with connection.SimpleQueue("letters") as box:
        assert [box.get(timeout=20).payload for _ in range(6)] == ["one"] * 6
    assert pool.stats() | {"in_use": 0, "created": 1} == pool.stats()


@pytest.mark.parametrize(
    "refer",
    [
        lambda producer: producer,
        weakref.ref,
        lambda producer: producer.publish,
        lambda producer: producer.__connection__,
        lambda producer: weakref.ref(producer.__connection__),
        lambda producer: producer.exchange,
    ],
    ids=["itself", "weakly", "method", "connection", "connection-weakly", "exchange"],
)
def test_a_producer_to_which_something_refers_is_not_lent_again(
    connection: Connection, refer: Any
) -> None:
    pool = warmed_producers(connection)
    formers: list[tuple[Any, int]] = []
    for _ in range(6):
        producer = pool.acquire()
        for reference, identity in formers:
            if isinstance(reference, weakref.ref):
                assert reference() is not producer
                assert reference() is not producer.__connection__
            else:
                assert identity != id(producer.__connection__)
        formers.append((refer(producer), id(producer.__connection__)))
        producer.publish("one", routing_key="nowhere")
        producer.release()
        del producer
    assert pool.stats() | {"in_use": 0, "created": 1} == pool.stats()


def test_a_producer_that_is_lent_again_uses_the_channel_of_now(connection: Connection) -> None:
    pool = warmed_producers(connection)
    channels = []
    for _ in range(4):
        with pool.acquire() as producer:
            producer.publish("one", routing_key="nowhere")
            channels.append(producer.channel)
            assert producer.channel is producer.connection.default_channel
            producer.channel.close()
    assert len({id(each) for each in channels}) == 4


def test_a_producer_that_is_lent_again_and_dropped_comes_back(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    pool = warmed_producers(connection)
    for times in range(1, 4):
        pool.acquire().release()
        pool.acquire()  # dropped
        gc.collect()
        pool.acquire(block=True, timeout=30).release()
        settle()
        assert caplog.text.count("garbage-collected without being released") == times
    assert pool.stats() | {"in_use": 0, "created": 1} == pool.stats()


def test_producers_that_wait_get_what_is_lent_again(connection: Connection) -> None:
    pool = warmed_producers(connection)
    order: list[int] = []
    seen: set[int] = set()

    def once(number: int) -> None:
        with pool.acquire(block=True) as producer:
            seen.add(id(producer))
            producer.publish(number, routing_key="nowhere")
            order.append(number)
            yield_to_hub()

    def use(number: int) -> None:
        for _ in range(4):
            once(number)

    gevent.joinall([gevent.spawn(use, number) for number in range(3)], raise_error=True)
    assert order == [0, 1, 2] * 4
    assert len(seen) == 2
    assert pool.stats() | {"in_use": 0, "created": 1} == pool.stats()


def test_who_waits_for_a_connection_gets_it_from_a_producer_that_was_lent_again(
    connection: Connection,
) -> None:
    pool = warmed_producers(connection)
    below = pool.connections
    for _ in range(3):
        held = pool.acquire()
        waiting = gevent.spawn(below.acquire, block=True, timeout=30)
        yield_to_hub()
        held.release()
        waiting.get(timeout=30).release()
        assert below.stats()["in_use"] == pool.stats()["in_use"] == 0
        for _ in range(3):
            pool.acquire().release()
    assert below.stats()["created"] == 1


@pytest.mark.parametrize("method", ["lend_again", "mark_released"])
def test_an_error_at_the_renewal_of_a_producer_gives_it_back(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pool = warmed_producers(connection)

    def fail(self: object, *args: object) -> bool:
        raise KeyboardInterrupt

    held = pool.acquire() if method == "mark_released" else None
    monkeypatch.setattr(PooledConnection, method, fail)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire() if held is None else held.release()
    monkeypatch.undo()
    del held
    gc.collect()
    pool.acquire(block=True, timeout=30).release()
    assert pool.stats() | {"in_use": 0, "idle": 1} == pool.stats()


def test_a_producer_that_is_lent_again_belongs_to_one_hub(
    connection: Connection, thread: ThreadPool
) -> None:
    pool = warmed_producers(connection)
    with pytest.raises(WrongHub):
        thread.apply(pool.acquire)
    held = pool.acquire()
    with pytest.raises(WrongHub):
        thread.apply(held.release)
    assert pool.stats()["in_use"] == 1
    gevent.spawn(held.release).get(timeout=30)
    assert pool.stats()["in_use"] == 0


def test_producers_end_with_the_connections_below(connection: Connection) -> None:
    below = connection.Pool(2)
    pool = pools.ProducerPool(below, limit=2)
    held, idle = pool.acquire(), pool.acquire()
    held.publish("one", routing_key="nowhere")
    idle.release()
    bound = held.exchange
    below.force_close_all(close_pool=False)
    assert pool.stats()["in_use"] == pool.stats()["idle"] == 0
    with pytest.raises((NotBoundError, OperationalError)):
        held.publish("two", routing_key="nowhere")
    with pytest.raises(OperationalError, match="closed by force"):
        _ = bound.channel
    held.release()
    with pool.acquire() as other:
        other.publish("three", routing_key="nowhere")
    below.force_close_all()
    with pytest.raises(RuntimeError, match="is closed"):
        pool.acquire()


def test_connections_that_producers_keep_go_when_the_pool_shrinks(connection: Connection) -> None:
    below = connection.Pool(3)
    pool = pools.ProducerPool(below, limit=3)
    for producer in [pool.acquire() for _ in range(3)]:
        producer.release()
    below.resize(1)
    assert below.stats()["idle"] == 1
    with pool.acquire(), pytest.raises(ConnectionLimitExceeded):
        pool.acquire()
    below.force_close_all()


def test_releasing_its_connection_releases_the_producer(connection: Connection) -> None:
    pool = pools.producers[connection]
    producer = pool.acquire()
    producer.connection.release()
    assert pool.stats()["in_use"] == 0
    with pytest.raises((NotBoundError, OperationalError)):
        producer.publish("late", routing_key="nowhere")
    producer.release()
    assert pool.stats()["in_use"] == 0


def test_a_broken_connection_is_replaced(connection: Connection) -> None:
    pool = pools.producers[connection]
    with pytest.raises(LookupError), pool.acquire() as producer:
        producer.connection.replace()
        raise LookupError
    settle()
    assert pool.stats()["in_use"] == 0
    assert pools.connections[connection].stats()["discarded"] == 1


def test_a_connection_that_cannot_tell_whether_it_is_lost_is_replaced() -> None:
    below = Connection("one", transport=PlainTransport).Pool(1)
    pool = pools.ProducerPool(below, limit=1)
    with pool.acquire() as producer:
        producer.connection.connect()
    assert below.stats()["discarded"] == 0
    with pytest.raises(LookupError), pool.acquire():
        raise LookupError
    settle()
    assert below.stats()["discarded"] == 1
    pool.force_close_all()
    below.force_close_all()


def test_one_deadline_for_place_and_connection(connection: Connection) -> None:
    shared = connection.Pool(1)
    pool = pools.ProducerPool(shared, limit=2)
    with shared.acquire():
        with pytest.raises(ConnectionLimitExceeded):
            pool.acquire()
        with pytest.raises(ConnectionLimitExceeded, match=r"within 0\.0 s"):
            pool.acquire(block=True, timeout=0.02)
    assert pool.stats()["in_use"] == 0
    held = [pool.acquire()]
    shared.resize(5)
    held.append(pool.acquire())
    with pytest.raises(LimitExceeded, match="producers of"):
        pool.acquire(block=True, timeout=0.01)
    for producer in held:
        producer.release()
    assert shared.stats()["in_use"] == 0
    shared.force_close_all()


def test_a_dropped_producer_releases_both(connection: Connection) -> None:
    pool = pools.producers[connection]
    producer = pool.acquire()
    gone = weakref.ref(producer)
    del producer
    gc.collect()
    settle()
    assert gone() is None
    assert pool.stats()["in_use"] == 0
    assert pools.connections[connection].stats()["in_use"] == 0


def test_many_greenlets_share_few_connections(connection: Connection) -> None:
    connection.SimpleQueue("shared").close()

    def publish(number: int) -> None:
        with pools.producers[connection].acquire(block=True, timeout=5) as producer:
            producer.publish(number, routing_key="shared")
            yield_to_hub()

    greenlets = [gevent.spawn(publish, number) for number in range(200)]
    gevent.joinall(greenlets, timeout=10, raise_error=True)
    assert pools.connections[connection].stats()["created"] == 10
    with connection.SimpleQueue("shared") as box:
        assert box.qsize() == 200


# Groups


def test_equal_connections_have_one_pool(connection: Connection) -> None:
    pool = pools.connections[connection]
    assert pools.connections[connection.clone()] is pool
    assert pools.connections[Connection(URL)] is pool
    assert pools.connections[Connection("memory://localhost/other")] is not pool
    assert connection in pools.connections
    assert len(pools.connections) == 2
    assert pools.producers[connection].connections is pool
    assert "secret" not in repr(list(pools.connections)) + repr(pools.connections)
    del pools.connections[connection]
    assert pools.connections.get(connection) is None


def test_the_global_limit(connection: Connection) -> None:
    assert pools.get_limit() == 10
    pool = pools.connections[connection]
    assert pool.limit == 10
    assert pools.set_limit(3) == 3
    assert pool.limit == 3
    assert pools.connections[Connection("memory://localhost/other")].limit == 3
    with pool.acquire():
        with pytest.raises(RuntimeError, match="cannot shrink"):
            pools.set_limit(1)
        assert pools.get_limit() == 1
        assert pool.limit == 3
        pools.set_limit(2, ignore_errors=True)
        assert pool.limit == 2
    assert pools.set_limit(None) == 0
    assert pool.limit == 0
    assert pool.stats()["limit"] is None
    with pytest.raises(TypeError):
        pools.set_limit(True)


def test_each_thread_has_its_own_pools(connection: Connection, thread: ThreadPool) -> None:
    mine = pools.connections[connection]
    mine.acquire().release()

    def theirs() -> tuple[bool, int, int]:
        pool = pools.connections[connection]
        with pool.acquire():
            return pool is mine, len(pools.connections), pool.limit

    assert thread.apply(theirs) == (False, 1, 10)
    pools.set_limit(5)
    assert thread.apply(lambda: pools.connections[connection].limit) == 5
    with pytest.raises(WrongHub):
        thread.apply(mine.acquire)
    thread.apply(pools.reset)
    assert pools.connections[connection] is mine


# Signals

Make = Callable[[Connection], Any]
POOL_FILES = ("/greenconn/green/pool.py", "/greenconn/resource.py", "/greenconn/pools.py")


@pytest.fixture(params=["connections", "producers"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a pool with two places."""

    def make(connection: Connection) -> Any:
        pool = connection.Pool(2)
        return pool if request.param == "connections" else pools.ProducerPool(pool, limit=2)

    return make


def use(pool: Any, timeout: float | None = None) -> None:
    borrowed = pool.acquire(block=True, timeout=timeout)
    try:
        yield_to_hub()
    finally:
        pool.release(borrowed)


def check_places(pool: Any, raised: BaseException | None) -> None:
    """Check that all places of *pool* are free after *raised*, and close it."""
    if raised is not None:
        assert type(raised) is Signal
        raised.__traceback__ = None
        gc.collect()  # what was borrowed, and had no name yet
    borrowed = [pool.acquire(block=True, timeout=0.001) for _ in range(2)]
    assert pool.stats()["in_use"] == 2
    for each in borrowed:
        pool.release(each)
    below = getattr(pool, "connections", pool)
    pool.force_close_all()
    assert below.stats()["in_use"] == 0
    below.force_close_all()


def test_a_signal_costs_no_place(connection: Connection, make: Make) -> None:
    def uses() -> None:
        for _ in range(3):
            use(pool)
        with pool.acquire(block=True):
            pass

    pool = make(connection)
    for raised in signals(uses, within=POOL_FILES, between_calls=False):
        check_places(pool, raised)
        pool = make(connection)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_signal_in_a_wait_costs_no_place(
    connection: Connection, make: Make, timeout: float | None
) -> None:
    def waits() -> None:
        others[:] = [gevent.spawn(use, pool) for _ in range(3)]
        gevent.sleep(0)
        others.append(gevent.spawn(use, pool))
        use(pool, timeout)

    pool = make(connection)
    others: list[gevent.Greenlet[..., None]] = []
    for raised in signals(waits, within=POOL_FILES, between_calls=False):
        gevent.joinall(others, timeout=60, raise_error=True)
        assert all(other.successful() for other in others)
        check_places(pool, raised)
        pool = make(connection)
