"""What a Redis, or something else, refuses: the documented error at once, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from redis import exceptions

import greenconn
from greenconn import Connection, Queue, rpc
from greenconn.exceptions import (
    AccessRefused,
    FrameError,
    NotAllowed,
    OperationalError,
    RecoverableConnectionError,
)
from greenconn.messaging import Consumer, Producer
from tests.fix_brokers import RedisFactory
from tests.fix_peer import PeerFactory
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting
from tests.integration.redis_clients import Control, control

#: Seconds: far below all timeouts.
AT_ONCE = 5.0
#: What a user may do who may do everything.
EVERYTHING = ("~*", "&*", "+@all")


def test_wrong_password_stops_everybody_at_once(redis_with: RedisFactory) -> None:
    server = redis_with("--requirepass", "secret")
    url = server.url.replace("//", "//:wrong@")
    began = monotonic()
    with Connection(url) as connection:
        with pytest.raises(AccessRefused, match="password is wrong"):
            connection.connect()
        with pytest.raises(OperationalError, match="password is wrong"):
            greenconn.publish("q", 1, connection=connection, declare=True)
        consumer = greenconn.spawn_consumer("q", print, connection=connection)
        with pytest.raises((AccessRefused, OperationalError), match="password is wrong"):
            consumer.wait_ready(SOON)
        with pytest.raises((AccessRefused, OperationalError)):
            consumer.get(timeout=SOON)
    assert monotonic() - began < AT_ONCE


@pytest.mark.full
@pytest.mark.parametrize(
    ("taken", "given", "expected"),
    [
        (("ACL", "SETUSER", "mailer", "off"), ("ACL", "SETUSER", "mailer", "on"), "LoginRefused"),
        (
            ("ACL", "SETUSER", "mailer", "-@all"),
            ("ACL", "SETUSER", "mailer", "+@all"),
            "CommandRefused",
        ),
        (
            ("ACL", "SETUSER", "mailer", "-evalsha", "-eval"),
            ("ACL", "SETUSER", "mailer", "+@all"),
            "CommandRefused",
        ),
    ],
)
def test_a_consumer_that_is_refused_later_is_there_when_it_may(
    redis_with: RedisFactory,
    caplog: pytest.LogCaptureFixture,
    taken: tuple[str, ...],
    given: tuple[str, ...],
    expected: str,
) -> None:
    server = redis_with("--user", "mailer", "on", ">secret", *EVERYTHING)
    done: list[Any] = []
    url = server.url.replace("//", "//mailer:secret@")
    with control(server.url) as admin, Connection(url) as connection:
        consumer = collecting(connection, "q", done)
        admin(*taken)
        admin("CLIENT", "KILL", "USER", "mailer")
        until(lambda: f"trying again: {expected}" in caplog.text)
        assert not consumer.ready()
        admin(*given)
        assert consumer.wait_ready(SOON)
        greenconn.publish("q", 1, connection=connection)
        until(lambda: done == [1])
        assert consumer.stop(SOON)


class Revocable:
    """The rights of a user.

    Attributes:
        url: with that user's password.
        other: a connection of somebody who keeps his rights.
    """

    def __init__(self, url: str, other: Connection, admin: Control) -> None:
        self.url = url
        self.other = other
        self._admin = admin

    def take(self) -> None:
        """It may nothing any more."""
        self._admin("ACL", "SETUSER", "mailer", "-@all")

    def give(self) -> None:
        """It may everything again."""
        self._admin("ACL", "SETUSER", "mailer", "+@all")


@pytest.fixture
def revocable(redis_with: RedisFactory) -> Iterator[Revocable]:
    """A Redis with a user that may lose its rights and keeps its connection."""
    server = redis_with("--user", "mailer", "on", ">secret", *EVERYTHING)
    with control(server.url) as admin, Connection(server.url) as other:
        yield Revocable(server.url.replace("//", "//mailer:secret@"), other, admin)


def test_who_drains_consumes_again_after_a_refusal(revocable: Revocable) -> None:
    """The refusal ends the channel, and on the next one it is as new."""
    done: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        message.ack()
        done.append(body)

    with Connection(revocable.url) as connection:
        consumer = Consumer(connection, Queue("q"), callbacks=[handle])
        consumer.consume()
        channel = connection.default_channel
        revocable.take()
        greenconn.publish("q", 1, connection=revocable.other, declare=True)
        with pytest.raises(connection.channel_errors, match="no permissions") as caught:
            connection.drain_events(timeout=SOON)
        assert isinstance(caught.value.__cause__, AccessRefused)
        assert not channel.is_open
        revocable.give()
        consumer.revive(connection.default_channel)
        consumer.consume()
        connection.drain_events(timeout=SOON)
        assert done == [1]


def test_a_simple_queue_goes_on_after_a_refusal(revocable: Revocable) -> None:
    with Connection(revocable.url) as connection:
        simple = connection.SimpleQueue("q")
        greenconn.publish("q", 1, connection=revocable.other, declare=True)
        simple.get(timeout=SOON).ack()
        revocable.take()
        greenconn.publish("q", 2, connection=revocable.other, declare=True)
        with pytest.raises(connection.channel_errors):
            simple.get(timeout=SOON)
        revocable.give()
        message = simple.get(timeout=SOON)
        assert message.payload == 2
        message.ack()
        simple.close()


def test_calls_go_on_after_a_refusal(revocable: Revocable) -> None:
    """The channel on which replies come is not taken for a good one."""
    has_come, may_answer = Event(), Event()

    def answer(body: Any) -> Any:
        has_come.set()
        assert may_answer.wait(SOON)
        return body

    with Connection(revocable.url) as connection:
        server = rpc.spawn_server("calls", answer, connection=revocable.other)
        assert server.wait_ready(SOON)
        call = gevent.spawn(rpc.call, "calls", 1, connection=connection, timeout=SOON)
        assert has_come.wait(SOON)
        revocable.take()
        may_answer.set()
        with pytest.raises(OperationalError, match="the reply is lost"):
            call.get(timeout=SOON)
        revocable.give()
        assert rpc.call("calls", 2, connection=connection, timeout=SOON) == 2
        assert server.stop(SOON)


def test_wrong_database_stops_everybody_at_once(redis_with: RedisFactory) -> None:
    server = redis_with()
    began = monotonic()
    with Connection(server.url_of(4711)) as connection:
        with pytest.raises(NotAllowed, match="setting 'databases'"):
            connection.connect()
        with pytest.raises(OperationalError, match="setting 'databases'"):
            greenconn.publish("q", 1, connection=connection, declare=True)
    assert monotonic() - began < AT_ONCE


ANSWERS = {
    "http": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "smtp": b"220 mail.example.org ESMTP\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_other_servers_are_distinguished_at_once(kind: str, peer: PeerFactory) -> None:
    def serve(client: socket.socket) -> None:
        if kind == "http":
            client.recv(4096)
        client.sendall(ANSWERS[kind])
        while client.recv(4096):
            pass

    server = peer(serve)
    began = monotonic()
    with Connection(f"redis://127.0.0.1:{server.port}/0") as connection:
        with pytest.raises(FrameError, match="does not speak Redis' protocol") as caught:
            connection.connect()
        assert isinstance(caught.value, exceptions.InvalidResponse)
        # A call that has time tries again, since a proxy may answer for a server that restarts.
        with pytest.raises(OperationalError, match="does not speak Redis' protocol"):
            greenconn.publish("q", 1, connection=connection, timeout=0.5, declare=True)
    assert monotonic() - began < AT_ONCE


def test_replica_is_refused_and_waited_for(redis_with: RedisFactory) -> None:
    master, replica = redis_with(), redis_with()
    with control(replica.url) as at_replica:
        at_replica("REPLICAOF", "127.0.0.1", master.port)
        with Connection(replica.url) as connection:
            began = monotonic()
            with pytest.raises(RecoverableConnectionError, match="no master") as caught:
                connection.connect()
            assert isinstance(caught.value, exceptions.ConnectionError)
            assert monotonic() - began < AT_ONCE
            publish = gevent.spawn(greenconn.publish, "q", "x", connection=connection, declare=True)
            gevent.sleep(0.3)
            assert not publish.ready()
            with control_of_replica(replica.url) as client:
                client.sendall(b"REPLICAOF NO ONE\r\n")
                assert client.recv(100).startswith(b"+OK")
            publish.get(timeout=SOON)
            assert connection.default_channel.basic_get("q", no_ack=True).payload == "x"


def control_of_replica(url: str) -> socket.socket:
    """A bare connection, since ours refuse a replica."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    return socket.create_connection(("127.0.0.1", port))


