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
from tests.integration.contract import SOON, collecting
from tests.integration.redis_load import Load

pytestmark = pytest.mark.halved

#: Seconds for what sentinels need to agree.
LATE = 40.0
OPTIONS = {"master_name": "mymaster"}


class Group:
    """A master, its replicas, and three sentinels."""

    def __init__(self, brokers: Brokers, replicas: int = 1) -> None:
        brokers.start(RedisServer).close()  # skips the test where there is no Redis
        keeper = brokers.keeper
        self.master = RedisServer(keeper)
        replica_of = ("--replicaof", f"127.0.0.1 {self.master.port}")
        self.replicas = [RedisServer(keeper, replica_of) for _ in range(replicas)]
        self.replica = self.replicas[0]
        self.sentinels = [RedisSentinel(keeper, self.master.port, 2) for _ in range(3)]
        self.servers = [self.master, *self.replicas]
        self.master.start()
        for each in self.replicas:
            each.start()
        # A sentinel looks for replicas when it begins, and then every 10 s.
        until(lambda: info(self.master).count(b"state=online") == replicas)
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
            replicas = b"%d" % len(self.replicas)
            if state[b"num-other-sentinels"] != b"2" or state[b"num-slaves"] != replicas:
                return False
        return True

    def close(self) -> None:
        for each in reversed((*self.servers, *self.sentinels)):
            each.close()

    def fail_over(self, *, is_planned: bool) -> None:
        """Have another server become the master, or kill the one that is it.  May switch."""
        master = self.current()
        assert master is not None
        if is_planned:
            ask(self.sentinels[0], "FAILOVER", "mymaster")
        else:
            master.kill()
        until(lambda: self.current() not in (None, master), LATE)

    def mend(self) -> None:
        """Start what was killed, and wait until all follow the master.  May switch."""
        for each in self.servers:
            if not each.is_running:
                each.start()
        until(self.all_follow, LATE)
        gevent.sleep(2.5)  # the sentinels' own pause between two failovers

    def all_follow(self) -> bool:
        """Return whether the master has all others as replicas.  May switch."""
        master = self.current()
        return master is not None and followers_of(master) == len(self.replicas)

    def named(self) -> set[int]:
        """Return the ports of the masters that the sentinels name.  May switch."""
        return {int(ask(each, "MASTER", "mymaster")[b"port"]) for each in self.sentinels}

    def current(self) -> RedisServer | None:
        """Return the master that the sentinels name, once it is one.  May switch."""
        port = int(ask(self.sentinels[0], "MASTER", "mymaster")[b"port"])
        found = next(each for each in self.servers if each.port == port)
        return found if found.is_running and followers_of(found) is not None else None


def info(server: RedisServer) -> bytes:
    """What a server says of its replicas."""
    with Connection(server.url) as connection:
        text = connection.connection.commands.call(pack("INFO", "replication"))
    assert isinstance(text, bytes)
    return text


def followers_of(server: RedisServer) -> int | None:
    """Return how many replicas a server has; None: it is no master, or ends its connections now."""
    try:
        return info(server).count(b"state=online")
    except RecoverableConnectionError:
        return None


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


@pytest.fixture
def large_sentinel_group(brokers: Brokers) -> Iterator[Group]:
    """A group whose master has two replicas."""
    made = Group(brokers, replicas=2)
    yield made
    made.close()


def test_failovers(sentinel_group: Group) -> None:
    got: list[Any] = []
    with (
        Connection(sentinel_group.url, transport_options=OPTIONS) as connection,
        Connection(sentinel_group.url, transport_options=OPTIONS) as sending,
    ):
        consumer = collecting(connection, "q", got)
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
        # The others learn of it from the first; one that does not yet would name the former master.
        until(lambda: sentinel_group.named() == {sentinel_group.replica.port}, LATE)
        connection.ensure_connection(timeout=LATE)
        assert master_of(connection) == sentinel_group.replica.port
        successor = connection.default_channel.client
        assert successor.get("place") == b"before"
        successor.set("place", "after")
        assert successor.info("replication")["role"] == "master"
        with Connection(sentinel_group.replica.url) as direct:
            assert direct.default_channel.client.get("place") == b"after"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_failovers_under_load_lose_nothing_that_replicas_have(
    large_sentinel_group: Group, unique: str, long: bool
) -> None:
    group = large_sentinel_group
    names = [f"{unique}-{number}" for number in range(20)]
    with Load(group.url, names, replicas=1, **OPTIONS) as load:
        for is_planned in (True, False) * (3 if long else 1):
            load.go_on(500)
            group.fail_over(is_planned=is_planned)
            load.go_on(500)
            group.mend()
        load.finish()


def master_of(connection: Connection) -> Any:
    """The port of the server that a connection is connected to."""
    return connection.connected and connection.connection.transport.server.address.port


def replicas_of(sentinel: RedisSentinel) -> Any:
    return ask(sentinel, "MASTER", "mymaster")[b"num-slaves"]


@pytest.mark.full
def test_a_frozen_sentinel_in_front(sentinel_group: Group) -> None:
    timeout = 6.0  # of which the frozen one must not take all
    frozen = sentinel_group.sentinels[0]
    frozen.pause()
    try:
        with Connection(
            sentinel_group.url, transport_options=OPTIONS, connect_timeout=timeout
        ) as connection:
            connection.session.link(Deadline(timeout))
            assert master_of(connection) == sentinel_group.master.port
    finally:
        frozen.resume()


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
