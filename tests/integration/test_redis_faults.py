"""What goes wrong with a Redis, and what comes of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from redis import exceptions

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import (
    AccessRefused,
    FrameError,
    NotAllowed,
    OperationalError,
    RecoverableConnectionError,
)
from greenconn.messaging import Producer
from greenconn.transport.redis import claiming
from greenconn.transport.redis.claiming import Watch
from greenconn.wire.resp import pack
from tests.brokers.tls import CERTS
from tests.fix_brokers import RedisFactory
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting
from tests.quality.faults.kinds import Direction, Fault, Kind
from tests.quality.faults.proxied import ProxyProcess


def there_and_back(url: str, **options: Any) -> None:
    """A message goes to a queue and comes back."""
    got: list[Any] = []
    with Connection(url, transport_options=options.pop("transport_options", {}), **options) as c:
        consumer = collecting(c, "q", got)
        for number in range(3):
            greenconn.publish("q", number, connection=c)
            until(lambda number=number: len(got) > number)  # type: ignore[misc]
        assert consumer.stop(SOON)
    assert got == [0, 1, 2]


# -- login


def test_passwords(redis_with: RedisFactory) -> None:
    server = redis_with("--requirepass", "secret")
    there_and_back(server.url.replace("//", "//:secret@"))
    there_and_back(server.url.replace("//", "//default:secret@"))
    for url, hint in (
        (server.url, "needs a password"),
        (server.url.replace("//", "//:wrong-one@"), "is wrong"),
    ):
        with Connection(url) as connection:
            with pytest.raises(AccessRefused, match=hint) as caught:
                connection.connect()
            assert isinstance(caught.value, exceptions.AuthenticationError)
            assert "wrong-one" not in str(caught.value)
            with pytest.raises(OperationalError):
                greenconn.publish("q", 1, connection=connection, declare=True)


def test_database_that_is_not_there(redis_url: str) -> None:
    base = redis_url.rpartition("/")[0]
    with (
        Connection(f"{base}/99999") as connection,
        pytest.raises(NotAllowed, match="database 99999"),
    ):
        connection.connect()
    with (
        Connection(f"{base}/mail") as connection,
        pytest.raises(ValueError, match="number of a database"),
    ):
        connection.connect()


@pytest.mark.full
def test_what_is_not_redis(amqp_url: str) -> None:
    address = amqp_url.rpartition("@")[2].partition("/")[0]
    with Connection(f"redis://{address}/0", connect_timeout=5) as connection:
        with pytest.raises((FrameError, RecoverableConnectionError, OSError)) as caught:
            connection.connect()
        assert isinstance(caught.value, connection.connection_errors)


# -- other ways to connect


@pytest.mark.full
def test_server_that_knows_no_hello(
    redis_with: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_with("--requirepass", "secret", "--rename-command", "HELLO", "")
    there_and_back(server.url.replace("//", "//:secret@"))
    assert "polling" in caplog.text


def test_unix_socket(redis_with: RedisFactory, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    redis_with("--unixsocket", str(path), "--requirepass", "secret")
    there_and_back(f"redis+socket://:secret@{path}?virtual_host=3")
    url = f"redis+socket://:secret@{path}?virtual_host=3&client_name=mine"
    with Connection(url) as connection:
        described = connection.connection.commands.call(pack("CLIENT", "INFO"))
        assert b" db=3 " in described
        assert b" name=mine " in described
        assert "secret" not in repr(connection)
    for address, database in ((f"{path}", 4), (f"{path}?virtual_host=3", 3)):  # as with redis://h/3
        with Connection(f"redis+socket://:secret@{address}", virtual_host="4") as connection:
            described = connection.connection.commands.call(pack("CLIENT", "INFO"))
            assert f" db={database} ".encode() in described
    with (
        Connection(f"redis+socket://{path}-not?virtual_host=3") as connection,
        pytest.raises(OSError, match="cannot connect to"),
    ):
        connection.connect()


def test_tls(redis_with: RedisFactory) -> None:
    server = redis_with(
        "--tls-cert-file", str(CERTS / "server.pem"), "--tls-key-file", str(CERTS / "server.key"),
        "--tls-ca-cert-file", str(CERTS / "ca.pem"), "--tls-auth-clients", "no",
        "--tls-port", "0",
    )  # fmt: skip
    with Connection(server.url) as connection:
        port = free_port()
        try:
            connection.connection.commands.call(pack("CONFIG", "SET", "tls-port", port))
        except exceptions.ResponseError as exc:
            pytest.skip(f"this Redis has no TLS: {exc}")
    there_and_back(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={CERTS / 'ca.pem'}")
    with (
        Connection(f"rediss://127.0.0.1:{port}/0") as connection,
        pytest.raises(OSError, match="certificate"),
    ):
        connection.connect()


def free_port() -> int:
    from tests.brokers.ports import free_ports

    return free_ports(1)[0]


# -- a server that refuses


def test_out_of_memory(redis_with: RedisFactory) -> None:
    server = redis_with()
    with Connection(server.url) as connection, Connection(server.url) as other:
        producer = Producer(connection)
        producer.publish("kept", routing_key="q")
        other.connection.commands.call(pack("CONFIG", "SET", "maxmemory", 1))
        with pytest.raises(exceptions.OutOfMemoryError, match="maxmemory and refuses writes"):
            producer.publish("x", routing_key="q")
        with pytest.raises(OperationalError, match="maxmemory"):
            greenconn.publish("q", "x", connection=connection, declare=True)
        # What is there can be consumed.
        message = connection.default_channel.basic_get("q")
        assert message.payload == "kept"
        message.ack()
        other.connection.commands.call(pack("CONFIG", "SET", "maxmemory", 0))
        greenconn.publish("q", "x", connection=connection, declare=True)


@pytest.mark.full
def test_full_disk(redis_with: RedisFactory, tmp_path: Path) -> None:
    server = redis_with("--save", "3600 100000", "--enable-protected-configs", "yes")
    gone = tmp_path / "gone"
    gone.mkdir()
    with Connection(server.url) as connection, Connection(server.url) as other:
        greenconn.publish("q", "kept", connection=connection, declare=True)
        got: list[Any] = []
        consumer = collecting(other, "other", got)
        control = other.connection
        control.commands.call(pack("CONFIG", "SET", "dir", str(gone)))
        gone.rmdir()
        control.commands.call(pack("BGSAVE"))
        until(lambda: b"rdb_last_bgsave_status:err" in info(control))
        with pytest.raises(exceptions.ResponseError, match="free disk space"):
            Producer(connection).publish("x", routing_key="q")
        with pytest.raises(OperationalError, match="free disk space"):
            greenconn.publish("q", "x", connection=connection)
        control.commands.call(pack("CONFIG", "SET", "stop-writes-on-bgsave-error", "no"))
        greenconn.publish("other", "late", connection=connection)
        until(lambda: got == ["late"])
        assert consumer.stop(SOON)
        assert connection.default_channel.basic_get("q", no_ack=True).payload == "kept"
    server.kill()  # else it would try to save for seconds


def info(link: Any) -> bytes:
    text = link.commands.call(pack("INFO", "persistence"))
    assert isinstance(text, bytes)
    return text


@pytest.mark.full
def test_server_that_becomes_a_replica(redis_with: RedisFactory) -> None:
    server, elsewhere = redis_with(), redis_with()
    got: list[Any] = []
    with Connection(server.url) as connection, Connection(server.url) as other:
        consumer = collecting(connection, "q", got)
        control = other.connection
        control.commands.call(pack("REPLICAOF", "127.0.0.1", elsewhere.port))
        gevent.spawn_later(0.5, control.commands.call, pack("REPLICAOF", "NO", "ONE"))
        # It waits until there is a master again.
        greenconn.publish("q", "x", connection=connection)
        until(lambda: got == ["x"])
        assert consumer.stop(SOON)


# -- restarts and cuts


@pytest.mark.full
def test_consumers_are_back_soon_after_a_long_outage(redis_with: RedisFactory) -> None:
    server = redis_with()
    got: list[Any] = []
    with Connection(server.url) as connection, Connection(server.url) as sending:
        consumer = collecting(connection, "q", got)
        server.kill()
        gevent.sleep(4.0)
        server.start()
        greenconn.publish("q", "x", connection=sending)
        until(lambda: got)
        assert consumer.stop(SOON)


# -- a server that does not answer


def test_silent_server(redis_with: RedisFactory) -> None:
    server = redis_with()
    options = {"reply_timeout": 0.5}
    with Connection(server.url, transport_options=options) as connection:
        producer = Producer(connection)
        producer.publish("x", routing_key="q")
        server.pause()
        with pytest.raises(exceptions.TimeoutError, match="did not reply within") as caught:
            producer.publish("y", routing_key="q")
        assert isinstance(caught.value, connection.recoverable_connection_errors)
        server.resume()
        producer.publish("z", routing_key="q")


@pytest.mark.full
@pytest.mark.parametrize("resp", [3, 2])
def test_silence_is_no_fault_where_nothing_is_asked(redis_with: RedisFactory, resp: int) -> None:
    """The time for an answer is not one for the next message, and what is idle is kept alive."""
    server = redis_with(*(("--rename-command", "HELLO", "") if resp == 2 else ()))
    options = {"socket_timeout": 0.5, "health_check_interval": 0.1, "polling_interval": 0.05}
    got: list[Any] = []
    exchange = greenconn.Exchange("fx", "fanout")
    with Connection(server.url, transport_options=options) as connection:
        consumers = [
            greenconn.spawn_consumer(
                queue, lambda body, message: got.append(body), connection=connection
            )
            for queue in (greenconn.Queue("f", exchange), "plain")
        ]
        assert all(consumer.wait_ready(SOON) for consumer in consumers)
        listening = connection.connection.fanout.socket.pipeline
        gevent.sleep(1.5)
        assert connection.session.generation == 1
        assert connection.connection.fanout.socket.pipeline is listening
        Producer(connection, exchange).publish("told")
        greenconn.publish("plain", "queued", connection=connection)
        until(lambda: len(got) == 2)
        assert all(consumer.stop(SOON) for consumer in consumers)
    assert sorted(got) == ["queued", "told"]


def test_what_no_push_reports_is_found(
    redis_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "SAFETY", (0.1, 0.1))
    monkeypatch.setattr(claiming.Invalidations, "take", lambda self, keys: None)
    got: list[Any] = []
    with Connection(redis_url) as connection, Connection(redis_url) as other:
        consumer = collecting(connection, unique, got)
        feed = connection.connection.feeds[unique]
        for number in range(3):
            until(lambda: feed.watching is Watch.ARMED)
            greenconn.publish(unique, number, connection=other)
            until(lambda number=number: len(got) > number)  # type: ignore[misc]
        assert connection.connection.placement.partition("").invalidations.lost_pushes == 3
        assert consumer.stop(SOON)
        other.default_channel.queue_delete(unique)
    assert got == [0, 1, 2]


def test_a_look_is_for_some_queues_until_a_push_is_lost(
    redis_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "SAFETY", (3600.0, 3600.0))
    monkeypatch.setattr(claiming, "PAGE", 1)
    monkeypatch.setattr(claiming.Invalidations, "take", lambda self, keys: None)
    names = [f"{unique}{number}" for number in range(4)]
    got: list[Any] = []
    with Connection(redis_url) as connection, Connection(redis_url) as other:
        consumers = [collecting(connection, name, got) for name in names]
        link = connection.connection
        look = link.placement.partition("").invalidations._check_armed

        def publish_all() -> None:
            until(lambda: all(link.feeds[name].watching is Watch.ARMED for name in names))
            for name in names:
                greenconn.publish(name, name, connection=other)

        publish_all()
        look(0.0)
        until(lambda: len(got) == 1)
        look(0.0)  # one was lost, so more may have been
        until(lambda: len(got) == 4)
        publish_all()
        look(0.0)
        until(lambda: len(got) == 8)
        assert all(consumer.stop(SOON) for consumer in consumers)
        for name in names:
            other.default_channel.queue_delete(name)
    assert sorted(got) == sorted(2 * names)


def test_refused_commands_are_named(redis_with: RedisFactory) -> None:
    server = redis_with()
    with Connection(server.url) as control:
        control.connection.commands.call(
            pack("ACL", "SETUSER", "poor", "on", ">x", "~*", "&*", "+@all", "-zadd")
        )
        with Connection(server.url.replace("//", "//poor:x@")) as connection:
            greenconn.publish("q", "kept", connection=connection, declare=True)
            with pytest.raises(exceptions.NoPermissionError, match="lists the commands"):
                connection.default_channel.basic_get("q")
            consumer = greenconn.spawn_consumer("q", print, connection=connection)
            with pytest.raises(exceptions.NoPermissionError):
                consumer.wait_ready(SOON)
            with pytest.raises(exceptions.NoPermissionError):
                consumer.get(timeout=SOON)
        assert control.connection.commands.call(pack("LLEN", "q")) == 1


@pytest.mark.full
def test_commands_that_are_spoiled_on_their_way(redis_with: RedisFactory) -> None:
    """The server says that they are none, and ends the connection: who consumes goes on."""
    server = redis_with()
    got: list[Any] = []
    with (
        ProxyProcess(server.port, "redis") as proxy,
        Connection(f"redis://127.0.0.1:{proxy.port}/0") as connection,
        Connection(f"redis://127.0.0.1:{proxy.port}/0") as draining,
        Connection(server.url) as sending,
    ):
        consumer = collecting(connection, "q", got)
        draining.Consumer(Queue("other"), callbacks=[lambda body, message: message.ack()]).consume()
        for number in range(20):
            spoil = Fault(
                kind=Kind.CORRUPT, direction=Direction.THERE, gap=0, seconds=0, seed=number
            )
            proxy.inject(spoil)
            for queue in ("q", "other"):
                greenconn.publish(queue, number, connection=sending)
            with suppress(TimeoutError, *draining.connection_errors):
                draining.drain_events(timeout=0.01)
        until(lambda: set(got) == set(range(20)))
        assert consumer.stop(SOON)
