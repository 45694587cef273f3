"""A Redis that takes nothing for a while: it is waited for, and what was said meanwhile counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket
from redis import exceptions

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import AccessRefused, PublishTimeout, RecoverableConnectionError
from greenconn.messaging import Producer
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.fix_brokers import RedisFactory
from tests.fix_peer import PeerFactory
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting
from tests.integration.redis_clients import Control, control

LEASE = {"lease": 0.6}


@contextmanager
def plain(server: RedisServer) -> Iterator[socket.socket]:
    """A bare connection, for a server that lets ours not in."""
    client = socket.create_connection(("127.0.0.1", server.port))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    """Have the server run a script that does not end by itself."""
    with plain(server) as running, plain(server) as asking:
        running.sendall(pack("EVAL", "while true do end", 0))
        answer = b""
        with gevent.Timeout(SOON):
            while not answer.startswith(b"-BUSY"):
                asking.sendall(pack("PING"))
                answer = asking.recv(4096)
        try:
            yield
        finally:
            asking.sendall(pack("SCRIPT", "KILL"))
            assert asking.recv(4096).startswith(b"+OK")
            assert b"killed" in running.recv(4096).lower()


@pytest.fixture
def slow_server(redis_with: RedisFactory) -> RedisServer:
    """A server that says soon that a script runs for too long."""
    return redis_with("--busy-reply-threshold", "20")


def test_a_server_that_runs_a_script_is_waited_for(slow_server: RedisServer) -> None:
    done: list[Any] = []
    url = slow_server.url

    def handle(body: Any, message: Any) -> None:
        done.append(body)

    with Connection(url) as consuming, Connection(url) as publishing:
        earlier = greenconn.spawn_consumer("q", handle, connection=consuming)
        assert earlier.wait_ready(SOON)
        with busy(slow_server):
            with Connection(url) as late:
                with pytest.raises(RecoverableConnectionError, match="SCRIPT KILL") as caught:
                    late.connect()
                assert isinstance(caught.value, exceptions.BusyLoadingError)
            publish = gevent.spawn(greenconn.publish, "q", 1, connection=publishing)
            later = greenconn.spawn_consumer("r", handle, connection=consuming)
            until(lambda: not publishing.connected and not consuming.connected)
            assert not publish.ready()
            assert not later.ready()
        publish.get(timeout=SOON)
        assert later.wait_ready(SOON)
        greenconn.publish("r", 2, connection=publishing)
        until(lambda: sorted(done) == [1, 2])
        assert earlier.stop(SOON)
        assert later.stop(SOON)


def test_timeout_of_a_publish_bounds_the_look_for_its_route(redis_with: RedisFactory) -> None:
    server = redis_with()
    with Connection(server.url) as connection:
        channel = connection.channel()
        channel.exchange_declare("x")
        server.pause()
        try:
            with pytest.raises(TimeoutError, match=r"publishing.*0\.05 s"):
                channel.basic_publish(channel.prepare_message("1"), "x", "key", timeout=0.05)
        finally:
            server.resume()
        channel.queue_declare("q")
        channel.queue_bind("q", "x", "key")
        channel.basic_publish(channel.prepare_message("2"), "x", "key", timeout=SOON)
        message = channel.basic_get("q", no_ack=True)
        assert message is not None
        assert message.body == "2"


def test_timeout_of_a_publish_bounds_the_wait_for_a_large_body(redis_with: RedisFactory) -> None:
    server = redis_with()
    with Connection(server.url) as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        large = channel.prepare_message("x" * 1_100_000)
        channel.basic_publish(large, "", "q", timeout=SOON)  # opens the socket for these
        server.pause()
        try:
            with pytest.raises(PublishTimeout, match=r"within 0\.05 s"):
                channel.basic_publish(large, "", "q", timeout=0.05)
        finally:
            server.resume()
        channel.basic_publish(large, "", "q", timeout=SOON)
        assert channel.queue_declare("q", passive=True).message_count == 3


def test_answers_to_a_server_that_runs_a_script_count(slow_server: RedisServer) -> None:
    with Connection(slow_server.url) as connection, control(slow_server.url) as at_server:
        queue = Queue("q")(connection.default_channel)
        queue.declare()
        for number in range(3):
            Producer(connection).publish(number, routing_key="q")
        acked, requeued, rejected = [queue.get() for _ in range(3)]
        with busy(slow_server):
            acked.ack()
            requeued.requeue()
            rejected.reject()
            until(lambda: not connection.connected)
        message = queue.get()
        assert (message.payload, message.redelivered) == (1, True)
        message.ack()
        assert queue.get() is None
        until(at_server.is_settled)


def test_refused_acks_are_sent_again(redis_with: RedisFactory) -> None:
    server = redis_with("--user", "mailer", "on", ">secret", "~*", "&*", "+@all")
    url = server.url.replace("//", "//mailer:secret@")
    with Connection(url, transport_options=LEASE) as connection, control(server.url) as at_server:
        queue = Queue("q")(connection.default_channel)
        queue.declare()
        for number in range(3):
            Producer(connection).publish(number, routing_key="q")
        acked, requeued, rejected = [queue.get() for _ in range(3)]
        at_server("ACL", "SETUSER", "mailer", "-hdel")
        acked.ack()
        requeued.requeue()
        rejected.reject()
        settlements = connection.connection.settlements
        until(lambda: settlements.refused == 3)
        at_server("ACL", "SETUSER", "mailer", "+hdel")
        until(lambda: at_server("LLEN", "q") == 1)
        message = queue.get()
        assert message.payload == 1
        message.ack()
        until(at_server.is_settled)


def dead_consumer_holds(at_server: Control, body: Any) -> None:
    """Have a message be held by somebody who is gone."""
    raw = at_server("RPOP", "q")
    at_server("HSET", "unacked", "gc.dead.1", b'[%b, "", "q"]' % raw)
    at_server("ZADD", "unacked_index", 1, "gc.dead.1")


def test_full_memory_keeps_nobody_from_requeueing(redis_with: RedisFactory) -> None:
    server = redis_with("--maxmemory-policy", "noeviction")
    done: list[Any] = []
    with (
        Connection(server.url, transport_options=LEASE) as connection,
        control(server.url) as at_server,
    ):
        consumer = collecting(connection, "q", done)
        assert consumer.pause(SOON)
        greenconn.publish("q", "all there is", connection=connection)
        dead_consumer_holds(at_server, "all there is")
        at_server("CONFIG", "SET", "maxmemory", 1)
        consumer.resume()
        until(lambda: done == ["all there is"])
        assert consumer.stop(SOON)


def test_auto_delete_queue_goes_though_scripts_were_flushed(redis_with: RedisFactory) -> None:
    server = redis_with()
    with Connection(server.url) as connection, control(server.url) as at_server:
        consumers = [
            greenconn.spawn_consumer(Queue(name, auto_delete=True), print, connection=connection)
            for name in ("told the text", "told the digest")
        ]
        for consumer in consumers:
            assert consumer.wait_ready(SOON)
            assert consumer.stop(SOON)
            at_server("SCRIPT", "FLUSH")
        until(lambda: not at_server("EXISTS", "greenconn.queue.told the digest"))


def test_server_that_has_no_place_says_so(redis_with: RedisFactory) -> None:
    server = redis_with("--maxclients", "1")
    with Connection(server.url) as first, Connection(server.url) as second:
        first.connect()
        for _ in range(5):
            with pytest.raises(RecoverableConnectionError, match="setting 'maxclients'"):
                second.connect()
        publish = gevent.spawn(greenconn.publish, "q", 1, connection=second, declare=True)
        first.close()
        publish.get(timeout=SOON)


def test_server_that_takes_nobody_from_elsewhere_says_so(peer: PeerFactory) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(
            b"-DENIED Redis is running in protected mode because no password is set.\r\n"
        )

    server = peer(serve)
    connection = Connection(f"redis://127.0.0.1:{server.port}/0")
    with connection, pytest.raises(AccessRefused, match="protected mode") as caught:
        connection.connect()
    assert "has no password" not in str(caught.value)