@pytest.mark.full
def test_loading_is_waited_for(redis_with: RedisFactory) -> None:
    server = redis_with(
        "--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024"
    )
    got: list[Any] = []
    with Connection(server.url) as connection:
        consumer = collecting(connection, "q", got)
        with control(server.url) as at_server:
            at_server("MSET", *[text for n in range(3000) for text in (f"key{n}", "x" * 100)])
            at_server("SAVE")
        server.kill()
        server.begin()
        until(lambda: loading_error(server.url), 20)
        greenconn.publish("q", "x", connection=connection, timeout=60)
        until(lambda: got == ["x"])
        assert consumer.stop(SOON)


def loading_error(url: str) -> bool:
    """Whether the server says at once that it loads; fails if it is ready before."""
    with Connection(url) as connection:
        try:
            connection.connect()
        except exceptions.BusyLoadingError as exc:
            return isinstance(exc, RecoverableConnectionError) and "LOADING" in str(exc)
        except OSError:
            return False
    raise AssertionError("it was ready too soon")


@pytest.mark.full
def test_memory_that_is_full_loses_nothing(redis_with: RedisFactory) -> None:
    server = redis_with("--maxmemory-policy", "noeviction")
    got: list[int] = []
    refused: list[Exception] = []
    with Connection(server.url) as connection, control(server.url) as at_server:
        producer = Producer(connection)
        for number in range(50):
            producer.publish(number, routing_key="q")
        at_server("CONFIG", "SET", "maxmemory", 1)
        for number in range(50, 60):
            with pytest.raises(exceptions.OutOfMemoryError, match="raise maxmemory") as caught:
                producer.publish(number, routing_key="q")
            refused.append(caught.value)
        # Consuming makes room, so it goes on; and what comes back is not lost either.
        message = connection.default_channel.basic_get("q")
        message.requeue()
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=connection
        )
        until(lambda: len(got) == 50)
        assert consumer.stop(SOON)
        until(at_server.is_settled)
    assert sorted(got) == list(range(50))
    assert isinstance(refused[0], Connection(server.url).channel_errors)


