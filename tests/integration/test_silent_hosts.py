"""Hosts that accept connections and are silent, in front of one that answers."""

from __future__ import annotations

import _socket
from typing import Any

import pytest
from gevent import socket

from greenconn import Connection
from greenconn.green import stream as connect_module
from greenconn.green.deadline import Deadline
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_cluster import RedisCluster
from tests.brokers.redis_server import RedisServer
from tests.fix_peer import PeerFactory

#: One that is frozen must not take all of it: the calls have no more.
CONNECT_TIMEOUT = 6.0


def check_failover(frozen: str, alive: str) -> None:
    """Connect to *alive* within the time that one broker may take."""
    with Connection([frozen, alive], connect_timeout=CONNECT_TIMEOUT) as connection:
        connection.session.link(Deadline(CONNECT_TIMEOUT))
        assert connection.connected
        assert connection.as_uri() == Connection(alive).as_uri()


@pytest.mark.full
def test_a_frozen_rabbitmq_in_front(own_rabbitmq: RabbitMQ, amqp_url: str) -> None:
    own_rabbitmq.pause()
    check_failover(own_rabbitmq.url, amqp_url)


def test_a_frozen_redis_in_front(own_redis: RedisServer, redis_url: str) -> None:
    own_redis.pause()
    check_failover(own_redis.url, redis_url)


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_silent_address_of_a_name_with_others(
    amqp_url: str, redis_url: str, peer: PeerFactory, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    parts = Connection({"amqp": amqp_url, "redis": redis_url}[scheme])
    silent = peer(wait_for_end)
    addresses: list[Any] = [silent.address, (parts.hostname, parts.port)]
    found = [(_socket.AF_INET, _socket.SOCK_STREAM, 6, "", each) for each in addresses]
    monkeypatch.setattr(connect_module, "_look_up", lambda *_: found)
    monkeypatch.setattr(connect_module, "_shuffle", lambda addresses: None)
    monkeypatch.setattr(connect_module, "_failed_at", {})
    with parts.clone(hostname="broker.example", connect_timeout=1.0) as connection:
        with pytest.raises(TimeoutError, match="no reply within"):
            connection.session.attempt().result()
        connection.connect_timeout = CONNECT_TIMEOUT
        connection.session.attempt().result()
        assert connection.connected


def wait_for_end(client: socket.socket) -> None:
    """Take what comes, and say nothing."""
    while client.recv(65536):
        pass


@pytest.mark.full
def test_a_frozen_node_of_a_redis_cluster_in_front(own_redis_cluster: RedisCluster) -> None:
    # A replica, so that the cluster itself misses nothing.
    frozen = next(each for each in own_redis_cluster.nodes if not each.is_master)
    alive = own_redis_cluster.masters[0]
    frozen.pause()
    ports = [frozen.port, alive.port]
    check_failover(*(f"redis+cluster://127.0.0.1:{port}/0" for port in ports))
