"""Sentinel: the master is found, and found again after a failover."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.exceptions import RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.messaging import Producer
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisSentinel, RedisServer
from tests.fix_brokers import Brokers
from tests.fix_wires import until
from tests.integration.contract import SOON

#: Seconds for what sentinels need to agree.
LATE = 40.0
OPTIONS = {"master_name": "mymaster"}


class Group:
    """A master, a replica, and three sentinels."""

    def __init__(self, brokers: Brokers) -> None:
        brokers.redis().close()  # skips the test where there is no Redis
        keeper = brokers.keeper
        self.master = RedisServer(keeper)
        replica_of = ("--replicaof", f"127.0.0.1 {self.master.port}")
        self.replica = RedisServer(keeper, replica_of)
        self.sentinels = [RedisSentinel(keeper, self.master.port, 2) for _ in range(3)]
        self._all: list[RedisServer] = [self.master, self.replica, *self.sentinels]
        self.master.start()
        self.replica.start()
        # A sentinel looks for replicas when it begins, and then every 10 s.
        until(lambda: b"state=online" in info(self.master))
        for each in self.sentinels:
            each.start()
        until(self.is_whole, LATE)

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{each.port}/0" for each in self.sentinels)

    def is_whole(self) -> bool:
        """Whether all know of all."""
        for each in self.sentinels:
            state = ask(each, "MASTER", "mymaster")
            if state[b"num-other-sentinels"] != b"2" or state[b"num-slaves"] != b"1":
                return False
        return True

    def close(self) -> None:
        for each in reversed(self._all):
            each.close()


def info(server: RedisServer) -> bytes:
    """What a server says of its replicas."""
    with Connection(server.url) as connection:
        text = connection.connection.commands.call(pack("INFO", "replication"))
    assert isinstance(text, bytes)
    return text


def ask(sentinel: RedisSentinel, *args: str) -> Any:
    """Ask a sentinel through the transport's own way."""
    options = {"master_name": "mymaster"}
    with Connection(f"sentinel://127.0.0.1:{sentinel.port}/0", transport_options=options) as c:
        transport = c.transport
        (address,) = transport.sentinels()
        pipeline, _ = transport.open_sentinel(address, Deadline(5), lambda _: None, lambda _: None)
        try:
            reply = pipeline.call(pack("SENTINEL", *args))
        finally:
            pipeline.close()
    return (
        reply
        if isinstance(reply, dict) or not isinstance(reply, list)
        else dict(zip(reply[::2], reply[1::2], strict=True))
    )


@pytest.fixture
def sentinel_group(brokers: Brokers) -> Iterator[Group]:
    made = Group(brokers)
    yield made
    made.close()


def test_failovers(sentinel_group: Group) -> None:
    got: list[Any] = []
    with (
        Connection(sentinel_group.url, transport_options=OPTIONS) as connection,
        Connection(sentinel_group.url, transport_options=OPTIONS) as sending,
    ):
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=connection
        )
        assert consumer.wait_ready(SOON)
        greenconn.publish("q", "before", connection=sending)
        until(lambda: got == ["before"])
        assert master_of(connection) == sentinel_group.master.port
        # Planned: the old master lives on, and would go on taking messages.
        ask(sentinel_group.sentinels[0], "FAILOVER", "mymaster")
        until(lambda: master_of(connection) == sentinel_group.replica.port, LATE)
        until(lambda: not sending.connected, LATE)
        greenconn.publish("q", "planned", connection=sending, timeout=LATE)
        assert master_of(sending) == sentinel_group.replica.port
        until(lambda: got == ["before", "planned"], LATE)
        # Not planned.
        until(lambda: replicas_of(sentinel_group.sentinels[0]) == b"1", LATE)
        gevent.sleep(2.5)  # the sentinels' own pause between two failovers
        sentinel_group.replica.kill()
        greenconn.publish("q", "killed", connection=sending, timeout=LATE)
        until(lambda: got == ["before", "planned", "killed"], LATE)
        assert master_of(connection) == sentinel_group.master.port
        assert consumer.stop(SOON)


@pytest.mark.full
def test_channel_client_goes_where_its_link_goes(sentinel_group: Group) -> None:
    with Connection(sentinel_group.url, transport_options=OPTIONS) as connection:
        client = connection.default_channel.client
        client.set("place", "before")
        assert client.info("replication")["role"] == "master"
        ask(sentinel_group.sentinels[0], "FAILOVER", "mymaster")
        until(lambda: not connection.connected, LATE)
        with pytest.raises(RecoverableConnectionError):
            client.ping()
        connection.ensure_connection(timeout=LATE)
        assert master_of(connection) == sentinel_group.replica.port
        successor = connection.default_channel.client
        assert successor.get("place") == b"before"
        successor.set("place", "after")
        assert successor.info("replication")["role"] == "master"
        with Connection(sentinel_group.replica.url) as direct:
            assert direct.default_channel.client.get("place") == b"after"


def master_of(connection: Connection) -> Any:
    """The port of the server that a connection is connected to."""
    return connection.connected and connection.connection.transport.server.address.port


def replicas_of(sentinel: RedisSentinel) -> Any:
    return ask(sentinel, "MASTER", "mymaster")[b"num-slaves"]


@pytest.mark.full
def test_what_sentinels_do_not_know(sentinel_group: Group) -> None:
    with (
        Connection(sentinel_group.url) as connection,
        pytest.raises(ValueError, match="master_name"),
    ):
        connection.connect()
    for options, why in (
        ({"master_name": "other"}, "no sentinel names a master 'other'"),
        ({**OPTIONS, "min_other_sentinels": 3}, "knows only 2 others"),
    ):
        connection = Connection(sentinel_group.url, transport_options=options)
        with connection, pytest.raises(RecoverableConnectionError, match=why):
            connection.connect()
    # One that is away is left out.
    sentinel_group.sentinels[0].kill()
    with Connection(sentinel_group.url, transport_options=OPTIONS) as connection:
        Producer(connection).publish("x", routing_key="q")
