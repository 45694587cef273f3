"""Keys that are no queues, and a server that evicts keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import greenconn
from greenconn import Connection, Exchange
from greenconn.exceptions import AccessRefused
from greenconn.transport.redis import server as server_module
from greenconn.transport.redis.options import Keys, RedisOptions
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.redis_clients import Control

RESERVED = [
    *("unacked", "unacked_index", "unacked_mutex", "_kombu.binding.celery"),
    *("_kombu.binding_permanent.celery", "_kombu.binding_deadlines", "greenconn.owners"),
    *("greenconn.queue.q", "greenconn.bound.q"),
]


@pytest.fixture
def at_server(at_server: Control) -> Iterator[Control]:
    """The same, which evicts nothing afterwards."""
    yield at_server
    at_server("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.mark.parametrize("name", RESERVED)
def test_no_queue_has_the_name_of_a_key(
    own_redis: RedisServer, at_server: Control, name: str
) -> None:
    with Connection(own_redis.url) as connection:

        def refused(method: str, *args: Any, **kwargs: Any) -> None:
            channel = connection.channel()
            with pytest.raises(AccessRefused, match="choose another name for the queue"):
                getattr(channel, method)(*args, **kwargs)
            assert not channel.is_open

        refused("queue_declare", name)
        refused("queue_declare", name, passive=True)
        refused("queue_purge", name)
        refused("queue_delete", name)
        refused("basic_get", name)
        refused("basic_consume", name, callback=print)
        refused("queue_bind", name, "amq.direct", "k")
        message = connection.channel().prepare_message("x")
        refused("basic_publish", message, "", name)
        copied = connection.channel().prepare_message("x", headers={"CC": [name]})
        refused("basic_publish", copied, "", "q")
        assert at_server("EXISTS", name) == 0


def test_a_binding_to_a_key_leads_nowhere(own_redis: RedisServer, at_server: Control) -> None:
    at_server("SADD", "_kombu.binding.x", "k\x06\x16\x06\x16unacked")
    with Connection(own_redis.url) as connection:
        connection.Producer(exchange=Exchange("x")).publish("x", routing_key="k")
    assert at_server("EXISTS", "unacked") == 0


def test_a_name_that_only_looks_like_one_is_a_queues(
    own_redis: RedisServer, at_server: Control
) -> None:
    with Connection(own_redis.url) as connection:
        for name in ("unacked.jobs", "greenconn.jobs", "_kombu.jobs"):
            greenconn.publish(name, 1, connection=connection, declare=True)
            assert connection.channel().basic_get(name, no_ack=True) is not None


@pytest.mark.parametrize("option", ["dead_letter_queue", "deadletter_queue"])
def test_no_option_names_a_key(option: str) -> None:
    options: dict[str, Any] = {option: "unacked"}
    with pytest.raises(ValueError, match="choose another name for the queue"):
        Keys(RedisOptions(**options))


@pytest.mark.parametrize(
    ("policy", "what"),
    [("allkeys-lru", "deletes queues with"), ("volatile-ttl", "queues that have x-expires")],
)
def test_a_server_that_evicts_is_named_once(
    own_redis: RedisServer,
    at_server: Control,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    what: str,
) -> None:
    monkeypatch.setattr(server_module, "_warned", set())
    at_server("CONFIG", "SET", "maxmemory-policy", policy)
    for _ in range(3):
        with Connection(own_redis.url) as connection:
            greenconn.publish("q", 1, connection=connection, declare=True)
    until(lambda: caplog.text.count("set maxmemory-policy to noeviction") == 1, SOON)
    assert f"its maxmemory-policy is {policy}" in caplog.text
    assert what in caplog.text


def test_who_may_not_ask_gets_no_answer(
    own_redis: RedisServer, at_server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    at_server("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    at_server("ACL", "SETUSER", "mute", "on", ">x", "~*", "&*", "+@all", "-info")
    try:
        with Connection(own_redis.url.replace("//", "//mute:x@")) as connection:
            greenconn.publish("q", 1, connection=connection, declare=True)
        assert "maxmemory-policy" not in caplog.text
    finally:
        at_server("ACL", "DELUSER", "mute")
