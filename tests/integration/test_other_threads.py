"""All that a program can call, called from a native thread that it does not belong to.

Each public name of the classes below is in one of two tables: what touches the hub and so raises
``WrongHub``, or what may be asked anywhere.  A name that is in neither fails the test: decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import getattr_static, isfunction
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

import greenconn
from greenconn import (
    Connection,
    Consumer,
    ConsumerGreenlet,
    Exchange,
    Producer,
    Queue,
    abc,
    pools,
    rpc,
)
from greenconn.exceptions import WrongHub
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.pools import ProducerPool
from greenconn.resource import ChannelPool, ConnectionPool
from greenconn.simple import SimpleQueue
from greenconn.transport import memory

SOON = 30.0
#: Seconds after which a call in another thread counts as hanging.
HANGS = 5.0

Calls = Mapping[str, Callable[[Any], Any]]


def _reading(name: str) -> Callable[[Any], Any]:
    return lambda each: getattr(each, name)


CONNECTION: Calls = {
    "autoretry": lambda each: each.autoretry(lambda channel: channel.flow(True))(),
    "channel": lambda each: each.channel(),
    "close": lambda each: each.close(),
    "collect": lambda each: each.collect(),
    "connect": lambda each: each.connect(),
    "connection": _reading("connection"),
    "default_channel": _reading("default_channel"),
    "drain_events": lambda each: each.drain_events(timeout=0.1),
    "ensure": lambda each: each.ensure(each, each.connect)(),
    "ensure_connection": lambda each: each.ensure_connection(max_retries=1),
    "flush": lambda each: each.flush(),
    "get_heartbeat_interval": lambda each: each.get_heartbeat_interval(),
    "heartbeat_check": lambda each: each.heartbeat_check(),
    "qos_semantics_matches_spec": _reading("qos_semantics_matches_spec"),
    "register_with_event_loop": lambda each: each.register_with_event_loop(_Loop()),
    "release": lambda each: each.release(),
    "switch": lambda each: each.switch("memory://"),
    "maybe_switch_next": lambda each: each.maybe_switch_next(),
    "update_secret": lambda each: each.update_secret("secret"),
    "ChannelPool": lambda each: each.ChannelPool(2).acquire(),
    "Consumer": lambda each: each.Consumer(Queue("other-thread")).consume(),
    "Producer": lambda each: each.Producer().publish("x", routing_key="other-thread"),
    "SimpleBuffer": lambda each: each.SimpleBuffer("other-thread"),
    "SimpleQueue": lambda each: each.SimpleQueue("other-thread"),
}
#: Parameters, and what is made without a broker: a pool has clones, which are that thread's.
CONNECTION_ANYWHERE = {
    *("Pool", "as_uri", "channel_errors", "clone", "completes_cycle", "connected"),
    *("connection_errors", "create_transport", "get_manager", "get_transport_cls", "host", "info"),
    *("is_evented", "is_reusable", "lend", "manager", "maybe_close_channel", "ready_channel"),
    *("recoverable_channel_errors", "recoverable_connection_errors", "revive", "session"),
    *("supports_exchange_type", "supports_heartbeats", "transport"),
}

CHANNEL: Calls = {
    "basic_ack": lambda each: each.basic_ack(1),
    "basic_cancel": lambda each: each.basic_cancel("tag"),
    "basic_consume": lambda each: each.basic_consume("q", callback=print),
    "basic_get": lambda each: each.basic_get("q"),
    "basic_publish": lambda each: each.basic_publish(each.prepare_message("x"), "", "q"),
    "basic_publish_confirm": lambda each: each.basic_publish_confirm(
        each.prepare_message("x"), "", "q"
    ),
    "basic_qos": lambda each: each.basic_qos(0, 1, False),
    "basic_recover": lambda each: each.basic_recover(requeue=True),
    "basic_reject": lambda each: each.basic_reject(1, requeue=True),
    "close": lambda each: each.close(),
    "exchange_bind": lambda each: each.exchange_bind("amq.topic", "amq.direct"),
    "exchange_declare": lambda each: each.exchange_declare("e", "direct"),
    "exchange_delete": lambda each: each.exchange_delete("e"),
    "exchange_unbind": lambda each: each.exchange_unbind("amq.topic", "amq.direct"),
    "flow": lambda each: each.flow(True),
    "flush": lambda each: each.flush(),
    "queue_bind": lambda each: each.queue_bind("q", "amq.direct", "q"),
    "queue_declare": lambda each: each.queue_declare("q"),
    "queue_delete": lambda each: each.queue_delete("q"),
    "queue_purge": lambda each: each.queue_purge("q"),
    "queue_unbind": lambda each: each.queue_unbind("q", "amq.direct", "q"),
}
CHANNEL_ANYWHERE = {
    *("after_reply_message_received", "connection", "events", "is_open", "message_to_python"),
    *("no_ack_consumers", "prepare_message", "prepare_queue_arguments"),
}

PRODUCER: Calls = {
    "declare": lambda each: each.declare(),
    "maybe_declare": lambda each: each.maybe_declare(Queue("other-thread")),
    "publish": lambda each: each.publish("x", routing_key="other-thread"),
}
PRODUCER_ANYWHERE = {
    "batch",
    "channel",
    "close",
    "connection",
    "lend_again",  # for pools, which check the thread
    "mark_released",
    "release",
    "revive",
    "supports_batch_publish",
}

CONSUMER: Calls = {
    "add_queue": lambda each: each.add_queue(Queue("other-thread")),
    "cancel": lambda each: each.cancel(),
    "cancel_by_queue": lambda each: each.cancel_by_queue(each.queues[0].name),
    "close": lambda each: each.close(),
    "consume": lambda each: each.consume(),
    "declare": lambda each: each.declare(),
    "flow": lambda each: each.flow(True),
    "purge": lambda each: each.purge(),
    "qos": lambda each: each.qos(0, 1),
    "recover": lambda each: each.recover(requeue=True),
}
CONSUMER_ANYWHERE = {
    *("channel", "check_callbacks", "connection", "consuming_from", "queues", "receive"),
    *("register_callback", "revive"),
}

POOL: Calls = {
    "acquire": lambda each: each.acquire(),
    "force_close_all": lambda each: each.force_close_all(),
    "resize": lambda each: each.resize(5),
}
CONNECTION_POOL: Calls = {
    **POOL,
    "acquire_channel": lambda each: each.acquire_channel().__enter__(),
}
PRODUCER_POOL: Calls = POOL
#: Numbers, and what pools do among themselves with what ``acquire`` has checked.
POOL_ANYWHERE = {"holders", "limit", "name", "stats"}
POOL_OWN = {
    *("close_resource", "collect_resource", "create_producer", "evict", "expire", "facade"),
    *("forget", "is_alive", "lend_to_pool", "new", "prepare", "release", "release_resource"),
    *("replace", "returned", "setup", "take_back"),
}

SIMPLE: Calls = {
    "clear": lambda each: each.clear(),
    "close": lambda each: each.close(),
    "get": lambda each: each.get(timeout=0.1),
    "get_nowait": lambda each: each.get_nowait(),
    "put": lambda each: each.put("x"),
    "qsize": lambda each: each.qsize(),
}
SIMPLE_ANYWHERE = {"channel", "forget", "queue"}

GREENLET: Calls = {
    "get": lambda each: each.get(timeout=0.1),
    "interrupt": lambda each: each.interrupt("id"),
    "join": lambda each: each.join(0.1),
    "kill": lambda each: each.kill(timeout=0.1),
    "pause": lambda each: each.pause(0.1),
    "resume": lambda each: each.resume(),
    "start": lambda each: each.start(),
    "stop": lambda each: each.stop(0.1),
    "throw": lambda each: each.throw(),
    "wait_ready": lambda each: each.wait_ready(0.1),
}
GREENLET_ANYWHERE = {"runs_here", "state", "stats", "unsettled"}

TABLES: Mapping[type[Any], tuple[Calls, set[str]]] = {
    Connection: (CONNECTION, CONNECTION_ANYWHERE),
    abc.Channel: (CHANNEL, CHANNEL_ANYWHERE),
    Producer: (PRODUCER, PRODUCER_ANYWHERE),
    Consumer: (CONSUMER, CONSUMER_ANYWHERE),
    ConnectionPool: (CONNECTION_POOL, POOL_ANYWHERE | POOL_OWN),
    ChannelPool: (POOL, POOL_ANYWHERE | POOL_OWN),
    ProducerPool: (PRODUCER_POOL, POOL_ANYWHERE | POOL_OWN),
    SimpleQueue: (SIMPLE, SIMPLE_ANYWHERE),
    ConsumerGreenlet: (GREENLET, GREENLET_ANYWHERE),
}

FUNCTIONS: Mapping[str, Callable[[Connection, str], Any]] = {
    "publish": lambda connection, queue: greenconn.publish(queue, "x", connection=connection),
    "publish_many": lambda connection, queue: greenconn.publish_many(
        queue, ["x"], connection=connection
    ),
    "spawn_consumer": lambda connection, queue: greenconn.spawn_consumer(
        queue, print, connection=connection
    ),
    "rpc.call": lambda connection, queue: rpc.call(queue, "x", connection=connection, timeout=1),
    "rpc.spawn_server": lambda connection, queue: rpc.spawn_server(
        queue, abs, connection=connection
    ),
    "dead_letters": lambda connection, queue: greenconn.dead_letters(
        queue, connection=connection
    ).count(),
    "eventloop": lambda connection, queue: next(greenconn.eventloop(connection, timeout=0.1)),
}
#: Those of the thread that asks, or no functions of a connection.
FUNCTIONS_ANYWHERE = {
    *("App", "Broadcast", "BrokerConnection", "Connection", "Consumer"),
    *("ConsumerGreenlet", "Exchange", "FileOffsets", "Limit"),
    *("Listener", "Message", "Producer", "Queue", "QueueOffsets", "Rate", "Retry"),
    *(
        "SuperStream",
        "add_listener",
        "in_order",
        "binding",
        "configure",
        "disable_insecure_serializers",
    ),
    *("enable_insecure_serializers", "parse_url", "remove_listener", "stop_consumers", "uuid"),
    "version_info_t",
}


class _Loop:
    """An event loop that nobody runs."""

    def add_reader(self, descriptor: int, callback: Callable[[], Any]) -> None: ...


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_each_public_name_is_decided(cls: type[Any]) -> None:
    calls, anywhere = TABLES[cls]
    names = set()
    for base in cls.__mro__:
        if base.__module__.startswith("greenconn"):
            for name in vars(base):
                value = getattr_static(cls, name)
                if not name.startswith("_") and (isfunction(value) or isinstance(value, property)):
                    names.add(name)
    assert names - calls.keys() - anywhere == set()
    assert not calls.keys() & anywhere


def is_error(value: object) -> bool:
    """Return whether *value* is a class of errors."""
    return isinstance(value, type) and issubclass(value, BaseException)


def test_each_function_is_decided() -> None:
    names = {name for name in greenconn.__all__ if callable(getattr(greenconn, name))}
    names -= {"connections", "producers"}  # groups of pools
    names -= {name for name in names if is_error(getattr(greenconn, name))}
    names |= {"rpc.call", "rpc.spawn_server"}
    assert names == FUNCTIONS.keys() | FUNCTIONS_ANYWHERE


@pytest.fixture(params=["amqp", "redis", "memory", "sqlite"])
def url(request: pytest.FixtureRequest, unique: str) -> Iterator[str]:
    """The address of a broker of several kinds."""
    if request.param != "memory":
        yield request.getfixturevalue(f"{request.param}_url")
        return
    yield f"memory:///{unique}"
    memory.reset(unique)


def _outcome(use: Callable[[], Any]) -> BaseException | None:
    # In the thread.
    try:
        with gevent.Timeout(HANGS):
            use()
    except BaseException as exc:
        return exc
    return None


class _Elsewhere:
    """A native thread."""

    def __init__(self) -> None:
        self._pool = ThreadPool(1)
        self.wrong: dict[str, str] = {}

    def refuses(self, name: str, use: Callable[[], Any]) -> None:
        """Note *name* if *use* does not raise ``WrongHub`` there."""
        error = self._pool.apply(_outcome, (use,))
        if not isinstance(error, WrongHub) or "MainThread" not in str(error):
            self.wrong[name] = repr(error)

    def end(self) -> None:
        """End the thread."""
        self._pool.kill()


@pytest.fixture
def elsewhere() -> Iterator[_Elsewhere]:
    """A native thread, which has a hub of its own."""
    made = _Elsewhere()
    yield made
    made.end()


def test_whatever_touches_the_hub_refuses_another_thread(
    url: str, unique: str, elsewhere: _Elsewhere
) -> None:
    with Connection(url) as connection, connection.channel() as channel:
        queue = Queue(unique)(channel)
        queue.declare()
        Producer(channel).publish("before", routing_key=unique)
        producer = Producer(channel, Exchange(unique, durable=False, auto_delete=True))
        consumer = Consumer(connection.channel(), [Queue(f"{unique}.idle")])
        consumer.consume()
        simple = connection.SimpleQueue(f"{unique}.simple")
        simple.put("before")
        worker = greenconn.spawn_consumer(
            Queue(f"{unique}.worker"), lambda body, message: None, connection=connection
        )
        assert worker.wait_ready(SOON)
        lending, channels = connection.Pool(2), connection.ChannelPool(2)
        producers = pools.ProducerPool(lending, limit=2)
        held, held_channel = lending.acquire(), channels.acquire()
        held.connect()
        with producers.acquire():
            pass
        subjects = [
            ("Connection", connection, CONNECTION),
            ("a pooled connection", held, CONNECTION),
            ("Channel", channel, CHANNEL),
            ("a pooled channel", held_channel, CHANNEL),
            ("Producer", producer, PRODUCER),
            ("Consumer", consumer, CONSUMER),
            ("ConnectionPool", lending, CONNECTION_POOL),
            ("ChannelPool", channels, POOL),
            ("ProducerPool", producers, PRODUCER_POOL),
            ("SimpleQueue", simple, SIMPLE),
            ("ConsumerGreenlet", worker, GREENLET),
        ]
        for title, each, calls in subjects:
            for name, call in calls.items():
                elsewhere.refuses(f"{title}.{name}", lambda call=call, each=each: call(each))  # type: ignore[misc]
        for name, function in FUNCTIONS.items():
            elsewhere.refuses(name, lambda use=function: use(connection, unique))  # type: ignore[misc]
        message = queue.get()
        assert message is not None
        for name in ("ack", "reject", "requeue"):
            elsewhere.refuses(f"Message.{name}", getattr(message, name))
        assert elsewhere.wrong == {}
        # Nothing of it has hurt anybody.
        message.ack()
        assert simple.get(timeout=SOON).payload == "before"
        assert worker.stop(SOON)
        held.release()
        channels.release(held_channel)
        for pool in (producers, channels, lending):
            pool.force_close_all()
        simple.close()
        for name in (unique, f"{unique}.idle", f"{unique}.simple", f"{unique}.worker"):
            channel.queue_delete(name)


def test_slot_that_another_thread_fills_wakes_its_waiter(elsewhere: _Elsewhere) -> None:
    filled: Slot[int] = Slot()
    failed: Slot[int] = Slot()
    waiting = [gevent.spawn(each.wait, Deadline(SOON)) for each in (filled, failed)]
    gevent.sleep(0)
    pool = ThreadPool(1)
    try:
        pool.apply(filled.offer, (5,))
        pool.apply(failed.fail, (KeyError("x"),))
        assert waiting[0].get(timeout=SOON) == 5
        with pytest.raises(KeyError):
            waiting[1].get(timeout=SOON)
    finally:
        pool.kill()
