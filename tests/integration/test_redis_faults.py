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
from greenconn.messaging import Producer
from greenconn.transport.redis import claiming
from greenconn.transport.redis.claiming import Watch
from greenconn.wire.resp import pack
from tests.fix_brokers import RedisFactory
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.quality.faults.kinds import Direction, Fault, Kind
from tests.quality.faults.proxied import ProxyProcess


def there_and_back(url: str, **options: Any) -> None:
    """A message goes to a queue and comes back."""
    got: list[Any] = []
    with Connection(url, transport_options=options.pop("transport_options", {}), **options) as c:
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=c
        )
        assert consumer.wait_ready(SOON)
        for number in range(3):
            greenconn.publish("q", number, connection=c)
            until(lambda number=number: len(got) > number)  # type: ignore[misc]
        assert consumer.stop(SOON)
    assert got == [0, 1, 2]


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


# -- a server that refuses


# -- restarts and cuts


@pytest.mark.full
def test_consumers_are_back_soon_after_a_long_outage(redis_with: RedisFactory) -> None:
    server = redis_with()
    got: list[Any] = []
    with Connection(server.url) as connection, Connection(server.url) as sending:
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
        server.kill()
        gevent.sleep(4.0)
        server.start()
        greenconn.publish("q", "x", connection=sending)
        until(lambda: got)
        assert consumer.stop(SOON)


# -- a server that does not answer


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
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.append(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
        feed = connection.connection.feeds[unique]
        for number in range(3):
            until(lambda: feed.source.state is Watch.ARMED)
            greenconn.publish(unique, number, connection=other)
            until(lambda number=number: len(got) > number)  # type: ignore[misc]
        assert connection.connection.placement.partition("").invalidations.found >= 3
        assert consumer.stop(SOON)
        other.default_channel.queue_delete(unique)
    assert got == [0, 1, 2]


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
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
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