@pytest.mark.full
def test_disk_that_cannot_be_written_loses_nothing(redis_with: RedisFactory, tmp_path: Any) -> None:
    server = redis_with("--save", "3600 1000000", "--enable-protected-configs", "yes")
    gone = tmp_path / "gone"
    gone.mkdir()
    handled: list[int] = []
    with Connection(server.url) as connection, control(server.url) as at_server:
        producer = Producer(connection)
        queue = Queue("q")(connection.default_channel)
        queue.declare()
        for number in range(20):
            producer.publish(number, routing_key="q")
        held = [queue.get() for _ in range(5)]
        at_server("CONFIG", "SET", "dir", str(gone))
        gone.rmdir()
        at_server("BGSAVE")
        until(lambda: at_server.stat("rdb_last_bgsave_status", "persistence") == "err")
        began = monotonic()
        with pytest.raises(exceptions.ResponseError, match="stop-writes-on-bgsave-error"):
            producer.publish(99, routing_key="q")
        with pytest.raises(exceptions.ResponseError, match="stop-writes-on-bgsave-error"):
            queue.get()
        assert monotonic() - began < AT_ONCE
        at_server("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        for message in held:
            message.ack()
        handled += [message.payload for message in held]
        while (message := queue.get()) is not None:
            handled.append(message.payload)
            message.ack()
        until(at_server.is_settled)
    assert sorted(handled) == list(range(20))
