"""``channel.client``: redis-py over sockets of ours, on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import redis
from gevent import monkey
from gevent.threadpool import ThreadPool

from greenconn import Connection
from greenconn.exceptions import RecoverableConnectionError, WrongHub
from tests.brokers.redis_server import RedisServer
from tests.brokers.tls import CERTS
from tests.fix_tls import TlsFront
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.redis_clients import control

Opened = Callable[..., Any]


@pytest.fixture
def opened(own_redis: RedisServer) -> Iterator[Opened]:
    """Opens channels on a server that is empty, before and after."""
    connections: list[Connection] = []

    def open_channel(**options: Any) -> Any:
        connection = Connection(own_redis.url, transport_options=options)
        connections.append(connection)
        return connection.default_channel

    with control(own_redis.url) as at_server:
        at_server("FLUSHALL")
        yield open_channel
        for connection in connections:
            connection.close()
        at_server("FLUSHALL")


def test_over_tls(opened: Opened, own_redis: RedisServer, tls_front: TlsFront) -> None:
    """Its sockets are encrypted and verified as that of the link; the server wants our certificate."""
    front = tls_front(("127.0.0.1", own_redis.port), client_authority="ca")
    ssl = {
        "ca_certs": str(CERTS / "ca.pem"),
        "certfile": str(CERTS / "client.pem"),
        "keyfile": str(CERTS / "client.key"),
    }
    with Connection(f"rediss://localhost:{front}/0", ssl=ssl) as connection:
        client = connection.default_channel.client
        waiters = [gevent.spawn(client.blpop, f"list-{number}", 9) for number in range(5)]
        until(lambda: client.info("clients")["blocked_clients"] == 5)
        large = b"x" * 3_000_000
        pipe = client.pipeline()
        for number in range(5):
            pipe.rpush(f"list-{number}", large)
        assert pipe.execute() == [1] * 5
        assert [each.get(timeout=SOON)[1] for each in waiters] == [large] * 5
        with client.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe("news")
            assert listener.get_message(timeout=0.1) is None
            until(lambda: client.publish("news", large) == 1)
            got = None
            with gevent.Timeout(SOON):
                while got is None:
                    got = listener.get_message(timeout=1)
            assert got["data"] == large


@pytest.mark.parametrize("prefix", ["", "app:"])
def test_what_programs_use_of_it(opened: Opened, prefix: str) -> None:
    channel = opened(global_keyprefix=prefix)
    channel.queue_declare("jobs")
    for number in range(3):
        channel.basic_publish(channel.prepare_message(str(number)), "", "jobs")
    client = channel.client
    assert isinstance(client, redis.Redis)
    assert channel.client is client
    assert client.llen("jobs") == 3
    with channel.conn_or_acquire() as same:
        assert same.delete("jobs") == 1
    client.mset({"a": 1, "b": 2})
    assert client.mget("a", b"b") == [b"1", b"2"]
    assert client.rename("a", "c")
    pipe = client.pipeline()
    pipe.incr("c").lpush("list", "x", "y").lrange("list", 0, -1)
    assert pipe.execute() == [2, 2, [b"y", b"x"]]
    script = client.register_script("return redis.call('GET', KEYS[1]) .. ARGV[1]")
    assert script(keys=["c"], args=["!"]) == b"2!"

    def raise_it(pipe: Any) -> None:
        value = int(pipe.get("c"))
        pipe.multi()
        pipe.set("c", value + 40)

    assert client.transaction(raise_it, "c") == [True]
    assert client.get("c") == b"42"
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.llen("c")
    with redis.Redis.from_url(channel.connection.client.as_uri(include_password=True)) as plain:
        assert plain.get(f"{prefix}c") == b"42"


def test_it_blocks_one_greenlet_only(opened: Opened) -> None:
    client = opened(global_keyprefix="app:").client
    waiters = [gevent.spawn(client.blpop, ["first", f"list-{number}"], 60) for number in range(5)]
    until(lambda: client.info("clients")["blocked_clients"] == 5)
    for number in range(5):
        client.rpush(f"list-{number}", number)
    found = [each.get(timeout=SOON) for each in waiters]
    assert found == [(f"list-{number}".encode(), str(number).encode()) for number in range(5)]


def test_many_greenlets_share_few_sockets(opened: Opened) -> None:
    channel = opened(max_connections=3, client_name="mine")
    client = channel.client
    greenlets = [gevent.spawn(client.incr, "count") for _ in range(100)]
    gevent.joinall(greenlets, raise_error=True)
    assert client.get("count") == b"100"
    # Three of this client, and the link itself.
    assert [each["name"] for each in client.client_list()].count("mine") == 4


def test_all_sockets_in_use(opened: Opened) -> None:
    client = opened(max_connections=1, socket_timeout=2.0).client
    with client.pubsub() as listener:
        listener.subscribe("news")
        with pytest.raises(redis.ConnectionError, match="raise max_connections"):
            client.ping()
    assert client.ping()


def test_killed_greenlet_leaves_a_sound_client(opened: Opened) -> None:
    client = opened(max_connections=1).client
    waiter = gevent.spawn(client.blpop, "empty", 9)
    gevent.sleep(0.05)
    waiter.kill()
    client.set("a", "b")
    assert [client.get("a") for _ in range(3)] == [b"b"] * 3


def test_subscriptions(opened: Opened) -> None:
    client = opened(global_keyprefix="app:").client
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("news")
        listener.psubscribe("w*")
        assert listener.get_message(timeout=0) is None  # or what is not shown
        until(lambda: client.publish("news", 1) and client.publish("weather", "rain"))
        got: dict[bytes, bytes] = {}
        with gevent.Timeout(SOON):
            while len(got) < 2:
                message = listener.get_message(timeout=1)
                got |= {message["channel"]: message["data"]} if message else {}
    assert got == {b"news": b"1", b"weather": b"rain"}


def test_a_connection_that_the_server_has_closed_is_opened_anew(opened: Opened) -> None:
    channel = opened(client_name="mine")
    client = channel.client
    with redis.Redis.from_url(channel.connection.client.as_uri(include_password=True)) as admin:
        client_id = client.client_id()
        admin.client_kill_filter(_id=str(client_id))
        until(lambda: all(each["id"] != str(client_id) for each in admin.client_list()))
    assert client.ping()
    assert client.client_id() != client_id


def test_it_ends_with_its_connection(opened: Opened) -> None:
    channel = opened()
    client = channel.client
    waiter = gevent.spawn(client.blpop, "empty", 9)
    until(lambda: client.info("clients")["blocked_clients"] == 1)
    channel.connection.collect()
    with pytest.raises(redis.ConnectionError):
        waiter.get(timeout=SOON)
    with pytest.raises(RecoverableConnectionError):
        client.ping()
    with pytest.raises(RecoverableConnectionError):
        _ = channel.client


def test_another_thread_is_refused(opened: Opened) -> None:
    client = opened().client

    def use() -> Any:
        try:
            return client.ping()
        except WrongHub as exc:
            return exc

    pool = ThreadPool(1)
    try:
        assert isinstance(pool.spawn(use).get(timeout=SOON), WrongHub)
    finally:
        pool.kill()


def test_what_cannot_be_says_so(opened: Opened, patched: bool) -> None:
    client = opened(global_keyprefix="app:").client
    with pytest.raises(NotImplementedError, match="global_keyprefix 'app:'"):
        client.keys("*")
    with client.pubsub() as listener, pytest.raises(NotImplementedError, match="greenlet"):
        listener.run_in_thread()
    assert monkey.is_module_patched("time") is patched
    if patched:
        with client.lock("lock", timeout=9):
            assert client.exists("lock")
    else:
        with pytest.raises(NotImplementedError, match="monkey-patched"):
            client.lock("lock")
