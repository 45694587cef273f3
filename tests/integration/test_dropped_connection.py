"""A connection that its program drops without ``close()``: it closes when nothing uses it any more."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Consumer, Producer, Queue
from greenconn.exceptions import AMQPError, KombuError
from greenconn.green.hub import yield_to_hub
from greenconn.green.supervisor import HANDLERS, name_of
from greenconn.transport import base, memory
from greenconn.transport.base import Link
from tests.brokers.redis_server import RedisServer
from tests.integration.processes import run

pytestmark = pytest.mark.halved

SOON = 30.0
WARNING = "was dropped without close()"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker was warned about before."""
    monkeypatch.setattr(base, "_dropped", {})


@pytest.fixture(autouse=True)
def links_before() -> set[int]:
    """The identities of the links that others have left open."""
    return {id(each) for each in _open_links()}


def _open_links() -> list[Link]:
    gc.collect()
    every = [each for each in gc.get_objects() if issubclass(type(each), Link)]
    return [each for each in every if each.lost is None]


def assert_closed(before: set[int]) -> None:
    """Wait until no link is open but those *before*."""
    # The last handler that was called is remembered, and with it what that refers to.
    HANDLERS.change(yield_to_hub, name_of(yield_to_hub))
    until = monotonic() + SOON
    while {id(each) for each in _open_links()} - before and monotonic() < until:
        gevent.sleep(0.01)
    assert [each for each in _open_links() if id(each) not in before] == []


def only_open(url: str, queue: str) -> None:
    Connection(url).connect()


def with_channel(url: str, queue: str) -> None:
    channel = Connection(url).channel()
    channel.queue_declare(queue, durable=True, auto_delete=False)
    channel.queue_purge(queue)


def with_producer(url: str, queue: str) -> None:
    Queue(queue)(Connection(url)).declare()
    Producer(Connection(url).channel()).publish({"n": 1}, routing_key=queue)


def with_consumer(url: str, queue: str) -> None:
    connection = Connection(url)
    Producer(connection).publish({"n": 1}, routing_key=queue, declare=[Queue(queue)])
    handled: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        handled.append((connection, body))  # it refers to the connection, too
        message.ack()

    with Consumer(connection.channel(), [Queue(queue)], callbacks=[handle]):
        while not handled:
            connection.drain_events(timeout=SOON)


def with_pools(url: str, queue: str) -> None:
    with Connection(url).Pool(2).acquire() as connection:
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False)
    Connection(url).ChannelPool(2).acquire().queue_purge(queue)


def with_get(url: str, queue: str) -> None:
    connection = Connection(url)
    Producer(connection).publish({"n": 1}, routing_key=queue, declare=[Queue(queue)])
    bound = Queue(queue)(connection)
    while (message := bound.get()) is None:
        gevent.sleep(0.01)
    message.ack()


def with_publish(url: str, queue: str) -> None:
    greenconn.publish(Queue(queue), {"n": 1}, connection=Connection(url))


SHAPES = [only_open, with_channel, with_producer, with_consumer, with_pools, with_get, with_publish]


