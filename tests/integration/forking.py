"""A program that forks in the middle of its use of a broker: what ``test_faults_fork`` runs.

    python -m tests.integration.forking SCENARIO HOW URL NAME

Each scenario forks as HOW says, and goes on in both processes.  Whatever goes wrong in either of them,
the program ends with an error.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
import gevent.os
from gevent import socket
from gevent.event import Event

import greenconn
from greenconn.connection import Connection
from greenconn.entity import Exchange, Queue
from greenconn.exceptions import OperationalError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.messaging import Producer
from greenconn.pools import producers
from greenconn.simple import SimpleQueue
from greenconn.worker import spawn_consumer, stop_consumers
from tests.brokers.rabbitmq import RabbitMQHandle
from tests.fix_wires import until

#: Seconds that anything here may take.
SOON = 40.0

url, name = "", ""
how = "os"


def fork(child: Callable[[], Any]) -> None:
    """Run *child* in a child process, and let this one go on until that has ended.  May switch."""
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=guarded, args=(child,))
        process.start()
        assert process.pid is not None
        while process.is_alive():
            try:
                os.kill(process.pid, 0)
            except ProcessLookupError:
                return  # as below: multiprocessing takes it for alive then
            gevent.sleep(0.005)
        assert process.exitcode == 0, f"the child ended with {process.exitcode}"
        return
    pid = gevent.os.fork() if how == "gevent" else os.fork()
    if pid == 0:
        guarded(child)
        if how == "gevent":
            os._exit(0)
        sys.exit(0)  # by the interpreter's own end
    try:
        while (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
            gevent.sleep(0.005)
    except ChildProcessError:
        return  # gevent took its end, because it runs a tool here; a child that fails says so itself
    assert status[1] == 0, f"the child ended with status {status[1]}"


def guarded(child: Callable[[], Any]) -> None:
    """Run *child* in the child process."""
    signal.alarm(int(2 * SOON))
    try:
        with gevent.Timeout(SOON):
            child()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    gc.collect()
    gevent.sleep(0.01)


def take(connection: Connection, queue: str, count: int) -> list[Any]:
    """Take *count* messages; there must be no more."""
    channel = connection.default_channel
    bodies: list[Any] = []
    with gevent.Timeout(SOON):
        while len(bodies) < count:
            message = channel.basic_get(queue, no_ack=True)
            if message is None:
                gevent.sleep(0.005)
            else:
                bodies.append(message.decode())
    extra = channel.basic_get(queue, no_ack=True)
    assert extra is None, f"one too many: {extra.decode()!r}"
    return sorted(bodies, key=str)


class Parent:
    """A connection of the parent that must not be touched by the child."""

    def __init__(self, **options: Any) -> None:
        self.connection = Connection(
            url, transport_options={"client_properties": {"connection_name": name}}, **options
        )
        self.connection.connect()
        self.ends = self.connection.session.life.link.stream.peer_address()
        self.queue = Queue(name, expires=300)(self.connection.default_channel)
        self.queue.declare()

    def check(self) -> None:
        """It is still the same connection, and it works."""
        session = self.connection.session
        assert session.generation == 1, "the parent had to reconnect"
        assert session.life.link.stream.peer_address() == self.ends
        assert self.connection.default_channel.queue_declare(name, passive=True).queue == name
        with self.connection.channel() as channel:
            channel.queue_declare(name, passive=True)

    def close(self) -> None:
        """Check, and end in order."""
        self.check()
        self.queue.delete()
        self.connection.close()


# Scenarios


def idle() -> None:
    """An open connection that does nothing; the child uses it and all that was made with it."""
    parent = Parent(heartbeat=1)
    connection = parent.connection
    own_channel = connection.channel()
    on_connection, on_channel = Producer(connection), Producer(own_channel)
    on_connection.publish("before", name)
    on_channel.publish("before", name)

    def child() -> None:
        assert not connection.connected
        on_connection.publish("child", name)
        on_channel.publish("child", name)
        assert parent.queue.queue_declare(passive=True) is not None
        assert connection.session.generation == 2
        assert connection.session.life.link.stream.peer_address() != parent.ends
        gevent.sleep(2.2)  # longer than the heartbeats of either
        on_connection.publish("child", name)
        connection.close()
        connection.connect()

    fork(child)
    on_connection.publish("after", name)
    on_channel.publish("after", name)
    assert take(connection, name, 7) == ["after"] * 2 + ["before"] * 2 + ["child"] * 3
    parent.close()


def broker_view() -> None:
    """What the broker sees of it: the parent's connection from before to after, no more, no less."""
    handle = os.environ.get("GREENCONN_TEST_AMQP_CTL")
    if handle is None:
        return
    broker = RabbitMQHandle.of(handle)

    def ours() -> list[str]:
        rows = broker.ctl("list_connections", "name", "client_properties").splitlines()
        return [row.split("\t")[0] for row in rows if f'"{name}"' in row]

    parent = Parent()
    before = ours()
    assert len(before) == 1

    def child() -> None:
        parent.connection.connect()
        assert len(ours()) == 2
        parent.connection.close()

    fork(child)
    assert ours() == before
    parent.close()


