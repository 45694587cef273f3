"""AMQP over TLS: a real RabbitMQ behind a peer that ends the TLS."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import AMQPError
from tests.brokers.tls import CERTS
from tests.fix_tls import TlsFront

DEADLINE = 30.0


@pytest.fixture
def tls_port(amqp_url: str, tls_front: TlsFront) -> int:
    """The port of a server that passes what comes over TLS on to RabbitMQ."""
    parts = urlsplit(amqp_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return tls_front((parts.hostname, parts.port))


def connection_to(amqp_url: str, port: int, **ssl_options: Any) -> Connection:
    """A connection over TLS to *port*, with the login of *amqp_url*."""
    url = amqp_url.replace("amqp://", "amqps://").replace(f":{urlsplit(amqp_url).port}", f":{port}")
    return Connection(url, ssl=ssl_options or True, connect_timeout=DEADLINE)


def test_messages_of_all_sizes_pass(amqp_url: str, tls_port: int, unique: str) -> None:
    sizes = [0, 1, 1000, 16 * 1024, 100_000, 3_000_000]
    received: list[bytes] = []

    def callback(body: Any, message: Any) -> None:
        received.append(body)
        message.ack()

    with connection_to(
        amqp_url, tls_port, ca_certs=str(CERTS / "ca.pem"), server_hostname="localhost"
    ) as connection:
        queue = Queue(unique, expires=60)
        producer = connection.Producer()
        for size in sizes:
            producer.publish(b"x" * size, routing_key=unique, declare=[queue])
        with connection.Consumer([queue], callbacks=[callback], accept=["application/data"]):
            while len(received) < len(sizes):
                connection.drain_events(timeout=DEADLINE)
        queue(connection.default_channel).delete()
    assert [len(body) for body in received] == sizes


def test_many_greenlets_share_it(amqp_url: str, tls_port: int, unique: str) -> None:
    with connection_to(
        amqp_url, tls_port, ca_certs=str(CERTS / "ca.pem"), server_hostname="localhost"
    ) as connection:
        channel = connection.default_channel
        channel.queue_declare(unique, auto_delete=False)
        producer = connection.Producer()

        def publish(number: int) -> None:
            for _ in range(20):
                producer.publish("x" * 5000, routing_key=unique)
            assert channel.queue_declare(unique, passive=True).queue == unique

        gevent.joinall([gevent.spawn(publish, number) for number in range(50)], raise_error=True)
        assert channel.queue_declare(unique, passive=True).message_count == 1000
        channel.queue_delete(unique)


def test_a_peer_without_tls_gives_a_clear_error(amqp_url: str) -> None:
    port = urlsplit(amqp_url).port
    assert port is not None
    with pytest.raises(OSError, match=r"(?i)tls|ssl"):
        connection_to(amqp_url, port).connect()


def test_tls_on_a_plain_connection_gives_a_clear_error(amqp_url: str, tls_port: int) -> None:
    url = amqp_url.replace(f":{urlsplit(amqp_url).port}", f":{tls_port}")
    with pytest.raises((OSError, AMQPError), match=r"guest:\*\*@.*AMQP handshake"):
        Connection(url, connect_timeout=DEADLINE).connect()