@pytest.mark.parametrize("use", SHAPES, ids=lambda each: each.__name__)
def test_connection_that_was_dropped_closes(
    kind_url: str,
    unique: str,
    use: Callable[[str, str], None],
    links_before: set[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, "greenconn.transport"):
        use(kind_url, unique)
        assert_closed(links_before)
    texts = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    said = [text for text in texts if WARNING in text]
    assert said
    assert len(said) == len(set(said))  # once for each address
    with Connection(kind_url) as connection:
        Queue(unique)(connection).declare()
        Queue(unique)(connection).delete()


def test_messages_of_a_dropped_connection_go_back(
    kind_url: str, unique: str, links_before: set[int]
) -> None:
    def take() -> Any:
        connection = Connection(kind_url)
        Producer(connection).publish("one", routing_key=unique, declare=[Queue(unique)])
        bound = Queue(unique)(connection)
        while (message := bound.get()) is None:
            gevent.sleep(0.01)
        return message.payload

    assert take() == "one"
    assert_closed(links_before)
    with Connection(kind_url) as connection:
        bound = Queue(unique)(connection)
        with gevent.Timeout(SOON):
            while (message := bound.get()) is None:
                gevent.sleep(0.01)
        assert message.payload == "one"
        message.ack()
        bound.delete()


@pytest.fixture(params=["amqp", "redis", "memory"])
def url(request: pytest.FixtureRequest, unique: str) -> Iterator[str]:
    """The address of a broker of several kinds."""
    if request.param == "memory":
        yield f"memory:///{unique}"
        memory.reset(unique)
        return
    yield request.getfixturevalue(f"{request.param}_url")


def test_whoever_waits_on_a_connection_keeps_it(
    url: str, unique: str, links_before: set[int]
) -> None:
    handled = Event()

    def drain() -> None:
        connection = Connection(url)
        queue = Queue(unique)
        with connection.Consumer([queue], callbacks=[lambda body, message: message.ack()]):
            ready.set()
            connection.drain_events()  # without an end
        handled.set()

    ready = Event()
    gevent.spawn(drain)  # nobody refers to the greenlet
    assert ready.wait(SOON)
    for _ in range(5):
        gc.collect()
        gevent.sleep(0.01)
    assert len([each for each in _open_links() if id(each) not in links_before]) == 1
    with Connection(url) as connection:
        Producer(connection).publish(1, routing_key=unique)
        assert handled.wait(SOON)
        Queue(unique)(connection).delete()
    assert_closed(links_before)


def with_delay(url: str, queue: str) -> None:
    greenconn.publish(queue, 1, connection=Connection(url), declare=True, delay=600)


def with_delays_of_others(url: str, queue: str) -> None:
    with Connection(url) as connection:
        greenconn.publish(queue, 1, connection=connection, declare=True, delay=600)
    with_consumer(url, queue)


def with_expiry(url: str, queue: str) -> None:
    expiring = Queue(queue, message_ttl=600)
    with Consumer(Connection(url).channel(), [expiring], callbacks=[print]):
        yield_to_hub()


@pytest.mark.parametrize(
    "use", [with_delay, with_delays_of_others, with_expiry], ids=lambda each: each.__name__
)
def test_what_waits_on_a_redis_does_not_keep_a_connection(
    own_redis: RedisServer, unique: str, use: Callable[[str, str], None], links_before: set[int]
) -> None:
    use(own_redis.url, unique)
    assert_closed(links_before)


@pytest.mark.full
def test_whatever_is_left_of_a_connection_keeps_it(
    url: str, unique: str, links_before: set[int]
) -> None:
    producer: Any = Producer(Connection(url).channel())
    bound: Any = Queue(unique)(Connection(url).channel())
    bound.declare()
    for _ in range(5):
        gc.collect()
        gevent.sleep(0.01)
        producer.publish(1, routing_key=unique)
        with gevent.Timeout(SOON):
            while bound.get(no_ack=True) is None:  # nobody confirmed it: it may be on its way
                gevent.sleep(0.01)
    bound.delete()
    del producer, bound
    assert_closed(links_before)


def test_consumer_keeps_its_connection(url: str, unique: str, links_before: set[int]) -> None:
    handled: list[Any] = []
    done = Event()

    def handle(body: Any, message: Any) -> None:
        handled.append(body)
        done.set()

    consumer: Any = greenconn.spawn_consumer(Queue(unique), handle, connection=Connection(url))
    assert consumer.wait_ready(SOON)
    name = consumer.name
    greenlets = [consumer]
    del consumer  # the greenlet goes on without anybody who refers to it
    weak = weakref.ref(greenlets.pop())
    for _ in range(5):
        gc.collect()
        gevent.sleep(0.01)
    with Connection(url) as connection:
        greenconn.publish(Queue(unique), {"n": 1}, connection=connection)
        assert done.wait(SOON), name
    running = weak()
    assert running is not None
    running.stop(SOON)
    del running
    assert_closed(links_before)
    with Connection(url) as connection:
        Queue(unique)(connection).delete()


@pytest.mark.parametrize(
    "url",
    [
        "amqp://127.0.0.1:1//",
        "redis://127.0.0.1:1/0",
        "redis+cluster://127.0.0.1:1",
        "sentinel://127.0.0.1:1",
        "couchdb://127.0.0.1:1/db",
        "beanstalk://127.0.0.1:1",
        "mongodb://127.0.0.1:1/db",
        "sqs://127.0.0.1:1",
        "sqs://key@127.0.0.1:1",
        "sqlite:///no/such/folder/broker.db",
        "sqlite://host/broker.db",
    ],
)
def test_connection_that_cannot_be_opened_is_no_dropped_one(
    url: str, caplog: pytest.LogCaptureFixture, links_before: set[int]
) -> None:
    options = {"master_name": "m"} if url.startswith("sentinel") else {}
    connection = Connection(url, connect_timeout=0.5, transport_options=options)
    with caplog.at_level(logging.DEBUG, "greenconn"):
        with pytest.raises((OSError, KombuError, AMQPError, ValueError)):
            greenconn.publish("q", 1, connection=connection, timeout=0.5)
        connection.close()
        del connection
        assert_closed(links_before)
        gevent.sleep(0.01)
    assert [each for each in caplog.messages if WARNING in each] == []


@pytest.mark.full
def test_collector_of_another_thread_closes_nothing_itself(
    amqp_url: str, links_before: set[int]
) -> None:
    gc.disable()
    try:
        Connection(amqp_url).connect()
        gevent.get_hub().threadpool.apply(gc.collect)
    finally:
        gc.enable()
    assert_closed(links_before)


@pytest.mark.full
def test_connections_without_end(url: str, unique: str, long: bool, patched: bool) -> None:
    if url.startswith("memory"):
        pytest.skip("it has no descriptors")
    outcome = run(
        "-c", _MANY, "patched" if patched else "plain", url, unique, "2000" if long else "150"
    )
    assert outcome.code == 0, outcome.errors
    assert outcome.errors.count(WARNING) == 1
    descriptors, greenlets, growth = map(int, outcome.output.split())
    assert descriptors < 64
    assert greenlets < 64
    assert growth < 16_384, "KiB of memory"


@pytest.mark.full
def test_connections_without_end_to_a_file(
    tmp_path: Path, unique: str, long: bool, patched: bool
) -> None:
    test_connections_without_end(f"sqlite:///{tmp_path}/broker.db", unique, long, patched)


#: A program that makes a connection for each request and never closes one.
_MANY = """
import sys
how, url, queue, count = sys.argv[1:]
if how == "patched":
    from gevent import monkey
    monkey.patch_all()
import logging, os, resource
import gevent
from greenconn import Connection, Consumer, Producer, Queue
logging.basicConfig(level=logging.WARNING)
resource.setrlimit(resource.RLIMIT_NOFILE, (250, 250))

def request(number):
    connection = Connection(url)
    channel = connection.channel()
    Producer(channel).publish({"n": number}, routing_key=queue, declare=[Queue(queue)])
    if number % 10 == 0:
        with Consumer(channel, [Queue(queue)], callbacks=[lambda body, message: message.ack()]):
            connection.drain_events(timeout=20)
    else:
        message = None
        while message is None:
            message = Queue(queue)(connection).get(no_ack=True)

import gc

def greenlets():
    return sum(
        issubclass(type(each), gevent.Greenlet) and not each.dead  # a proxy may be dead itself
        for each in gc.get_objects()
    )

def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = 0
for number in range(int(count)):
    gevent.spawn(request, number).get()
    if number == 100:
        before = memory()  # by now the collector has come for the first ones
growth = memory() - before
for _ in range(200):
    gc.collect()
    gevent.sleep(0.01)
    if len(os.listdir("/proc/self/fd")) < 30:
        break
Queue(queue)(Connection(url)).delete()
print(len(os.listdir("/proc/self/fd")), greenlets(), growth)
"""