def pooled() -> None:
    """Pools of connections, producers and channels, with one held, one idle and one who waits."""
    parent = Parent()
    pool = parent.connection.Pool(limit=2)
    channels = parent.connection.ChannelPool(limit=2)
    held, other, channel = pool.acquire(), pool.acquire(), channels.acquire()
    for each in (held, other):
        Producer(each).publish("parent", name)
    waiting = gevent.spawn(pool.acquire, block=True)
    gevent.sleep(0)
    with producers[parent.connection].acquire(block=True) as producer:
        producer.publish("parent", name)
    links = [each.session.life.link for each in (held, other)]

    def child() -> None:
        assert pool.stats()["in_use"] == pool.stats()["idle"] == pool.stats()["waiting"] == 0
        for facade in (held, other, channel):
            with suppress(OperationalError):
                facade.release()  # of the parent's: it frees nothing
        is_refused = False
        try:
            held.connect()
        except OperationalError:
            is_refused = True
        assert is_refused, "the parent's loan is good for the child"
        mine = [pool.acquire(), pool.acquire()]
        for each in mine:
            Producer(each).publish("child", name)
        mine[0].release()
        pool.acquire(block=True, timeout=30).release()
        mine[1].release()
        assert pool.stats()["in_use"] == 0
        with channels.acquire() as fresh:
            fresh.queue_declare(name, passive=True)
        with producers[parent.connection].acquire(block=True, timeout=30) as producer:
            producer.publish("child", name)
        pool.force_close_all()

    fork(child)
    assert pool.stats()["in_use"] == 2
    assert pool.stats()["waiting"] == 1
    channel.queue_declare(name, passive=True)
    for each in (held, other):
        Producer(each).publish("after", name)
    held.release()
    waiting.get(timeout=SOON).release()
    other.release()
    assert [each.is_open for each in links] == [True, True]
    assert len(take(parent.connection, name, 8)) == 8
    channel.release()
    channels.force_close_all()
    pool.force_close_all()
    greenconn.pools.reset()
    parent.close()


def consuming() -> None:
    """A consumer, while other greenlets wait in ``drain_events``, with and without a timeout."""
    parent = Parent()
    connection = parent.connection
    got: list[Any] = []

    def receive(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    consumer = connection.Consumer([parent.queue], callbacks=[receive], prefetch_count=10)
    consumer.consume()
    tag = dict(consumer._active_tags)
    pid = os.getpid()

    def drain(timeout: float | None) -> None:
        while os.getpid() == pid:
            with suppress(TimeoutError):
                connection.drain_events(timeout=timeout)

    draining = [gevent.spawn(drain, timeout) for timeout in (None, 0.05, 1.0)]
    gevent.sleep(0.02)
    producer = Producer(connection)
    producer.publish("one", name)
    until(lambda: got)

    def child() -> None:
        # The message that was delivered to the parent is nothing to the child, nor are its consumers.
        got.clear()
        gevent.sleep(0.1)
        assert got == []
        mine = Queue(f"{name}-child", expires=300)
        with connection.Consumer([mine], callbacks=[receive], prefetch_count=1):
            Producer(connection).publish("for the child", mine.name)
            while not got:
                connection.drain_events(timeout=SOON)
        assert got == ["for the child"]
        mine(connection).delete()
        consumer.cancel()
        consumer.consume()
        assert len(consumer._active_tags) == 1
        consumer.cancel()
        connection.close()

    fork(child)
    for number in range(20):
        producer.publish(number, name)
    until(lambda: len(got) == 21)
    assert dict(consumer._active_tags) == tag
    assert parent.queue.queue_declare(passive=True).consumer_count == 1
    gevent.killall(draining)
    consumer.cancel()
    parent.close()


def pending_output() -> None:
    """Bytes that were written and have not left belong to the parent alone."""
    parent = Parent()
    connection = parent.connection
    producer, channel = Producer(connection), connection.default_channel
    on_channel = Producer(connection.channel())
    writer = connection.session.life.link.writer
    pid = os.getpid()

    def child() -> None:
        assert not connection.session.is_open
        producer.publish("child", name, retry=True)
        on_channel.publish("child", name)
        gevent.sleep(0.05)
        connection.default_channel.queue_declare(name, passive=True)
        connection.close()

    # In one turn: the first leaves at once, the others wait for the end of the turn.
    for number in range(10):
        producer.publish(number, name, retry=True)
        on_channel.publish(number + 10, name)
    assert writer.pending, "all has left: this shows nothing"
    fork(child)
    # The socket takes a part of it, and another greenlet waits until there is room.
    body = "x" * (15 << 20)  # RabbitMQ 4 refuses more than 16 MiB

    def declare() -> None:
        with suppress(RecoverableConnectionError):
            channel.queue_declare(name, passive=True)
            return
        assert os.getpid() != pid, "the parent's connection is gone"

    calling = gevent.spawn(declare)
    producer.publish(body, name)
    gevent.sleep(0)
    assert writer.is_stalled, "all has left: this shows nothing"
    fork(child)
    calling.get(timeout=SOON)
    producer.publish("last", name)
    bodies = take(connection, name, 26)
    assert bodies.count("child") == 4
    assert bodies.count(body) == 1
    parent.close()


def connecting() -> None:
    """A connection that is just being opened, and channels, and declarations, at every step."""
    parent = Parent()

    def declare(connection: Connection) -> Any:
        return connection.default_channel.queue_declare(name, passive=True)

    for turns in range(12):
        connection = Connection(url)
        opening = gevent.spawn(declare, connection)
        for _ in range(turns):
            gevent.sleep(0.0003)

        def child(
            connection: Connection = connection,
            opening: gevent.Greenlet[..., Any] = opening,
            turns: int = turns,
        ) -> None:
            if turns % 2:
                opening.kill()  # a copy of the parent's, which runs here too
            assert declare(connection).queue == name
            gevent.sleep(0.02)
            assert declare(connection).queue == name
            connection.close()

        fork(child)
        assert opening.get(timeout=SOON).queue == name
        assert connection.session.generation == 1
        connection.close()
    parent.close()


def connecting_socket() -> None:
    """A socket whose connecting is under way: the child says nothing on it when it gets there."""
    parent = Parent()
    broker = parent.connection.session.life.link.stream.peer_address()[1]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    while True:  # until the line of those who wait to be accepted is full
        filler = socket.socket()
        fillers.append(filler)
        try:
            with gevent.Timeout(0.1):
                filler.connect(listener.getsockname())
        except gevent.Timeout:
            break
    first_words: list[bytes] = []

    def serve() -> None:
        """Accept, and pass everything on to the broker and back."""
        while True:
            client, _ = listener.accept()
            gevent.spawn(relay, client)

    def relay(client: socket.socket) -> None:
        with socket.create_connection(broker) as server, client:
            there = gevent.spawn(copy, client, server, first_words)
            copy(server, client, [])
            there.kill()

    def copy(source: socket.socket, target: socket.socket, heard: list[bytes]) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                heard.append(part)
                target.sendall(part)

    connection = parent.connection.clone(port=listener.getsockname()[1], connect_timeout=SOON)
    opening = gevent.spawn(connection.connect)
    gevent.sleep(0.05)

    def child() -> None:
        for each in (listener, *fillers):
            each.close()
        gevent.sleep(1.5)  # so that the copy in the child would have got through, too
        Producer(parent.connection).publish("child", name)

    pid = os.getpid()

    def serve_soon() -> None:
        gevent.sleep(0.2)
        if os.getpid() == pid:
            for each in fillers:
                each.close()
            serve()

    serving = gevent.spawn(serve_soon)
    fork(child)
    opening.get(timeout=SOON)
    assert connection.default_channel.queue_declare(name, passive=True).queue == name
    assert b"".join(first_words).count(b"AMQP") == 1
    connection.close()
    serving.kill()
    listener.close()
    assert take(parent.connection, name, 1) == ["child"]
    parent.close()


def declaring() -> None:
    """Work that greenlets share: what was under way in the parent holds up nobody in the child."""
    parent = Parent()
    connection = parent.connection
    entity = Queue(f"{name}-d", Exchange(f"{name}-e", auto_delete=True), "k", auto_delete=True)
    for turns in range(4):
        connection.declared_entities.clear()
        producer = Producer(connection, entity.exchange, "k")
        waiting: list[gevent.Greenlet[..., Any]] = [
            gevent.spawn(producer.publish, "x", declare=[entity], retry=True),
            gevent.spawn(
                greenconn.publish, f"{name}-p", turns, connection=connection, declare=True
            ),
            gevent.spawn(connection.channel),
        ]
        for _ in range(turns):
            gevent.sleep(0)

        def child(
            producer: Producer = producer, waiting: list[gevent.Greenlet[..., Any]] = waiting
        ) -> None:
            gevent.killall(waiting)  # copies of the parent's, which run here too
            producer.publish("x", declare=[entity], retry=True)
            greenconn.publish(f"{name}-p", "child", connection=connection, declare=True)
            connection.channel().close()
            connection.close()

        fork(child)
        gevent.joinall(waiting, timeout=SOON, raise_error=True)
    parent.check()
    got = take(connection, f"{name}-p", 8)
    assert got == [0, 1, 2, 3] + ["child"] * 4, got
    connection.default_channel.queue_delete(f"{name}-p")
    entity(connection).delete()
    parent.close()


def simple_queue() -> None:
    """Messages that were delivered to the parent, and its wish to consume, are not the child's."""
    parent = Parent()
    connection = parent.connection

    def filled(inbox: Inbox[Any]) -> bool:
        return len(inbox) == 3

    for state in ("asks", "begins to consume", "consumes"):
        simple = SimpleQueue(connection, f"{name}-s", queue_opts={"expires": 300})
        bodies: list[Any] = []
        if state != "asks":
            simple.put("asked")
            simple.get(timeout=SOON).ack()  # it consumes from the second on
            bodies = [0, 1, 2]
        simple.put("taken")
        for number in bodies:
            simple.put(number)
        getting = gevent.spawn(simple.get, timeout=SOON)
        if state != "consumes":
            gevent.sleep(0)  # now it waits for the broker's reply
        else:
            getting.join(SOON)
            arrivals = simple._arrivals
            assert arrivals is not None
            until(partial(filled, arrivals.inbox))
            simple.buffer.append(arrivals.inbox.get(Deadline()))

        def child(
            simple: SimpleQueue = simple, getting: gevent.Greenlet[..., Any] = getting
        ) -> None:
            getting.kill()  # a copy of the parent's, which runs here too
            gevent.sleep(0.1)  # so that the parent has all
            with suppress(simple.Empty):
                message = simple.get(timeout=0.3)
                raise AssertionError(f"the parent's message {message.payload!r} was got")
            # They go to the parent and to the child in turn.
            for _ in range(4):
                simple.put("child")
            for _ in range(2):
                message = simple.get(timeout=SOON)
                assert message.payload == "child"
                message.ack()
            simple.close()
            assert simple.qsize() == 0
            connection.close()

        fork(child)
        message = getting.get(timeout=SOON)
        assert message.payload == "taken"
        message.ack()
        for expected in (*bodies, "child", "child"):
            message = simple.get(timeout=SOON)
            body = message.payload if state == "consumes" else message.decode()
            assert body == expected, (state, body, expected)
            message.ack()
        simple.close()
        assert simple.qsize() == 0
    simple.queue.delete()
    simple.queue.exchange(connection).delete()
    parent.close()


def spawned() -> None:
    """``spawn_consumer``, ``publish`` and ``rpc`` on the default connections."""
    greenconn.configure(url)
    parent = Parent()
    got: list[Any] = []
    is_handling, may_end = Event(), Event()

    def handle(body: Any, message: Any) -> None:
        got.append(body)
        if body == "slow":
            is_handling.set()
            may_end.wait(SOON)

    consumer = spawn_consumer(name, handle, concurrency=2)
    server = greenconn.rpc.spawn_server(f"{name}-rpc", lambda body: [os.getpid(), body])
    assert consumer.wait_ready(SOON)
    assert server.wait_ready(SOON)
    greenconn.publish(name, "slow")
    assert is_handling.wait(SOON)
    pid = os.getpid()
    assert greenconn.rpc.call(f"{name}-rpc", 1, timeout=SOON) == [pid, 1]

    def child() -> None:
        got.clear()
        assert stop_consumers(5.0)
        mine = spawn_consumer(f"{name}-child", handle)
        greenconn.publish(f"{name}-child", "child")
        until(lambda: got)
        assert got == ["child"]
        assert greenconn.rpc.call(f"{name}-rpc", 2, timeout=SOON) == [pid, 2]
        assert mine.stop(5.0)
        assert consumer.stop(5.0)

    fork(child)
    may_end.set()
    greenconn.publish(name, "after")
    until(lambda: got == ["slow", "after"])
    assert greenconn.rpc.call(f"{name}-rpc", 3, timeout=SOON) == [pid, 3]
    assert stop_consumers(5.0)
    assert consumer.stats()["handled"] == 2
    for queue in (f"{name}-child", f"{name}-rpc"):
        parent.connection.default_channel.queue_delete(queue)
    parent.close()
    greenconn.defaults.reset()


def grandchild() -> None:
    """A child that forks again, and a fork in a greenlet that is not the main one."""
    parent = Parent()
    producer = Producer(parent.connection)

    def child() -> None:
        producer.publish("child", name)
        fork(lambda: producer.publish("grandchild", name))
        producer.publish("child", name)
        assert parent.connection.session.generation == 2

    def forks() -> None:
        fork(child)

    if how == "os":  # whose child ends by the interpreter's own end, so in the main greenlet
        forks()
    else:
        gevent.spawn(forks).get(timeout=SOON)
    producer.publish("parent", name)
    assert take(parent.connection, name, 4) == ["child", "child", "grandchild", "parent"]
    parent.close()


SCENARIOS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        idle,
        broker_view,
        pooled,
        consuming,
        pending_output,
        connecting,
        connecting_socket,
        declaring,
        simple_queue,
        spawned,
        grandchild,
    )
}


def main() -> None:
    """Run one scenario."""
    global url, name, how
    scenario, how, url, name = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    # Who hangs says where, and is killed.
    faulthandler.register(signal.SIGALRM, all_threads=False, chain=True)
    signal.alarm(int(3 * SOON))
    SCENARIOS[scenario]()
    print("done", flush=True)


if __name__ == "__main__":
    main()
